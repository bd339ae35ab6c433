"use strict";
const LABELS = { all: "Leukemic blast", hem: "Normal cell" };
const DECISIONS = { all: "Decision: blast", hem: "Decision: normal cell", refer: "Decision: refer to a person" };
const NONE = { version: "", digest: "", alias: "" };
let serving = NONE; // the model that the page tells of, or may not ask for; of none the next answer makes it ask
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
  tellSynthetic(model);
  byId("past").hidden = model.history === false;
  pairs(byId("facts"), [
    ["name and version", `${model.name}, version ${model.version} (${model.alias})`],
    ["digest", model.digest],
    ["promoted", model.promoted_at ? [`${model.promoted_at} by `, foreign(model.promoted_by)] : "never"],
    ["network", `${model.architecture}, ${model.input.size} px, ${model.engine}`],
    ["trained on", trainedOn(model)],
    ["test cells", figures(model) || "no figures"],
    ["decides", `normal cell up to a probability of ${fixed(model.thresholds.hem)}, blast from ${fixed(model.thresholds.all)}`],
  ]);
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
  const statistics = Object.entries(answer.quality.statistics).map(([name, value]) => [name, String(Number(value.toPrecision(4)))]);
  pairs(list, [...rows, ...statistics]);
  try {
    units ??= await askUnits();
    pairs(list, [...rows, ...statistics.map(([name, figure]) => [name, `${figure} (${units[name]})`])]);
  } catch (error) {
    pairs(list, [...rows, ...statistics, ["units", `not known. ${error.message}`]]);
  }
}

function fill(item, file, answer) {
  const find = (name) => item.querySelector("." + name);
  end(item);
  tellSynthetic(answer.model); // GET v1/model may be forbidden
  follow(answer.model);
  find("probable").textContent = `more probable: ${LABELS[answer.label].toLowerCase()}`;
  find("decision").textContent = DECISIONS[answer.decision];
  find("decision").classList.add("is-" + answer.decision);
  find("number").textContent = fixed(answer.probability);
  item.querySelector("meter").value = answer.probability;
  for (const concern of answer.reasons) {
    const row = document.createElement("li");
    row.textContent = concern;
    find("concerns").append(row);
  }
  tellMore(find("more"), answer);
  find("heat").closest("figure").hidden = false;
  find("explain").addEventListener("click", () => explain(item, file, answer));
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
    const response = await send("v1/explain", file, {}, (seconds, words) => { caption.textContent = waitingFor(seconds, words); });
    const label = LABELS[response.headers.get("Blastwatch-Label")];
    const version = response.headers.get("Blastwatch-Model-Version");
    const picture = await response.blob();
    const image = item.querySelector(".heat");
    show(image, picture);
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
  cell.addEventListener("error", () => cell.closest("figure").remove()); // no image, or one this browser cannot show
  show(cell, file);
  cell.alt = `The image ${file.name}`;
  byId("results").prepend(item);
  byId("nothing").hidden = true;
  return item;
}
