"use strict";
const short = (digest) => (digest ? digest.slice(0, 12) : "unknown");
const local = (time) => new Date(time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
const figure = (value) => (typeof value === "number" ? value.toFixed(4) : value);

function row(cells, kind) {
  const line = document.createElement("tr");
  for (const text of cells) line.appendChild(document.createElement("td")).textContent = text;
  if (kind) line.className = kind;
  return line;
}

function quoted(who, why) { return why ? `${who}: “${why}”` : who; }

function showServed(told) {
  byId("report").hidden = !told.version;
  byId("overridden").textContent = "";
  if (!told.version) {
    byId("sentence").textContent = `Nothing served at ${local(told.at)}: no version was champion yet.`;
    pairs(byId("facts"), []);
    return;
  }
  byId("sentence").textContent = `Version ${told.version} served at ${local(told.at)}.`;
  byId("overridden").textContent = told.overridden.length
    ? `Overridden at its promotion: ${told.overridden.join(", ")}.` : "";
  pairs(byId("facts"), [
    ["since", `${local(told.since)}, ${told.action} by ${quoted(told.by, told.why)}`],
    ["promoted", `${local(told.promoted.time)} by ${quoted(told.promoted.by, told.promoted.why)}`],
    ["package", told.digest], ["data", told.data_digest], ["split", told.split_digest],
    ["code", told.git_commit || "unknown"],
    ["overridden", told.overridden.join(", ") || "nothing"],
  ]);
  byId("gates").replaceChildren(...told.gates.map((gate) => {
    const off = gate.limit === "off by policy";
    const verdict = off ? "off" : gate.passed ? "passed" : gate.overridden ? "overridden" : "failed";
    return row([gate.name, verdict, figure(gate.value), figure(gate.limit)], gate.passed ? "" : "is-refer");
  }));
}

function showEntries(entries, check) {
  byId("check").textContent = check.intact
    ? `All ${check.entries} entries are what was signed.`
    : `The history is not what was signed. ${check.faults.join(" ")}`;
  byId("check").className = check.intact ? "" : "is-all";
  byId("entries").replaceChildren(...entries.map((entry) => row([
    entry.number, local(entry.time), entry.who, entry.action, entry.version,
    entry.alias ? `${entry.alias}: ${entry.before || "none"} → ${entry.after || "none"}` : "",
    entry.overridden.length ? `${entry.why} (overridden: ${entry.overridden.join(", ")})` : entry.why,
  ], entry.action === "refuse" || entry.overridden.length ? "is-refer" : "")));
}

async function tell(at) {
  byId("status").textContent = "Asking…";
  try {
    await ask(at);
  } catch (error) {
    byId("status").textContent = `The service did not answer: ${error.message}`;
  }
}

async function ask(at) {
  const response = await askWithKey(at ? `v1/history?at=${encodeURIComponent(at)}` : "v1/history");
  const answer = await response.json();
  if (!response.ok) {
    byId("status").textContent = `${answer.title}. ${answer.detail}`;
    return;
  }
  byId("status").textContent = "";
  showServed(answer.told);
  showEntries(answer.entries, answer.check);
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  tell(byId("at").value ? new Date(byId("at").value).toISOString() : "");
});
byId("now").addEventListener("click", () => { byId("at").value = ""; tell(""); });
onKey(() => tell(""));
tell("");
