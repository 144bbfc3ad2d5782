"use strict";
// Tags sounds on the server of the page.

const PARALLEL_SOUNDS = 2, MAX_TRIES = 20;

const sleep = ms => new Promise(resolve => setTimeout(resolve, ms));

/** Upload a file and return the status and body of the response; try again while the server is busy. */
async function upload(file, showProgress) {
  for (let attempt = 1; ; attempt++) {
    const form = new FormData();
    form.append("sound", file, file.name);
    let response, body;
    try {
      response = await fetch("tag", {method: "POST", body: form});
      body = await response.json();
    } catch (error) {
      throw new Error(`the server cannot be reached (${error.message}); is it still running?`);
    }
    const busy = response.status === 503 || response.status === 429;
    if (!busy || attempt === MAX_TRIES) return {status: response.status, body};
    showProgress("the server is busy; waiting …");
    await sleep(1000 * Number(response.headers.get("Retry-After") || 5));
  }
}

/** Return the tags of a file over time; an error's message is for the user. */
async function tagSound(file, showProgress) {
  let {status, body} = await upload(file, showProgress);
  if (status === 415 || status === 422) {
    // Browsers decode some formats and damaged files that the server cannot: AAC, WebM, sounds that were cut.
    const wav = await asWav(file, file.name).catch(() => null);
    const second = wav && wav.size <= limits.maxBytes ? await upload(wav, showProgress) : null;
    if (second && second.status === 200) {
      ({status, body} = second);
      body.sounds[0].notices.unshift("decoded by this browser, since the server cannot read the file");
    }
  }
  if (status !== 200) throw new Error(body.error);
  return body.sounds[0];
}
