"use strict";
const short = (digest) => (digest ? digest.slice(0, 12) : "unknown");
const local = (time) => new Date(time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
const whole = (value) => typeof value !== "number" || Number.isInteger(value);
const figure = (value) => String(whole(value) ? value : Number(value.toPrecision(4)));

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
      cell.textContent = text;
    }
    if (kind) line.className = kind;
    return line;
  }));
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
  fill(byId("gates"), told.gates.map((gate) => {
    const unit = typeof gate.value === "number" && gate.unit ? ` ${gate.unit}` : "";
    const bound = typeof gate.limit === "number" && gate.bound ? `${gate.bound} ` : ""; // neither stands in older reports
    const cells = [gate.name, gate.verdict, figure(gate.value) + unit, bound + figure(gate.limit), gate.note];
    return { cells, kind: gate.passed ? "" : "is-refer" };
  }));
}

function showEntries(entries, check) {
  byId("check").textContent = check.intact
    ? `All ${check.entries} entries are what was signed.`
    : `The history is not what was signed. ${check.faults.join(" ")}`;
  byId("check").className = check.intact ? "" : "is-all";
  fill(byId("entries"), entries.map((entry) => ({
    cells: [
      entry.number, local(entry.time), entry.who, entry.action, entry.version,
      entry.alias ? `${entry.alias}: ${entry.before || "none"} → ${entry.after || "none"}` : "",
      entry.overridden.length ? `${entry.why} (overridden: ${entry.overridden.join(", ")})` : entry.why,
    ],
    kind: entry.action === "refuse" || entry.overridden.length ? "is-refer" : "",
  })));
}

async function tell(at) {
  byId("status").textContent = "Asking…";
  try {
    await ask(at);
  } catch (error) {
    byId("status").textContent = error.message;
  }
}

async function ask(at) {
  const response = await askWithKey(at ? `v1/history?at=${encodeURIComponent(at)}` : "v1/history");
  if (!response.ok) throw new Error((await refusalOf(response)).words);
  const answer = await response.json();
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
