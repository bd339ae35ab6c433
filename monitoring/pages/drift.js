"use strict";
const local = (time) => new Date(time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
const interval = (value) => value
  ? `${fixed(value.value)} (${fixed(value.low)} to ${fixed(value.high)})` : "unknown";
const SHOWN = 8;  // statistics before the others are folded away
const STALE = 10;  // intervals without a look from which the page says so
const EACH = 30;  // seconds from one question to the next
const LONGEST = 20;  // seconds that an answer may take
let told = null;
let heard = 0;  // when it came, by this browser's clock
const drawn = new Map();  // of each part of the page, the JSON of what it shows
let asking = null;  // the question that is open

function row(cells, kind) {
  const line = document.createElement("tr");
  cells.forEach((content, index) => {
    const cell = line.appendChild(document.createElement(index ? "td" : "th"));
    if (!index) cell.scope = "row";
    cell.append(content);
  });
  if (kind) line.className = kind;
  return line;
}

function fill(id, rows) { byId(id).replaceChildren(...rows); }

function ratio(value) {
  const whole = document.createElement("span"), bar = document.createElement("span");
  bar.className = "bar";
  bar.setAttribute("aria-hidden", "true");
  bar.style.width = `${Math.min(value, 4) * 1.2}rem`;
  whole.append(bar, fixed(value, 2));
  return whole;
}

const others = () => told.patients.columns.filter((column) => column.drifted);

function earliest() { return others().map((column) => column.since).sort()[0]; }

// By the monitor's own clock, which need not be that of whoever reads this.
function staleness() {
  const age = (Date.parse(told.now) - Date.parse(told.looked_at || told.begun_at)) / 1000;
  if (age <= STALE * told.interval_seconds) return "";
  const span = age < 120 ? `${Math.round(age)} seconds` : `${Math.round(age / 60)} minutes`;
  return told.looked_at ? `The monitor has not managed a look for ${span}; what stands here is old.`
    : `The monitor has not managed its first look in ${span}.`;
}

// As `monitoring.windows.words` has it.
function held(window) {
  const of = window.patients === null ? "" : ` of ${window.patients} ${window.patients === 1 ? "patient" : "patients"}`;
  return `${window.cells} cells${of}${window.repeated ? `, ${window.repeated} repeated left out` : ""}`;
}

function showNow() {
  const sentence = byId("sentence");
  const since = !told.since ? "(since when is not known yet)"
    : `${told.since.at_least ? "at least " : ""}since ${local(told.since.at)}`;
  const words = {
    drift: () => `Drift ${since}: version ${told.model.version} sees other cells than it knows.`,
    patients: () => `Other patients since ${dated({
      since: earliest(), since_or_before: others().some((column) => column.since_or_before) })}: ${told.window
      ? "no drift in the latest window, but those" : "those"} who came one after another to version ${told.model.version} `
      + "are not those that it knows.",
    calm: () => `No drift ${since}: version ${told.model.version} sees the cells that it knows.`,
    waiting: () => told.model ? `No verdict on version ${told.model.version} yet. ${told.note}` : told.note,
  }[told.state]();
  if (sentence.textContent !== words) sentence.textContent = words;  // a screen reader hears changes only
  sentence.className = `label ${{ drift: "is-all", patients: "is-all", calm: "is-hem", waiting: "is-refer" }[told.state]}`;
  byId("whole").hidden = !told.report;
  byId("whole").firstChild.href = told.report || "";
  byId("synthetic").hidden = !told.model || !told.model.synthetic;
  const facts = !told.model ? [] : [["version", told.model.version], ["package", told.model.digest]];
  if (told.window) {
    facts.push(["window", `${held(told.window)}, ${local(told.window.since)} to ${local(told.window.until)}`]);
    if (told.window.caution) facts.push(["caution", told.window.caution]);
    if (told.since) facts.push(["reports alike", String(told.since.reports)]);
  }
  if (told.looked_at) facts.push(["last look", local(told.looked_at) + (told.note ? `: ${told.note}` : "")]);
  if (told.stored) {
    const pictures = told.stored.images ? `${told.stored.images} pictures, ` : "";
    facts.push(["stored", `${told.stored.predictions} predictions, ${pictures}${(told.stored.bytes / 2 ** 20).toFixed(1)} MiB`]);
  }
  if (told.retraining) facts.push(["retraining", retraining(told.retraining.last)]);
  pairs(byId("facts"), facts);
}

function retraining(last) {
  if (!last) return "no finding has started it yet";
  const ended = last.problem ? last.problem : last.running ? "it runs"
    : last.exit_code === null ? "it ended while the monitor was away"
      : last.exit_code ? `it failed with exit code ${last.exit_code}` : "it ended well: look for a candidate to promote";
  return `started ${local(last.started_at)} by ${last.finding} of version ${last.version}: ${ended} (${last.log})`;
}

function showCauses(id, causes) {
  byId(id).replaceChildren(...causes.map((cause) => {
    const item = document.createElement("li");
    item.textContent = `Probable cause: ${cause.cause} (${cause.evidence})`;
    return item;
  }));
  byId(id).hidden = !causes.length;
}

function showColumns() {
  const rows = told.columns.map((column) => row([
    column.name, column.drifted ? "drift" : "as known", ratio(column.ratio), ...against(column.score, column.threshold)],
  column.drifted ? "is-all" : ""));
  const moved = told.columns.filter((column) => column.drifted);
  const most = Math.max(SHOWN, moved.length);
  byId("moved").textContent = !told.columns.length ? "No report of this version yet."
    : moved.length ? `${moved.length} of ${told.columns.length} are beyond their threshold, ${moved[0].name} farthest.`
      : `None of ${told.columns.length} is beyond its threshold; ${told.columns[0].name} is nearest.`;
  showCauses("causes", told.causes);
  fill("columns", rows.slice(0, most));
  fill("rest", rows.slice(most));
  byId("more").hidden = rows.length <= most;
}

function showTimeline() {
  const moves = told.promotions || [], { reports, drifted, run } = told.timeline_of;
  const thinned = run > 1 ? `, the worst of each ${run} reports` : "";
  byId("drawn").textContent = `The largest score over its threshold of each report${thinned}`;
  byId("points-region").setAttribute("aria-label", `Reports over time${thinned}`);
  byId("history").textContent = `${reports} ${reports === 1 ? "report" : "reports"}, ${drifted} with drift. `
    + (told.promotions === null ? "The history of the registry cannot be read, so no move of the champion is marked."
      : `${moves.length} ${moves.length === 1 ? "move" : "moves"} of the champion in the history.`);
  fill("points", told.timeline.map((point) => row([local(point.at), point.version, String(point.cells),
    fixed(point.score, 2), point.column, point.drifted ? "drift" : "no drift"],
  point.drifted ? "is-all" : "")).reverse());
  fill("promotions", moves.map((move) => row([local(move.at), move.version || "none", move.before || "none",
    move.action, move.who])).reverse());
  drawTimeline(byId("timeline"), told.timeline, told.timeline_of, moves);
}

// Windows begin at midnight, UTC, which west of Greenwich is the day before.
const begins = (window) => new Date(window.since).toLocaleDateString(undefined, { month: "short", day: "numeric", timeZone: "UTC" });
const moment = (time) => time ? local(time) : "none";

const CHECKED = {
  unchecked: () => "The estimate is unchecked: no label has come yet.",
  open: (words) => `The estimate is neither confirmed nor refuted by the labels so far: ${words}.`,
  confirmed: (words) => `The estimate is confirmed by the labels: ${words}.`,
  untrusted: (words) => `Do not trust the estimate: ${words}.`,
};

// That labels refute it, the check says.
const DOUBTED = { drift: "the cells have drifted", patients: "the patients are others" };

const LACKS = {
  cells: (labelled) => `${labelled.labelled} cells have labels and 30 are needed`,
  keys: () => "fewer than half of the labelled cells carry a patient key",
  patients: (labelled) => `the labelled cells are of ${labelled.patients} patients and 10 are needed`,
};

function showPerformance() {
  const { latest, labelled } = told.performance.now, reference = told.performance.reference;
  const check = labelled.check, fell = [];
  if (latest.fell.estimated) fell.push("The estimated accuracy fell below the reference's.");
  if (labelled.fell.realised) fell.push("The realised accuracy fell below the reference's.");
  byId("fell").textContent = fell.join(" ");
  byId("fell").className = "label is-all";
  const lacking = check.state === "open" && LACKS[check.lacks]?.(labelled);
  const noVerdict = (words) => `No verdict on the estimate, since ${lacking}: ${words}.`;
  byId("check").textContent = (lacking ? noVerdict : CHECKED[check.state])(
    `realised less expected accuracy is ${interval(check.difference)}, the tolerance ${check.tolerance}`);
  byId("check").className = check.state === "untrusted" ? "is-all" : "";
  // What labels said of cells from before the drift says nothing of the cells since.
  const changed = told.doubts.map((doubt) => DOUBTED[doubt.reason]).filter(Boolean).join(" and ");
  byId("early").textContent = changed ? `${changed[0].toUpperCase()}${changed.slice(1)}, and the estimate takes for granted `
    + "that the probabilities still hold: do not rely on it before the latest labelled cells are all of since then "
    + "and enough for a verdict." : "";
  fill("figures", [
    ...["accuracy", "sensitivity", "specificity"].map((name) => row([name, interval(latest.estimated[name]),
      interval(labelled.realised[name]), interval(reference.realised[name])])),
    row(["cells", String(latest.cells), String(labelled.cells), String(reference.cells)]),
    row(["from", moment(latest.since), moment(labelled.since), ""]),
    row(["to", moment(latest.until), moment(labelled.until), ""]),
    row(["intervals by", latest.unit, labelled.unit, "patient"]),
  ]);
  const units = new Map([latest, labelled, ...told.performance.windows].map((part) => [part.unit, part.assumes]));
  byId("assumes").textContent = [...units].map(([unit, assumes]) => `Intervals by ${unit}: ${assumes}.`).join(" ");
  const cut = told.performance.windows.filter((window) => window.cut).pop();
  byId("cut").textContent = cut ? "There are more predictions than a look reads: the estimate of the window from "
    + `${begins(cut)} is of its latest ${cut.cells} cells, and of windows before it the labelled cells alone count.` : "";
  byId("repeated").textContent = told.performance.repeated ? `${told.performance.repeated} predictions were left out: each `
    + "image of a patient counts once." : "";
  const counted = (window) => !window.cut ? String(window.cells) : window.cells ? `latest ${window.cells}` : "not read";
  fill("window-rows", told.performance.windows.map((window) => row([begins(window), counted(window),
    interval(window.estimated.accuracy), String(window.labelled), interval(window.realised.accuracy),
    window.unit, window.check.state], window.check.state === "untrusted" ? "is-all" : "")).reverse());
  drawWindows(byId("windows"), told.performance.windows);
}

// Nothing is shown of what is not known: before the first champion, and before the first look at another version. A part is
// drawn again where what it draws from has changed: else what somebody selects in it is gone with every look.
function show() {
  const { model, columns, causes, patients, examples, state, promotions, timeline, timeline_of: of, performance, doubts } = told;
  const parts = [
    ["now", { ...told, now: null }, showNow],
    ["which", model && { columns, causes }, showColumns],
    ["who", patients, showPatients],
    ["cells", examples && { examples, state }, showExamples],
    ["over", model && { promotions, timeline, of }, showTimeline],
    ["well", performance && { performance, doubts }, showPerformance],
  ];
  for (const [heading, shown, draw] of parts) {
    const content = JSON.stringify(shown);
    if (drawn.get(heading) === content) continue;
    drawn.delete(heading);  // one that cannot be drawn is tried again
    byId(heading).parentElement.hidden = !shown;
    if (shown) draw();
    drawn.set(heading, content);
  }
}

async function answered() {
  const response = await askWhole("drift.json", LONGEST, new Error(`it has not answered within ${LONGEST} seconds`));
  const text = await response.body.text();
  if (response.status === 403) throw new Error(`it says: ${text.trim().replace(/\.$/, "")}`);
  if (!response.ok) throw new Error(`it answered ${response.status}`);
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error("its answer is not JSON, so something else answers in its place", { cause: error });
  }
}

// A screen reader hears changes only. Beside what is old no green stands: "No drift" is of then, and not of now.
function tellProblem(words, old) {
  if (byId("problem").textContent !== words) byId("problem").textContent = words;
  byId("sentence").classList.toggle("is-hem", Boolean(told) && told.state === "calm" && !old);
}

const fromWhen = () => told ? `What stands here is old, of ${local(told.now)}.` : "What stands here is old.";

async function question() {
  try {
    told = await answered();
  } catch (error) {
    tellProblem(`The monitor cannot be asked: ${error.message}. ${fromWhen()}`, true);
    return;
  }
  heard = Date.now();
  try {
    show();
    const late = staleness();
    tellProblem([late, told.problem].filter(Boolean).join(" "), Boolean(late));
  } catch (error) {
    tellProblem(`This page cannot show all that the monitor said (${error.message}); what stands here may be old. /drift.json `
      + "has it whole.", true);
    throw error;  // for the browser's console
  }
}

// One question at a time. As where the machine slept, maybe with one open: until an answer comes, nobody knows what is.
function ask() {
  if (told && Date.now() - heard > 3000 * EACH) tellProblem(`The monitor is being asked again. ${fromWhen()}`, true);
  asking ??= question().finally(() => { asking = null; });
  return asking;
}

window.addEventListener("resize", () => {
  if (told && told.model) showTimeline();
  if (told && told.performance) showPerformance();
});
document.addEventListener("visibilitychange", () => { if (document.visibilityState === "visible") ask(); });
setInterval(ask, 1000 * EACH);
ask();
