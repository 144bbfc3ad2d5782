// Channels and windows of a sound: what fatai.audio.downmix, waveform and inference.events.windows compute.

const OFFSET_FRAME = 2048, MIN_OFFSET = 1e-3;
const DEAD = 1e-4, CANCELLED = 0.1;

// Plain loops, ten times as fast as iterators and callbacks over millions of samples.
function mean(wave) {
  let sum = 0;
  for (let k = 0; k < wave.length; k++) sum += wave[k];
  return sum / wave.length;
}

function variance(wave, center) {
  let sum = 0;
  for (let k = 0; k < wave.length; k++) sum += (wave[k] - center) ** 2;
  return sum / wave.length;
}

/** Return the mean of waves of one length. */
export function meanWave(waves) {
  if (waves.length === 1) return waves[0];
  const mixed = new Float32Array(waves[0].length);
  for (const wave of waves) {
    for (let k = 0; k < mixed.length; k++) mixed[k] += wave[k] / waves.length;
  }
  return mixed;
}

/** Return the waves to tag: one, or with "each" all channels; and a notice, "" where nothing is unusual. */
export function takeWaves(channels, channel) {
  if (channel === "each" || channels.length === 1 && typeof channel === "string") return {waves: channels, notice: ""};
  if (typeof channel === "number") {
    if (channel <= channels.length) return {waves: [channels[channel - 1]], notice: ""};
    throw new Error(`the model is for channel ${channel}, and the sound has ${channels.length}; choose another sound`);
  }
  const power = channels.map(wave => variance(wave, mean(wave)));
  const loudest = power.indexOf(Math.max(...power)), mixed = meanWave(channels);
  if (channel === "loudest") return {waves: [channels[loudest]], notice: ""};
  const problem = channel === "auto" ? problemOfMean(power, mixed) : "";
  if (!problem) return {waves: [mixed], notice: ""};
  return {waves: [channels[loudest]], notice: `${problem}; channel ${loudest + 1}, the loudest, is taken`};
}

/** Return why the mean misrepresents the channels, or "". */
function problemOfMean(power, mixed) {
  const highest = Math.max(...power), n = power.length;
  if (highest === 0) return "";
  if (variance(mixed, mean(mixed)) < CANCELLED * power.reduce((a, b) => a + b) / n ** 2) {
    return `the ${n} channels cancel in their mean (opposite phase)`;
  }
  return power.filter(value => value > DEAD * highest).length === 1 ? `only one of the ${n} channels has sound` : "";
}

/** Return the constant offset of a wave: the mean of its quietest frame, 0 if that has more sound than offset. */
function constantOffset(wave) {
  const length = Math.min(OFFSET_FRAME, wave.length);
  let offset = 0, lowest = Infinity;
  for (let start = 0; start + length <= wave.length; start += length) {
    const frame = wave.subarray(start, start + length), center = mean(frame), spread = variance(frame, center);
    if (spread < lowest) [offset, lowest] = [center, spread];
  }
  return offset ** 2 > lowest && mean(wave) * offset > offset ** 2 / 4 ? offset : 0;
}

function removeOffset(wave) {
  if (Math.abs(mean(wave)) <= MIN_OFFSET / 4) return wave;
  const offset = constantOffset(wave);
  return Math.abs(offset) > MIN_OFFSET ? wave.map(x => x - offset) : wave;
}

export function isSilent(wave, silenceDb) {
  const center = mean(wave);
  return wave.reduce((peak, x) => Math.max(peak, Math.abs(x - center)), 0) < 10 ** (silenceDb / 20);
}

/** Pad a wave that is shorter than a window, as `fit_length` does. */
function fit(wave, samples, padMode) {
  const missing = samples - wave.length, n = wave.length;
  if (missing <= 0) return wave;
  const left = padMode.endsWith("_center") ? Math.floor(missing / 2) : 0;
  const lowest = padMode === "minimum_center" ? wave.reduce((a, b) => Math.min(a, b)) : 0;
  return Float32Array.from({length: samples}, (_, k) => {
    const at = k - left;
    if (at >= 0 && at < n) return wave[at];
    if (padMode.startsWith("wrap")) return wave[(at % n + n) % n];
    if (padMode === "edge_center") return wave[at < 0 ? 0 : n - 1];
    return lowest;
  });
}

/** Yield the windows {start, end, wave} of a wave; the last one ends where the wave does. */
export function* cutWindows(wave, {samples, step, pad_mode}) {
  if (wave.length < samples) {
    yield {start: 0, end: wave.length, wave: fit(removeOffset(wave), samples, pad_mode)};
    return;
  }
  let start = 0;
  for (; start + samples <= wave.length; start += step) yield cut(start);
  if (start - step + samples < wave.length) yield cut(wave.length - samples);

  function cut(from) {
    return {start: from, end: from + samples, wave: removeOffset(wave.subarray(from, from + samples))};
  }
}
