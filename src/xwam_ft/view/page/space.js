// The space around the robot, turned with the mouse: paths, the present moment, cameras, and what they see as points.

import {bytes, colour, el, redrawn, sharp, soon} from "./tools.js";

const AXES = [["#e0483d", 0], ["#3fa34d", 1], ["#3f7fe0", 2]];

export class Space {
  constructor(set, episode, clock) {
    Object.assign(this, {set, episode, clock, turn: -0.9, tilt: 0.5, zoom: 1, pan: [0, 0], points: null, wanted: null});
    this.paths = set.poses.flatMap(pose => ["command", "state"].filter(what => pose[what] !== null).map(what => {
      const table = what === "state" ? episode.states : episode.commands, at = pose[what];
      return {what, slot: pose.slot, columns: [0, 1, 2, 3, 4, 5, 6].map(by => table[at + by])};
    }));
    this.canvas = el("canvas", {id: "space", tabindex: 0, "aria-label": "Paths of the end-effectors in space; drag to turn"});
    this.draw = soon(() => this.drawNow());
    this.show = el("input", {type: "checkbox", id: "points", checked: !set.why_no_points && episode.depth, disabled: !!set.why_no_points || !episode.depth, onchange: () => { this.points = null; this.moment(); }});
    const why = set.why_no_points || (episode.depth ? "" : "no points: this episode has no depth");
    const frame = set.poses.length && set.poses[0].frame ? `${set.poses[0].frame} frame, ` : "";
    this.element = el("section", {class: "card space"}, this.canvas,
      el("div", {class: "legend"},
        this.paths.length > 0 && el("span", {}, el("i", {style: "background: var(--state)"}), "states"),
        this.paths.some(path => path.what === "command") && el("span", {}, el("i", {style: "background: var(--command)"}), "commands"),
        el("label", {title: why}, this.show, " points of this moment"),
        el("span", {}, `${frame}metres · drag turns, Shift drag moves, wheel zooms`)),
      why && el("p", {class: "soft"}, why),
      !this.paths.length && el("p", {class: "soft", id: "why_no_path"}, "no path: no slot of this set is the pose of an end-effector (an embodiment file can make poses from joints, through a URDF)"));
    this.share = this.show.checked ? 0.36 : 0.5; // of the sheet, that the path takes: points show more around it
    this.fit();
    this.canvas.addEventListener("pointerdown", event => this.canvas.setPointerCapture(event.pointerId));
    this.canvas.addEventListener("pointermove", event => this.dragged(event));
    this.canvas.addEventListener("wheel", event => { event.preventDefault(); this.zoom *= Math.exp(-event.deltaY / 600); this.draw(); }, {passive: false});
    this.canvas.addEventListener("dblclick", () => { Object.assign(this, {turn: -0.9, tilt: 0.5, zoom: 1, pan: [0, 0]}); this.draw(); });
    this.end = redrawn(this.canvas, this.draw);
    clock.watch(() => this.moment());
  }

  // The middle and the size of what is looked at: the paths, or the cameras where there is none.
  fit() {
    const all = this.paths.flatMap(({columns}) => columns[0].map((x, at) => [x, columns[1][at], columns[2][at]])).filter(point => point.every(value => value !== null));
    if (!all.length) for (const {poses} of Object.values(this.episode.cameras)) for (const pose of poses) all.push([pose[3], pose[7], pose[11]], [0, 0, 0]);
    const ends = [0, 1, 2].map(axis => all.reduce(([low, high], point) => [Math.min(low, point[axis]), Math.max(high, point[axis])], [Infinity, -Infinity]));
    this.middle = ends.map(([low, high]) => low > high ? 0 : (low + high) / 2);
    this.size = Math.max(0.15, ...ends.map(([low, high]) => low > high ? 1 : high - low));
    this.floor = ends[2][0] > ends[2][1] ? 0 : ends[2][0] - 0.1 * this.size;
  }

  dragged(event) {
    if (!(event.buttons & 1)) return;
    if (event.shiftKey) this.pan = [this.pan[0] + event.movementX, this.pan[1] + event.movementY];
    else {
      this.turn -= event.movementX / 120;
      this.tilt = Math.max(-1.55, Math.min(1.55, this.tilt + event.movementY / 120));
    }
    this.draw();
  }

  moment() {
    this.draw();
    if (!this.show.checked) return;
    this.wanted = this.clock.frame;
    if (!this.loading) this.load();
  }

  async load() {
    this.loading = true;
    let done = null;
    while (this.wanted !== done) {
      done = this.wanted;
      try {
        this.points = await bytes(`points/${this.set.token}/${this.episode.number}/${done}.bin`);
        this.element.dataset.points = this.points.byteLength / 16;
      } catch (error) {
        this.element.append(el("p", {class: "soft"}, error.message));
        this.show.checked = false;
      }
      this.draw();
    }
    this.loading = false;
  }

  // Orthographic: lengths can be compared everywhere. Returns [right, down, depth] in CSS pixels.
  lens(width, height) {
    const [ct, st, cp, sp] = [Math.cos(this.turn), Math.sin(this.turn), Math.cos(this.tilt), Math.sin(this.tilt)];
    const scale = this.share * Math.min(width, height) / this.size * this.zoom, [mx, my, mz] = this.middle;
    const [ox, oy] = [width / 2 + this.pan[0], height / 2 + this.pan[1]];
    return (x, y, z) => {
      const a = x - mx, b = y - my, c = z - mz, forth = -a * st + b * ct;
      return [ox + scale * (a * ct + b * st), oy - scale * (c * cp + forth * sp), forth * cp - c * sp];
    };
  }

  drawNow() {
    const sheet = sharp(this.canvas);
    if (!sheet) return;
    const {context, width, height} = sheet, at = this.lens(width, height), frame = this.clock.frame;
    if (this.points && this.show.checked) this.drawPoints(sheet, at);
    context.globalCompositeOperation = "destination-over"; // below the points
    this.drawFloor(context, at);
    context.globalCompositeOperation = "source-over";
    this.triad(context, at, [0, 0, 0], [[1, 0, 0], [0, 1, 0], [0, 0, 1]], this.size * 0.18, true);
    for (const {corners, poses} of Object.values(this.episode.cameras)) this.drawCamera(context, at, corners, poses[Math.min(frame, poses.length - 1)]);
    for (const path of this.paths) this.drawPath(context, at, path, frame);
  }

  line(context, at, points, stroke, width = 1, alpha = 1) {
    context.strokeStyle = stroke; context.lineWidth = width; context.globalAlpha = alpha;
    context.beginPath();
    let pen = false;
    for (const point of points) {
      if (point.some(value => value === null)) { pen = false; continue; }
      const [x, y] = at(...point);
      pen ? context.lineTo(x, y) : context.moveTo(x, y);
      pen = true;
    }
    context.stroke();
    context.globalAlpha = 1;
  }

  // A grid below the path, with its step written.
  drawFloor(context, at) {
    const power = 10 ** Math.floor(Math.log10(this.size / 2)), step = [5, 2, 1].map(by => by * power).find(one => one <= this.size / 2) || power;
    const [mx, my] = this.middle.map(value => Math.round(value / step) * step), reach = 3 * step;
    for (let by = -3; by <= 3; by++) {
      this.line(context, at, [[mx + by * step, my - reach, this.floor], [mx + by * step, my + reach, this.floor]], colour("line"));
      this.line(context, at, [[mx - reach, my + by * step, this.floor], [mx + reach, my + by * step, this.floor]], colour("line"));
    }
    context.fillStyle = colour("soft"); context.font = "11px system-ui, sans-serif";
    const [x, y] = at(mx + reach, my - reach, this.floor);
    context.fillText(`grid ${Number(step.toPrecision(1))} m`, Math.min(Math.max(4, x), context.canvas.clientWidth - 70), Math.min(Math.max(14, y + 12), context.canvas.clientHeight - 6));
  }

  triad(context, at, origin, axes, length, named = false) {
    for (const [stroke, axis] of AXES) {
      const tip = origin.map((value, by) => value + length * axes[axis][by]);
      this.line(context, at, [origin, tip], stroke, 2);
      if (named) { context.fillStyle = stroke; context.fillText("xyz"[axis], ...at(...tip).slice(0, 2)); }
    }
  }

  drawCamera(context, at, corners, pose) {
    const far = this.size * 0.16, eye = [pose[3], pose[7], pose[11]];
    const ends = corners.map(([x, y, z]) => [0, 4, 8].map(row => eye[row / 4] + far * (pose[row] * x + pose[row + 1] * y + pose[row + 2] * z)));
    for (const end of ends) this.line(context, at, [eye, end], colour("soft"), 1, 0.8);
    this.line(context, at, [...ends, ends[0]], colour("soft"), 1, 0.8);
  }

  drawPath(context, at, {what, columns}, frame) {
    const points = columns[0].map((x, by) => [x, columns[1][by], columns[2][by]]);
    this.line(context, at, points, colour(what), 1.2, 0.4);
    this.line(context, at, points.slice(0, frame + 1), colour(what), 2.2);
    const now = points[frame];
    if (!now || now.some(value => value === null)) return;
    if (what === "state") this.triad(context, at, now, axesOf(columns.slice(3).map(column => column[frame])), this.size * 0.14);
    const [x, y] = at(...now);
    context.fillStyle = colour(what); context.strokeStyle = colour("card"); context.lineWidth = 1.5;
    context.beginPath(); context.arc(x, y, what === "state" ? 5.5 : 4, 0, 7); context.fill(); context.stroke();
  }

  // Every point as a little square, the nearest last to be overdrawn by none.
  drawPoints({context, ratio}, at) {
    const {width, height} = context.canvas, image = context.createImageData(width, height);
    const out = new Uint32Array(image.data.buffer), near = new Float32Array(width * height).fill(Infinity);
    const places = new Float32Array(this.points), colours = new Uint32Array(this.points), side = Math.max(2, Math.round((this.zoom > 2 ? 4 : 2.6) * ratio));
    for (let by = 0; by < places.length; by += 4) {
      const [x, y, depth] = at(places[by], places[by + 1], places[by + 2]);
      const left = Math.round(x * ratio), top = Math.round(y * ratio);
      if (left < 0 || top < 0 || left + side > width || top + side > height) continue;
      for (let row = top; row < top + side; row++) for (let column = left; column < left + side; column++) {
        const pixel = row * width + column;
        if (depth < near[pixel]) { near[pixel] = depth; out[pixel] = colours[by + 3]; }
      }
    }
    context.putImageData(image, 0, 0);
  }
}

// The rotation of a quaternion w x y z, as the three axes it turns x, y and z to.
export function axesOf([w, x, y, z]) {
  return [
    [1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)],
    [2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)],
    [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)],
  ];
}
