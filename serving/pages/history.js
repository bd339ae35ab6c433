"use strict";
const short = (digest) => (digest ? digest.slice(0, 12) : "unknown");
const local = (time) => new Date(time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
const figure = (value) => (typeof value === "number" ? significant(value) : String(value));
const figures = (value, limit) => (typeof value === "number" && typeof limit === "number" ? against(value, limit)
  : [figure(value), figure(limit)]);
let asked = 0; // questions: an answer that comes after the next question is not shown

// A table's rows. On a narrow screen each is a card, whose lines are named by the heads of the columns.
function fill(body, rows) {
  const heads = [...body.closest("table").querySelectorAll("th")].map((head) => head.textContent);
  body.replaceChildren(...rows.map(({ cells, kind }) => {
    const line = document.createElement("tr");
    line.setAttribute("role", "row"); // as a card it would be none to a reader of the screen
    for (const [at, text] of cells.entries()) {
      const cell = line.appendChild(document.createElement("td"));
      cell.setAttribute("role", "cell");
      cell.dataset.head = heads[at];
      const parts = [text ?? ""].flat().filter((part) => part !== "");
      if (parts.length) cell.appendChild(document.createElement("span")).append(...parts); // one item of a card's line
      if (text instanceof HTMLElement) cell.className = "foreign";
    }
    if (kind) line.className = kind;
    return line;
  }));
}

const own = (text) => (text ? foreign(text) : ""); // an empty cell stays one

function quoted(who, why) { return why ? [foreign(who), ": “", foreign(why), "”"] : [own(who)]; }

// Entries of which nobody knows whether they were there at the time: with them the answer may be another.
function doubted(numbers) {
  return numbers.length ? `Unsure whether these entries were there then, which a clock that ran ahead wrote: ${numbers.join(", ")}.`
    : "";
}

function showServed(told) {
  byId("unsure").textContent = doubted(told.unsure);
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
    ["since", [`${local(told.since)}, ${told.action} by `, ...quoted(told.by, told.why)]],
    ["promoted", [`${local(told.promoted.time)} by `, ...quoted(told.promoted.by, told.promoted.why)]],
    ["package", told.digest], ["data", told.data_digest], ["split", told.split_digest],
    ["code", told.git_commit || "unknown"],
    ["overridden", told.overridden.join(", ") || "nothing"],
  ]);
  fill(byId("gates"), told.gates.map((gate) => {
    const unit = typeof gate.value === "number" && gate.unit ? ` ${gate.unit}` : "";
    const bound = typeof gate.limit === "number" && gate.bound ? `${gate.bound} ` : ""; // neither stands in older reports
    const [value, limit] = figures(gate.value, gate.limit);
    const cells = [gate.name, gate.verdict, value + unit, bound + limit, gate.note];
    return { cells, kind: gate.passed ? "" : "is-refer" };
  }));
}

function showEntries({ entries, total, check }) {
  byId("check").textContent = check.intact
    ? `All ${check.entries} entries are what was signed.`
    : `The history is not what was signed. ${check.faults.join(" ")}`;
  byId("check").className = check.intact ? "" : "is-all";
  byId("shown").textContent = entries.length < total ? `Shown are the latest ${entries.length} of ${total} until then.` : "";
  fill(byId("entries"), entries.map((entry) => ({
    cells: [
      entry.number, local(entry.time), own(entry.who), entry.action, entry.version,
      entry.alias ? `${entry.alias}: ${entry.before || "none"} → ${entry.after || "none"}` : "",
      [own(entry.why), ...(entry.overridden.length ? [` (overridden: ${entry.overridden.join(", ")})`] : [])],
    ],
    kind: entry.action === "refuse" || entry.overridden.length ? "is-refer" : "",
  })));
}

// What answered an earlier question is no answer to this one, least of all beside a refusal.
function clear() {
  for (const name of ["sentence", "unsure", "overridden", "check", "shown", "facts", "gates", "entries"]) byId(name).replaceChildren();
  byId("report").hidden = true;
}

async function tell(at) {
  const question = asked += 1;
  clear();
  byId("status").textContent = "Asking…";
  try {
    const answer = await ask(at);
    if (question !== asked) return;
    byId("status").textContent = "";
    showServed(answer.told);
    showEntries(answer);
  } catch (error) {
    if (question !== asked) return;
    clear();
    byId("status").textContent = error.message;
  }
}

async function ask(at) {
  const response = await askWithKey(at ? `v1/history?at=${encodeURIComponent(at)}` : "v1/history");
  if (!response.ok) throw new Error((await refusalOf(response)).words);
  return jsonOf(response);
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  tell(byId("at").value ? new Date(byId("at").value).toISOString() : "");
});
byId("now").addEventListener("click", () => { byId("at").value = ""; tell(""); });

// Whether the page of the cells opened this window and is still there, with its answers.
function openedByCells() {
  try {
    return Boolean(window.opener?.document.getElementById("results"));
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
    return false; // a page of somebody else, of which nothing can be read
  }
}

byId("cells").addEventListener("click", (event) => { // back to the answers: a second page would be without them
  if (!openedByCells()) return;
  event.preventDefault();
  window.close();
});
onKey(() => tell(""));
tell("");
