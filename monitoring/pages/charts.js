"use strict";
// Charts as SVG, drawn at the width that the page has, so that letters keep their size. Each says in words what it
// shows; the numbers stand in a table beside it.
const HEIGHT = 260, LEFT = 44, RIGHT = 14, TOP = 30, BOTTOM = 30;

function part(parent, name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.appendChild(made);
  return made;
}

const day = (time) => new Date(time).toLocaleDateString(undefined, { month: "short", day: "numeric" });
const hour = (time) => new Date(time).toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" });

// At most so many moments with their names, in equal whole steps: midnights where there are days, else full minutes
// counted from midnight. Each is made from the day's own hands of the clock, not from the moment before it: where summer
// time begins or ends a step is longer or shorter, and an hour that no clock shows has no moment. A day whose midnight no
// clock shows begins at one.
const STEPS = { days: [1, 2, 7, 14, 28, 91, 182, 364], minutes: [1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720] };

function moments(first, last, most) {
  const days = last - first > 2 * 86400e3, unit = days ? 86400e3 : 60e3, name = days ? day : hour;
  if (last - first < 2 * unit) return [[first, name(first)]];
  const step = STEPS[days ? "days" : "minutes"].find((size) => (last - first) / (size * unit) < most)
    || Math.ceil((last - first) / unit / most);
  const found = [], from = new Date(first), date = [from.getFullYear(), from.getMonth(), from.getDate()];
  const midnight = (number) => new Date(date[0], date[1], date[2] + number);
  const tomorrow = midnight(0) < first ? 1 : 0;
  for (let count = 0; ; count += step) {
    const time = days ? midnight(tomorrow + count) : new Date(...date, 0, count);
    if (time > last) return found;
    const shown = days || time.getHours() * 60 + time.getMinutes() === count % 1440;
    if (time >= first && shown) found.push([time.getTime(), name(time)]);
  }
}

function frame(box, words, [first, last], [low, high], ticks) {
  const width = Math.max(box.clientWidth, 280);
  const svg = part(document.createDocumentFragment(), "svg",
    { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": words });
  const x = (time) => LEFT + (last > first ? (time - first) / (last - first) : 0.5) * (width - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  for (const tick of ticks) {
    part(svg, "line", { x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick), class: "axis" });
    part(svg, "text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, String(tick));
  }
  for (const [time, name] of moments(first, last, Math.max(2, Math.min(6, Math.floor(width / 130))))) {
    const at = x(time), anchor = at < LEFT + 30 ? "start" : at > width - RIGHT - 30 ? "end" : "middle";
    part(svg, "text", { x: at, y: HEIGHT - 9, "text-anchor": anchor }, name);
  }
  box.replaceChildren(svg);
  return { svg, x, y, width };
}

function nice(high) {
  const step = [0.5, 1, 2, 5, 10, 20, 50, 100].find((size) => high / size <= 6) || high / 5;
  return Array.from({ length: Math.ceil(high / step) + 1 }, (_, index) => Number((index * step).toPrecision(6)));
}

// `of`: how many reports the points are of, how many of them with drift, and how many neighbours at most are one point.
function drawTimeline(box, points, of, moves) {
  if (!points.length) { box.replaceChildren(); return; }
  const times = points.map((point) => Date.parse(point.at));
  const inside = moves.filter((move) => Date.parse(move.at) >= times[0]);
  const last = Math.max(times[times.length - 1], ...inside.map((move) => Date.parse(move.at)));
  const ticks = nice(Math.max(2, ...points.map((point) => point.score)));
  const { svg, x, y, width } = frame(box,
    `Scores over thresholds of ${of.reports} reports from ${day(times[0])} to ${day(last)}: ${of.drifted} with drift, ` +
    `the largest ${fixed(Math.max(...points.map((point) => point.score)), 1)}. ` +
    `${of.run > 1 ? `Drawn is the worst of each ${of.run} reports. ` : ""}${inside.length} moves of the champion.`,
    [times[0], last], [0, ticks[ticks.length - 1]], ticks);
  part(svg, "line", { x1: LEFT, x2: width - RIGHT, y1: y(1), y2: y(1), class: "limit" });
  let taken = -Infinity;
  for (const move of inside) {
    const at = x(Date.parse(move.at));
    part(svg, "line", { x1: at, x2: at, y1: TOP - 8, y2: HEIGHT - BOTTOM, class: "move" });
    if (at - taken > 34) {
      part(svg, "text", { x: at, y: TOP - 12, class: "moved", "text-anchor": at > width - 40 ? "end" : "middle" },
        move.version ? `v${move.version}` : "none");
      taken = at;
    }
  }
  let path = "";
  points.forEach((point, index) => {  // the line breaks where another version was watched
    const joined = index && points[index - 1].version === point.version;
    path += `${joined ? "L" : "M"}${x(times[index]).toFixed(1)} ${y(point.score).toFixed(1)}`;
  });
  part(svg, "path", { d: path, class: "path" });
  points.forEach((point, index) => {
    const [at, up] = [x(times[index]), y(point.score)];
    if (point.drifted) part(svg, "rect", { x: at - 4, y: up - 4, width: 8, height: 8, class: "beyond" });
    else part(svg, "circle", { cx: at, cy: up, r: 3, class: "calm" });
  });
}

function drawWindows(box, windows) {
  const known = windows.filter((window) => window.estimated.accuracy || window.realised.accuracy);
  if (!known.length) { box.replaceChildren(); return; }
  const middle = (window) => (Date.parse(window.since) + Date.parse(window.until)) / 2;
  const all = known.flatMap((window) => [window.estimated.accuracy, window.realised.accuracy].filter(Boolean));
  const low = Math.max(0, Math.floor(Math.min(...all.map((value) => value.low)) * 10) / 10);
  const ticks = Array.from({ length: Math.round((1 - low) * 10) + 1 }, (_, index) => Number((low + index / 10).toFixed(1)));
  const count = (kind) => known.filter((window) => window[kind].accuracy).length;
  const { svg, x, y } = frame(box,
    `Accuracy of ${known.length} windows: estimated in ${count("estimated")}, realised in ${count("realised")}. The table below has the numbers.`,
    [Date.parse(known[0].since), Date.parse(known[known.length - 1].until)], [Math.min(low, 0.9), 1], ticks);
  const draw = (value, at, kind, square) => {
    part(svg, "line", { x1: at, x2: at, y1: y(value.low), y2: y(value.high), class: kind });
    if (square) part(svg, "rect", { x: at - 4, y: y(value.value) - 4, width: 8, height: 8, class: kind });
    else part(svg, "circle", { cx: at, cy: y(value.value), r: 4, class: kind });
  };
  for (const window of known) {
    if (window.estimated.accuracy) draw(window.estimated.accuracy, x(middle(window)) - 6, "estimated", false);
    if (window.realised.accuracy) draw(window.realised.accuracy, x(middle(window)) + 6, "realised", true);
  }
  part(svg, "text", { x: LEFT, y: 16, class: "estimated named" }, "● estimated");
  part(svg, "text", { x: LEFT + 96, y: 16, class: "realised named" }, "■ realised, 95 % intervals");
}
