"use strict";
// Tags sounds without a server: this script decodes them, tag_worker.js runs the network.

const PARALLEL_SOUNDS = 1;
const calls = new Map();  // of the worker that have no answer yet, by number
let worker = null, settings = null;

/** Call the worker with a message and objects to hand over; `showProgress` gets the fraction that is done. */
function call(message, handedOver = [], showProgress = () => {}) {
  return new Promise((resolve, reject) => {
    const id = call.n = (call.n || 0) + 1;
    calls.set(id, {resolve, reject, showProgress});
    worker.postMessage({...message, id}, handedOver);
  });
}

function answer({data: {id, progress, error, result}}) {
  const {resolve, reject, showProgress} = calls.get(id);
  if (progress !== undefined) { showProgress(progress); return; }
  calls.delete(id);
  if (error === undefined) resolve(result);
  else reject(new Error(error));
}

async function load() {
  const waiting = "loading the model …";
  showMessage(waiting);
  if (location.protocol === "file:") {
    throw new Error("browsers run this page from a web server only, any one: python -m http.server in its folder is enough");
  }
  const response = await fetch("model.json");
  if (!response.ok) throw new Error(`model.json cannot be loaded (${response.status}); copy the whole folder to the server`);
  settings = await response.json();
  worker = new Worker("tag_worker.js", {type: "module"});
  worker.addEventListener("message", answer);
  worker.addEventListener("error", event => {
    for (const {reject} of calls.values()) reject(new Error(event.message || "tag_worker.js cannot be run in this browser"));
    calls.clear();
  });
  await call({settings});
  if (byId("message").textContent === waiting) showMessage("");
}

/** Decode a file at the rate of the network, which resamples others, to its channels. */
async function decode(file) {
  const context = new OfflineAudioContext(1, 1, settings.sr);
  let decoded;
  try {
    decoded = await context.decodeAudioData(await file.arrayBuffer());
  } catch (error) {
    throw new Error(`${file.name} is no sound that this browser can decode; save it as WAV, FLAC, Ogg or MP3`);
  }
  if (decoded.duration > limits.maxSeconds) {
    throw new Error(`${file.name} is ${decoded.duration.toFixed(1)} s long; expected at most ${limits.maxSeconds} s: cut it`);
  }
  return Array.from({length: decoded.numberOfChannels}, (_, k) => decoded.getChannelData(k).slice());
}

/** Draw gray levels (rows, columns), the top row first, in the colors of a palette of hexadecimal RGB; return a data URI. */
function drawImage(levels, columns, palette) {
  const canvas = make("canvas", {width: columns, height: levels.length / columns}), context = canvas.getContext("2d");
  const image = context.createImageData(canvas.width, canvas.height);
  const colors = Array.from({length: 256}, (_, k) => parseInt(palette.slice(6 * k, 6 * k + 6), 16));
  levels.forEach((level, k) => {
    const color = colors[level];
    image.data.set([color >> 16, color >> 8 & 255, color & 255, 255], 4 * k);
  });
  context.putImageData(image, 0, 0);
  return canvas.toDataURL("image/png");
}

const loaded = load();
loaded.catch(error => showMessage(error.message));

/** Return the tags of a file over time; an error's message is for the user. */
async function tagSound(file, showProgress) {
  showProgress("waiting for the model …");
  await loaded;
  showProgress("decoding …");
  const channels = await decode(file);
  const percent = fraction => showProgress(`tagging: ${Math.round(100 * fraction)} % …`);
  percent(0);
  const {levels, columns, ...sound} = await call({channels}, channels.map(channel => channel.buffer), percent);
  const {palette, ticks} = settings.overview;
  return {...sound, file: file.name, picture: drawImage(levels, columns, palette), ticks};
}
