// A shard set: the list of its episodes with filters, and the chosen one with all that is known of it.

import {Clock, pressed, transport} from "./clock.js";
import {Imagine} from "./imagine.js";
import {motionPlots} from "./plots.js";
import {Space} from "./space.js";
import {Depth, Film} from "./tiles.js";
import {ask, el, part} from "./tools.js";

const SIGNS = {error: "✕", warning: "▲", note: "●"};
const SPLITS = {train: "train", held_out: "held out"};

export class SetPage {
  constructor(view, set, hash) {
    Object.assign(this, {view, set, hash, camera: set.cameras.some(one => one.name === hash.get("camera")) ? hash.get("camera") : "all", ends: []});
    this.by = new Map();
    for (const found of set.findings) this.by.set(found.episode, [...(this.by.get(found.episode) || []), found]);
    this.chosen = el("section", {class: "chosen"});
    this.element = el("div", {class: "set"}, this.list(), this.chosen);
    this.keys = event => this.key(event);
    document.addEventListener("keydown", this.keys);
    this.filter();
    const wanted = Number(hash.get("episode")), known = set.episodes.some(one => hash.has("episode") && one.number === wanted);
    if (set.episodes.length) this.open(known ? wanted : set.episodes[0].number, Number(hash.get("frame")) || 0);
    else this.chosen.append(el("p", {class: "empty"}, "This set holds no episode."));
  }

  list() {
    const {set} = this, checks = [...new Set(set.findings.map(found => found.check))].sort();
    this.words = el("input", {type: "search", id: "words", placeholder: "Filter by instruction or number", "aria-label": "Filter by instruction or number", oninput: () => this.filter()});
    this.finding = el("select", {id: "finding", "aria-label": "Filter by finding", onchange: () => this.filter()},
      el("option", {value: ""}, "with and without findings"),
      el("option", {value: "warning"}, "with warnings or errors"),
      el("option", {value: "-"}, "without findings"),
      checks.map(check => el("option", {value: `=${check}`}, `finding: ${check}`)));
    this.split = el("select", {id: "split", "aria-label": "Filter by split", onchange: () => this.filter()},
      el("option", {value: ""}, "train and held out"), el("option", {value: "train"}, "train"), el("option", {value: "held_out"}, "held out"));
    this.count = el("span", {class: "soft", id: "count"});
    this.episodes = el("ul", {class: "episodes"});
    const rejected = set.rejected.length ? el("details", {}, el("summary", {}, `${set.rejected.length} recordings were rejected`),
      set.rejected.map(row => el("p", {}, `${row.dataset} episode ${row.dataset_episode}: ${row.reason}`))) : null;
    return el("aside", {class: "list"},
      el("div", {class: "filters"}, el("div", {class: "row"}, el("h2", {}, set.name), this.count, set.report && el("a", {href: set.report, target: "_blank"}, "report")),
        this.words, this.finding, this.split, set.why_no_findings && el("small", {class: "soft"}, set.why_no_findings)),
      this.episodes, rejected);
  }

  filter() {
    const words = this.words.value.trim().toLowerCase(), finding = this.finding.value;
    this.shown = this.set.episodes.filter(one => {
      const found = this.by.get(one.number) || [];
      const said = [one.instruction, ...one.wordings, one.source, String(one.number)].join("\n").toLowerCase();
      if (words && !(/^\d+$/.test(words) ? String(one.number) === words : said.includes(words))) return false;
      if (this.split.value && one.split !== this.split.value) return false;
      if (finding === "-") return !found.length;
      if (finding === "warning") return found.some(row => row.severity !== "note");
      return !finding || found.some(row => `=${row.check}` === finding);
    });
    this.count.textContent = this.shown.length === this.set.episodes.length ? `${this.shown.length} episodes` : `${this.shown.length} of ${this.set.episodes.length} episodes`;
    this.episodes.replaceChildren(...this.shown.map(one => this.row(one)));
    if (!this.shown.length) this.episodes.append(el("li", {class: "empty"}, "No episode is like that."));
  }

  row(one) {
    const found = this.by.get(one.number) || [];
    const dots = Object.keys(SIGNS).map(severity => [severity, found.filter(row => row.severity === severity).length]).filter(([, count]) => count);
    const success = one.success === null ? "" : one.success ? " · success" : " · no success";
    return el("li", {}, el("button", {"data-episode": one.number, "aria-selected": String(one.number === this.number), onclick: () => this.open(one.number)},
      el("span", {class: "number"}, String(one.number)), el("span", {class: "words"}, one.instruction || "(no instruction)"),
      el("span", {class: "dots"}, dots.map(([severity, count]) => el("span", {class: severity, title: `${count} ${severity}${count > 1 ? "s" : ""}`}, ` ${SIGNS[severity]}${count}`))),
      el("small", {}, `${one.seconds.toFixed(1)} s · `, el("span", {class: one.split === "held_out" ? "held" : ""}, SPLITS[one.split]), success)));
  }

  close() {
    document.removeEventListener("keydown", this.keys);
    this.clear();
  }

  clear() {
    if (this.clock) this.clock.pause();
    this.ends.splice(0).forEach(end => end());
  }

  async open(number, frame = 0) {
    this.clear();
    this.clock = null;
    this.number = number;
    for (const button of this.episodes.querySelectorAll("button")) button.setAttribute("aria-selected", String(Number(button.dataset.episode) === number));
    let episode;
    try {
      episode = await ask(`api/episode/${this.set.token}/${number}`);
    } catch (error) {
      if (this.number === number) this.chosen.replaceChildren(el("p", {class: "empty error"}, error.message));
      return;
    }
    if (this.number !== number) return; // another was chosen meanwhile
    this.episode = episode;
    this.clock = new Clock(episode.frames, this.set.fps);
    this.clock.exact = Math.max(0, Math.min(episode.frames - 1, frame));
    this.build();
  }

  build() {
    const {set, episode, clock} = this, told = set.episodes.find(one => one.number === this.number), found = this.by.get(this.number) || [];
    const marks = found.filter(row => Number.isInteger(row.frame) && row.frame < episode.frames);
    this.tiles = el("div", {class: "tiles"});
    this.cameras = el("div", {class: "row", role: "group", "aria-label": "Camera", hidden: set.cameras.length < 2}, ["all", ...set.cameras.map(one => one.name)].map(name =>
      el("button", {"data-choose": name, onclick: () => this.choose(name)}, name === "all" ? "all cameras" : name)));
    const space = new Space(set, episode, clock), plots = motionPlots(set, episode, clock);
    const imagine = new Imagine(this.view, set, episode, clock);
    this.ends.push(space.end, plots.end, () => { imagine.ended = true; });
    this.chosen.replaceChildren(
      el("div", {class: "head"}, el("h1", {}, `${this.number}: ${told.instruction || "(no instruction)"}`),
        el("span", {class: "soft"}, `${told.source} · ${SPLITS[told.split]} · ${episode.frames} frames at ${set.fps} a second${episode.depth ? ` · depth: ${set.depth.source}` : ""}`)),
      told.wordings.length > 1 && el("p", {class: "soft"}, `also told as: ${told.wordings.slice(1).join("; ")}`) || "",
      el("div", {class: "watch"},
        el("div", {class: "stack"}, this.cameras, this.tiles, set.depth.kind === "none" || !episode.depth ? el("p", {class: "soft", id: "why_no_depth"}, "no depth: this set was prepared without (`--depth none`)") : "", this.findings(found)),
        el("div", {class: "stack"}, space.element)),
      transport(clock, marks, row => this.jump(row)),
      imagine.element,
      plots.element,
      el("p", {class: "keys"}, el("kbd", {}, "space"), " plays, ", el("kbd", {}, "←"), " ", el("kbd", {}, "→"), " a frame (with ", el("kbd", {}, "Shift"), " ten), ", el("kbd", {}, "↑"), " ", el("kbd", {}, "↓"), " episodes, ", el("kbd", {}, "Home"), " ", el("kbd", {}, "End")));
    clock.watch((now, playing) => { if (!playing) this.remember(now); });
    this.choose(this.camera);
    clock.tell();
  }

  findings(found) {
    if (!found.length) return el("section", {class: "card"}, el("h2", {}, "Findings"), el("p", {class: "soft"}, this.set.why_no_findings || "prepare found nothing to say of this episode"));
    return el("section", {class: "card"}, el("h2", {}, "Findings of prepare"), el("ul", {class: "findings"}, found.map(row => el("li", {},
      el("span", {class: row.severity}, `${SIGNS[row.severity]} ${row.severity} ${row.check}`), `: ${row.text} `,
      Number.isInteger(row.frame) ? el("button", {onclick: () => this.jump(row)}, `frame ${row.frame}`) : "",
      row.fix ? el("div", {class: "fix"}, row.fix) : ""))));
  }

  jump(row) {
    this.clock.pause();
    if (row.camera && this.camera !== "all" && this.camera !== row.camera) this.choose(row.camera);
    this.clock.go(row.frame);
  }

  // One camera large, or all of them.
  choose(name) {
    const {set, episode, clock} = this;
    this.camera = name;
    (this.films || []).forEach(film => film.end());
    for (const button of this.cameras.children) button.setAttribute("aria-pressed", String(button.dataset.choose === name));
    const shown = set.cameras.filter(one => name === "all" || one.name === name);
    this.films = shown.map(({name}) => new Film({
      name, size: set.size, fps: set.fps, segments: episode.segments, why: episode.why_no_film[name],
      film: segment => `film/${set.token}/${part(segment.key)}/${part(name)}.mp4`,
      picture: frame => `picture/${set.token}/${episode.number}/${frame}/${part(name)}.png`,
    }, clock));
    const depths = episode.depth ? shown.map(one => new Depth(this.view, set, one.name, frame => `depth/${set.token}/${episode.number}/${frame}/${part(one.name)}.bin`, clock)) : [];
    this.tiles.className = shown.length > 1 ? "tiles" : "tiles one";
    this.tiles.replaceChildren(...shown.map((one, at) => el("div", {class: "tile"},
      el("div", {class: "name"}, one.name, el("span", {class: "soft", title: one.lacks ? `not in space: it lacks ${one.lacks}` : ""}, one.kind + (one.lacks ? ", not calibrated" : ""))),
      el("div", {class: "pair"}, this.films[at].element, depths[at] ? depths[at].element : ""))));
    this.parts = [...this.films, ...depths];
    if (!this.follows || this.follows !== clock) clock.watch(() => this.parts.forEach(one => one.show()));
    this.follows = clock;
    this.ends = this.ends.filter(end => end !== this.endFilms);
    this.endFilms = () => this.films.forEach(film => film.end());
    this.ends.push(this.endFilms);
    this.parts.forEach(one => one.show());
    this.remember(clock.frame);
  }

  remember(frame) {
    this.hash.set("set", this.set.token);
    this.hash.set("episode", this.number);
    this.hash.set("frame", frame);
    this.hash.set("camera", this.camera);
    clearTimeout(this.noting); // browsers refuse to note more than some in a second
    this.noting = setTimeout(() => history.replaceState(null, "", `#${this.hash}`), 200);
  }

  key(event) {
    const place = this.shown.findIndex(one => one.number === this.number);
    pressed(event, this.clock, {
      ArrowUp: () => place > 0 && this.open(this.shown[place - 1].number),
      ArrowDown: () => place < this.shown.length - 1 && this.open(this.shown[place + 1].number),
    });
  }
}
