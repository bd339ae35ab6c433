"use strict";
// Drift over patients: what the patients say who came one after another, and no window of a few of them could.
const number = (value) => value === null ? "unknown" : significant(value, 3);

// Of patients before those who are looked at nothing is known.
const dated = (change) => `${local(change.since)}${change.since_or_before ? " or before" : ""}`;

const people = (count) => count === 1 ? "1 patient" : `${count} patients`;

// Of those who came, who counts and who does not yet, or not at all.
function whoCame({ entered, waiting, few, known, minutes, fewest_cells: fewest }) {
  if (!entered && !waiting && !few) {
    return ["No patient has been counted yet: callers give a patient key with each cell (docs/drift.md says how they count)."];
  }
  const words = [];
  if (entered) words.push(`${people(entered)} ${entered === 1 ? "counts" : "count"}, and ${known} are known to the version.`);
  if (waiting) words.push(`${people(waiting)} ${waiting === 1 ? "is here and" : "are here; each"} counts ${minutes} minutes after the first cell.`);
  if (few) words.push(`${people(few)} had fewer than ${fewest} cells in that time, which is too few to count.`);
  return words;
}

function patientSentence(patients) {
  const said = whoCame(patients), moved = patients.columns.filter((column) => column.drifted), most = patients.columns[0];
  if (moved.length) said.push(`${moved.map((column, place) => `${named(column.name, !place)} is other since ${dated(column)}`).join("; ")}.`);
  else if (patients.columns.some((column) => column.since)) said.push("An alarm stands, but no patient since then is stored.");
  else if (most && patients.entered) {
    said.push(`No column says that they are other; ${named(most.name)} has most evidence, ${fixed(most.evidence, 2)} of what is needed.`);
  }
  return said.join(" ");
}

function showPatients() {
  const { patients } = told;
  byId("patient-words").textContent = patientSentence(patients);
  showCauses("patient-causes", patients.causes);
  const verdict = (column) => column.drifted ? "other" : column.since ? "stands, but no patient since then is stored"
    : patients.entered ? "as known" : "no verdict";
  // While nobody counts nothing can be said, but of alarms that stand.
  const known = patients.columns.filter((column) => patients.entered || column.now !== null || column.since);
  const rows = known.map((column) => row([
    titled(column.name), verdict(column), ratio(column.evidence), number(column.before),
    number(column.spread), number(column.now), column.since ? dated(column) : ""], column.drifted ? "is-all" : ""));
  const shown = Math.max(4, known.filter((column) => column.drifted).length);
  byId("patient-columns").closest(".scroll").hidden = !rows.length;
  fill("patient-columns", rows.slice(0, shown));
  fill("patient-rest", rows.slice(shown));
  byId("patient-more").hidden = rows.length <= shown;
  fill("patient-changes", patients.changes.map((change) => row([titled(change.name), dated(change), local(change.found),
    change.until ? local(change.until) : "it stands"], change.until ? "" : "is-all")).reverse());
  byId("patient-past").hidden = !patients.changes.length;
}
