// The cursor: where the reader is, how that stands in the address, and the moves. Draws nothing.

const LETTERS = { token: "t", layer: "l", head: "h", prompt: "p", branch: "b", run: "r", step: "s" };
const PAUSE = 350; // ms between two addresses: browsers refuse more than about 100 in 30 s

export function fromAddress(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const cursor = {};
  for (const [name, letter] of Object.entries(LETTERS)) {
    const value = given.get(letter);
    cursor[name] = value !== null && /^-?\d{1,15}$/.test(value) ? Number(value) : null;
  }
  return cursor;
}

export function toAddress(cursor) {
  return "#" + Object.entries(LETTERS)
    .filter(([name]) => cursor[name] !== null && !(name === "step" && cursor.token !== null))
    .map(([name, letter]) => `${letter}=${cursor[name]}`).join("&");
}

// What a change of one coordinate does to the others: a step and its first token go together, another text has other tokens.
export function moved(cursor, change, sequence) {
  const next = { ...cursor, ...change };
  const elsewhere = next.run !== cursor.run || next.prompt !== cursor.prompt;
  if (next.run !== cursor.run && !("prompt" in change)) next.prompt = null;
  if (elsewhere) for (const name of ["token", "step", "branch"]) if (!(name in change)) next[name] = null;
  if (elsewhere || !sequence || !sequence.length) return next;
  if ("step" in change && !("token" in change) && change.step !== null) next.token = sequence.start_of(change.step) ?? next.token;
  if (next.token !== null) {
    next.token = Math.min(Math.max(next.token, sequence.first), sequence.last);
    if (!("step" in change) || "token" in change) next.step = sequence.step_of(next.token);
  }
  return next;
}

// Writes the address, at once where it can, else after the pause; a frame without an address of its own goes without.
export function addressWriter(window) {
  let last = 0, timer = null, wanted = null;
  const write = () => {
    timer = null;
    last = Date.now();
    const address = new URL(window.location.href);
    address.hash = wanted;
    try {
      window.history.replaceState(window.history.state, "", address.href);
    } catch (error) {
      if (error.name !== "SecurityError") throw error;
    }
  };
  return (cursor) => {
    wanted = toAddress(cursor);
    if (timer === null) timer = setTimeout(write, Math.max(0, last + PAUSE - Date.now()));
  };
}

// The values that a coordinate can have in a sequence, ascending: of the pictures that have it as an axis or follow it.
export async function reach(page, sequence, coordinate) {
  const found = new Set();
  for (const panel of sequence.panels) {
    const columns = [panel.rows, panel.columns, panel.axis].filter((axis) => axis && axis.cursor === coordinate).map((axis) => axis.column);
    if (panel.follows && panel.follows[coordinate]) columns.push(panel.follows[coordinate]);
    if (!columns.length) continue;
    const frame = await page.frame(panel);
    for (const column of columns) for (const value of frame.distinct(column)) found.add(value);
  }
  return [...found].filter((value) => typeof value === "number" && value >= 0).sort((a, b) => a - b);
}

export function neighbour(values, value, by) {
  if (!values.length) return null;
  if (value === null) return by > 0 ? values[0] : values[values.length - 1];
  const beyond = by > 0 ? values.filter((v) => v > value) : values.filter((v) => v < value).reverse();
  return beyond.length ? beyond[Math.min(Math.abs(by), beyond.length) - 1] : value;
}

// What the keys do, in the order in which `?` lists them.
export const KEYS = [
  ["← →", "token before, after"],
  ["↑ ↓", "line of the text above, below"],
  ["PageUp PageDown", "a screen of the text"],
  ["Home End", "first, last token"],
  [", .", "step before, after"],
  ["[ ]", "layer below, above"],
  ["{ }", "head before, after"],
  ["< >", "branch before, after"],
  ["( )", "prompt before, after"],
  ["m", "next colouring of the text"],
  ["f F", "fold the step, all steps"],
  ["d", "dark, light, as the system"],
  ["?", "these keys"],
];
