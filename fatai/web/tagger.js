"use strict";
// The web tagger: sends sounds, draws what the server heard in them. What a tag's probability has to reach is decided here, at once.

const limits = Object.fromEntries(Object.entries(document.body.dataset).map(([name, value]) => [name, Number(value)]));
const cards = [];
const AT_ONCE = 2, TRIES = 20;

const threshold = () => Number(at("threshold").value) / 100;
const tell = words => { at("told").textContent = words; };

/** Neighbouring steps in which a tag reaches the threshold are one event. */
function eventsOf(sound) {
  const events = [];
  for (const {tag, probs} of sound.tags) {
    let going = null;
    probs.forEach((prob, k) => {
      if (prob < threshold()) { going = null; return; }
      if (!going) events.push(going = {file: sound.file, start: sound.times[k], tag, prob: 0});
      going.end = sound.times[k + 1];
      going.prob = Math.max(going.prob, prob);
    });
  }
  const by = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  return events.sort((a, b) => a.start - b.start || a.end - b.end || by(a.tag, b.tag));
}

function csv() {
  const rows = cards.filter(card => card.sound).flatMap(card => eventsOf(card.sound))
    .map(e => [cell(e.file), e.start.toFixed(3), e.end.toFixed(3), cell(e.tag), e.prob.toFixed(4)].join(","));
  return ["file,start_s,end_s,tag,prob", ...rows].join("\n") + "\n";
}

/** Columns as high as the probabilities of the steps that `wanted` takes. */
function bars(sound, probs, wanted) {
  const x = time => (1000 * time / sound.seconds).toFixed(2);
  const bar = (prob, k) => `M${x(sound.times[k])} 100V${(100 - 100 * prob).toFixed(1)}H${x(sound.times[k + 1])}V100Z`;
  return probs.map((prob, k) => (wanted(prob) ? bar(prob, k) : "")).join("");
}

function lane(sound, {tag, probs}) {
  const best = Math.max(...probs), svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 1000 100");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", `${tag} over time, at most ${Math.round(100 * best)} %`);
  const [below, above] = ["below", "above"].map(name => {
    const path = document.createElementNS(svg.namespaceURI, "path");
    path.setAttribute("class", name);
    svg.append(path);
    return path;
  });
  const name = make("div", {className: "tag"}, make("span", {}, tag), make("b", {}, `${Math.round(100 * best)} %`));
  const draw = () => {
    below.setAttribute("d", bars(sound, probs, prob => prob < threshold()));
    above.setAttribute("d", bars(sound, probs, prob => prob >= threshold()));
    name.classList.toggle("faint", best < threshold());
  };
  return {row: [name, svg], draw};
}

function summary(sound) {
  const heard = sound.tags.filter(({probs}) => Math.max(...probs) >= threshold()).map(({tag}) => tag);
  const more = heard.length > 4 ? ` and ${heard.length - 4} more` : "";
  return heard.length ? `heard: ${heard.slice(0, 4).join(", ")}${more}` : "nothing reaches the level that is asked for";
}

function show(card, sound, file) {
  const audio = make("audio", {controls: true, preload: "auto", src: URL.createObjectURL(file)});
  audio.setAttribute("aria-label", sound.file);
  const note = quiet("This browser cannot play this format; its tags are right all the same.", "p");
  note.hidden = true;
  audio.addEventListener("error", () => { note.hidden = false; audio.hidden = true; });
  const lanes = sound.tags.map(tag => lane(sound, tag)), heard = make("p", {className: "heard"});
  card.sound = sound;
  card.draw = () => { lanes.forEach(one => one.draw()); heard.textContent = summary(sound); };
  card.closed = () => URL.revokeObjectURL(audio.src);
  card.body.replaceChildren(heard, audio, note, sightOf(sound, audio, lanes.map(one => one.row)));
  card.length.textContent = `${sound.seconds.toFixed(2)} s`;
  card.draw();
  at("tools").hidden = false;
}

function newCard(name) {
  const card = {body: make("div", {}, quiet("waiting …", "p")), length: quiet("")};
  const close = make("button", {type: "button", title: "take it off this page", "aria-label": `take ${name} off this page`}, "×");
  card.element = make("article", {}, make("div", {className: "row head"}, make("h2", {}, name), card.length, close), card.body);
  close.addEventListener("click", () => {
    if (card.closed) card.closed();
    cards.splice(cards.indexOf(card), 1);
    card.element.remove();
    at("tools").hidden = !cards.some(other => other.sound);
  });
  cards.push(card);
  at("sounds").append(card.element);
  return card;
}

const fail = (card, words) => card.body.replaceChildren(make("p", {className: "fault", role: "alert"}, words));
const pause = ms => new Promise(done => setTimeout(done, ms));

/** What the server says of a file; it is asked again while it is busy. */
async function ask(card, file) {
  for (let tried = 1; ; tried++) {
    const form = new FormData();
    form.append("sound", file, file.name);
    const response = await fetch("/tag", {method: "POST", body: form});
    const busy = response.status === 503 || response.status === 429;
    if (!busy || tried === TRIES) return {status: response.status, answer: await response.json()};
    card.body.replaceChildren(quiet("the server is busy; waiting …", "p"));
    await pause(1000 * Number(response.headers.get("Retry-After") || 5));
  }
}

/** Any sound that the browser can decode, as a WAV file of one channel and 16 bits. */
async function asWav(blob, name) {
  const context = new AudioContext();
  try {
    const decoded = await context.decodeAudioData(await blob.arrayBuffer());
    const channels = Array.from({length: decoded.numberOfChannels}, (_, k) => decoded.getChannelData(k));
    const view = new DataView(new ArrayBuffer(44 + 2 * decoded.length));
    const words = (offset, text) => [...text].forEach((c, k) => view.setUint8(offset + k, c.charCodeAt(0)));
    words(0, "RIFF"); view.setUint32(4, 36 + 2 * decoded.length, true); words(8, "WAVEfmt "); view.setUint32(16, 16, true);
    view.setUint16(20, 1, true); view.setUint16(22, 1, true); view.setUint32(24, decoded.sampleRate, true);
    view.setUint32(28, 2 * decoded.sampleRate, true); view.setUint16(32, 2, true); view.setUint16(34, 16, true);
    words(36, "data"); view.setUint32(40, 2 * decoded.length, true);
    for (let k = 0; k < decoded.length; k++) {
      const mean = channels.reduce((sum, channel) => sum + channel[k], 0) / channels.length;
      view.setInt16(44 + 2 * k, Math.max(-32768, Math.min(32767, Math.round(32768 * mean))), true);
    }
    return new File([view.buffer], name, {type: "audio/wav"});
  } finally {
    context.close();
  }
}

async function tag(file) {
  const card = newCard(file.name);
  if (file.size > limits.bytes) {
    const most = `at most ${limits.bytes / 1e6} MB are taken: cut the sound, or send FLAC, Ogg or MP3`;
    fail(card, `${file.name} has ${(file.size / 1e6).toFixed(1)} MB; ${most}`);
    return;
  }
  try {
    let {status, answer} = await ask(card, file);
    if (status === 415) {
      // What the server cannot decode the browser sometimes can: AAC, WebM.
      const wav = await asWav(file, file.name).catch(() => null);
      if (wav && wav.size <= limits.bytes) ({status, answer} = await ask(card, wav));
    }
    if (status === 200) show(card, answer.sounds[0], file);
    else fail(card, answer.error);
  } catch (error) {
    fail(card, `the server cannot be reached (${error.message}); is it still running?`);
  }
}

async function tagAll(files) {
  const taken = [...files].slice(0, limits.files);
  tell(files.length > limits.files ? `${files.length} files are too many at once; the first ${limits.files} are taken` : "");
  const lane = async () => { while (taken.length) await tag(taken.shift()); };
  await Promise.all(Array.from({length: AT_ONCE}, lane));
}

async function record(button) {
  if (!navigator.mediaDevices) {
    tell("the browser gives the microphone only to pages of this machine (http://127.0.0.1) or of https");
    return null;
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({audio: {echoCancellation: false, noiseSuppression: false, autoGainControl: false}});
  } catch (error) {
    tell(`the microphone cannot be used: ${error.message}`);
    return null;
  }
  const recorder = new MediaRecorder(stream), parts = [], began = Date.now();
  const timer = setInterval(() => {
    const seconds = (Date.now() - began) / 1000;
    button.textContent = `stop (${seconds.toFixed(0)} s)`;
    if (seconds > limits.seconds - 1) recorder.stop();
  }, 200);
  recorder.addEventListener("dataavailable", event => parts.push(event.data));
  recorder.addEventListener("stop", async () => {
    clearInterval(timer);
    stream.getTracks().forEach(track => track.stop());
    button.textContent = "record";
    const name = `recording ${new Date(began).toTimeString().slice(0, 8).replaceAll(":", ".")}.wav`;
    try {
      await tagAll([await asWav(new Blob(parts, {type: recorder.mimeType}), name)]);
    } catch (error) {
      tell(`the recording cannot be decoded: ${error.message}`);
    }
  });
  recorder.start();
  button.textContent = "stop (0 s)";
  return recorder;
}

let recorder = null;
at("record").addEventListener("click", async event => {
  if (recorder && recorder.state === "recording") recorder.stop();
  else recorder = await record(event.currentTarget);
});
at("files").addEventListener("change", event => { tagAll(event.target.files); event.target.value = ""; });
at("threshold").addEventListener("input", () => {
  at("level").textContent = `${at("threshold").value} %`;
  cards.forEach(card => card.draw && card.draw());
});
at("csv").addEventListener("click", event => {
  const url = URL.createObjectURL(new Blob([csv()], {type: "text/csv"}));
  event.currentTarget.href = url;
  setTimeout(() => URL.revokeObjectURL(url), 10000);
});
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, event => {
    event.preventDefault();
    at("drop").classList.toggle("over-it", name === "dragover");
    if (name === "drop") tagAll(event.dataTransfer.files);
  });
}
