"use strict";
// Everything that comes from a file or a server enters a page as text, never as markup.
const byId = (id) => document.getElementById(id);

function pairs(list, rows) {
  list.replaceChildren(...rows.flatMap(([name, value]) => {
    const term = document.createElement("dt"), text = document.createElement("dd");
    term.textContent = name;
    text.append(...[value ?? ""].flat());
    return [term, text];
  }));
}

// The whole answer to a question: `body` is a Blob. It is called off with the error `silent` where it has not come whole after
// so many seconds, and by the signal of the options with its reason. By hand, since AbortSignal.timeout and AbortSignal.any
// are newer than browsers that hospitals have (Firefox ESR 115, Chrome 109).
async function askWhole(path, seconds, silent, { signal, ...options } = {}) {
  const control = new AbortController(), stop = () => control.abort(signal.reason);
  const timer = setTimeout(() => control.abort(silent), 1000 * seconds);
  signal?.addEventListener("abort", stop);
  if (signal?.aborted) stop();
  try {
    const response = await fetch(path, { ...options, signal: control.signal }), { ok, status, headers } = response;
    const bytes = await response.arrayBuffer(); // of a `blob()` the browser's own tools show nothing
    return { ok, status, headers, body: new Blob([bytes], { type: headers.get("Content-Type") || "" }) };
  } catch (error) {
    throw control.signal.aborted ? control.signal.reason : error; // of a body that stalls Chromium gives no reason
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", stop);
  }
}

// Text of somebody else's, whose direction of writing ends with it: else a sign in it mirrors the words behind it.
function foreign(text) {
  const element = document.createElement("bdi");
  element.textContent = text;
  return element;
}

// The three below are those of blastwatch/rounding.py: a figure is never rounded onto a bound or a limit that it does not reach.
function fixed(value, digits = 3) {
  const text = value.toFixed(digits), bound = Number(text) + 0;
  if (![-1, 0, 1].includes(bound)) return text;
  if (Math.abs(value - bound) <= 1e-12) return bound.toFixed(digits);
  for (let more = digits + 1; more <= 6; more += 1) {
    if (Number(value.toFixed(more)) !== bound) return value.toFixed(more);
  }
  const edge = bound + Math.sign(value - bound) * 1e-6;
  return `${value < edge ? "<" : ">"} ${edge.toFixed(6)}`;
}

function significant(value, digits = 4) {
  if (!Number.isFinite(value) || Number.isInteger(value)) return String(value);
  if (Math.abs(value) >= 10 ** digits) return value.toFixed(0);
  for (let more = digits; more < 17; more += 1) {
    if (Math.abs(Number(value.toPrecision(more))) !== 1) return String(Number(value.toPrecision(more)));
  }
  return String(value);
}

function against(value, limit) {
  for (let digits = 4; digits < 17; digits += 1) {
    const texts = [significant(value, digits), significant(limit, digits)];
    if (value === limit || texts[0] !== texts[1]) return texts;
  }
  return [String(value), String(limit)];
}
