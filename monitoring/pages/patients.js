"use strict";
// Drift over patients: what the patients say who came one after another, and no window of a few of them could.
const number = (value) => value === null ? "unknown" : value.toPrecision(3);

function patientSentence(patients) {
  if (!patients.entered) {
    return "No patient has been counted yet: callers give a patient key with each cell (docs/drift.md says how they count).";
  }
  const who = `${patients.entered} patients came, and ${patients.known} are known to the version.`;
  const moved = patients.columns.filter((column) => column.drifted);
  if (moved.length) {
    return `${who} ${moved.map((column) => `${column.name} is other since ${local(column.since)}`).join("; ")}.`;
  }
  const most = patients.columns[0];
  return most ? `${who} No column says that they are other; ${most.name} has most evidence, ${most.evidence.toFixed(2)} of what is needed.` : who;
}

function showPatients(patients) {
  byId("patient-words").textContent = patientSentence(patients);
  showCauses("patient-causes", patients.causes);
  const rows = patients.columns.map((column) => row([
    column.name, column.drifted ? "other" : "as known", ratio(column.evidence), number(column.before),
    number(column.spread), number(column.now), column.since ? local(column.since) : ""], column.drifted ? "is-all" : ""));
  const shown = Math.max(4, patients.columns.filter((column) => column.drifted).length);
  fill("patient-columns", rows.slice(0, shown));
  fill("patient-rest", rows.slice(shown));
  byId("patient-more").hidden = rows.length <= shown;
  fill("patient-changes", patients.changes.map((change) => row([change.name, local(change.since), local(change.found),
    change.until ? local(change.until) : "it stands"], change.until ? "" : "is-all")).reverse());
  byId("patient-past").hidden = !patients.changes.length;
}
