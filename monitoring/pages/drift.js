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

// A column in words, with its name beside it; one without a title by its name alone.
const begun = (words) => words[0].toUpperCase() + words.slice(1);  // a sentence, with what follows

function named(name, opens = false) {
  const title = told.titles?.[name];
  if (!title) return name;
  const words = title === name ? title : `${title} (${name})`;
  return opens ? begun(words) : words;
}

function titled(name) {
  const title = told.titles?.[name];
  if (!title || title === name) return name;
  const whole = document.createElement("span"), code = document.createElement("small");
  code.textContent = name;
  whole.append(title, " ", code);
  return whole;
}

// Where the likeliest cause of other patients is that their images changed, what is said instead of them.
const otherImages = () => told.patients?.causes[0]?.images;

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
  const verdict = {
    drift: () => `Drift ${since}: version ${told.model.version} sees other cells than it knows.`,
    patients: () => {
      const since = dated({ since: earliest(), since_or_before: others().some((column) => column.since_or_before) });
      const window = told.window ? "no drift in the latest window, but " : "", { version } = told.model;
      return otherImages()
        ? `Since about ${since} ${otherImages()}: ${window}the cells of one patient after another are not as version `
          + `${version} knows them.`
        : `Other patients since ${since}: ${window}those who came one after another to version ${version} are not `
          + "those that it knows.";
    },
    calm: () => `No drift ${since}: version ${told.model.version} sees the cells that it knows.`,
    waiting: () => told.model ? `No verdict on version ${told.model.version} yet. ${told.note}` : told.note,
  }[told.state]();
  if (sentence.textContent !== verdict) sentence.textContent = verdict;  // a screen reader hears changes only
  sentence.className = `label ${{ drift: "is-all", patients: "is-all", calm: "is-hem", waiting: "is-refer" }[told.state]}`;
  byId("whole").hidden = !told.report;
  byId("whole").firstChild.href = told.report || "";
  byId("synthetic").hidden = !told.model || !told.model.synthetic;
  const facts = !told.model ? [] : [["version", told.model.version], ["package", told.model.digest]];
  if (told.window) {
    facts.push(["window", `${held(told.window)}, ${local(told.window.since)} to ${local(told.window.until)}`]);
    if (told.window.caution) facts.push(["caution", told.window.caution]);
    if (told.basis) facts.push(["thresholds", told.basis.said]);
    if (told.basis?.caution) facts.push(["caution", told.basis.caution]);
    if (told.since) facts.push(["reports alike", String(told.since.reports)]);
  }
  const noted = told.note && told.state !== "waiting" ? `: ${told.note}` : "";  // the sentence of one that waits has it
  if (told.looked_at) facts.push(["last look", local(told.looked_at) + noted]);
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
    const lead = cause.changed ? `. ${cause.changed}. Check first: ${cause.check}.` : "";
    item.append(`Probable cause: ${cause.cause}${lead}`);
    const more = item.appendChild(document.createElement("details"));
    more.appendChild(document.createElement("summary")).textContent = "How that is known";
    more.append(cause.evidence);
    return item;
  }));
  byId(id).hidden = !causes.length;
}

function showColumns() {
  const rows = told.columns.map((column) => row([
    titled(column.name), column.drifted ? "drift" : "as known", ratio(column.ratio),
    ...against(column.score, column.threshold)],
  column.drifted ? "is-all" : ""));
  const moved = told.columns.filter((column) => column.drifted);
  const most = Math.max(SHOWN, moved.length);
  byId("moved").textContent = !told.columns.length ? "No report of this version yet."
    : moved.length ? `${moved.length} of ${told.columns.length} are beyond their threshold, ${named(moved[0].name)} farthest.`
      : `None of ${told.columns.length} is beyond its threshold; ${named(told.columns[0].name)} is nearest.`;
  showCauses("causes", told.causes);
  byId("columns").closest(".scroll").hidden = !rows.length;
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
    fixed(point.score, 2), titled(point.column), point.drifted ? "drift" : "no drift"],
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
const DOUBTED = { drift: () => "the cells have drifted", patients: () => otherImages() || "the patients are others" };

const LACKS = {
  cells: (labelled) => `${labelled.labelled} cells have labels and 30 are needed`,
  keys: () => "fewer than half of the labelled cells carry a patient key",
  patients: (labelled) => `the labelled cells are of ${labelled.patients} patients and 10 are needed`,
};

// As `monitoring.performance` has it: with fewer no verdict is given, and a figure says next to nothing.
const FEWEST = { cells: 30, patients: 10 };
const isFew = (cells, patients) => cells < FEWEST.cells || (patients !== null && patients < FEWEST.patients);

function figure(value, few) {
  if (!value || !few) return interval(value);
  const whole = document.createElement("span");
  whole.className = "few";
  whole.textContent = `too few: ${interval(value)}`;
  return whole;
}

function showPerformance() {
  const { latest, labelled } = told.performance.now, reference = told.performance.reference;
  const check = labelled.check, fell = [];
  if (latest.fell.estimated) fell.push("The estimated accuracy fell below the reference's.");
  if (labelled.fell.realised) fell.push("The realised accuracy fell below the reference's.");
  byId("fell").textContent = fell.join(" ");
  byId("fell").className = "label is-all";
  const lacking = check.state === "open" && LACKS[check.lacks]?.(labelled);
  const noVerdict = (figures) => `No verdict on the estimate, since ${lacking}: ${figures}.`;
  byId("check").textContent = (lacking ? noVerdict : CHECKED[check.state])(
    `realised less expected accuracy is ${interval(check.difference)}, the tolerance ${check.tolerance}`);
  byId("check").className = check.state === "untrusted" ? "is-all" : "";
  // What labels said of cells from before the drift says nothing of the cells since.
  const changed = told.doubts.map((doubt) => DOUBTED[doubt.reason]?.()).filter(Boolean).join(" and ");
  byId("early").textContent = changed ? `${begun(changed)}, and the estimate takes for granted `
    + "that the probabilities still hold: do not rely on it before the latest labelled cells are all of since then "
    + "and enough for a verdict." : "";
  fill("figures", [
    ...["accuracy", "sensitivity", "specificity"].map((name) => row([name,
      figure(latest.estimated[name], isFew(latest.cells, latest.patients)),
      figure(labelled.realised[name], isFew(labelled.cells, labelled.patients)), interval(reference.realised[name])])),
    row(["cells", String(latest.cells), String(labelled.cells), String(reference.cells)]),
    row(["from", moment(latest.since), moment(labelled.since), ""]),
    row(["to", moment(latest.until), moment(labelled.until), ""]),
    row(["intervals by", latest.cells ? latest.unit : "", labelled.cells ? labelled.unit : "", "patient"]),
  ]);
  const units = new Map([latest, labelled, ...told.performance.windows]
    .filter((part) => part.cells || part.labelled).map((part) => [part.unit, part.assumes]));
  byId("assumes").textContent = [...units].map(([unit, assumes]) => `Intervals by ${unit}: ${assumes}.`).join(" ");
  byId("few").textContent = [latest, labelled].some((part) => part.cells && isFew(part.cells, part.patients))
    ? `Grey figures are of too few cells to go by: a verdict takes ${FEWEST.cells}, of ${FEWEST.patients} patients.` : "";
  const cut = told.performance.windows.filter((window) => window.cut).pop();
  byId("cut").textContent = cut ? "There are more predictions than a look reads: the estimate of the window from "
    + `${begins(cut)} is of its latest ${cut.cells} cells, and of windows before it the labelled cells alone count.` : "";
  byId("repeated").textContent = told.performance.repeated ? `${told.performance.repeated} predictions were left out: each `
    + "image of a patient counts once." : "";
  const seen = told.performance.seen?.cells; // of a monitor of before nobody knows
  byId("seen").textContent = seen ? `${seen} predictions were left out: the version learned from these images, or `
    + "from others of their patients." : "";
  const counted = (window) => !window.cut ? String(window.cells) : window.cells ? `latest ${window.cells}` : "not read";
  fill("window-rows", told.performance.windows.map((window) => row([begins(window), counted(window),
    figure(window.estimated.accuracy, isFew(window.cells, window.patients)), String(window.labelled),
    figure(window.realised.accuracy, isFew(window.labelled, null)), window.cells || window.labelled ? window.unit : "",
    window.check.state], window.check.state === "untrusted" ? "is-all" : "")).reverse());
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
    ["well", performance && { performance, doubts, images: otherImages() }, showPerformance],
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
