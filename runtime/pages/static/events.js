// Server-sent events over fetch, which, unlike EventSource, may carry a key.

/** Events of a response: {event, data} each, `data` still a text. Comments are left out. */
export async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    const blocks = held.split(/\r?\n\r?\n/);
    held = blocks.pop();
    for (const block of blocks) {
      const event = { event: "message", data: [] };
      for (const line of block.split(/\r?\n/)) {
        if (line.startsWith("event:")) event.event = line.slice(6).trim();
        if (line.startsWith("data:")) event.data.push(line.slice(5).replace(/^ /, ""));
      }
      if (event.data.length) yield { event: event.event, data: event.data.join("\n") };
    }
  }
}

const AGAIN_MS = 1000;

/** Calls `on[event](fields)` for what /events tells, for ever; `on.lost(sentence, status)` meanwhile. */
export async function watch(on, headers = () => ({})) {
  for (;;) {
    let code = null;
    try {
      const response = await fetch("/events", { headers: headers() });
      code = response.status;
      if (!response.ok) throw new Error(await sentenceOf(response));
      for await (const { event, data } of eventsOf(response)) on[event]?.(JSON.parse(data));
      on.lost("the connection has ended; trying again", code);
    } catch (error) {
      on.lost(`${error.message}; trying again`, code);
    }
    await new Promise((resume) => setTimeout(resume, AGAIN_MS));
  }
}

/** What a refusal says, whether it is a text or OpenAI's object. */
async function sentenceOf(response) {
  const text = (await response.text()).trim();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return text || response.statusText;
  }
}

/** A number as a person reads it: three digits, no more. */
export function figure(value) {
  if (!Number.isFinite(value)) return "–";
  return value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2);
}
