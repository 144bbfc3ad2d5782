// The review of label issues, or of windows of recordings that may have a tag. Decisions are sent to the server, or kept in the
// browser until they are downloaded.

const token = document.body.dataset.token;
const embedded = byId("data") ? JSON.parse(byId("data").textContent) : null;
let review = null, current = 0, audio = null;
const decided = new Map(), otherCorrections = new Map(), loaded = new Map(); // decided: what is saved
const waiting = [], refused = new Map(); // decisions that are still to be saved, in their order; the error of each clip
const RETRY_MS = 2000;
const ofWindows = document.body.dataset.mode === "windows"; // whose tag is present, absent, or another one

// ---- decisions

const clipOf = issue => review.clips[issue.clip];
const shownClip = () => clipOf(review.issues[current]);
const same = (a, b) => a.length === b.length && a.every(tag => b.includes(tag));
const isConfirmed = (clip, labels) => !ofWindows && Boolean(labels) && same(labels, clip.labels);
const shownName = clip => clip.name || clip.file;

/** The decision on a clip, saved or not yet: tags, null if it is removed, undefined if there is none. */
function decisionOn(clip) {
  const last = waiting.findLast(decision => decision.file === clip.file);
  return last ? last.labels : decided.get(clip.file);
}

function save() {
  try {
    localStorage.setItem(`fatai-review-${review.id}`, JSON.stringify([...decided]));
  } catch {
    byId("fault").textContent = "this browser stores nothing for this page; download the corrections before you close it";
  }
}

function restore() {
  try {
    for (const [file, labels] of JSON.parse(localStorage.getItem(`fatai-review-${review.id}`)) || []) decided.set(file, labels);
  } catch { /* nothing is stored */ }
}

/** Take a decision: tags, null to remove the clip, or undefined to undo it. Return whether it is one. */
function decide(clip, labels) {
  if (labels && !labels.length && clip.labels.length) {
    byId("fault").textContent = `${clip.file} would have no tag left; choose at least one, or remove the clip`;
    return false;
  }
  refused.delete(clip.file);
  showRefused();
  if (embedded) {
    note(clip.file, labels);
    save();
  } else {
    waiting.push({file: clip.file, labels});
    if (waiting.length === 1) sendWaiting();
  }
  return true;
}

function note(file, labels) {
  if (labels === undefined) decided.delete(file);
  else decided.set(file, labels);
}

/** Save the waiting decisions one after the other: two requests under way could arrive in the wrong order. */
async function sendWaiting() {
  while (waiting.length) {
    const {file, labels} = waiting[0];
    let error;
    try {
      error = await send(file, labels);
    } catch (fault) { // no answer: it may still be saved later
      byId("fault").textContent = `not saved yet: ${fault.message}; the server is asked again every ${RETRY_MS / 1000} s`;
      await new Promise(resolve => setTimeout(resolve, RETRY_MS));
      continue;
    }
    waiting.shift();
    if (error) refused.set(file, error);
    else note(file, labels);
    showRefused();
    progress();
    if (error) showTags();
    if (error && shownClip().file === file) showDecision();
  }
  document.dispatchEvent(new Event("saved"));
}

/** Send one decision; return the error if the server refuses it. Throw if there is no answer. */
async function send(file, labels) {
  const headers = {"Content-Type": "application/json", "X-Fatai-Token": token};
  const body = JSON.stringify({file, labels}); // which leaves undefined out
  const response = await fetch("/decide", {method: "POST", body, headers});
  if (response.ok) return undefined;
  const answer = await response.json().catch(() => ({}));
  return answer.error || `the server answered ${response.status}`;
}

/** Name every clip whose decision is not saved, until there is a new one. */
function showRefused() {
  const errors = [...new Set(refused.values())];
  const lines = errors.map(error => `${error} (${[...refused.keys()].filter(file => refused.get(file) === error).join(", ")})`);
  byId("fault").textContent = lines.length ? `not saved: ${lines.join("; ")}` : "";
}

function csv() {
  if (ofWindows) return windowCsv();
  const rows = new Map(otherCorrections);
  for (const clip of review.clips) {
    const labels = decided.get(clip.file);
    if (labels !== undefined && !isConfirmed(clip, labels)) rows.set(clip.file, labels);
  }
  const words = labels => csvCell(labels === null ? "remove" : labels.join(","));
  const lines = [...rows].sort(([a], [b]) => (a < b ? -1 : 1)).map(([file, labels]) => `${csvCell(file)},${words(labels)}`);
  return ["fname,labels", ...lines].join("\n") + "\n";
}

/** The answers as a table of window labels, of those of the page and those that were there before. */
function windowCsv() {
  const rows = [...review.others];
  for (const clip of review.clips) {
    const labels = decided.get(clip.file);
    const all = labels && [...new Set([...labels, ...clip.labels])];
    if (labels) rows.push([clip.path, clip.start, clip.end, all.join(","), labels.includes(review.tag) ? "" : review.tag, review.user]);
  }
  return ["file,start,end,labels,absent,user", ...rows.map(row => row.map(cell => csvCell(String(cell))).join(","))].join("\n") + "\n";
}

// ---- navigation

function next(from, step, matches = () => true) {
  for (let k = from + step; k >= 0 && k < review.issues.length; k += step) if (matches(review.issues[k])) return k;
  return null;
}

const isUndecided = issue => decisionOn(clipOf(issue)) === undefined;

function go(to) {
  if (to === null) return;
  current = to;
  show();
}

/** Go to the next isUndecided issue, after this one or else from the start. */
function goToUndecided() {
  const to = next(current, 1, isUndecided) ?? next(-1, 1, isUndecided);
  if (to === null) show();
  else go(to);
}

/** Show how many decisions are saved. */
function progress() {
  const done = review.clips.filter(clip => decided.has(clip.file));
  const changed = done.filter(clip => !isConfirmed(clip, decided.get(clip.file))).length;
  const coming = waiting.length ? `; ${waiting.length} being saved` : "";
  const found = done.filter(clip => (decided.get(clip.file) || []).includes(review.tag)).length;
  byId("progress").textContent = ofWindows
    ? `${done.length} of ${review.clips.length} windows answered, ${found} of them ${review.tag}${coming}`
    : `${done.length} of ${review.clips.length} clips decided, ${changed} of them corrected${coming}`;
  if (byId("train")) byId("train").disabled = training || waiting.length > 0;
  byId("done").value = done.length / (review.clips.length || 1);
}

function showTags() {
  const tag = review.issues[current].tag;
  byId("tags").replaceChildren(...[...new Set(review.issues.map(issue => issue.tag))].map(name => {
    const of = review.issues.filter(issue => issue.tag === name);
    return make("option", {value: name, selected: name === tag}, `${name} (${of.filter(s => !isUndecided(s)).length} of ${of.length})`);
  }));
}

// ---- the card

const percent = prob => `${(100 * prob).toFixed(prob > 0.005 && prob < 0.995 ? 0 : 1)} %`;

const WHY = {
  similar: score => `similar to what is known to have it, ${score.toFixed(2)}`, likely: score => `likely, ${percent(score)}`,
  uncertain: score => `uncertain, ${percent(score)}`, random: () => "drawn at random", "held out": () => "drawn at random, for the score alone",
};

function question(issue) {
  if (issue.kind === "window") {
    return make("p", {className: "question"}, "Is ", make("b", {}, issue.tag), " in this window? ", muted(`(${WHY[issue.instead](issue.prob)})`));
  }
  const bold = tag => make("b", {}, tag), predicted = `predicted with ${percent(issue.prob)}`;
  const likelier = issue.instead ? ["; ", bold(issue.instead), " is likelier"] : [];
  const missing = [` present as well? Not given; ${predicted}.`], wrong = [` present? Given, but ${predicted}`, ...likelier, "."];
  return make("p", {className: "question"}, "Is ", bold(issue.tag), ...(issue.kind === "missing" ? missing : wrong));
}

function scores(clip) {
  return make("div", {className: "scores"}, ...clip.scores.flatMap(([tag, prob]) => {
    const fill = make("div"), given = clip.labels.includes(tag);
    fill.style.width = `${100 * prob}%`;
    const name = make("span", {className: given ? "given" : ""}, given ? `${tag} (given)` : tag);
    return [name, make("div", {className: "bar"}, fill), make("span", {className: "percent"}, percent(prob))];
  }));
}

function decisionText(clip) {
  const labels = decisionOn(clip);
  if (labels === undefined) return "";
  if (labels === null) return "Decided: remove the clip.";
  if (ofWindows) return labels.length ? `Decided: ${labels.join(", ")}.` : `Decided: no ${review.tag}.`;
  return isConfirmed(clip, labels) ? "Decided: the given tags are right." : `Decided: ${labels.join(", ")}.`;
}

async function mediaOf(k) {
  if (embedded) return review.clips[k];
  const number = ofWindows ? review.clips[k].row : k;
  if (!loaded.has(k)) loaded.set(k, fetch(`/clip/${number}`).then(response => response.json()).catch(error => ({error: error.message})));
  return loaded.get(k);
}

function show() {
  if (!review.issues.length) {
    progress();
    byId("card").replaceChildren(muted("There is no other window to ask about: all of the index are answered.", "p"));
    return;
  }
  const issue = review.issues[current], clip = clipOf(issue);
  progress();
  showTags();
  const inTag = review.issues.filter(other => other.tag === issue.tag);
  const chips = clip.labels.map(tag => make("span", {className: tag === issue.tag ? "chip suspect" : "chip"}, tag));
  const media = make("div", {className: "media"}, muted("loading the sound …", "p"));
  byId("card").replaceChildren(
    make("div", {className: "row"}, make("h2", {title: clip.file}, shownName(clip)), muted(`${issue.tag}: ${inTag.indexOf(issue) + 1} of ${inTag.length}`)),
    question(issue), ...(ofWindows ? [] : [make("div", {className: "chips"}, muted("given:"), ...(chips.length ? chips : [muted("no tags")]))]),
    media, scores(clip), make("p", {className: "decision", id: "decision"}),
  );
  showDecision();
  byId("back").disabled = next(current, -1) === null;
  byId("next").disabled = next(current, 1) === null;
  if (audio) audio.pause();
  audio = null;
  const shown = current;
  mediaOf(issue.clip).then(sound => { if (shown === current && media.isConnected) play(media, clip, sound); });
  if (!embedded && current + 1 < review.issues.length) mediaOf(review.issues[current + 1].clip);
  if (document.activeElement === document.body) focusCard();
}

const focusCard = () => byId("card").focus({preventScroll: true});

function showDecision() {
  const clip = shownClip(), labels = decisionOn(clip), kept = isConfirmed(clip, labels);
  byId("decision").textContent = decisionText(clip);
  const has = ofWindows && labels !== undefined && labels.includes(review.tag), others = (labels || []).filter(tag => tag !== review.tag);
  const is = ofWindows
    ? {yes: has, no: labels !== undefined && !has, relabel: others.length > 0}
    : {keep: kept, remove: labels === null, relabel: Boolean(labels) && !kept};
  for (const [id, on] of Object.entries(is)) byId(id).setAttribute("aria-pressed", String(on));
  byId("undo").disabled = labels === undefined;
}

function play(media, clip, sound) {
  if (sound.error) {
    media.replaceChildren(muted(`it cannot be played: ${sound.error}`, "p"));
    return;
  }
  audio = make("audio", {controls: true, preload: "auto", src: sound.sound, "aria-label": clip.file});
  media.replaceChildren(soundView({...sound, file: clip.file}, audio), audio);
  if (sound.total_seconds > sound.seconds + 0.01) media.append(muted(`the first ${sound.seconds.toFixed(1)} of ${sound.total_seconds.toFixed(1)} seconds`, "p"));
  if (byId("autoplay").checked) audio.play().catch(() => {});
}

function playOrPause() {
  if (audio) audio.paused ? audio.play() : audio.pause();
}

// ---- other tags

/** The tags by the model: with the missing tag, or with the wrong one replaced. */
function proposal(issue) {
  const labels = clipOf(issue).labels;
  if (ofWindows) return labels;
  if (issue.kind === "missing") return [...labels, issue.tag];
  return [...new Set(labels.map(tag => (tag === issue.tag ? issue.instead : tag)).filter(Boolean))];
}

function openChoice() {
  if (byId("choice")) { closeChoice(); return; }
  const issue = review.issues[current], clip = clipOf(issue);
  const labels = decisionOn(clip), chosen = new Set(labels && !isConfirmed(clip, labels) ? labels : proposal(issue));
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
    const matches = filter.value.trim().toLowerCase();
    buttons.forEach((button, k) => { button.hidden = !order[k].toLowerCase().includes(matches); });
  });
  const typed = () => { // in recordings there may be tags that no network was trained on
    const tag = ofWindows ? filter.value.trim().replace(/[,;]/g, " ") : "";
    return tag && !order.some(known => known.toLowerCase().includes(tag.toLowerCase())) ? [tag] : [];
  };
  const take = make("button", {type: "button", className: "primary", id: "take"}, make("kbd", {}, "Enter"), " use these tags");
  take.addEventListener("click", () => submit(clip, [...order.filter(tag => chosen.has(tag)), ...typed()]));
  const stop = make("button", {type: "button"}, make("kbd", {}, "Esc"), " cancel");
  stop.addEventListener("click", closeChoice);
  const parts = [make("div", {className: "chips"}, ...buttons), make("div", {className: "row"}, take, stop)];
  const panel = make("section", {id: "choice", "aria-label": "the right tags"}, ...(order.length > 12 || ofWindows ? [filter] : []), ...parts);
  panel.pick = k => buttons[k] && buttons[k].click();
  byId("decision").before(panel);
  panel.scrollIntoView({block: "nearest"});
}

function closeChoice() {
  if (byId("choice")) byId("choice").remove();
  focusCard();
}

function submit(clip, labels) {
  if (!decide(clip, labels)) return;
  focusCard();
  if (labels === undefined) show();
  else goToUndecided();
}

const actions = ofWindows ? {
  yes: () => submit(shownClip(), [review.tag]),
  no: () => submit(shownClip(), []),
} : {
  keep: () => submit(shownClip(), [...shownClip().labels]),
  remove: () => submit(shownClip(), null),
};
Object.assign(actions, {
  relabel: openChoice,
  undo: () => { if (!byId("undo").disabled) submit(shownClip(), undefined); },
  play: playOrPause,
  back: () => go(next(current, -1)),
  next: () => go(next(current, 1)),
});

function goToTag(name) {
  const first = matches => next(-1, 1, issue => issue.tag === name && matches(issue));
  go(first(isUndecided) ?? first(() => true));
}

function goToNextTag() {
  const names = [...new Set(review.issues.map(issue => issue.tag))];
  goToTag(names[(names.indexOf(review.issues[current].tag) + 1) % names.length]);
}

const keys = {
  k: actions.keep, y: actions.yes, n: actions.no, r: openChoice, x: actions.remove, Delete: actions.remove, u: actions.undo,
  ArrowLeft: actions.back, ArrowRight: actions.next, t: goToNextTag,
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || !review.issues.length) return;
  const panel = byId("choice"), target = event.target, typing = target.id === "filter";
  if (event.key === "Escape" && panel) closeChoice();
  else if (event.key === "Enter" && panel && (typing || !target.closest("button"))) byId("take").click();
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

// ---- training

let training = false;

/** Draw the average precision on held-out windows over the answers, and list the last rounds. */
function showRounds() {
  if (!byId("rounds")) return;
  const scored = review.rounds.filter(round => round.ap !== null), last = review.rounds.at(-1);
  const text = round => round.ap === null
    ? `no score yet: it needs held-out windows with and without ${review.tag} (${round.held_out_present} and ${round.held_out_absent} so far)`
    : `average precision ${round.ap.toFixed(3)} on ${round.held_out_present + round.held_out_absent} held-out windows`;
  byId("rounds").replaceChildren(...(last ? [
    make("p", {}, last.present
      ? `${last.answers} answers: trained on ${last.present} with and ${last.absent} without ${review.tag}, ${text(last)}.`
      : `${last.answers} answers, not trained yet: it needs some with and some without ${review.tag} that are not held out.`),
    ...(scored.length > 1 ? [chart(scored)] : []),
  ] : [muted(`Not trained yet: answer some windows with and some without ${review.tag}, then train.`, "p")]));
}

/** Make a line of scores, 0 at the bottom and 1 at the top. */
function chart(rounds) {
  const svg = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  const most = Math.max(...rounds.map(round => round.answers));
  const points = rounds.map(round => `${(300 * round.answers / most).toFixed(1)},${(60 - 58 * round.ap).toFixed(1)}`);
  const label = `average precision from ${rounds[0].ap.toFixed(3)} to ${rounds.at(-1).ap.toFixed(3)}`;
  const picture = svg("svg", {viewBox: "0 0 304 62", role: "img", "aria-label": label, class: "score"});
  picture.append(svg("polyline", {points: points.join(" "), fill: "none", stroke: "currentColor", "stroke-width": "2"}));
  return picture;
}

async function train() {
  if (training || waiting.length) return;
  training = true;
  byId("train").disabled = true;
  try {
    const response = await fetch("/train", {method: "POST", headers: {"X-Fatai-Token": token}});
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    byId("fault").textContent = "";
    review = answer;
    loaded.clear();
    noteDecided();
    showRounds();
    training = false;
    go(next(-1, 1, isUndecided) ?? 0);
  } catch (error) {
    byId("fault").textContent = `not trained: ${error.message}`;
  }
  training = false;
  byId("train").disabled = false;
}

function noteDecided() {
  const known = new Set(review.clips.map(clip => clip.file));
  decided.clear();
  for (const [file, labels] of Object.entries(review.decided)) (known.has(file) ? decided : otherCorrections).set(file, labels);
}

async function load() {
  review = embedded || await (await fetch("/data")).json();
  noteDecided();
  if (embedded) restore();
  showRounds();
  if (byId("train")) byId("train").addEventListener("click", train);
  for (const [id, action] of Object.entries(actions)) {
    byId(id).addEventListener("click", event => {
      if (review.issues.length) action();
      if (event.detail) focusCard(); // or else the next space would press the button again
    });
  }
  byId("tags").addEventListener("change", () => { goToTag(byId("tags").value); focusCard(); });
  byId("csv").addEventListener("click", event => {
    if (waiting.length) { // download them too
      event.preventDefault();
      document.addEventListener("saved", () => byId("csv").click(), {once: true});
      return;
    }
    event.currentTarget.href = embedded ? `data:text/csv;charset=utf-8,${encodeURIComponent(csv())}` : `/${byId("csv").download}`;
  });
  document.addEventListener("keydown", onKey);
  window.addEventListener("beforeunload", event => { if (waiting.length) event.preventDefault(); });
  go(next(-1, 1, isUndecided) ?? 0);
}

load().catch(error => { byId("fault").textContent = `the page cannot load: ${error.message}`; });
