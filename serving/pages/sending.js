"use strict";
// How a file is sent: with the key of its patient, and again where the service asks to wait, as the Python clients do.
const UNPRINTABLE = /(?! )[\p{C}\p{Z}]/u; // what the Python clients send in no key of a patient either
const LATER = [429, 502, 503]; // the service, or a proxy before it, says itself that a later call may succeed
const ATTEMPTS = 4; // while the service is away
const LONGEST_PAUSE = 30; // seconds before a service that is away is asked again
// Seconds that one file waits altogether for the turn of its caller, and while the service is overloaded.
const LONGEST = { "/problems/rate-limited": 900, "/problems/overloaded": 120 };

class KeyRefused extends Error {} // the patient's

// A header as the Python clients send it: fetch takes one character a byte, so these are the bytes of UTF-8.
function naming(patient) {
  if (!patient) return {};
  const found = UNPRINTABLE.exec(patient);
  if (found) {
    const code = found[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    throw new KeyRefused(`Expected printable text but got the character U+${code}. Write the pseudonym anew, without it.`);
  }
  const characters = Array.from(new TextEncoder().encode(patient), (byte) => String.fromCharCode(byte));
  return { "Blastwatch-Patient": characters.join("") };
}

// Seconds until a file is sent again; null where it has waited long enough. `waited` counts, from one answer to the next.
function pauseOf(response, type, waited) {
  const asked = Number.parseInt(response.headers.get("Retry-After"), 10), kind = response.status === 429 && asked >= 0 ? type : "";
  if (Object.hasOwn(LONGEST, kind)) {
    const seconds = Math.max(asked, 1);
    waited[kind] = (waited[kind] || 0) + seconds;
    return waited[kind] > LONGEST[kind] ? null : seconds;
  }
  waited.attempts = (waited.attempts || 0) + 1;
  if (waited.attempts >= ATTEMPTS) return null;
  return Math.min(asked >= 0 ? asked : 0.25 * 2 ** waited.attempts, LONGEST_PAUSE);
}

// A little more than was asked for, by chance, so that tabs do not return together.
const wait = (seconds, signal) => new Promise((done, refuse) => {
  const stop = () => {
    clearTimeout(timer);
    refuse(signal.reason);
  };
  const timer = setTimeout(() => {
    signal?.removeEventListener("abort", stop);
    done();
  }, 1000 * seconds * (1 + Math.random() / 4));
  if (signal?.aborted) stop(); // an event of before is not told again
  else signal?.addEventListener("abort", stop, { once: true });
});

// The answer to a file. `onWait` hears of the seconds before each new attempt, and of the words of the service; the
// signal calls it off, with an Unanswered as its reason.
async function send(path, file, { headers = {}, onWait = () => {}, signal } = {}) {
  await file.slice(0, 1).arrayBuffer().catch((error) => { // else the browser says of it what it says of a service that is gone
    throw new Error("The file cannot be read: it is a folder, or was moved or changed since it was chosen.", { cause: error });
  });
  const waited = {};
  for (;;) {
    const form = new FormData();
    form.append("image", file, file.name);
    const response = await askWithKey(path, { method: "POST", body: form, headers, signal });
    if (response.ok) return response;
    if (response.status === 401) throw new Unanswered("The service needs an API key.");
    const { words, type, advice } = await refusalOf(response);
    if (type === "/problems/header-too-long") throw new KeyRefused(words); // this page sends no other that may be
    if (!LATER.includes(response.status)) throw new Error(advice ? `${words} ${advice}` : words);
    const seconds = pauseOf(response, type, waited);
    if (seconds === null) throw new Unanswered(words);
    onWait(seconds, words);
    await wait(seconds, signal);
  }
}
