// Tags decoded sounds by the network in a worker, so that the page stays responsive. What SlidingWindowTagger computes.

import {InferenceSession, Tensor, env} from "./onnxruntime.js";
import {drawOverview} from "./overview.js";
import {cutWindows, isSilent, meanWave, takeWaves} from "./windows.js";

const BATCH = 4;  // windows between two reports of progress
let settings = null, network = null, overview = null;

async function read(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name} cannot be loaded (${response.status}); copy the whole folder to the server`);
  return new Uint8Array(await response.arrayBuffer());
}

async function load(values) {
  settings = values;
  const [wasm, model, picture] = await Promise.all(["onnxruntime.wasm", "model.onnx", "overview.onnx"].map(read));
  // More threads need headers that static hosts don't send.
  env.wasm.numThreads = 1;
  env.wasm.wasmBinary = wasm.buffer;
  network = await InferenceSession.create(model);
  overview = await InferenceSession.create(picture);
}

/** Run a graph on waves of one length; return its output, a row for each wave. */
async function run(session, waves) {
  const samples = waves[0].length, input = new Float32Array(waves.length * samples);
  waves.forEach((wave, k) => input.set(wave, k * samples));
  const output = Object.values(await session.run({wave: new Tensor("float32", input, [waves.length, samples])}))[0];
  const columns = output.data.length / waves.length;
  return waves.map((_, k) => output.data.slice(k * columns, (k + 1) * columns));
}

function calibrate(prob, tag) {
  if (!settings.calibration) return prob;
  const {slope, shift, low, high, floor} = settings.calibration;
  const scaled = low.length ? (prob - low[tag]) / (high[tag] - low[tag]) : prob;
  const clipped = Math.max(floor, Math.min(scaled, 1 - Math.max(floor, 2 ** -53)));
  return 1 / (1 + Math.exp(-(slope[tag] * (Math.log(clipped) - Math.log1p(-clipped)) + shift[tag])));
}

/** Sum up the probabilities of a window in the steps that it covers, weighted by how much of each it covers. */
function addToSteps(steps, start, end, probs) {
  for (let k = Math.floor(start / settings.step); k * settings.step < end; k++) {
    const covered = Math.min(end, (k + 1) * settings.step) - Math.max(start, k * settings.step);
    steps[k] = steps[k] || {weight: 0, sums: settings.tags.map(() => 0)};
    steps[k].weight += covered;
    probs.forEach((prob, tag) => { steps[k].sums[tag] += covered * prob; });
  }
}

/** Return the probabilities of the steps of one channel, and whether all of it is silent. */
async function tagChannel(wave, report) {
  const steps = [];
  let silent = true, audible = [];
  const tagBatch = async () => {
    const rows = audible.length ? await run(network, audible.map(window => window.wave)) : [];
    rows.forEach((probs, k) => addToSteps(steps, audible[k].start, audible[k].end, Array.from(probs, calibrate)));
    audible = [];
  };
  for (const window of cutWindows(wave, settings)) {
    if (isSilent(window.wave, settings.silence_db)) addToSteps(steps, window.start, window.end, settings.tags.map(() => 0));
    else {
      silent = false;
      audible.push(window);
    }
    if (audible.length === BATCH) {
      await tagBatch();
      report(window.end / wave.length);
    }
  }
  await tagBatch();
  return {probs: steps.map(({weight, sums}) => sums.map((sum, tag) => (silent && settings.prior ? settings.prior[tag] : sum / weight))), silent};
}

/** Return the values of tags to show, the most probable first, from probabilities (steps, tags). */
function shownTags(probs) {
  const {min_prob, min_tags, max_tags} = settings.shown;
  const tags = settings.tags.map((tag, i) => {
    const values = probs.map(row => Math.round(1e4 * row[i]) / 1e4);
    return {tag, probs: values, threshold: settings.thresholds && settings.thresholds[i], max: Math.max(...values)};
  });
  tags.sort((a, b) => b.max - a.max);
  return tags.filter(({max}, k) => k < max_tags && (k < min_tags || max >= min_prob)).map(({max, ...tag}) => tag);
}

function silenceNotice(k) {
  const {channel, prior, silence_db} = settings, number = channel === "each" ? k + 1 : channel;
  return `${typeof number === "number" ? `channel ${number}: ` : ""}silent (no peak reaches ${silence_db} dB of full scale); there are no `
    + `events, and the probability of each tag is ${prior ? "the training prior" : "0, since no training prior is stored"}; `
    + "amplify a recording that is quiet";
}

const round = (value, digits) => Math.round(value * 10 ** digits) / 10 ** digits;

async function tag(channels, report) {
  const {waves, notice} = takeWaves(channels, settings.channel), parts = [];
  for (const [k, wave] of waves.entries()) {
    parts.push(await tagChannel(wave, fraction => report((k + fraction) / waves.length)));
  }
  const samples = channels[0].length;
  const probs = parts[0].probs.map((row, k) => row.map((_, i) => parts.reduce((sum, part) => sum + part.probs[k][i], 0) / parts.length));
  return {
    seconds: round(samples / settings.sr, 3),
    times: [...probs.map((_, k) => k * settings.step), samples].map(sample => round(sample / settings.sr, 4)),
    tags: shownTags(probs),
    silent: parts.every(part => part.silent),
    notices: [notice, ...parts.map((part, k) => (part.silent ? silenceNotice(k) : ""))].filter(text => text),
    ...await drawOverview(meanWave(waves), settings.overview, frames => run(overview, frames)),
  };
}

async function handle({id, settings: values, channels}) {
  try {
    const result = values ? await load(values) : await tag(channels, progress => postMessage({id, progress}));
    postMessage({id, result}, result && [result.levels.buffer]);
  } catch (error) {
    postMessage({id, error: error.message || String(error)});
  }
}

let last = Promise.resolve();  // one message after the other: a session runs once at a time
addEventListener("message", event => { last = last.then(() => handle(event.data)); });
