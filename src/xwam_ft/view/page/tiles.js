// A camera's pictures at the present moment: its video, sought to the very frame, and depth in colours with metres.

import {bytes, el, figure} from "./tools.js";

const FARTHEST = 1, NEAREST = 65535;

// Shows the newest asked thing: one request at a time, those that came meanwhile are passed over.
class Newest {
  constructor(load) { Object.assign(this, {load, wanted: null, busy: false}); }

  async want(key) {
    this.wanted = key;
    if (this.busy) return;
    this.busy = true;
    try {
      let done = null;
      while (this.wanted !== done) await this.load(done = this.wanted);
    } finally {
      this.busy = false;
    }
  }
}

// Of `told`: its name, size [h, w], fps, segments [{first, frames}], the addresses of a segment's film and of a frame's
// single picture (null where there are none), and why a browser plays no film of it, where it does not.
export class Film {
  constructor(told, clock) {
    Object.assign(this, {told, camera: told.name, clock, segment: null, shown: null});
    const [height, width] = told.size;
    this.picture = this.still(true);
    this.video = el("video", {muted: true, playsinline: true, preload: "auto", "aria-label": `${told.name}, video`});
    this.video.muted = true;
    this.why = el("div", {class: "why", hidden: true});
    this.screen = el("div", {class: "screen" + (width < 320 ? " small" : ""), style: `aspect-ratio: ${width} / ${height}`}, this.video, this.picture);
    this.element = el("div", {"data-camera": told.name}, this.screen, this.why);
    this.pictures = new Newest(frame => this.load(frame));
    this.video.addEventListener("loadeddata", () => this.show());
    this.video.addEventListener("seeked", () => this.show());
    this.video.addEventListener("error", () => this.video.getAttribute("src") && this.instead("this browser does not play H.264 video: single pictures instead"));
    if (told.why) this.instead(told.why);
    this.heed();
  }

  still(hidden) { return el("img", {alt: `${this.camera}, as a single picture`, hidden}); }

  // Which frame the video shows, as the browser tells it.
  heed() {
    if (!this.video.requestVideoFrameCallback) return;
    this.video.requestVideoFrameCallback((_, moment) => {
      if (this.segment) this.shown = this.segment.first + Math.round(moment.mediaTime * this.told.fps);
      this.element.dataset.shown = this.shown;
      if (!this.clock.playing && this.shown === this.clock.frame) this.picture.hidden = true;
      this.heed();
    });
  }

  instead(why) {
    this.single = true;
    this.why.textContent = this.told.picture ? why : "this browser does not play this film (H.264)";
    this.why.hidden = false;
    this.video.removeAttribute("src");
    this.show();
  }

  show() {
    const frame = this.clock.frame;
    if (this.single) return void (this.told.picture && this.pictures.want(frame));
    const segment = this.told.segments.find(one => frame < one.first + one.frames);
    if (segment !== this.segment) {
      this.segment = segment;
      this.shown = null;
      this.video.src = this.told.film(segment);
    }
    if (this.video.readyState < 1) return;
    // The middle of a frame's time, so that rounding cannot choose its neighbour.
    const row = frame - segment.first, time = (row + 0.5) / this.told.fps;
    if (this.clock.playing) {
      this.picture.hidden = true;
      this.video.playbackRate = this.clock.speed;
      if (this.video.paused && !this.video.ended) this.video.play().catch(() => {});
      if (!this.video.seeking && Math.abs(this.video.currentTime - time) > 0.15 * Math.max(1, this.clock.speed)) this.video.currentTime = time;
      return;
    }
    if (!this.video.paused) this.video.pause();
    if (this.video.seeking) return;
    if (Math.abs(this.video.currentTime - time) > 1e-4) this.video.currentTime = time;
    else this.check(frame);
  }

  // A browser that shows another frame than was asked for is not believed: the picture itself is laid over it.
  check(frame) {
    clearTimeout(this.doubt);
    if (!this.video.requestVideoFrameCallback || !this.told.picture) return;
    this.doubt = setTimeout(() => {
      if (!this.clock.playing && this.clock.frame === frame && this.shown !== frame && !this.video.seeking) this.pictures.want(frame);
    }, 250);
  }

  async load(frame) {
    const image = this.still(false);
    image.src = this.told.picture(frame);
    try {
      await image.decode();
    } catch {
      this.why.textContent = "this picture cannot be read: is the shard still there?";
      this.why.hidden = false;
      return;
    }
    if (!this.single && (this.clock.playing || this.clock.frame !== frame || this.shown === frame)) return;
    this.picture.replaceWith(image); // decoded already, so nothing flickers
    this.picture = image;
    this.element.dataset.shown = frame;
  }

  end() {
    clearTimeout(this.doubt);
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
  }
}

// Depth codes in the colours of the reports; metres where it has some, also of the pixel below the mouse.
export class Depth {
  constructor(view, set, camera, address, clock) {
    Object.assign(this, {view, set, camera, address, clock, range: set.depth.ranges[camera] || null});
    const [height, width] = set.size;
    this.canvas = el("canvas", {width, height, "aria-label": `${camera}, depth`});
    this.screen = el("div", {class: "screen" + (width < 320 ? " small" : ""), style: `aspect-ratio: ${width} / ${height}`}, this.canvas);
    this.bar = el("canvas", {width: 256, height: 1});
    this.told = el("span", {class: "told"});
    const [near, far] = this.range || ["near", "far"];
    const scale = this.range ? [`${figure(near)} m`, this.bar, `${figure(far)} m`, this.told] : ["near", this.bar, "far", el("span", {}, "relative: no metres")];
    this.element = el("div", {"data-depth": camera}, this.screen, el("div", {class: "scale", title: "Even steps of colour are even steps of 1/distance"}, scale));
    const context = this.bar.getContext("2d"), line = context.createImageData(256, 1);
    view.colours.forEach(([r, g, b], at) => line.data.set([r, g, b, 255], 4 * (255 - at)));
    context.putImageData(line, 0, 0);
    this.newest = new Newest(frame => this.load(frame));
    this.canvas.addEventListener("pointermove", event => { this.below = event; this.tell(); });
    this.canvas.addEventListener("pointerleave", () => { this.below = null; this.tell(); });
  }

  show() { this.newest.want(this.clock.frame); }

  async load(frame) {
    try {
      this.codes = new Uint16Array(await bytes(this.address(frame)));
    } catch (error) {
      this.told.textContent = error.message;
      return;
    }
    const context = this.canvas.getContext("2d"), {width, height} = this.canvas;
    const image = context.createImageData(width, height);
    for (let at = 0; at < this.codes.length; at++) {
      const code = this.codes[at];
      const [r, g, b] = code ? this.view.colours[Math.round((code - FARTHEST) / (NEAREST - FARTHEST) * 255)] : [0, 0, 0];
      image.data[4 * at] = r; image.data[4 * at + 1] = g; image.data[4 * at + 2] = b; image.data[4 * at + 3] = 255;
    }
    context.putImageData(image, 0, 0);
    this.element.dataset.shown = frame;
    this.tell();
  }

  tell() {
    if (!this.range) return;
    if (!this.below || !this.codes) { this.told.textContent = ""; return; }
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((this.below.clientX - box.left) / box.width * this.canvas.width);
    const row = Math.floor((this.below.clientY - box.top) / box.height * this.canvas.height);
    this.told.textContent = metres(this.codes[row * this.canvas.width + column], this.range);
  }
}

export function metres(code, [near, far]) {
  if (!code) return "nothing measured";
  if (code === FARTHEST) return `${figure(far)} m or farther`;
  if (code === NEAREST) return `${figure(near)} m or nearer`;
  return `${(1 / (1 / far + (code - FARTHEST) / (NEAREST - FARTHEST) * (1 / near - 1 / far))).toFixed(3)} m`;
}
