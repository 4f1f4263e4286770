// A run: how it learns, and what it imagined at each look. Folders of results: what `imagine` and `evaluate` wrote.

import {Clock, pressed, transport} from "./clock.js";
import {chart} from "./plots.js";
import {Film} from "./tiles.js";
import {colour, el, redrawn} from "./tools.js";

const STYLES = {
  training: {colour: "state", faint: true}, "training, smoothed": {colour: "state"}, "held out": {colour: "held", dots: true},
  policy: {colour: "state", dots: true}, "mean action": {colour: "warning", dash: [6, 4]}, "hold still": {colour: "soft", dash: [2, 3]},
};

// Films that are stepped frame by frame; the keys move the first of them.
class Films {
  constructor() {
    this.shown = [];
    this.keys = event => this.shown.length && pressed(event, this.shown[0].clock);
    document.addEventListener("keydown", this.keys);
  }

  player(address, name, {size, fps, frames, why}) {
    if (why) return el("p", {class: "empty"}, why);
    const clock = new Clock(frames, fps), [height, width] = size;
    const made = new Film({name, size, fps, segments: [{first: 0, frames}], film: () => address, picture: null, why: null}, clock);
    made.element.style.maxWidth = `min(100%, calc(70vh * ${width} / ${height}), ${Math.max(width, 480)}px)`;
    this.shown.push({clock, made});
    clock.watch(() => made.show());
    const bar = transport(clock, [], () => {});
    clock.tell();
    return el("div", {class: "player"}, made.element, bar);
  }

  clear() { this.shown.splice(0).forEach(({clock, made}) => { clock.pause(); made.end(); }); }

  close() { this.clear(); document.removeEventListener("keydown", this.keys); }
}

// The film of a look or a folder of results, its pictures and its scores.
function shownFilm(films, found, title) {
  return el("div", {class: "film"},
    found.film ? films.player(found.film.address, title, found.film) : el("p", {class: "empty"}, "no film of imagined pictures lies here"),
    found.sheet && el("details", {}, el("summary", {}, "as pictures"), el("img", {src: found.sheet, alt: "recorded and imagined pictures"})),
    found.cloud && el("details", {}, el("summary", {}, "point clouds"), el("img", {src: found.cloud, alt: "imagined and recorded point clouds"})),
    found.scores.length ? el("table", {}, el("tr", {}, ["score", "", "imagined", "first picture repeated"].map(head => el("th", {}, head))),
      found.scores.map(row => el("tr", {}, row.map((cell, at) => el("td", {class: at > 1 ? "number" : ""}, cell))))) : "");
}

export function runPage(run) {
  const ends = [], films = new Films();
  const state = `step ${run.step} of ${run.max_steps}, ${run.state}`;
  const report = run.report ? el("a", {href: run.report, target: "_blank"}, "report.html") : el("span", {class: "soft"}, "report.html is not written yet");
  const body = el("div", {class: "page"},
    el("div", {class: "head"}, el("h1", {}, run.name), el("span", {class: "soft", id: "state"}, state), report, el("span", {class: "soft"}, run.folder)),
    run.trouble && el("p", {class: "error"}, run.trouble));
  body.append(el("h2", {}, "Curves"));
  if (!run.curves.length) body.append(el("p", {class: "empty"}, "nothing is logged yet"));
  body.append(el("div", {class: "plots"}, run.curves.map(curve => {
    const canvas = el("canvas", {"aria-label": curve.title}), styled = curve.lines.filter(line => line.x.length).map(line => ({...line, ...STYLES[line.name]}));
    ends.push(redrawn(canvas, () => chart(canvas, styled.map(line => ({...line, colour: colour(line.colour)})), {log: curve.log, zero: !curve.log, unit: "steps"})));
    return el("div", {class: "card plot tall"}, el("div", {class: "title"}, el("b", {}, curve.title + (curve.unit ? ` [${curve.unit}]` : ""))), canvas,
      el("div", {class: "legend"}, styled.map(line => el("span", {}, el("i", {style: `background: var(--${line.colour}); opacity: ${line.faint ? 0.4 : 1}`}), line.name))));
  })));
  body.append(el("h2", {}, "Looks: recorded and imagined"));
  if (!run.looks.length) body.append(el("p", {class: "empty"}, "nothing was imagined yet (`validation.imagine_every_steps` and the last step)"));
  else {
    const place = el("div", {class: "card"});
    const show = look => {
      films.clear();
      place.replaceChildren(el("p", {class: "soft"}, `step ${look.step}, held-out episode ${look.episode}: ${look.instruction}`), shownFilm(films, look, `step ${look.step}`));
      for (const button of steps.children) button.setAttribute("aria-pressed", String(Number(button.dataset.step) === look.step));
    };
    const steps = el("div", {class: "row"}, run.looks.map(look => el("button", {"data-step": look.step, onclick: () => show(look)}, `step ${look.step}`)));
    body.append(steps, place);
    show(run.looks[0]);
  }
  return {element: body, close: () => { films.close(); ends.forEach(end => end()); }};
}

export function resultPage(found) {
  const films = new Films();
  const head = [found.bundle && `by ${found.bundle}`, found.episode !== null && found.episode !== undefined && `episode ${found.episode}`, found.instruction, !found.trained && "untrained backbone"].filter(Boolean).join(" · ");
  return {
    element: el("div", {class: "page"},
      el("div", {class: "head"}, el("h1", {}, found.name), el("span", {class: "soft"}, head), found.report && el("a", {href: found.report, target: "_blank"}, "report")),
      found.film && el("div", {class: "card"}, shownFilm(films, found, found.name)),
      found.films.map(one => el("div", {class: "card film"}, el("p", {class: "soft"}, one.name), films.player(one.address, one.name, one))),
      !found.film && !found.films.length && el("p", {class: "soft"}, "this folder holds numbers and no film; the report has them")),
    close: () => films.close(),
  };
}

export function bundlePage(bundle, view) {
  return {
    element: el("div", {class: "page"},
      el("div", {class: "head"}, el("h1", {}, bundle.name), el("span", {class: "soft"}, bundle.folder)),
      el("p", {}, view.imagines ? "In the tab of the episodes it imagines what follows any moment." : view.why_no_imagining),
      bundle.picture ? el("div", {class: "card film"}, el("h2", {}, "A held-out clip, recorded and imagined"), el("img", {src: bundle.picture, alt: "recorded and imagined pictures of a held-out clip"})) : el("p", {class: "soft"}, "this bundle has no picture of a held-out clip"),
      el("section", {class: "card"}, el("h2", {}, "Its card"), bundle.card ? el("pre", {}, bundle.card) : el("p", {class: "soft"}, "README.md is not there"))),
    close: () => {},
  };
}
