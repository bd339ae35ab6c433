"use strict";
// Where the service needs a key it answers 401; then a field for it appears. The key stays in this tab and goes nowhere else.
const KEY_ITEM = "blastwatch-key";
const keyListeners = [];
const LONGEST_ANSWER = 150; // seconds, as the Python clients wait: the service itself gives up after 120
const GONE = "The service does not answer: it is stopped or out of reach. Try again when it runs.";
const SILENT = `The service has not answered within ${LONGEST_ANSWER} seconds: it hangs or is out of reach. Try again when it runs.`;
let justGiven = false; // a key, in the form that went with it

class Unanswered extends Error {} // the service took no notice of the call, and may of the same call later

function onKey(call) { keyListeners.push(call); }

function unanswered(error) { // one that is Unanswered already says why it was called off
  if (error instanceof Unanswered) return error;
  return new Unanswered(GONE, { cause: error });
}

// The whole answer. The signal of the options calls it off, with an Unanswered as its reason.
async function askWithKey(path, options = {}) {
  const key = sessionStorage.getItem(KEY_ITEM);
  const headers = key ? { ...options.headers, Authorization: `Bearer ${key}` } : options.headers;
  const silent = new Unanswered(SILENT);
  const response = await askWhole(path, LONGEST_ANSWER, silent, { ...options, headers }).catch((error) => { throw unanswered(error); });
  // A refusal of the key of before says nothing of the one that was given meanwhile.
  if (response.status === 401 && sessionStorage.getItem(KEY_ITEM) !== key) return askWithKey(path, options);
  if (response.status === 401) showKeyForm(key ? "This key is not good. Give another one." : "");
  if (justGiven && document.activeElement === document.body) { // who works by keyboard goes on here
    document.querySelector(response.status === 401 ? "#key" : "main input").focus();
  }
  justGiven = false;
  return response;
}

// What the service answered; a page that a proxy puts in its place is no answer, whatever its status.
async function jsonOf(response) {
  const text = await response.body.text();
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Unanswered("What came is no answer of the service: something between it and this page answered in its place.",
      { cause: error });
  }
}

// What a refusal says, its type and what it advises, "" where it is no problem document. A gateway's own may leave out any member.
async function refusalOf(response) {
  const bare = `The service answered HTTP ${response.status}.`;
  if (!(response.headers.get("content-type") || "").startsWith("application/problem+json")) return { words: bare, type: "", advice: "" };
  const { title, detail, type = "", advice = "" } = Object(await jsonOf(response));
  if (!detail) return { words: title ? `${title} (HTTP ${response.status}).` : bare, type, advice };
  const told = !title || detail.startsWith(title); // some details begin with their title
  return { words: told ? detail : `${title}. ${detail}`, type, advice };
}

function showKeyForm(words) {
  let form = document.getElementById("key-form");
  if (!form) {
    form = document.createElement("form");
    form.id = "key-form";
    form.className = "notice";
    const label = document.createElement("label"), input = document.createElement("input");
    const button = document.createElement("button"), said = document.createElement("span");
    label.htmlFor = input.id = "key";
    label.textContent = "This service needs an API key";
    input.type = "password";
    input.autocomplete = "off";
    button.className = "button";
    button.textContent = "Use this key";
    said.setAttribute("role", "status");
    said.id = "key-fault";
    input.setAttribute("aria-describedby", said.id);
    form.append(label, input, button, said);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const key = input.value.trim();
      if (!/^[\x21-\x7e]+$/.test(key)) { // no header can carry it, and no key that was made has such characters
        tellKeyFault("This is no key: expected letters, digits and signs as blastwatch keys add printed them, without spaces.");
        return;
      }
      sessionStorage.setItem(KEY_ITEM, key);
      form.remove();
      justGiven = true;
      for (const call of keyListeners) call();
    });
    document.querySelector("main").before(form);
  }
  tellKeyFault(words);
}

// By the attribute: Firefox ESR 115 has no `ariaInvalid`.
function tellInvalid(input, words) {
  if (words) input.setAttribute("aria-invalid", "true");
  else input.removeAttribute("aria-invalid");
}

function tellKeyFault(words) {
  tellInvalid(document.getElementById("key"), words);
  document.getElementById("key-fault").textContent = words;
}
