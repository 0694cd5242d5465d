// The server's page: whose trees each step verifies, and what requests wait for.

import { figure, watch } from "/static/events.js";

const at = (id) => document.getElementById(id);
const SHOWN_S = 3;
const MOST_LANES = 10;
const CALM = matchMedia("(prefers-reduced-motion: reduce)");
// Okabe and Ito's colours: they can be told apart by most eyes; every bar has its number as well.
const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a900"];

let steps = []; // the last ones, oldest first
let ahead_s = 0; // the server's clock, less ours

const colour = (edge) => COLOURS[(edge - 1) % COLOURS.length];
const now = () => performance.now() / 1000 + ahead_s;

function onStep(step) {
  // a step is told when it has ended: our clock is behind by what the way takes at most
  ahead_s = Math.max(ahead_s, step.end_s - performance.now() / 1000);
  steps.push(step);
  steps = steps.filter(({ end_s }) => end_s > step.end_s - SHOWN_S - 1);
  if (CALM.matches) draw();
}

function onNow({ now_s, phases, credits, requests }) {
  ahead_s = now_s - performance.now() / 1000;
  at("waiting").textContent = phases.needs_pages;
  at("queued").textContent = phases.queued;
  at("credits").textContent = credits;
  status(`${requests.length} requests`, false);
  figures();
  table(requests);
  if (CALM.matches) draw();
}

function figures() {
  const recent = steps.filter(({ end_s }) => end_s > now() - SHOWN_S);
  const sum = (of) => recent.reduce((total, step) => total + of(step), 0);
  const trees = sum(({ parts }) => parts.length);
  const tokens = sum(({ parts }) => parts.reduce((gained, part) => gained + part[3] + 1, 0));
  at("steps").textContent = figure(recent.length / SHOWN_S);
  at("tokens").textContent = figure(tokens / SHOWN_S);
  at("trees").textContent = figure(trees / recent.length);
  at("gain").textContent = figure(tokens / trees);
  const busy_s = sum(({ start_s, end_s }) => end_s - start_s);
  at("busy").textContent = figure((100 * busy_s) / SHOWN_S);
  const last = steps.at(-1);
  at("summary").textContent = last
    ? `The last step took ${figure((last.end_s - last.start_s) * 1000)} ms for ` +
      `${last.parts.length} trees and ${last.chunk_rows} tokens of prompts.`
    : "No step yet.";
}

function table(requests) {
  at("requests").replaceChildren(
    ...requests.map((request) => {
      const row = document.createElement("tr");
      const cells = [
        [request.edge],
        [request.request],
        [request.waits_for, "words"],
        [request.plain ? "plain" : "drafted", "words"],
        [request.prompt],
        [request.tokens],
        [request.credit ? "yes" : ""],
        [figure(request.round_trip_ms)],
      ];
      for (const [text, kind] of cells) {
        const cell = document.createElement("td");
        cell.textContent = text;
        if (kind) cell.className = kind;
        row.append(cell);
      }
      return row;
    }),
  );
}

// --- the timeline ---

/** Above, the target's steps, each as high as it has rows; below, a lane for each edge. */
function draw() {
  const canvas = at("timeline");
  const ratio = devicePixelRatio || 1;
  const edges = lanes();
  const [top, tall, lane] = [20, 96, 14];
  const [width, height] = [canvas.clientWidth, top + tall + 14 + lane * Math.max(edges.length, 1)];
  const [wide_px, high_px] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== wide_px || canvas.height !== high_px) {
    [canvas.width, canvas.height] = [wide_px, high_px];
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  const style = getComputedStyle(document.body);
  const ink = style.getPropertyValue("--dim");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  context.font = "12px system-ui, sans-serif";
  const left = 64;
  const x = (time_s) => left + (width - left) * (1 - (now() - time_s) / SHOWN_S);
  grid(context, x, height, style.getPropertyValue("--grid"), ink);
  const most = Math.max(1, ...steps.map(rows));
  context.fillStyle = ink;
  context.fillText("target", 4, top + tall / 2);
  edges.forEach((edge, line) =>
    context.fillText(`edge ${edge}`, 4, top + tall + 18 + line * lane),
  );
  context.save();
  context.beginPath();
  context.rect(left, 0, width - left, height);
  context.clip();
  for (const step of steps) {
    const [x0, x1] = [x(step.start_s), x(step.end_s)];
    if (x1 < left) continue;
    const wide = Math.max(x1 - x0 - 1, 1);
    let y = top + tall;
    const bar = (count, fill, text) => {
      const high = (tall * count) / most;
      y -= high;
      context.fillStyle = fill;
      context.fillRect(x0, y, wide, Math.max(high - 1, 1));
      if (text && wide > 16 && high > 12) {
        context.fillStyle = "#ffffff";
        context.fillText(text, x0 + 3, y + 11);
      }
    };
    if (step.chunk_rows) bar(step.chunk_rows, ink, "prompt");
    for (const [edge, , count] of step.parts) {
      bar(count, colour(edge), edge);
      const line = edges.indexOf(edge);
      if (line < 0) continue;
      context.fillStyle = colour(edge);
      context.fillRect(x0, top + tall + 8 + line * lane, wide, lane - 2);
    }
  }
  context.restore();
}

const rows = ({ chunk_rows, parts }) => parts.reduce((sum, part) => sum + part[2], chunk_rows);

function lanes() {
  const seen = new Set(steps.flatMap(({ parts }) => parts.map(([edge]) => edge)));
  return [...seen].sort((one, other) => one - other).slice(0, MOST_LANES);
}

function grid(context, x, height, line, ink) {
  context.strokeStyle = line;
  context.fillStyle = ink;
  for (let ago_s = 0.5; ago_s <= SHOWN_S; ago_s += 0.5) {
    const place = Math.round(x(now() - ago_s)) + 0.5;
    context.beginPath();
    context.moveTo(place, 14);
    context.lineTo(place, height);
    context.stroke();
    context.fillText(`−${ago_s.toFixed(1)} s`, place + 3, 10);
  }
}

function turn() {
  if (!CALM.matches) draw();
  requestAnimationFrame(turn);
}

function status(text, bad) {
  at("status").className = bad ? "status bad" : "status";
  if (at("status").textContent !== text) at("status").textContent = text;
}

watch({ step: onStep, now: onNow, lost: (sentence) => status(sentence, true) });
requestAnimationFrame(turn);
