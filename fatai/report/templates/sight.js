"use strict";
// What pages of sounds share: elements, cells, and the picture of a sound with its axes and a playhead that follows the player.

const at = id => document.getElementById(id);
const cell = text => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

/** An element with properties, attributes (names with a hyphen or of `attributes`) and children, which are elements or plain words. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

const quiet = (words, tag = "span") => make(tag, {className: "quiet"}, words);

/** Round seconds for an axis: no more than `most` of them. */
function timeTicks(seconds, most) {
  const step = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800].find(s => seconds / s <= most) || 3600;
  return Array.from({length: Math.floor(seconds / step + 1e-9) + 1}, (_, k) => Number((k * step).toFixed(2)));
}

function clock(seconds) {
  if (seconds < 60) return `${seconds} s`;
  return `${Math.floor(seconds / 60)}:${String(Math.round(seconds % 60)).padStart(2, "0")}`;
}

/**
 * The grid of one sound: its picture, `lanes` (pairs of elements: what is said at the left, what is drawn over time), seconds, a playhead.
 * A click anywhere over the time goes there.
 */
function sightOf(sound, audio, lanes = []) {
  const hz = make("div", {className: "hz", "aria-hidden": "true"});
  for (const [frequency, height] of sound.ticks) {
    const words = make("span", {}, frequency >= 1000 ? `${frequency / 1000}k` : `${frequency}`);
    words.style.bottom = `${100 * height}%`;
    hz.append(words);
  }
  hz.append(make("span", {className: "unit"}, "Hz"));
  const seconds = make("div", {className: "seconds", "aria-hidden": "true"});
  for (const at of timeTicks(sound.seconds, innerWidth < 600 ? 4 : 8)) {
    const words = make("span", {className: at > 0.95 * sound.seconds ? "last" : ""}, clock(at));
    words.style.left = `${100 * at / sound.seconds}%`;
    seconds.append(words);
  }
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
  return make("div", {className: "lanes"}, hz, picture, ...lanes.flat(), seconds, over);
}
