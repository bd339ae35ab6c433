"use strict";
// The images that were chosen or dropped: one queue for all of them, and those that wait for a person.
const TOLD_EACH = 10; // images from one word to a reader of the screen to the next: of each it would be hundreds
const queue = []; // to be read, each a file and the patient that was written when it came
const waiting = []; // read when somebody asks for it; where the patient is null the pseudonym has to be written anew
let counts = null; // of the images since the queue was empty, null while it is
let stopping = null; // an AbortController, while images are read
let held = ""; // why those wait whose pseudonym is good

const howMany = (count) => (count === 1 ? "1 image waits" : `${count} images wait`);

function tellFault(words) {
  tellInvalid(byId("patient"), words);
  byId("patient-fault").textContent = words;
}

function tellRefused({ done, refused }) { return `${done - refused} of ${done} read${refused ? `, ${refused} refused` : ""}.`; }

function tellWaiting() {
  const unnamed = waiting.filter(({ patient }) => patient === null).length, others = waiting.length - unnamed;
  const words = unnamed ? [`${howMany(unnamed)} until the pseudonym is corrected.`] : [];
  if (others) words.push(`${howMany(others)}. ${held}`);
  return words.join(" ");
}

// Nothing that was chosen is lost: it is read when somebody asks for it, or gives the key that was missing.
function keepWaiting(entries) {
  waiting.push(...entries);
  byId("again").textContent = waiting.length === 1 ? "Read the image that waits" : `Read the ${waiting.length} images that wait`;
  byId("again").hidden = false;
  byId("nothing").hidden = byId("results").childElementCount > 0;
}

// What the queue still has of a patient waits with the image whose key of the patient was refused.
function keepUnnamed(entry, words) {
  const same = [entry, ...queue.filter(({ patient }) => patient === entry.patient)];
  queue.splice(0, queue.length, ...queue.filter(({ patient }) => patient !== entry.patient));
  keepWaiting(same.map(({ file }) => ({ file, patient: null })));
  tellFault(words);
  byId("patient").focus();
}

function tellPause(seconds, words) {
  byId("reading").textContent = waitingFor(seconds, words);
  if (!counts.paused) byId("status").textContent = "The service asks to wait: each image is sent again when it may be.";
  counts.paused = true;
}

// Whether the image was read. Nothing of it is shown where it has to wait.
async function readOne({ file, patient }) {
  const item = begin(file, patient);
  try {
    const given = { headers: naming(patient), onWait: tellPause, signal: stopping.signal };
    fill(item, file, await jsonOf(await send("v1/predict", file, given)));
    return true;
  } catch (error) {
    if (error instanceof KeyRefused || error instanceof Unanswered) {
      item.remove();
      throw error;
    }
    refuse(item, error.message);
    return false;
  }
}

async function readNext() {
  const entry = queue.shift();
  byId("reading").replaceChildren(`Reading ${counts.done + 1} of ${counts.all}: `, foreign(entry.file.name));
  try {
    counts.refused += await readOne(entry) ? 0 : 1;
    counts.done += 1;
    byId("clear").hidden = false;
    if (counts.done % TOLD_EACH === 0 && queue.length) byId("status").textContent = `${counts.done} of ${counts.all} done.`;
  } catch (error) {
    if (error instanceof KeyRefused) keepUnnamed(entry, error.message);
    else if (error instanceof Unanswered) {
      held = error.message;
      keepWaiting([entry, ...queue.splice(0)]); // each of them would be told the same
    } else throw error;
  }
}

async function read(entries) {
  queue.push(...entries);
  if (counts) {
    counts.all += entries.length;
    return;
  }
  counts = { all: queue.length, done: 0, refused: 0, paused: false };
  byId("status").textContent = counts.all === 1 ? "Reading 1 image." : `Reading ${counts.all} images.`;
  stopping = new AbortController();
  byId("stop").hidden = false;
  try {
    while (queue.length) await readNext();
    byId("status").textContent = [counts.done ? tellRefused(counts) : "", tellWaiting()].filter(Boolean).join(" ");
  } finally {
    if (document.activeElement === byId("stop")) byId("status").focus(); // it goes, and who works by keyboard goes on here
    byId("stop").hidden = true;
    byId("reading").textContent = "";
    counts = null;
  }
}

// Each answer takes memory for as long as it stands.
function clearAnswers() {
  const answers = [...byId("results").children].filter((item) => !item.querySelector(".pending"));
  if (!confirm(answers.length === 1 ? "Clear the answer?" : `Clear the ${answers.length} answers?`)) return;
  for (const item of answers) item.remove();
  byId("nothing").hidden = byId("results").childElementCount > 0;
  byId("clear").hidden = true;
  byId("status").textContent = ["The answers were cleared.", tellWaiting()].filter(Boolean).join(" ");
  byId("status").focus();
}

function choose(files) {
  if (!files.length) return; // what was dropped is no file
  const patient = byId("patient").value.trim(); // of all these images, whatever is written there meanwhile
  tellFault("");
  read(files.map((file) => ({ file, patient })));
}

function readWaiting(ready) {
  const entries = waiting.filter(ready), patient = byId("patient").value.trim();
  if (!entries.length) return;
  waiting.splice(0, waiting.length, ...waiting.filter((entry) => !ready(entry)));
  byId("again").hidden = true;
  if (waiting.length) keepWaiting([]);
  else tellFault("");
  read(entries.map((entry) => ({ file: entry.file, patient: entry.patient ?? patient })));
}

byId("whose").addEventListener("submit", (event) => {
  event.preventDefault();
  if (document.activeElement === byId("again")) byId("status").focus(); // it goes, and who works by keyboard goes on here
  readWaiting(() => true);
});
byId("choose").addEventListener("change", (event) => {
  choose([...event.target.files]);
  event.target.value = "";
});
const drop = byId("drop");
for (const name of ["dragover", "dragleave", "drop"]) {
  drop.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", name === "dragover");
    if (name === "drop") choose([...event.dataTransfer.files]);
  });
}
for (const name of ["dragover", "drop"]) { // else the browser would leave for a file that was dropped beside the frame
  addEventListener(name, (event) => { if (event.dataTransfer.types.includes("Files")) event.preventDefault(); });
}
byId("stop").addEventListener("click", () => stopping.abort(new Unanswered("Reading was stopped.")));
byId("clear").addEventListener("click", clearAnswers);
addEventListener("beforeunload", (event) => { // nothing of it is kept anywhere: the browser asks before it goes
  if (!counts && !waiting.length && !byId("results").childElementCount) return;
  event.preventDefault();
  event.returnValue = true; // browsers of before 2024 go by this alone
});
addEventListener("pagehide", () => { byId("patient").value = ""; }); // a browser may bring the page back later as it was
onKey(() => {
  showModel();
  readWaiting(({ patient }) => patient !== null);
});
showModel();
