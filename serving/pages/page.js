"use strict";
const LABELS = { all: "Leukemic blast", hem: "Normal cell" };
const DECISIONS = { all: "Decision: blast", hem: "Decision: normal cell", refer: "Decision: refer to a person" };
const NONE = { version: "", digest: "", alias: "" };
let serving = NONE; // the model that the page tells of, or may not ask for; of none the next answer makes it ask
const limitsOf = new Map(); // of each model that the page has told of, by `identity`: what its probabilities are held against
const PICTURE = 400; // px, each side at most: twice that of page.css, for fine screens and for who looks closer
let begun = 0; // cells
let units; // of the statistics, once they were asked for

async function showModel() {
  let fault = "";
  try {
    const response = await askWithKey("v1/model");
    if (response.ok) tellModel(await jsonOf(response));
    else fault = response.status === 401 ? "It needs a key." : (await refusalOf(response)).words;
    if (!response.ok && response.status !== 403) serving = NONE;
  } catch (error) {
    serving = NONE;
    fault = error.message;
  }
  if (fault) pairs(byId("facts"), []); // what stands there may serve no more
  byId("model-fault").textContent = fault && `What serves is not shown. ${fault}`;
}

function tellModel(model) {
  serving = model;
  limitsOf.set(identity(model), [0.5, model.thresholds.hem, model.thresholds.all]);
  document.querySelectorAll("[data-probability]").forEach(tellNumber); // an answer may have come before
  tellSynthetic(model);
  byId("past").hidden = model.history === false;
  pairs(byId("facts"), [
    ["name and version", `${model.name}, version ${model.version} (${model.alias})`],
    ["digest", model.digest],
    ["promoted", model.promoted_at ? [`${model.promoted_at} by `, foreign(model.promoted_by)] : "never"],
    ["network", `${model.architecture}, ${model.input.size} px, ${model.engine}`],
    ["trained on", trainedOn(model)],
    ["test cells", figures(model) || "no figures"],
    ["decides", `normal cell up to a probability of ${exact(model.thresholds.hem)}, blast from ${exact(model.thresholds.all)}`],
  ]);
}

const exact = (limit) => significant(limit, 6);

const identity = ({ version, digest }) => `${version} ${digest}`;

// With as many digits as show on which side of each limit it lies; from 6 on that is said.
function besides(value, limits) {
  const tells = (text, digits) => limits.every((limit) => (value === limit ? Number(text) === Number(exact(limit))
    : text !== limit.toFixed(digits) && Math.sign(Number(text) - limit) === Math.sign(value - limit)));
  for (let digits = 3; digits <= 6; digits += 1) {
    const text = fixed(value, digits);
    if (Number.isNaN(Number(text)) || tells(text, digits)) return text;
  }
  if (limits.includes(value)) return exact(value); // one with more decimals
  const nearest = limits.reduce((one, other) => (Math.abs(value - other) < Math.abs(value - one) ? other : one));
  return `${value < nearest ? "<" : ">"} ${exact(nearest)}`;
}

function figures(model) {
  const told = Object.entries(model.metrics).map(([name, value]) => {
    const interval = model.intervals[name];
    const reach = interval ? ` (${fixed(interval.low)} to ${fixed(interval.high)})` : "";
    return `${name} ${fixed(value)}${reach}`;
  });
  return told.join(", ") + (Object.keys(model.intervals).length ? "; 95 % intervals by patient" : "");
}

// Another version answers than the page tells of. A caller of the canary is answered by one that does not serve.
function follow(model) {
  if (model.version === serving.version && model.digest === serving.digest) return;
  if (serving.alias && model.alias !== serving.alias) return;
  serving = model;
  showModel();
}

function tellSynthetic(model) { byId("synthetic").hidden = !model.synthetic; }

function trainedOn(model) { return model.synthetic ? "synthetic cells" : "real cells"; }

// The names of the statistics and what each is measured in, as the description of the interface has them.
async function askUnits() {
  const response = await askWithKey("docs.json");
  if (!response.ok) throw new Error((await refusalOf(response)).words);
  const described = (await jsonOf(response)).components.schemas.Prediction.properties.quality.properties.statistics.properties;
  return Object.fromEntries(Object.entries(described).map(([name, schema]) => [name, schema.description]));
}

async function tellMore(list, answer) {
  const rows = [
    ["id", answer.id],
    ["model", `${answer.model.name}, version ${answer.model.version}`],
    ["model digest", answer.model.digest],
    ["trained on", trainedOn(answer.model)],
  ];
  const statistics = Object.entries(answer.quality.statistics).map(([name, value]) => [name, significant(value)]);
  pairs(list, [...rows, ...statistics]);
  try {
    units ??= await askUnits();
    pairs(list, [...rows, ...statistics.map(([name, figure]) => [name, `${figure} (${units[name]})`])]);
  } catch (error) {
    pairs(list, [...rows, ...statistics, ["units", `not known. ${error.message}`]]);
  }
}

function tellNumber(item) {
  item.querySelector(".number").textContent = besides(Number(item.dataset.probability),
    limitsOf.get(identity(item.dataset)) || [0.5]); // where the model may not be read, one half alone is known
}

function fill(item, file, answer) {
  const find = (name) => item.querySelector("." + name);
  end(item);
  tellSynthetic(answer.model); // GET v1/model may be forbidden
  follow(answer.model);
  find("probable").textContent = `more probable: ${LABELS[answer.label].toLowerCase()}`;
  find("decision").textContent = DECISIONS[answer.decision];
  find("decision").classList.add("is-" + answer.decision);
  Object.assign(item.dataset, { probability: answer.probability, version: answer.model.version, digest: answer.model.digest });
  tellNumber(item);
  item.querySelector("meter").value = answer.probability;
  for (const concern of answer.reasons) {
    const row = document.createElement("li");
    row.textContent = concern;
    find("concerns").append(row);
  }
  if (answer.seen_in_training) {
    const row = document.createElement("li");
    row.textContent = "The model learned from this very image: the answer says nothing of how it answers new patients.";
    find("concerns").append(row);
  }
  tellMore(find("more"), answer);
  find("heat").closest("figure").hidden = false;
  find("explain").addEventListener("click", () => explain(item, file, answer));
}

// A picture of it to look at: with every file as it came a tab of a thousand answers takes more than a gigabyte.
async function small(file) {
  const whole = await createImageBitmap(file), share = Math.min(1, PICTURE / Math.max(whole.width, whole.height));
  const canvas = document.createElement("canvas"); // OffscreenCanvas is newer than some browsers in use
  canvas.width = Math.max(1, Math.round(whole.width * share));
  canvas.height = Math.max(1, Math.round(whole.height * share));
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high";
  pen.drawImage(whole, 0, 0, canvas.width, canvas.height);
  whole.close();
  return new Promise((done, refuse) => canvas.toBlob((data) => {
    if (data) done(data);
    else refuse(new DOMException("The browser made no picture of the image.", "EncodingError"));
  }));
}

function show(image, data) {
  image.src = URL.createObjectURL(data);
  const free = () => URL.revokeObjectURL(image.src); // else the tab keeps every image until it is closed
  image.addEventListener("load", free, { once: true });
  image.addEventListener("error", free, { once: true });
}

async function explain(item, file, answer) {
  const button = item.querySelector(".explain"), caption = item.querySelector(".heat-words");
  button.disabled = true;
  caption.textContent = "Asking where the network looked…";
  try {
    const onWait = (seconds, words) => { caption.textContent = waitingFor(seconds, words); };
    const response = await send("v1/explain", file, { onWait });
    const label = LABELS[response.headers.get("Blastwatch-Label")];
    const version = response.headers.get("Blastwatch-Model-Version");
    const image = item.querySelector(".heat");
    show(image, response.body);
    image.alt = `Heat map over the cell: where the network looked for "${label}"`;
    image.hidden = false;
    button.remove();
    if (document.activeElement === document.body) item.focus({ preventScroll: true }); // who works by keyboard goes on here
    caption.textContent = `what spoke for "${label.toLowerCase()}"; bright is more` // of the version that drew it
      + (version === answer.model.version ? "" : `. Drawn by version ${version}, the answer is of version ${answer.model.version}.`);
  } catch (error) {
    button.disabled = false; // to try again
    caption.textContent = error.message;
  }
}

function waitingFor(seconds, words) { return `${words} Sent again in ${Math.ceil(seconds)} s.`; }

// What was hidden while the cell waited: an empty meter would be read as 0, and a button without an answer leads nowhere.
function end(item) {
  item.querySelector(".pending")?.remove();
  item.querySelector(".words").hidden = false;
}

function refuse(item, words) {
  end(item);
  item.classList.add("refused");
  const text = document.createElement("p");
  text.textContent = words;
  item.querySelector(".words").replaceChildren(text);
  item.querySelector(".heat").closest("figure").remove();
}

function begin(file, patient) {
  const item = byId("answer").content.firstElementChild.cloneNode(true);
  const name = item.querySelector("h3");
  name.append(foreign(file.name));
  name.id = `cell-${begun += 1}`; // what tells one button from the others to who hears them alone
  for (const told of item.querySelectorAll("button, meter, summary")) told.setAttribute("aria-describedby", name.id);
  if (patient) item.querySelector(".patient").append("of the patient ", foreign(patient));
  const cell = item.querySelector(".cell");
  small(file).then((picture) => show(cell, picture), (error) => {
    cell.closest("figure").remove(); // no image, or one this browser cannot show
    if (!(error instanceof DOMException)) throw error;
  });
  cell.alt = `The image ${file.name}`;
  byId("results").prepend(item);
  byId("nothing").hidden = true;
  return item;
}
