// How a token and a number are shown. Knows no page.

const SPACES = { " ": "·", "\n": "↵", "\t": "⇥" };
// names rather than the signs of U+2400, which few fonts have
const CONTROLS = ("NUL SOH STX ETX EOT ENQ ACK BEL BS HT LF VT FF CR SO SI DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US").split(" ");
// joiners are part of words (Persian) and of emoji; the Arabic number signs have a shape of their own
const INVISIBLE = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}\p{Zs}]/u;
const WITH_SHAPE = /[\u0600-\u0605\u06dd\u070f\u08e2]/;
const JOINERS = "\u200c\u200d";

function seen(char, inside) {
  if (SPACES[char]) return SPACES[char];
  if (!INVISIBLE.test(char) || WITH_SHAPE.test(char) || (inside && JOINERS.includes(char))) return null;
  const code = char.codePointAt(0);
  if (code < 0x20) return `⟨${CONTROLS[code]}⟩`;
  return `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
}

const NOTHING = [["∅", true]];
const PARTS = new Map(); // a text has few different tokens

// Parts of a text: [text, whether it stands for what cannot be seen]. Nothing in it can move or hide its neighbours.
export function parts(text) {
  if (text === null || text === undefined || text === "") return NOTHING;
  if (!PARTS.has(text)) PARTS.set(text, split(text));
  return PARTS.get(text);
}

function split(text) {
  const found = [];
  const chars = [...text];
  chars.forEach((char, i) => {
    const sign = seen(char, i > 0 && i < chars.length - 1);
    const bare = i === 0 && /\p{M}/u.test(char) ? `◌${char}` : char; // a mark without its letter would sit on the token before
    const last = found[found.length - 1];
    if (last && last[1] === (sign !== null)) last[0] += sign ?? bare;
    else found.push([sign ?? bare, sign !== null]);
  });
  return found;
}

export const shown = (text) => parts(text).map(([part]) => part).join("");

export function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en-US").replace("-", "−");
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  const text = size >= 1e5 || size < 10 ** -digits ? value.toExponential(Math.max(digits - 1, 0)) : value.toFixed(digits);
  return text.replaceAll("-", "−");
}

export const plain = (value) => (value === null || value === undefined ? "–" : typeof value === "number" ? number(value, 4) : shown(String(value)));

// The sequence that the pictures know: its tokens and steps, from the rows of its text. kinds: of its steps, by their numbers.
export function withTexts(sequence, panel, frame, rows, kinds = new Map()) {
  const known = new Map();
  const starts = new Map();
  const of = { ...sequence, panel, rows, length: rows.length, first: 0, last: -1 };
  const has = (name) => frame && frame.columns.includes(name);
  if (frame) {
    rows.forEach((row) => {
      const pos = frame.get("pos", row);
      known.set(pos, row);
      const step = has("step") ? frame.get("step", row) : null;
      if (step !== null && !starts.has(step)) starts.set(step, pos);
    });
    if (rows.length) [of.first, of.last] = [frame.get("pos", rows[0]), frame.get("pos", rows[rows.length - 1])];
  }
  of.row_of = (pos) => known.get(pos) ?? null;
  of.bytes_at = (row) => (panel.shown && frame.get(panel.shown, row)) || null; // of a token that is a part of a character
  of.text_at = (row) => of.bytes_at(row) ?? frame.get("token", row) ?? "";
  of.token = (pos) => (known.has(pos) ? shown(of.text_at(known.get(pos))) : String(pos));
  of.step_of = (pos) => (known.has(pos) && has("step") ? frame.get("step", known.get(pos)) : null);
  of.start_of = (step) => starts.get(step) ?? null;
  of.kind_of = (step) => kinds.get(step) ?? null;
  of.kinds = [...new Set(kinds.values())];
  of.steps = [...starts.keys()];
  return of;
}
