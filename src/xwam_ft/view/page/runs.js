// A run: how it learns, and what it imagined at each look. Folders of results: what `imagine` and `evaluate` wrote.

import {chart} from "./plots.js";
import {colour, el, redrawn} from "./tools.js";

const STYLES = {
  training: {colour: "state", faint: true}, "training, smoothed": {colour: "state"}, "held out": {colour: "held", dots: true},
  policy: {colour: "state", dots: true}, "mean action": {colour: "warning", dash: [6, 4]}, "hold still": {colour: "soft", dash: [2, 3]},
};

// A film with its pictures; the browser's own controls seek it.
export function film(found, title) {
  const video = found.film && el("video", {src: found.film, controls: true, loop: true, muted: true, playsinline: true, preload: "auto", "aria-label": `${title}: recorded and imagined`});
  if (video) video.muted = true;
  return el("div", {class: "film"},
    video || el("p", {class: "empty"}, "no film of imagined pictures lies here"),
    found.sheet && el("details", {}, el("summary", {}, "as pictures"), el("img", {src: found.sheet, alt: "recorded and imagined pictures"})),
    found.cloud && el("details", {}, el("summary", {}, "point clouds"), el("img", {src: found.cloud, alt: "imagined and recorded point clouds"})),
    found.scores.length ? el("table", {}, el("tr", {}, ["score", "", "imagined", "first picture repeated"].map(head => el("th", {}, head))),
      found.scores.map(row => el("tr", {}, row.map((cell, at) => el("td", {class: at > 1 ? "number" : ""}, cell))))) : "");
}

export function runPage(run) {
  const ends = [];
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
      place.replaceChildren(el("p", {class: "soft"}, `step ${look.step}, held-out episode ${look.episode}: ${look.instruction}`), film(look, `step ${look.step}`));
      for (const button of steps.children) button.setAttribute("aria-pressed", String(Number(button.dataset.step) === look.step));
    };
    const steps = el("div", {class: "row"}, run.looks.map(look => el("button", {"data-step": look.step, onclick: () => show(look)}, `step ${look.step}`)));
    body.append(steps, place);
    show(run.looks[0]);
  }
  return {element: body, close: () => ends.forEach(end => end())};
}

export function resultPage(found) {
  const head = [found.bundle && `by ${found.bundle}`, found.episode !== null && found.episode !== undefined && `episode ${found.episode}`, found.instruction, !found.trained && "untrained backbone"].filter(Boolean).join(" · ");
  return {
    element: el("div", {class: "page"},
      el("div", {class: "head"}, el("h1", {}, found.name), el("span", {class: "soft"}, head), found.report && el("a", {href: found.report, target: "_blank"}, "report")),
      found.film && el("div", {class: "card"}, film(found, found.name)),
      found.films.map(source => el("div", {class: "card film"}, el("p", {class: "soft"}, source.split("/").slice(3).join("/")), el("video", {src: source, controls: true, muted: true, playsinline: true, preload: "auto"}))),
      !found.film && !found.films.length && el("p", {class: "soft"}, "this folder holds numbers and no film; the report has them")),
    close: () => {},
  };
}

export function bundlePage(bundle) {
  return {
    element: el("div", {class: "page"},
      el("div", {class: "head"}, el("h1", {}, bundle.name), el("span", {class: "soft"}, bundle.folder)),
      bundle.picture ? el("div", {class: "card film"}, el("h2", {}, "A held-out clip, recorded and imagined"), el("img", {src: bundle.picture, alt: "recorded and imagined pictures of a held-out clip"})) : el("p", {class: "soft"}, "this bundle has no picture of a held-out clip"),
      el("section", {class: "card"}, el("h2", {}, "Its card"), bundle.card ? el("pre", {}, bundle.card) : el("p", {class: "soft"}, "README.md is not there"))),
    close: () => {},
  };
}
