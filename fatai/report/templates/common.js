"use strict";
// Shared by all pages with sounds: elements, CSV cells, and the picture of a sound with axes and a playhead that follows the player.

const byId = id => document.getElementById(id);
const csvCell = text => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

/** Make an element with properties, attributes (names with a hyphen, and `role`) and children, which are elements or text. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

const muted = (text, tag = "span") => make(tag, {className: "muted"}, text);

/** Round seconds for an axis, at most `max` of them. */
function timeTicks(seconds, max) {
  const step = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800].find(s => seconds / s <= max) || 3600;
  return Array.from({length: Math.floor(seconds / step + 1e-9) + 1}, (_, k) => Number((k * step).toFixed(2)));
}

function formatSeconds(seconds) {
  if (seconds < 60) return `${seconds} s`;
  return `${Math.floor(seconds / 60)}:${String(Math.round(seconds % 60)).padStart(2, "0")}`;
}

function frequencyAxis(ticks) {
  const axis = make("div", {className: "hz", "aria-hidden": "true"});
  for (const [frequency, height] of ticks) {
    const label = make("span", {}, frequency >= 1000 ? `${frequency / 1000}k` : `${frequency}`);
    label.style.bottom = `${100 * height}%`;
    axis.append(label);
  }
  axis.append(make("span", {className: "unit"}, "Hz"));
  return axis;
}

function timeAxis(seconds) {
  const axis = make("div", {className: "seconds", "aria-hidden": "true"});
  for (const time of timeTicks(seconds, innerWidth < 600 ? 4 : 8)) {
    const label = make("span", {className: time > 0.95 * seconds ? "last" : ""}, formatSeconds(time));
    label.style.left = `${100 * time / seconds}%`;
    axis.append(label);
  }
  return axis;
}

/**
 * Make the grid of one sound: its picture, `lanes` (pairs of elements: label at the left, drawing over time), seconds, playhead.
 * A click anywhere over the time axis moves the player there.
 */
function soundView(sound, audio, lanes = []) {
  const playhead = make("div", {className: "playhead"});
  const over = make("div", {className: "over"}, playhead);
  over.addEventListener("pointerdown", event => {
    const box = over.getBoundingClientRect();
    audio.currentTime = sound.seconds * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  });
  const follow = () => {
    playhead.style.left = `${100 * Math.min(1, audio.currentTime / sound.seconds)}%`;
    if (!audio.paused && playhead.isConnected) requestAnimationFrame(follow);
  };
  for (const event of ["play", "seeked", "timeupdate"]) audio.addEventListener(event, follow);
  follow();
  const picture = make("img", {className: "picture", src: sound.picture, alt: `spectrogram of ${sound.file}`});
  return make("div", {className: "lanes"}, frequencyAxis(sound.ticks), picture, ...lanes.flat(), timeAxis(sound.seconds), over);
}
