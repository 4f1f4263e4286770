// The present moment: a frame that plays, is dragged, or is stepped; everything else shows it.

import {el} from "./tools.js";

export class Clock {
  constructor(frames, fps) {
    Object.assign(this, {frames, fps, exact: 0, playing: false, speed: 1, watchers: []});
    this.tick = this.tick.bind(this);
  }

  get frame() { return Math.min(this.frames - 1, Math.floor(this.exact + 1e-6)); }

  watch(work) { this.watchers.push(work); }

  tell() { for (const work of this.watchers) work(this.frame, this.playing); }

  go(frame) {
    this.exact = Math.max(0, Math.min(this.frames - 1, frame));
    this.tell();
  }

  step(by) { this.pause(); this.go(this.frame + by); }

  play() {
    if (this.playing || this.frames < 2) return;
    if (this.frame >= this.frames - 1) this.exact = 0;
    this.playing = true;
    this.last = performance.now();
    this.tell();
    requestAnimationFrame(this.tick);
  }

  pause() {
    if (!this.playing) return;
    this.playing = false;
    this.exact = this.frame;
    this.tell();
  }

  toggle() { this.playing ? this.pause() : this.play(); }

  tick(now) {
    if (!this.playing) return;
    this.exact += Math.max(0, now - this.last) / 1000 * this.fps * this.speed;
    this.last = now;
    if (this.exact >= this.frames - 1) {
      this.exact = this.frames - 1;
      this.pause();
      return;
    }
    this.tell();
    requestAnimationFrame(this.tick);
  }
}

// What a key means: steps and play of a clock, and `more`.
export function pressed(event, clock, more = {}) {
  const at = event.target;
  if (event.ctrlKey || event.metaKey || event.altKey || at.matches?.("select, textarea, input:not([type=range])")) return;
  if (event.key === " " && at.matches?.("button, summary, input, video")) return;
  const by = event.shiftKey ? 10 : 1;
  const work = {...more, ...(clock ? {
    ArrowLeft: () => clock.step(-by), ArrowRight: () => clock.step(by), " ": () => clock.toggle(),
    Home: () => clock.step(-Infinity), End: () => clock.step(Infinity),
  } : {})}[event.key];
  if (!work) return;
  event.preventDefault();
  work();
}

const SPEEDS = [0.1, 0.25, 0.5, 1, 2, 4];

// Play, slider, time, speed; `marks` are findings that have a frame.
export function transport(clock, marks, choose) {
  const play = el("button", {class: "play", id: "play", onclick: () => clock.toggle()}, "▶ Play");
  const slider = el("input", {
    type: "range", id: "slider", min: 0, max: clock.frames - 1, step: 1, value: 0, "aria-label": "Frame",
    oninput: () => { clock.pause(); clock.go(Number(slider.value)); },
  });
  const time = el("time", {id: "time"});
  const speed = el("select", {"aria-label": "Speed", onchange: () => { clock.speed = Number(speed.value); clock.tell(); }},
    SPEEDS.map(value => el("option", {value, selected: value === 1}, `${value}×`)));
  const dots = el("div", {class: "marks"}, marks.map(found => el("button", {
    class: found.severity, title: `${found.severity}: ${found.text} (frame ${found.frame})`,
    "aria-label": `${found.severity} ${found.check} at frame ${found.frame}`,
    style: `left: ${100 * found.frame / Math.max(1, clock.frames - 1)}%`, onclick: () => choose(found),
  })));
  clock.watch((frame, playing) => {
    play.textContent = playing ? "❚❚ Pause" : "▶ Play";
    slider.value = frame;
    const seconds = frame / clock.fps, whole = (clock.frames - 1) / clock.fps;
    time.textContent = `${seconds.toFixed(2)} of ${whole.toFixed(2)} s · frame ${frame} of ${clock.frames - 1}`;
    slider.setAttribute("aria-valuetext", time.textContent);
  });
  return el("div", {class: "transport"}, el("div", {class: "row"}, play, speed), el("div", {class: "line"}, slider, dots), time);
}
