// Recorded beside imagined, of a clip that begins at the present moment.

import {Clock, transport} from "./clock.js";
import {chart} from "./plots.js";
import {Depth} from "./tiles.js";
import {ask, colour, el, figure, part, redrawn} from "./tools.js";

const SCORES = {psnr: ["PSNR", "dB"], ssim: ["SSIM", ""], abs_rel: ["depth AbsRel", ""], delta1: ["depth within 25 %", ""]};

export class Imagine {
  constructor(view, set, episode, clock) {
    Object.assign(this, {view, set, episode, clock});
    this.button = el("button", {id: "imagine", onclick: () => this.begin(), disabled: !view.imagines}, "Imagine from this moment");
    this.bar = el("progress", {hidden: true});
    this.told = el("span", {class: "soft", id: "imagining"}, view.imagines ? `by ${view.policy}` : view.why_no_imagining);
    this.body = el("div", {class: "dream"});
    this.element = el("section", {class: "card dream"}, el("div", {class: "row"}, el("h2", {}, "Imagined"), this.button, this.bar, this.told), this.body);
  }

  async begin() {
    const {starts} = this.episode;
    if (!starts.length) { this.told.textContent = "this episode is shorter than a clip"; return; }
    const start = starts.reduce((best, one) => Math.abs(one - this.clock.frame) < Math.abs(best - this.clock.frame) ? one : best);
    this.clock.pause();
    this.button.disabled = true;
    this.bar.hidden = false;
    try {
      let dream = await ask("api/imagine", {set: this.set.token, episode: this.episode.number, start});
      while (dream.phase !== "done" && dream.phase !== "failed") {
        await new Promise(later => setTimeout(later, 250));
        if (this.ended) return; // another episode was chosen
        dream = await ask(`api/imagine/${dream.number}`);
        this.progress(dream);
      }
      if (dream.phase === "failed") throw new Error(dream.error);
      this.show(dream);
    } catch (error) {
      this.told.textContent = error.message;
    } finally {
      this.bar.hidden = true;
      this.button.disabled = false;
    }
  }

  progress(dream) {
    if (dream.total) { this.bar.max = dream.total; this.bar.value = dream.done; } else this.bar.removeAttribute("value");
    const left = dream.done > 1 && dream.done < dream.total ? `, step ${dream.done} of ${dream.total}` : dream.done === dream.total && dream.total ? ", decoding" : "";
    this.told.textContent = `${dream.phase}${left} · ${dream.seconds.toFixed(0)} s`;
  }

  show(dream) {
    const {set} = this, step = dream.frames.length > 1 ? dream.frames[1] - dream.frames[0] : 1;
    const clock = new Clock(dream.frames.length, set.fps / step);
    const caption = dream.trained ? null : "untrained backbone";
    const small = set.size[1] < 320 ? " small" : "", shape = `aspect-ratio: ${set.size[1]} / ${set.size[0]}`;
    const pictures = [], depths = [];
    const picture = (which, camera) => {
      const image = el("img", {alt: `${which}, ${camera}`, "data-which": which, "data-of": camera});
      pictures.push(frame => { image.src = `imagined/${dream.number}/${which}/${part(camera)}/${frame}.png`; });
      return el("div", {}, el("div", {class: "name"}, which), el("div", {class: "screen" + small, style: shape}, image, which === "imagined" && caption && el("div", {class: "caption"}, caption)));
    };
    const depth = (which, camera) => {
      const made = new Depth(this.view, set, camera, frame => `imagined/${dream.number}/${which}/${part(camera)}/${frame}.bin`, clock);
      depths.push(made);
      return made.element;
    };
    const whiches = ["recorded", "imagined"];
    this.body.replaceChildren(
      el("div", {class: "tiles"}, set.cameras.map(({name}) => el("div", {class: "tile"}, el("div", {class: "name"}, name),
        el("div", {class: "pair"}, whiches.map(which => picture(which, name)), dream.depth ? whiches.map(which => depth(which, name)) : "")))),
      transport(clock, [], () => {}),
      this.scores(dream),
      this.plots(dream, clock, step));
    clock.watch(frame => { pictures.forEach(show => show(frame)); depths.forEach(one => one.show()); this.clock.pause(); this.clock.go(dream.frames[frame]); });
    clock.go(0);
    this.told.textContent = `frames ${dream.frames[0]} to ${dream.frames[dream.frames.length - 1]}, in ${dream.seconds.toFixed(1)} s, by ${this.view.policy}; pictures are cropped as the model sees them`;
  }

  scores(dream) {
    const rows = Object.entries(dream.scores || {}).filter(([name]) => SCORES[name]);
    return el("table", {}, el("tr", {}, el("th", {}, "score"), el("th", {}, "imagined"), el("th", {}, "first picture repeated")),
      rows.map(([name, row]) => el("tr", {}, el("td", {}, SCORES[name].filter(Boolean).join(", ")), el("td", {class: "number"}, figure(row.imagined)), el("td", {class: "number"}, figure(row.repeat_first_frame)))));
  }

  // States that were recorded, and those the model believes it will be in.
  plots(dream, clock, step) {
    const seconds = dream.frames.map(frame => frame / this.set.fps);
    return el("div", {class: "plots"}, el("div", {class: "group legend"}, el("span", {}, el("i", {style: "background: var(--state)"}), "recorded states"), el("span", {}, el("i", {style: "background: var(--command)"}), "imagined states")),
      this.set.numbers.filter(number => number.state !== null).map(number => {
        const canvas = el("canvas"), lines = [["command", dream.imagined_states], ["state", dream.states]];
        const draw = () => chart(canvas, lines.map(([name, table]) => ({x: seconds, y: table[number.state], colour: colour(name), dots: true})), {cursor: seconds[clock.frame]});
        clock.watch(draw);
        redrawn(canvas, draw);
        return el("div", {class: "card plot"}, el("div", {class: "title"}, el("b", {}, `${number.slot} ${number.name}${number.unit ? ` [${number.unit}]` : ""}`)), canvas);
      }));
  }
}
