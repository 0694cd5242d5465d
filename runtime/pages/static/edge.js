// The edge's page: a conversation, and the draft trees of whatever answer is being written.

import { eventsOf, figure, watch } from "/static/events.js";

const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

// --- the conversation ---

let messages = [];
let asking = null; // the AbortController of the answer that is being written
let model = null;

function authorization() {
  const key = at("key").value;
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function said(who, text, kind = "") {
  const entry = document.createElement("div");
  entry.className = `said ${kind}`;
  const name = document.createElement("b");
  name.textContent = who;
  const body = document.createElement("span");
  body.textContent = text;
  entry.append(name, body);
  at("log").append(entry);
  entry.scrollIntoView({ block: "end" });
  return body;
}

function asked(text) {
  const system = at("system").value.trim();
  const options = { max_tokens: Number(at("max_tokens").value) || undefined, stream: true };
  options.temperature = Number(at("temperature").value);
  if (at("seed").value !== "") options.seed = Number(at("seed").value);
  const first = system ? [{ role: "system", content: system }] : [];
  const conversation = [...messages, { role: "user", content: text }];
  return { model, messages: [...first, ...conversation], ...options };
}

async function modelName() {
  const response = await fetch("/v1/models", { headers: authorization() });
  const body = await response.json();
  if (!response.ok) throw new Error(body.error.message);
  return body.data[0].id;
}

async function send(text) {
  said("You", text);
  const body = said("Model", "");
  const log = at("log");
  log.setAttribute("aria-busy", "true"); // it is read out once, when it is whole
  asking = new AbortController();
  at("send").disabled = true;
  at("stop").disabled = false;
  let answer = "";
  try {
    model ??= await modelName();
    const response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json", ...authorization() },
      body: JSON.stringify(asked(text)),
      signal: asking.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const { data } of eventsOf(response)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      const delta = chunk.choices[0]?.delta ?? {};
      if (delta.reasoning_content) thought(body, delta.reasoning_content);
      if (delta.content) {
        answer += delta.content;
        body.append(delta.content);
        log.scrollTop = log.scrollHeight;
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") said("Error", error.message, "error");
  } finally {
    // what was stopped in the middle is part of the conversation; what failed at once is not
    if (answer) {
      messages.push({ role: "user", content: text }, { role: "assistant", content: answer });
    }
    log.setAttribute("aria-busy", "false");
    at("send").disabled = false;
    at("stop").disabled = true;
    asking = null;
    at("prompt").focus();
  }
}

function thought(body, text) {
  const last = body.lastChild;
  if (last?.className === "thought") {
    last.append(text);
    return;
  }
  const span = document.createElement("span");
  span.className = "thought";
  span.textContent = text;
  body.append(span);
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("prompt").value;
  if (asking || !text.trim()) return;
  at("prompt").value = "";
  send(text);
});
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("ask").requestSubmit();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") asking?.abort();
});
at("stop").addEventListener("click", () => asking?.abort());
at("reset").addEventListener("click", () => {
  asking?.abort();
  messages = [];
  at("log").replaceChildren();
  at("prompt").focus();
});

// --- the trees ---

const RECENT_MS = 5000;
const STRIP = 60; // tokens
let latest = null; // the round to be drawn next
let root = "";
let rounds = 0; // of the answer that is shown, its first verdict not counted
let tokens = 0;
let recent = []; // [when, tokens]
let strip = []; // [text, state]

function visible(text) {
  return text.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "∅";
}

function onRound(round) {
  const now = performance.now();
  if (latest?.answer !== round.answer) {
    [rounds, tokens, recent, strip, root] = [0, 0, [], [], ""];
  } else {
    rounds += 1;
    tokens += round.tokens;
  }
  recent.push([now, round.tokens]);
  recent = recent.filter(([when]) => now - when < RECENT_MS);
  const accepted = round.nodes.filter(([, , state]) => state === "accepted");
  strip.push(...accepted.map(([text]) => [text, "accepted"]), [round.bonus, ""]);
  strip = strip.slice(-STRIP);
  const isDrawn = latest === null || latest.drawn;
  latest = { ...round, root, drawn: false };
  root = round.bonus;
  if (isDrawn) requestAnimationFrame(draw);
}

function draw() {
  const round = latest;
  round.drawn = true;
  const seconds = (performance.now() - recent[0][0]) / 1000;
  const gained = recent.slice(1).reduce((sum, [, count]) => sum + count, 0);
  at("speed").textContent = figure(gained / seconds);
  at("gain").textContent = figure(tokens / rounds);
  at("step").textContent = figure(round.verify_ms);
  if (round.round_trip_ms !== null) at("rtt").textContent = figure(round.round_trip_ms);
  at("strip").replaceChildren(
    ...strip.map(([text, state]) => {
      const span = document.createElement("span");
      span.className = state;
      span.textContent = text;
      return span;
    }),
  );
  if (round.nodes.length) {
    at("tree").replaceChildren(picture(round));
    at("summary").textContent = summary(round);
  } else {
    const earlier = at("tree").firstChild ? " The tree is that of an earlier round." : "";
    at("summary").textContent =
      `No draft in this round; the target's own ${visible(round.bonus)}.` + earlier;
  }
}

function summary({ nodes, bonus }) {
  const count = (state) => nodes.filter((node) => node[2] === state).length;
  const sent = count("accepted") + count("rejected");
  const path = nodes.filter((node) => node[2] === "accepted").map((node) => visible(node[0]));
  const accepted = path.length ? `accepted ${path.length}: ${path.join(" ")}` : "accepted none";
  const ahead = count("next") + count("ahead");
  return (
    `Sent ${sent} nodes, ${accepted}; then the target's own ${visible(bonus)}. ` +
    `Of ${ahead} grown ahead, ${count("next")} are of use.`
  );
}

const [WIDTH, HEIGHT, GAP, STEP] = [84, 19, 3, 104]; // of a node, and between two
const STATES = ["accepted", "next", "rejected", "ahead"];

/**
 * The tree from left to right: a column for each depth, a line for each leaf. What was accepted lies
 * along the first line, and what goes on from there behind it.
 */
function picture({ nodes, root: rootText }) {
  const children = new Map([[-1, []]]);
  nodes.forEach(([, parent], node) => {
    children.set(node, []);
    children.get(parent).push(node);
  });
  const place = new Map();
  const rank = (node) => STATES.indexOf(nodes[node][2]);
  let line = 0;
  const put = (node, depth) => {
    const ranked = children.get(node).sort((one, other) => rank(one) - rank(other));
    const below = ranked.map((child) => put(child, depth + 1));
    const y = below.length ? below[0] : line++ * (HEIGHT + GAP);
    place.set(node, [depth * STEP, y]);
    return y;
  };
  put(-1, 0);
  const depth = Math.max(...[...place.values()].map(([x]) => x));
  const svg = element("svg", { width: depth + WIDTH + 4, height: line * (HEIGHT + GAP) + 4 });
  nodes.forEach(([text, parent, state], node) => {
    svg.append(branch(place.get(parent), place.get(node), visible(text), state));
  });
  svg.append(branch(null, place.get(-1), visible(rootText), "root"));
  return svg;
}

function branch(from, [x, y], text, state) {
  const group = element("g", { class: state });
  if (from) {
    const [x0, y0] = [from[0] + WIDTH, from[1] + HEIGHT / 2 + 2];
    const [x1, y1] = [x, y + HEIGHT / 2 + 2];
    const middle = (x0 + x1) / 2;
    group.append(element("path", { d: `M${x0} ${y0} C${middle} ${y0} ${middle} ${y1} ${x1} ${y1}` }));
  }
  group.append(element("rect", { x: x + 1, y: y + 2, width: WIDTH, height: HEIGHT, rx: 4 }));
  const label = element("text", { x: x + 7, y: y + 15 });
  label.textContent = text.length > 10 ? `${text.slice(0, 9)}…` : text;
  const title = element("title", {});
  title.textContent = `${text}: ${state}`;
  group.append(label, title);
  return group;
}

function element(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// --- how it stands ---

function status(text, bad) {
  at("status").className = bad ? "status bad" : "status";
  if (at("status").textContent !== text) at("status").textContent = text;
}

function drafter(draft) {
  return draft === "none" ? "words looked up in the text draft" : `${draft} drafts`;
}

function wantKey() {
  const given = at("key").value ? "another API key than this one" : "an API key";
  status(`this edge wants ${given}: give it under Options`, true);
  at("options").open = true;
}

watch(
  {
    now: ({ server, target, draft, connected }) =>
      connected
        ? status(`${drafter(draft)} for ${target} at ${server}`, false)
        : status(`${server} is gone; looking for it`, true),
    round: onRound,
    lost: (sentence, code) => (code === 401 ? wantKey() : status(sentence, true)),
  },
  authorization,
);
