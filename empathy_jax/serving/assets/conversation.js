"use strict";
// A conversation apart from the page: what comes from the server, and what is made of it.

// A sentence has ended once something follows that does not belong to it.
const SENTENCE =
  /^[^]*?(?:[。！？!?…]|\.(?=\s)|\n)[。！？!?….”’"'」』）)\]\s]*(?=[^。！？!?….”’"'」』）)\]\s])/;
const LONGEST_SENTENCE = 400; // characters; where none ends before, the text is cut

// What keeps a request from being answered: the key of a text, what stands in that text, and what
// the guard says, if anything.
const failure = (key, given = {}, guard = null) =>
  Object.assign(new Error(key), { key, given, guard });

function newTurn(question) {
  return { question, layers: {}, content: "", guard: null, rule: null, ended: null };
}

// Whether anything of a reply has come.
function isHeard(turn) {
  return turn.guard !== null || turn.content !== "" || Object.keys(turn.layers).length > 0;
}

// Adds what a part of a stream says to a turn. `layer` is the part's layer, null for none.
function hear(turn, delta) {
  const layer = delta.reasoning_content ? delta.layer ?? "between" : null;
  if (delta.guard) {
    const known = Object.entries(delta.guard).filter(([, value]) => value !== null);
    turn.guard = { ...turn.guard, ...Object.fromEntries(known) };
  }
  if (layer) {
    const known = turn.layers[layer] ?? "";
    turn.layers[layer] = (known + delta.reasoning_content).trimStart();
  }
  if (delta.content) turn.content += delta.content;
  if (delta.rule !== undefined) turn.rule = delta.rule;
  return layer;
}

// The answer without the message of the guard, which stands first in it.
function answerOf(turn) {
  const message = turn.guard?.message ?? "";
  if (turn.content.startsWith(message)) return turn.content.slice(message.length).trimStart();
  return message.startsWith(turn.content) ? "" : turn.content;
}

// Length of the first sentence of a text that may still grow; 0 where none has surely ended.
function sentenceEnd(text, grows) {
  const found = SENTENCE.exec(text.slice(0, LONGEST_SENTENCE));
  if (found) return found[0].length;
  if (text.length <= LONGEST_SENTENCE) return grows ? 0 : text.length;
  const splits = /[\ud800-\udbff]/.test(text[LONGEST_SENTENCE - 1]); // half a character
  return LONGEST_SENTENCE - (splits ? 1 : 0);
}

// The conversation as the model reads it: no chain, and no message of the guard.
function messagesOf(turns) {
  return turns.flatMap((turn) => {
    const answer = answerOf(turn);
    const asked = { role: "user", content: turn.question };
    return answer ? [asked, { role: "assistant", content: answer }] : [asked];
  });
}

// The conversation as a file for programs; a turn is named like a record of chains.
function recordOf(turns) {
  return turns.map((turn) => ({
    question: turn.question,
    ...turn.layers,
    answer: answerOf(turn),
    guard: turn.guard,
    rule: turn.rule,
    ended: turn.ended,
  }));
}

// A text as Markdown that shows it as it is: with its lines, and with nothing in it taken for markup.
function plain(text) {
  return text
    .replace(/[\\`*_[\]<>&#~|]/g, "\\$&")
    .replace(/^([ \t]*\d*)([-+=.)])/gm, "$1\\$2")
    .replace(/^[ \t]+/gm, (space) => "\u00a0".repeat(space.length))
    .replace(/\n(?!\n|$)/g, "  \n");
}

// The events of a stream up to its end.
async function* readEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let unread = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the stream breaks off");
    const parts = (unread + value).split("\n\n");
    unread = parts.pop();
    for (const part of parts) {
      if (part === "data: [DONE]") return;
      if (part.startsWith("data: ")) yield JSON.parse(part.slice(6));
    }
  }
}

// The failure that a refusal of the server stands for.
async function refusal(reply, hadToken, isFirst) {
  const { error = {} } = await reply.json().catch(() => ({}));
  const seconds = Number(reply.headers.get("Retry-After"));
  const key = { 401: hadToken ? "token_wrong" : "token_wanted", 408: "deadline", 413: "too_long",
    429: seconds > 0 ? "busy_until" : "busy" }[reply.status]
    ?? (reply.status < 500 ? "refused" : "closing");
  const long = key === "too_long" || error.code === "context_length_exceeded";
  return failure(long ? (isFirst ? "too_long" : "too_long_together") : key,
    { seconds, status: reply.status }, error.guard);
}
