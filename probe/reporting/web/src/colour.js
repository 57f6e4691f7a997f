// value -> colour. The scales are those of the run's other pictures (terminal, files): `scales` of the page.

// colours of a page that says none itself, and of files
export const THEMES = {
  light: { paper: "#ffffff", ink: "#1b1b1b", faint: "#5f6368", line: "#d0d0d0", accent: "#b3261e" },
  dark: { paper: "#16181c", ink: "#e8e8e8", faint: "#a0a5ad", line: "#43474e", accent: "#ff8a80" },
};

export const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
export const hexOf = (rgb) => `#${rgb.map((c) => c.toString(16).padStart(2, "0")).join("")}`;

// [r, g, b] of a place from 0 to 1 on a ramp: straight lines in sRGB between its steps, as matplotlib draws them
export function blend(ramp, t) {
  const place = t * (ramp.length - 1);
  const i = Math.min(ramp.length - 2, Math.floor(place));
  return ramp[i].map((c, k) => Math.round(c + (ramp[i + 1][k] - c) * (place - i)));
}

// black or white, whichever is read more easily on a colour (WCAG 2 relative luminance)
export function inkOn([r, g, b]) {
  const [x, y, z] = [r, g, b].map((c) => (c <= 10 ? c / 3294.6 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * x + 0.7152 * y + 0.0722 * z > 0.179 ? "#000000" : "#ffffff";
}

// a number as it is read: three digits that count
export function figure(value, unit = "") {
  if (typeof value !== "number" || Number.isNaN(value)) return value === null || Number.isNaN(value) ? "none" : `${value}`;
  const size = Math.abs(value);
  let text = `${Number(value.toPrecision(3))}`;
  if (!Number.isFinite(value)) text = value > 0 ? "∞" : "-∞";
  else if (value !== 0 && (size >= 1e7 || size < 1e-3)) text = value.toExponential(2);
  else if (size >= 1000) text = value.toFixed(0);
  return text.replaceAll("-", "−").replace("e+", "e") + (unit && ` ${unit}`);
}

// numbers of a column (true is 1, what there is none of NaN), of all rows or of those given
export function numbers(frame, column, indices = null) {
  const n = indices ? indices.length : frame.rows;
  const out = new Float64Array(n);
  for (let i = 0; i < n; i++) {
    const value = frame.get(column, indices ? indices[i] : i);
    out[i] = value === null || typeof value === "string" ? NaN : Number(value);
  }
  return out;
}

function ends(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const v of values) {
    if (v === null || !Number.isFinite(v)) continue;
    if (v < low) low = v;
    if (v > high) high = v;
  }
  return low > high ? [0, 1] : [low, high];
}

const linear = (low, high) => (v) => (high > low ? Math.min(1, Math.max(0, (v - low) / (high - low))) : 0);

// The scale of a measure over a frame: {low, high, at(value) 0 to 1, colour(value), rgb(value)}, has(value): whether there is
// one, and `words`: the classes of a text column, else null
export function scaleOf(measure, frame, scales) {
  const named = { title: measure.title, unit: measure.unit || "" };
  if (measure.scaling === "classes") return { ...classScale(frame.distinct(measure.column), scales), ...named };
  const given = [measure.low ?? null, measure.high ?? null];
  let [low, high] = given.includes(null) ? ends(numbers(frame, measure.column)) : given;
  const diverging = measure.scaling === "diverging";
  if (diverging) {
    const known = given.filter((x) => x !== null);
    high = Math.max(...(known.length ? known : [low, high]).map(Math.abs)) || 1;
    low = -high;
  } else [low, high] = [given[0] ?? low, given[1] ?? high];
  const ramp = (diverging ? scales.diverging : scales.sequential).map(channels);
  const log1p = (v) => Math.log1p(Math.max(0, v));
  const even = linear(log1p(low), log1p(high));
  const at = measure.scaling === "log" ? (v) => even(log1p(v)) : linear(low, high);
  const has = (v) => v !== null && v !== undefined && !Number.isNaN(Number(v));
  const rgb = (v) => blend(ramp, at(Number(v)));
  const colour = (v) => (has(v) ? hexOf(rgb(v)) : scales.missing);
  return { ...named, low, high, at, rgb, has, colour, missing: scales.missing, words: null, ramp };
}

// each class its own colour, in the order in which they appear; the ninth has the first one's again
export function classScale(values, scales, title = "") {
  const words = [...new Set(values)].filter((value) => value !== null && value !== undefined);
  const places = new Map(words.map((value, i) => [value, i]));
  const colours = scales.classes.map(channels);
  const rgb = (value) => colours[places.get(value) % colours.length];
  const has = (value) => places.has(value);
  const colour = (value) => (has(value) ? hexOf(rgb(value)) : scales.missing);
  const at = (value) => places.get(value) / Math.max(1, words.length - 1);
  return { words, at, colour, rgb, has, missing: scales.missing, low: 0, high: 0, ramp: null, unit: "", title };
}

// [r, g, b, a] of "#rrggbbaa"
export const alphaChannels = (hex) => [...channels(hex), hex.length > 7 ? parseInt(hex.slice(7, 9), 16) : 255];

// Colours of many values at once, packed as a canvas keeps them (bytes r, g, b, a)
export function packed(scale, values, out = new Uint32Array(values.length)) {
  const bytes = new Uint8ClampedArray(out.buffer, out.byteOffset, out.byteLength);
  const none = alphaChannels(scale.missing);
  for (let i = 0; i < values.length; i++) {
    const there = scale.has(values[i]);
    const rgb = there ? scale.rgb(values[i]) : none;
    const j = 4 * i;
    bytes[j] = rgb[0];
    bytes[j + 1] = rgb[1];
    bytes[j + 2] = rgb[2];
    bytes[j + 3] = there ? 255 : none[3];
  }
  return out;
}
