"use strict";
const LABELS = { all: "Leukemic blast", hem: "Normal cell" };
const DECISIONS = { all: "Decision: blast", hem: "Decision: normal cell", refer: "Decision: refer to a person" };
const NONE = { version: "", digest: "", alias: "" };
let serving = NONE; // the model that the page tells of, or may not ask for; of none the next answer makes it ask
let units; // of the statistics, once they were asked for
const UNPRINTABLE = /(?! )[\p{C}\p{Z}]/u; // what the Python clients send in no key of a patient either
const waiting = []; // images that were not sent, since the key of their patient cannot be

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

async function send(path, file, headers = {}) {
  await file.slice(0, 1).arrayBuffer().catch((error) => { // else the browser says of it what it says of a service that is gone
    throw new Error("The file cannot be read: it is a folder, or was moved or changed since it was chosen.", { cause: error });
  });
  const form = new FormData();
  form.append("image", file, file.name);
  const response = await askWithKey(path, { method: "POST", body: form, headers });
  if (response.ok) return response;
  const { words, type } = await refusalOf(response);
  if (type === "/problems/header-too-long") throw new KeyRefused(words); // this page sends no other that may be
  throw new Error(words);
}

async function showModel() {
  let fault = "";
  try {
    const response = await askWithKey("v1/model");
    if (response.ok) tellModel(await response.json());
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
  pairs(byId("facts"), [
    ["name and version", `${model.name}, version ${model.version} (${model.alias})`],
    ["digest", model.digest],
    ["promoted", model.promoted_at ? `${model.promoted_at} by ${model.promoted_by}` : "never"],
    ["network", `${model.architecture}, ${model.input.size} px, ${model.engine}`],
    ["trained on", trainedOn(model)],
    ["test cells", figures(model) || "no figures"],
    ["decides", `normal cell up to a probability of ${model.thresholds.hem.toFixed(3)}, blast from ${model.thresholds.all.toFixed(3)}`],
  ]);
}

function figures(model) {
  const told = Object.entries(model.metrics).map(([name, value]) => {
    const interval = model.intervals[name];
    const reach = interval ? ` (${interval.low.toFixed(3)} to ${interval.high.toFixed(3)})` : "";
    return `${name} ${value.toFixed(3)}${reach}`;
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
  const described = (await response.json()).components.schemas.Prediction.properties.quality.properties.statistics.properties;
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
  tellSynthetic(answer.model); // GET v1/model may be forbidden
  follow(answer.model);
  find("probable").textContent = `more probable: ${LABELS[answer.label].toLowerCase()}`;
  find("decision").textContent = DECISIONS[answer.decision];
  find("decision").classList.add("is-" + answer.decision);
  find("number").textContent = answer.probability.toFixed(3);
  item.querySelector("meter").value = answer.probability;
  for (const concern of answer.reasons) {
    const row = document.createElement("li");
    row.textContent = concern;
    find("concerns").append(row);
  }
  tellMore(find("more"), answer);
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
    const response = await send("v1/explain", file);
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

function refuse(item, words) {
  item.classList.add("refused");
  const text = document.createElement("p");
  text.textContent = words;
  item.querySelector(".words").replaceChildren(text);
  item.querySelector(".heat").closest("figure").remove();
}

function begin(file, patient) {
  const item = byId("answer").content.firstElementChild.cloneNode(true);
  item.querySelector("h3").textContent = file.name;
  item.querySelector(".patient").textContent = patient && `of the patient ${patient}`;
  const cell = item.querySelector(".cell");
  cell.addEventListener("error", () => cell.closest("figure").remove()); // no image, or one this browser cannot show
  show(cell, file);
  cell.alt = `The image ${file.name}`;
  byId("results").prepend(item);
  byId("nothing").hidden = true;
  return item;
}

function tellFault(words) {
  byId("patient").ariaInvalid = words ? "true" : null;
  byId("patient-fault").textContent = words;
}

// Whether the image was read; where its patient's key is refused nothing of it is shown.
async function readOne(file, patient, headers) {
  const item = begin(file, patient);
  try {
    fill(item, file, await (await send("v1/predict", file, headers)).json());
    return true;
  } catch (error) {
    if (error instanceof KeyRefused) {
      item.remove();
      throw error;
    }
    refuse(item, error.message);
    return false;
  }
}

// Nothing that was chosen is lost: it is read when the pseudonym was corrected and somebody asks for it.
function keepWaiting(files, words) {
  waiting.push(...files);
  const count = waiting.length;
  byId("again").textContent = count === 1 ? "Read the image that waits" : `Read the ${count} images that wait`;
  byId("again").hidden = false;
  byId("status").textContent = `${count} ${count === 1 ? "image waits" : "images wait"} until the pseudonym is corrected.`;
  byId("nothing").hidden = byId("results").childElementCount > 0;
  tellFault(words);
  byId("patient").focus();
}

async function ask(files) {
  if (!files.length) return; // what was dropped is no file
  const patient = byId("patient").value.trim(); // of all these images, whatever is written there meanwhile
  let done = 0, refused = 0;
  tellFault("");
  try {
    const headers = naming(patient);
    for (const file of files) {
      byId("status").textContent = `Reading ${done + 1} of ${files.length}: ${file.name}`;
      refused += await readOne(file, patient, headers) ? 0 : 1;
      done += 1;
    }
    byId("status").textContent = `${done - refused} of ${done} read` + (refused ? `, ${refused} refused.` : ".");
  } catch (error) {
    if (!(error instanceof KeyRefused)) throw error;
    keepWaiting(files.slice(done), error.message);
  }
}

byId("whose").addEventListener("submit", (event) => {
  event.preventDefault();
  if (document.activeElement === byId("again")) byId("status").focus(); // it goes, and who works by keyboard goes on here
  byId("again").hidden = true;
  ask(waiting.splice(0));
});
byId("choose").addEventListener("change", (event) => {
  ask([...event.target.files]);
  event.target.value = "";
});
const drop = byId("drop");
for (const name of ["dragover", "dragleave", "drop"]) {
  drop.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
    if (name === "drop") ask([...event.dataTransfer.files]);
  });
}
for (const name of ["dragover", "drop"]) { // else the browser would leave for a file that was dropped beside the frame
  addEventListener(name, (event) => { if (event.dataTransfer.types.includes("Files")) event.preventDefault(); });
}
addEventListener("pagehide", () => { byId("patient").value = ""; }); // a browser may bring the page back later as it was
onKey(showModel);
showModel();
