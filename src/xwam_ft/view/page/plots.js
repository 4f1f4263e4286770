// Lines over time or steps: what was measured and what was told, with a cursor at the present moment.

import {colour, el, figure, redrawn, sharp, soon} from "./tools.js";

const LEFT = 46, RIGHT = 6, TOP = 6, BOTTOM = 16;

// Round values within a range, each with its label; at least two, for one alone does not tell a scale.
export function ticks(low, high, count) {
  let found = [];
  for (let many = Math.max(1, count); found.length < 2 && many < count + 8; many++) {
    const rough = (high - low) / many, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map(by => by * power).find(one => one >= rough) || 10 * power;
    found = [];
    for (let by = Math.ceil(low / step - 1e-6); by * step <= high + step * 1e-6; by++) found.push([by * step, label(by * step, step)]);
  }
  return found;
}

const power = value => Math.floor(Math.log10(value) + 1e-9);

// As many digits as tell a value from its neighbours.
function label(value, step) {
  const size = Math.abs(value);
  if (size < step * 1e-6) return "0";
  return size >= 1e6 || (size < 1e-3 && step < 1e-4) ? value.toExponential(Math.max(0, power(size) - power(step))) : value.toFixed(Math.max(0, -power(step)));
}

function logLabel(value) { return value >= 1e5 || value < 1e-3 ? Number(value.toPrecision(2)).toExponential() : String(Number(value.toPrecision(2))); }

// `lines`: [{x, y, colour, dots, faint}]; nulls are gaps. Draws axes and lines; returns what turns an x into a pixel.
export function chart(canvas, lines, {log = false, zero = false, cursor = null, unit = "s"} = {}) {
  const sheet = sharp(canvas);
  if (!sheet) return null;
  const {context, width, height} = sheet;
  const scale = log ? Math.log10 : value => value;
  let low = Infinity, high = -Infinity, first = Infinity, last = -Infinity;
  for (const line of lines) {
    line.y.forEach((value, at) => {
      if (value === null || (log && value <= 0)) return;
      low = Math.min(low, value); high = Math.max(high, value);
      first = Math.min(first, line.x[at]); last = Math.max(last, line.x[at]);
    });
  }
  context.font = "10px system-ui, sans-serif";
  context.fillStyle = colour("soft");
  if (low > high) { context.fillText("nothing recorded", LEFT, height / 2); return null; }
  if (zero) low = Math.min(0, low);
  let [bottom, top] = [scale(low), scale(high)];
  const flat = top - bottom <= 1e-9 * Math.abs(top); // what rounding leaves of one value is no range
  const room = flat ? Math.max(Math.abs(top) * 0.05, 1e-3) : (top - bottom) * 0.06;
  bottom -= zero && low === 0 ? 0 : room; top += room;
  if (first === last) { first -= 1; last += 1; }
  const right = width - RIGHT, floor = height - BOTTOM;
  const atY = y => floor - (scale(y) - bottom) / (top - bottom) * (floor - TOP);
  context.strokeStyle = colour("line");
  context.lineWidth = 1;
  context.textAlign = "right"; context.textBaseline = "middle";
  let levels = log ? [] : ticks(bottom, top, height / 28);
  if (log) {
    const within = steps => {
      const found = [];
      for (let power = Math.floor(bottom); power <= top; power++) found.push(...steps.map(by => by * 10 ** power));
      return found.filter(value => Math.log10(value) >= bottom && Math.log10(value) <= top);
    };
    levels = [[1], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 6, 7, 8]].map(within).find(found => found.length > 2) || within([1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9]);
    levels = levels.map(level => [level, logLabel(level)]);
    // In a range too small for round values the ends say what it is.
    if (levels.length < 2) levels = [low, high].map(end => [end, figure(end)]);
  }
  const left = Math.max(LEFT, ...levels.map(([, text]) => context.measureText(text).width + 8)); // no label is cut
  const atX = x => left + (x - first) / (last - first) * (right - left);
  for (const [level, text] of levels) {
    const y = atY(level);
    context.beginPath(); context.moveTo(left, y); context.lineTo(right, y); context.stroke();
    context.fillText(text, left - 5, y);
  }
  context.textBaseline = "alphabetic"; context.textAlign = "center";
  const across = ticks(first, last, width / 80);
  for (const [at, value] of across) {
    const text = value + (at === across[across.length - 1][0] && unit ? ` ${unit}` : ""), half = context.measureText(text).width / 2;
    context.fillText(text, Math.min(atX(at), width - half - 2), height - 4);
  }
  for (const line of lines) {
    context.strokeStyle = context.fillStyle = line.colour;
    context.globalAlpha = line.faint ? 0.35 : 1;
    context.lineWidth = line.faint ? 1 : 1.6;
    context.setLineDash(line.dash || []);
    context.beginPath();
    let pen = false;
    line.y.forEach((value, at) => {
      if (value === null || (log && value <= 0)) { pen = false; return; }
      pen ? context.lineTo(atX(line.x[at]), atY(value)) : context.moveTo(atX(line.x[at]), atY(value));
      pen = true;
    });
    context.stroke();
    context.setLineDash([]);
    if (line.dots || line.y.filter(value => value !== null).length === 1) line.y.forEach((value, at) => {
      if (value === null) return;
      context.beginPath(); context.arc(atX(line.x[at]), atY(value), 2.6, 0, 7); context.fill();
    });
    context.globalAlpha = 1;
  }
  if (cursor !== null) {
    context.strokeStyle = colour("ink");
    context.beginPath(); context.moveTo(atX(cursor), TOP); context.lineTo(atX(cursor), floor); context.stroke();
    for (const line of lines) {
      const at = line.x.indexOf(cursor), value = at < 0 ? null : line.y[at];
      if (value === null || value === undefined || line.faint) continue;
      context.fillStyle = line.colour;
      context.beginPath(); context.arc(atX(cursor), atY(value), 3, 0, 7); context.fill();
    }
  }
  return pixel => first + (pixel - left) / (right - left) * (last - first);
}

// Numbers by slot; slots of a number or two that follow each other share a heading.
function grouped(numbers) {
  const slots = [...new Set(numbers.map(number => number.slot))], groups = [];
  for (const slot of slots) {
    const own = numbers.filter(number => number.slot === slot), before = groups[groups.length - 1];
    if (before && before.small && own.length < 3) {
      before.slots.push(slot);
      before.numbers.push(...own);
    } else groups.push({slots: [slot], numbers: own, small: own.length < 3});
  }
  return groups;
}

function mark(name, words) { return el("span", {}, el("i", {style: `background: var(--${name})`}), words); }

// Small plots of every number of an episode; a click goes to that moment.
export function motionPlots(set, episode, clock) {
  const seconds = Array.from({length: episode.frames}, (_, frame) => frame / set.fps);
  const draws = [], ends = [];
  const body = el("div", {class: "plots"});
  const groups = grouped(set.numbers), told = set.numbers.some(number => number.command !== null);
  body.append(el("div", {class: "group legend"}, mark("state", "states (measured)"), told && mark("command", "commands (what the robot was told)")));
  for (const [group, number] of groups.flatMap(one => one.numbers.map(number => [one, number]))) {
    if (number === group.numbers[0]) {
      const note = [...new Set(group.numbers.map(one => one.note).filter(Boolean))].map(one => ` · ${one}`);
      body.append(el("h2", {class: "group"}, group.slots.join(", "), el("span", {class: "soft"}, ...note)));
    }
    const series = [["command", number.command, episode.commands], ["state", number.state, episode.states]].filter(([, column]) => column !== null);
    const values = el("span", {class: "values"}), canvas = el("canvas", {"aria-label": `${number.slot} ${number.name}`});
    const unit = number.unit ? ` [${number.unit}]` : "";
    const draw = soon(() => {
      const lines = series.map(([name, column, table]) => ({x: seconds, y: table[column], colour: colour(name)}));
      plot.back = chart(canvas, lines, {cursor: seconds[clock.frame]});
      values.replaceChildren(...series.map(([name, column, table]) => el("span", {class: name, title: name}, ` ${figure(table[column][clock.frame])}`)).reverse());
    });
    const plot = el("div", {class: "card plot", "data-number": `${number.slot} ${number.name}`},
      el("div", {class: "title"}, el("b", {}, (group.slots.length > 1 ? `${number.slot} ` : "") + number.name + unit), values), canvas);
    const go = event => {
      const box = canvas.getBoundingClientRect(), at = plot.back && plot.back(event.clientX - box.left);
      if (at === null || at === undefined) return;
      clock.pause(); clock.go(Math.round(at * set.fps));
    };
    canvas.addEventListener("pointerdown", event => { canvas.setPointerCapture(event.pointerId); go(event); });
    canvas.addEventListener("pointermove", event => { if (event.buttons & 1) go(event); });
    body.append(plot);
    draws.push({plot, draw});
    ends.push(redrawn(canvas, draw));
  }
  // Plots out of sight are not drawn: a robot may have fifty numbers.
  const seen = new Set();
  const watcher = new IntersectionObserver(found => found.forEach(one => {
    one.isIntersecting ? seen.add(one.target) : seen.delete(one.target);
    if (one.isIntersecting) draws.find(({plot}) => plot === one.target).draw();
  }), {rootMargin: "100px"});
  draws.forEach(({plot}) => watcher.observe(plot));
  clock.watch(() => draws.forEach(({plot, draw}) => seen.has(plot) && draw()));
  return {element: body, end: () => { watcher.disconnect(); ends.forEach(end => end()); }};
}
