"use strict";
// The example cells of the drift page: pictures of the nearest and the farthest cells, now and before the drift.
const CHOSEN = "Of the cells whose picture is kept: those that lie farthest from the cells that the version "
  + "knows, and nearest, with the share of the known cells that lie nearer.";
const NONE = { true: "No picture of a cell is kept (BLASTWATCH_KEEP_IMAGES), so none can be shown.",
  false: "No picture of a cell of this window is kept yet." };
const SPANS = { now: "in this window", before: "before the drift" };
const ENDS = { farthest: "Farthest", nearest: "Nearest" };

// In whole per cent, and never all or none where it is not.
function percent(share) {
  const whole = Math.round(100 * share);
  if (whole === 100 && share < 1) return "over 99 %";
  return whole === 0 && share > 0 ? "under 1 %" : `${whole} %`;
}

function exampleCell(cell, statistic) {
  const figure = document.createElement("figure");
  const picture = figure.appendChild(document.createElement("img"));
  picture.src = `cells/${cell.id}.png`;
  picture.alt = `Cell ${cell.id} of ${local(cell.time)}`;
  const words = [`blast ${fixed(cell.probability, 2)}, ${cell.decision}`];
  if (statistic && cell.value !== null) words.push(`${statistic.name} ${significant(cell.value, 3)}`);
  words.push(`${percent(cell.unlike)} are nearer`);
  const caption = figure.appendChild(document.createElement("figcaption"));
  words.forEach((line) => { caption.appendChild(document.createElement("span")).textContent = line; });
  return figure;
}

function exampleRow(name, cells, statistic) {
  const row = document.createElement("div");
  row.className = "cells";
  row.setAttribute("role", "group");
  row.setAttribute("aria-label", name);
  const heading = row.appendChild(document.createElement("h3"));
  heading.textContent = name;
  row.append(...cells.map((cell) => exampleCell(cell, statistic)));
  return row;
}

function showExamples() {
  const { policy, statistic, ...spans } = told.examples;
  const shown = Object.keys(SPANS).filter((span) => spans[span]);
  const lines = [shown.length ? CHOSEN : NONE[policy === "never"]];
  if (shown.length && statistic) {
    const [low, high] = statistic.known.map((value) => significant(value, 3));
    lines.push(`${named(statistic.name, true)} moved most among the image statistics; nine of ten known cells lie `
      + `between ${low} and ${high}.`);
  }
  if (shown.includes("now") && told.state === "drift" && !spans.before) lines.push("No picture from before the drift is kept.");
  byId("pictured").textContent = lines.join(" ");
  byId("examples").replaceChildren(...Object.keys(ENDS).flatMap((end) => shown
    .filter((span) => spans[span][end].length)
    .map((span) => exampleRow(`${ENDS[end]}, ${SPANS[span]}`, spans[span][end], statistic))));
}
