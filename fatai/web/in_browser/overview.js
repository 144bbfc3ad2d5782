// The spectrogram of a whole sound: what fatai.report.media.overview_image draws.

const FRAMES = 256;  // that are computed at once

/**
 * Return `levels`, bytes (rows, columns) with the highest frequency first, and the number of `columns`.
 * `compute` maps frames of `n_fft` samples to decibels, a row of bands for each.
 */
export async function drawOverview(wave, {n_fft, rows, columns: maxColumns, range_db}, compute) {
  const hop = Math.min(n_fft / 2, Math.max(n_fft / 16, Math.floor(wave.length / maxColumns)));
  const frames = Math.floor(wave.length / hop) + 1, columns = Math.min(frames, maxColumns);
  const padded = new Float32Array(wave.length + n_fft);  // frame k is centered on sample k * hop
  padded.set(wave, n_fft / 2);
  const sums = new Float64Array(rows * columns), counts = new Uint32Array(columns);
  let highest = -Infinity, lowest = Infinity, column = 0;
  for (let first = 0; first < frames; first += FRAMES) {
    const starts = Array.from({length: Math.min(FRAMES, frames - first)}, (_, k) => (first + k) * hop);
    const bands = await compute(starts.map(start => padded.subarray(start, start + n_fft)));
    bands.forEach((values, k) => {
      if (column + 1 < columns && Math.floor((column + 1) * frames / columns) <= first + k) column++;
      counts[column]++;
      values.forEach((value, row) => {
        highest = Math.max(highest, value);
        lowest = Math.min(lowest, value);
        sums[(rows - 1 - row) * columns + column] += value;
      });
    });
  }
  // Silence, whose values are all alike, is dark.
  const level = (sum, k) => (lowest < highest ? 255 * (1 + (sum / counts[k % columns] - highest) / range_db) : 0);
  return {levels: Uint8ClampedArray.from(sums, level), columns};
}
