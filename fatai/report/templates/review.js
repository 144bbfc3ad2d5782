// The review: goes through the suspects; what is decided of a clip goes to the server, or stays in the browser until it is downloaded.

const token = document.body.dataset.token;
const held = at("data") ? JSON.parse(at("data").textContent) : null;
let review = null, current = 0, audio = null;
const decided = new Map(), others = new Map(), loaded = new Map();

// ---- decisions

const clipOf = suspect => review.clips[suspect.clip];
const same = (a, b) => a.length === b.length && a.every(tag => b.includes(tag));
const isRight = clip => decided.has(clip.file) && decided.get(clip.file) !== null && same(decided.get(clip.file), clip.labels);

function store() {
  try {
    localStorage.setItem(`fatai-review-${review.id}`, JSON.stringify([...decided]));
  } catch {
    at("fault").textContent = "this browser keeps nothing for a page like this; download the corrections before you close it";
  }
}

function recall() {
  try {
    for (const [file, labels] of JSON.parse(localStorage.getItem(`fatai-review-${review.id}`)) || []) decided.set(file, labels);
  } catch { /* nothing was kept */ }
}

/** Tags, null to remove the clip, undefined to take the decision back. */
async function decide(clip, labels) {
  if (labels && !labels.length && clip.labels.length) {
    at("fault").textContent = `${clip.file} would have no tag left; choose at least one, or remove the clip`;
    return false;
  }
  if (!held) {
    const body = JSON.stringify({file: clip.file, ...(labels === undefined ? {} : {labels})});
    try {
      const headers = {"Content-Type": "application/json", "X-Fatai-Token": token};
      const response = await fetch("/decide", {method: "POST", body, headers});
      if (!response.ok) throw new Error((await response.json()).error);
    } catch (error) {
      at("fault").textContent = `not saved: ${error.message}`;
      return false;
    }
  }
  at("fault").textContent = "";
  if (labels === undefined) decided.delete(clip.file);
  else decided.set(clip.file, labels);
  if (held) store();
  return true;
}

function csv() {
  const rows = new Map(others);
  for (const clip of review.clips) if (decided.has(clip.file) && !isRight(clip)) rows.set(clip.file, decided.get(clip.file));
  const words = labels => cell(labels === null ? "remove" : labels.join(","));
  const lines = [...rows].sort(([a], [b]) => (a < b ? -1 : 1)).map(([file, labels]) => `${cell(file)},${words(labels)}`);
  return ["fname,labels", ...lines].join("\n") + "\n";
}

// ---- where we are

function next(from, step, wanted = () => true) {
  for (let k = from + step; k >= 0 && k < review.suspects.length; k += step) if (wanted(review.suspects[k])) return k;
  return null;
}

const undecided = suspect => !decided.has(clipOf(suspect).file);

function go(to) {
  if (to === null) return;
  current = to;
  show();
}

/** The next one that is not decided, after this one or else from the start. */
function onwards() {
  const to = next(current, 1, undecided) ?? next(-1, 1, undecided);
  if (to === null) show();
  else go(to);
}

function progress() {
  const done = review.clips.filter(clip => decided.has(clip.file));
  const changed = done.filter(clip => !isRight(clip)).length;
  at("progress").textContent = `${done.length} of ${review.clips.length} clips decided, ${changed} of them corrected`;
  at("done").value = done.length / review.clips.length;
  const tag = review.suspects[current].tag;
  at("tags").replaceChildren(...[...new Set(review.suspects.map(suspect => suspect.tag))].map(name => {
    const of = review.suspects.filter(suspect => suspect.tag === name);
    return make("option", {value: name, selected: name === tag}, `${name} (${of.filter(s => !undecided(s)).length} of ${of.length})`);
  }));
}

// ---- the card

const percent = prob => `${(100 * prob).toFixed(prob > 0.005 && prob < 0.995 ? 0 : 1)} %`;

function question(suspect) {
  const bold = tag => make("b", {}, tag), says = `the model says ${percent(suspect.prob)}`;
  const rather = suspect.instead ? [", and thinks more of ", bold(suspect.instead)] : [];
  const missing = [` in it as well? It is not given; ${says}.`], wrong = [` really in it? Given, but ${says}`, ...rather, "."];
  return make("p", {className: "question"}, "Is ", bold(suspect.tag), ...(suspect.kind === "missing" ? missing : wrong));
}

function scores(clip) {
  return make("div", {className: "scores"}, ...clip.scores.flatMap(([tag, prob]) => {
    const fill = make("div"), given = clip.labels.includes(tag);
    fill.style.width = `${100 * prob}%`;
    const name = make("span", {className: given ? "given" : ""}, given ? `${tag} (given)` : tag);
    return [name, make("div", {className: "bar"}, fill), make("span", {className: "percent"}, percent(prob))];
  }));
}

function decisionOf(clip) {
  if (!decided.has(clip.file)) return "";
  const labels = decided.get(clip.file);
  if (labels === null) return "Decided: leave the clip out.";
  return isRight(clip) ? "Decided: it is right as it is." : `Decided: ${labels.join(", ")}.`;
}

async function mediaOf(k) {
  if (held) return review.clips[k];
  if (!loaded.has(k)) loaded.set(k, fetch(`/clip/${k}`).then(response => response.json()).catch(error => ({fault: error.message})));
  return loaded.get(k);
}

function show() {
  const suspect = review.suspects[current], clip = clipOf(suspect);
  progress();
  const inTag = review.suspects.filter(other => other.tag === suspect.tag);
  const chips = clip.labels.map(tag => make("span", {className: tag === suspect.tag ? "chip doubted" : "chip"}, tag));
  const media = make("div", {className: "media"}, quiet("loading the sound …", "p"));
  at("card").replaceChildren(
    make("div", {className: "row"}, make("h2", {}, clip.file), quiet(`${suspect.tag}: ${inTag.indexOf(suspect) + 1} of ${inTag.length}`)),
    question(suspect), make("div", {className: "chips"}, quiet("given:"), ...(chips.length ? chips : [quiet("no tags")])),
    media, scores(clip), make("p", {className: "decision", id: "decision"}, decisionOf(clip)),
  );
  mark(clip);
  at("back").disabled = next(current, -1) === null;
  at("next").disabled = next(current, 1) === null;
  if (audio) audio.pause();
  audio = null;
  const shown = current;
  mediaOf(suspect.clip).then(sound => { if (shown === current && media.isConnected) play(media, clip, sound); });
  if (!held && current + 1 < review.suspects.length) mediaOf(review.suspects[current + 1].clip);
  if (document.activeElement === document.body) toCard();
}

const toCard = () => at("card").focus({preventScroll: true});

function mark(clip) {
  const labels = decided.get(clip.file);
  const is = {keep: isRight(clip), remove: labels === null, relabel: Boolean(labels) && !isRight(clip)};
  for (const [id, on] of Object.entries(is)) at(id).setAttribute("aria-pressed", String(on));
  at("undo").disabled = labels === undefined;
}

function play(media, clip, sound) {
  if (sound.fault) {
    media.replaceChildren(quiet(`it cannot be played: ${sound.fault}`, "p"));
    return;
  }
  audio = make("audio", {controls: true, preload: "auto", src: sound.sound, "aria-label": clip.file});
  media.replaceChildren(sightOf({...sound, file: clip.file}, audio), audio);
  if (sound.of > sound.seconds + 0.01) media.append(quiet(`the first ${sound.seconds.toFixed(1)} of ${sound.of.toFixed(1)} seconds`, "p"));
  if (at("autoplay").checked) audio.play().catch(() => {});
}

function playOrPause() {
  if (audio) audio.paused ? audio.play() : audio.pause();
}

// ---- other tags

/** What the model would have: the missing tag besides those given, or the wrong one changed for another. */
function proposal(suspect) {
  const labels = clipOf(suspect).labels;
  if (suspect.kind === "missing") return [...labels, suspect.tag];
  return [...new Set(labels.map(tag => (tag === suspect.tag ? suspect.instead : tag)).filter(Boolean))];
}

function choose() {
  if (at("choice")) { leave(); return; }
  const suspect = review.suspects[current], clip = clipOf(suspect);
  const chosen = new Set(decided.get(clip.file) && !isRight(clip) ? decided.get(clip.file) : proposal(suspect));
  const likely = clip.scores.map(([tag]) => tag), order = [...new Set([...chosen, ...clip.labels, ...likely, ...review.tags])];
  const buttons = order.map((tag, k) => {
    const key = k < 9 ? [make("kbd", {}, String(k + 1)), " "] : [];
    const button = make("button", {type: "button", className: "chip", "aria-pressed": String(chosen.has(tag))}, ...key, tag);
    button.addEventListener("click", () => {
      if (!chosen.delete(tag)) chosen.add(tag);
      button.setAttribute("aria-pressed", String(chosen.has(tag)));
    });
    return button;
  });
  const filter = make("input", {type: "search", id: "filter", placeholder: "part of a tag's name", "aria-label": "part of a tag's name"});
  filter.addEventListener("input", () => {
    const wanted = filter.value.trim().toLowerCase();
    buttons.forEach((button, k) => { button.hidden = !order[k].toLowerCase().includes(wanted); });
  });
  const take = make("button", {type: "button", className: "primary", id: "take"}, make("kbd", {}, "Enter"), " take these tags");
  take.addEventListener("click", () => settle(order.filter(tag => chosen.has(tag))));
  const stop = make("button", {type: "button"}, make("kbd", {}, "Esc"), " leave it");
  stop.addEventListener("click", leave);
  const parts = [make("div", {className: "chips"}, ...buttons), make("div", {className: "row"}, take, stop)];
  const panel = make("section", {id: "choice", "aria-label": "the right tags"}, ...(order.length > 12 ? [filter] : []), ...parts);
  panel.pick = k => buttons[k] && buttons[k].click();
  at("decision").before(panel);
  panel.scrollIntoView({block: "nearest"});
}

function leave() {
  if (at("choice")) at("choice").remove();
  toCard();
}

async function settle(labels) {
  const clip = clipOf(review.suspects[current]);
  if (!await decide(clip, labels)) return;
  toCard();
  if (labels === undefined) show();
  else onwards();
}

const actions = {
  keep: () => settle([...clipOf(review.suspects[current]).labels]),
  relabel: choose,
  remove: () => settle(null),
  undo: () => { if (!at("undo").disabled) settle(undefined); },
  play: playOrPause,
  back: () => go(next(current, -1)),
  next: () => go(next(current, 1)),
};

function toTag(name) {
  const first = wanted => next(-1, 1, suspect => suspect.tag === name && wanted(suspect));
  go(first(undecided) ?? first(() => true));
}

function nextTag() {
  const names = [...new Set(review.suspects.map(suspect => suspect.tag))];
  toTag(names[(names.indexOf(review.suspects[current].tag) + 1) % names.length]);
}

const keys = {
  k: actions.keep, r: choose, x: actions.remove, Delete: actions.remove, u: actions.undo,
  ArrowLeft: actions.back, ArrowRight: actions.next, t: nextTag,
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const panel = at("choice"), target = event.target, typing = target.id === "filter";
  if (event.key === "Escape" && panel) leave();
  else if (event.key === "Enter" && panel && (typing || !target.closest("button"))) at("take").click();
  else if (typing || target.matches("select, input, audio")) return;
  else if (event.key === " " && !target.closest("button, a")) playOrPause();
  else if (panel && /^[1-9]$/.test(event.key)) panel.pick(Number(event.key) - 1);
  else {
    const action = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action || event.repeat && !event.key.startsWith("Arrow")) return;
    action();
  }
  event.preventDefault();
}

async function begin() {
  review = held || await (await fetch("/data")).json();
  const known = new Set(review.clips.map(clip => clip.file));
  for (const [file, labels] of Object.entries(review.decided)) (known.has(file) ? decided : others).set(file, labels);
  if (held) recall();
  for (const [id, action] of Object.entries(actions)) {
    at(id).addEventListener("click", event => {
      action();
      if (event.detail) toCard(); // after a click, or else the next space would press the button again
    });
  }
  at("tags").addEventListener("change", () => { toTag(at("tags").value); toCard(); });
  at("csv").addEventListener("click", event => {
    event.currentTarget.href = held ? `data:text/csv;charset=utf-8,${encodeURIComponent(csv())}` : "/corrections.csv";
  });
  document.addEventListener("keydown", onKey);
  go(next(-1, 1, undecided) ?? 0);
}

begin().catch(error => { at("fault").textContent = `the page cannot begin: ${error.message}`; });
