"use strict";
// The tagger: draws the tags of sounds over time. The threshold is applied here.
// A second script has `tagSound`, which returns the tags of a file, and PARALLEL_SOUNDS, how many of them run at once.

const limits = Object.fromEntries(Object.entries(document.body.dataset).map(([name, value]) => [name, Number(value)]));
const cards = [];

let isMoved = false;  // until then each tag has the threshold of the run, where it has one
const threshold = own => isMoved || own === null ? Number(byId("threshold").value) / 100 : own;
const showMessage = text => { byId("message").textContent = text; };

/** Adjacent steps in which a tag reaches the threshold form one event. */
function eventsOf(sound) {
  const events = [];
  for (const {tag, probs, threshold: own} of sound.silent ? [] : sound.tags) {
    let current = null;
    probs.forEach((prob, k) => {
      if (prob < threshold(own)) { current = null; return; }
      if (!current) events.push(current = {file: sound.file, start: sound.times[k], tag, prob: 0});
      current.end = sound.times[k + 1];
      current.prob = Math.max(current.prob, prob);
    });
  }
  const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  return events.sort((a, b) => a.start - b.start || a.end - b.end || compare(a.tag, b.tag));
}

function csv() {
  const rows = cards.filter(card => card.sound).flatMap(card => eventsOf(card.sound))
    .map(e => [csvCell(e.file), e.start.toFixed(3), e.end.toFixed(3), csvCell(e.tag), e.prob.toFixed(4)].join(","));
  return ["file,start_s,end_s,tag,prob", ...rows].join("\n") + "\n";
}

/** Bars as high as the probabilities, for the steps whose probability `isShown` accepts. */
function bars(sound, probs, isShown) {
  const x = time => (1000 * time / sound.seconds).toFixed(2);
  const bar = (prob, k) => `M${x(sound.times[k])} 100V${(100 - 100 * prob).toFixed(1)}H${x(sound.times[k + 1])}V100Z`;
  return probs.map((prob, k) => (isShown(prob) ? bar(prob, k) : "")).join("");
}

function tagRow(sound, {tag, probs, threshold: own}) {
  const highest = Math.max(...probs), svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 1000 100");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${tag} over time, at most ${Math.round(100 * highest)} %`);
  const [below, above] = ["below", "above"].map(name => {
    const path = document.createElementNS(svg.namespaceURI, "path");
    path.setAttribute("class", name);
    svg.append(path);
    return path;
  });
  const name = make("div", {className: "tag"}, make("span", {}, tag), make("b", {}, `${Math.round(100 * highest)} %`));
  const draw = () => {
    below.setAttribute("d", bars(sound, probs, prob => prob < threshold(own)));
    above.setAttribute("d", bars(sound, probs, prob => prob >= threshold(own)));
    name.classList.toggle("faint", highest < threshold(own));
  };
  return {elements: [name, svg], draw};
}

function summary(sound) {
  if (sound.silent) return "silent: no tag is detected";
  const detected = sound.tags.filter(({probs, threshold: own}) => Math.max(...probs) >= threshold(own)).map(({tag}) => tag);
  const more = detected.length > 4 ? ` and ${detected.length - 4} more` : "";
  return detected.length ? `detected: ${detected.slice(0, 4).join(", ")}${more}` : "no tag reaches the threshold";
}

function show(card, sound, file) {
  const audio = make("audio", {controls: true, preload: "auto", src: URL.createObjectURL(file)});
  audio.setAttribute("aria-label", sound.file);
  const note = muted("This browser cannot play this format; the tags are not affected.", "p");
  note.hidden = true;
  audio.addEventListener("error", () => { note.hidden = false; audio.hidden = true; });
  const rows = sound.tags.map(tag => tagRow(sound, tag)), detected = make("p", {className: "detected"});
  card.sound = sound;
  card.draw = () => { rows.forEach(row => row.draw()); detected.textContent = summary(sound); };
  card.onClose = () => URL.revokeObjectURL(audio.src);
  const notices = make("ul", {className: "notices", hidden: !sound.notices.length}, ...sound.notices.map(text => make("li", {}, text)));
  card.body.replaceChildren(detected, notices, audio, note, soundView(sound, audio, rows.map(row => row.elements)));
  card.length.textContent = `${sound.seconds.toFixed(2)} s`;
  card.draw();
  byId("tools").hidden = false;
}

function newCard(name) {
  const card = {body: make("div", {}, muted("waiting …", "p")), length: muted("")};
  const close = make("button", {type: "button", title: "remove from this page", "aria-label": `remove ${name} from this page`}, "×");
  card.element = make("article", {}, make("div", {className: "row head"}, make("h2", {}, name), card.length, close), card.body);
  close.addEventListener("click", () => {
    if (card.onClose) card.onClose();
    cards.splice(cards.indexOf(card), 1);
    card.element.remove();
    byId("tools").hidden = !cards.some(other => other.sound);
  });
  cards.push(card);
  byId("sounds").append(card.element);
  return card;
}

const showError = (card, text) => card.body.replaceChildren(make("p", {className: "error", role: "alert"}, text));

/** Convert any sound that the browser can decode to a WAV file of its channels in 16 bits. */
async function asWav(blob, name) {
  const context = new AudioContext();
  try {
    const decoded = await context.decodeAudioData(await blob.arrayBuffer());
    const channels = Array.from({length: decoded.numberOfChannels}, (_, k) => decoded.getChannelData(k));
    const frameBytes = 2 * channels.length, dataBytes = frameBytes * decoded.length;
    const view = new DataView(new ArrayBuffer(44 + dataBytes));
    const writeText = (offset, text) => [...text].forEach((c, k) => view.setUint8(offset + k, c.charCodeAt(0)));
    writeText(0, "RIFF"); view.setUint32(4, 36 + dataBytes, true); writeText(8, "WAVEfmt "); view.setUint32(16, 16, true);
    view.setUint16(20, 1, true); view.setUint16(22, channels.length, true); view.setUint32(24, decoded.sampleRate, true);
    view.setUint32(28, frameBytes * decoded.sampleRate, true); view.setUint16(32, frameBytes, true); view.setUint16(34, 16, true);
    writeText(36, "data"); view.setUint32(40, dataBytes, true);
    channels.forEach((samples, channel) => {
      for (let k = 0; k < decoded.length; k++) {
        const value = Math.max(-32768, Math.min(32767, Math.round(32768 * samples[k])));
        view.setInt16(44 + frameBytes * k + 2 * channel, value, true);
      }
    });
    return new File([view.buffer], name, {type: "audio/wav"});
  } finally {
    context.close();
  }
}

async function tag(file) {
  const card = newCard(file.name);
  if (file.size > limits.maxBytes) {
    const advice = `expected at most ${limits.maxBytes / 1e6} MB: cut the sound, or save it as FLAC, Ogg or MP3`;
    showError(card, `${file.name} has ${(file.size / 1e6).toFixed(1)} MB; ${advice}`);
    return;
  }
  try {
    show(card, await tagSound(file, text => card.body.replaceChildren(muted(text, "p"))), file);
  } catch (error) {
    showError(card, error.message);
  }
}

async function tagAll(files) {
  const queue = [...files].slice(0, limits.maxFiles);
  showMessage(files.length > limits.maxFiles ? `${files.length} files are too many at once; the first ${limits.maxFiles} are tagged` : "");
  const worker = async () => { while (queue.length) await tag(queue.shift()); };
  await Promise.all(Array.from({length: PARALLEL_SOUNDS}, worker));
}

async function record(button) {
  if (!navigator.mediaDevices) {
    showMessage("browsers allow the microphone only on pages of this machine (http://127.0.0.1) or over https");
    return null;
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({audio: {echoCancellation: false, noiseSuppression: false, autoGainControl: false}});
  } catch (error) {
    showMessage(`the microphone cannot be used: ${error.message}`);
    return null;
  }
  const recorder = new MediaRecorder(stream), parts = [], start = Date.now();
  const timer = setInterval(() => {
    const seconds = (Date.now() - start) / 1000;
    button.textContent = `stop (${seconds.toFixed(0)} s)`;
    if (seconds > limits.maxSeconds - 1) recorder.stop();
  }, 200);
  recorder.addEventListener("dataavailable", event => parts.push(event.data));
  recorder.addEventListener("stop", async () => {
    clearInterval(timer);
    stream.getTracks().forEach(track => track.stop());
    button.textContent = "record";
    const name = `recording ${new Date(start).toTimeString().slice(0, 8).replaceAll(":", ".")}.wav`;
    try {
      await tagAll([await asWav(new Blob(parts, {type: recorder.mimeType}), name)]);
    } catch (error) {
      showMessage(`the recording cannot be decoded: ${error.message}`);
    }
  });
  recorder.start();
  button.textContent = "stop (0 s)";
  return recorder;
}

let recorder = null;
byId("record").addEventListener("click", async event => {
  if (recorder && recorder.state === "recording") recorder.stop();
  else recorder = await record(event.currentTarget);
});
byId("files").addEventListener("change", event => { tagAll(event.target.files); event.target.value = ""; });
byId("threshold").addEventListener("input", () => {
  isMoved = true;
  byId("level").textContent = `${byId("threshold").value} %`;
  cards.forEach(card => card.draw && card.draw());
});
byId("csv").addEventListener("click", event => {
  const url = URL.createObjectURL(new Blob([csv()], {type: "text/csv"}));
  event.currentTarget.href = url;
  setTimeout(() => URL.revokeObjectURL(url), 10000);
});
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, event => {
    event.preventDefault();
    byId("drop").classList.toggle("drag-over", name === "dragover");
    if (name === "drop") tagAll(event.dataTransfer.files);
  });
}
