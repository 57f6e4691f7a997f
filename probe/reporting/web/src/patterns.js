// Attention patterns of the head at the cursor: queries downwards, keys to the right.
import { html } from "htm/preact";
import { useMemo, useState } from "preact/hooks";
import { THEMES, blend, channels, figure, hexOf, packed } from "./colour.js";
import { Elsewhere, Places, followed, placeOf } from "./following.js";
import { Heat } from "./heat.js";
import { drawHeat } from "./heatfile.js";
import { Legend } from "./legend.js";

const MOST_ROWS = 1500; // whose colours are kept
const NAMED = 5; // keys that a readout names

// Most weights are small: by their square root they are seen.
function weightScale(scales, root) {
  const ramp = scales.sequential.map(channels);
  const at = (weight) => (root ? Math.sqrt : Number)(Math.min(1, Math.max(0, weight)));
  const has = (weight) => weight !== null && !Number.isNaN(weight);
  const rgb = (weight) => blend(ramp, at(weight));
  const colour = (weight) => (has(weight) ? hexOf(rgb(weight)) : scales.missing);
  const title = root ? "weight, coloured by its square root" : "weight";
  return { at, has, rgb, colour, low: 0, high: 1, ramp, words: null, missing: scales.missing, unit: "", title };
}

// rows of the head: queries ascending, each with its keys and weights
function patternOf(frame, indices) {
  const rows = [...indices].sort((a, b) => frame.get("query", a) - frame.get("query", b));
  const queries = rows.map((index) => frame.get("query", index));
  const top = frame.columns.includes("keys") && rows.some((index) => frame.get("keys", index) !== null);
  const kept = frame.columns.includes("kept_mass") ? rows.map((index) => frame.get("kept_mass", index)) : [];
  const known = kept.filter((mass) => mass !== null);
  const mass = top && known.length ? { mean: known.reduce((a, b) => a + b, 0) / known.length, least: Math.min(...known) } : null;
  return { rows, queries, mass, columns: queries.length ? queries[queries.length - 1] + 1 : 0 };
}

// the weights of a query on all keys up to it; NaN where they were not kept
function weightsOf(frame, index, query) {
  const keys = frame.columns.includes("keys") ? frame.get("keys", index) : null;
  const weights = frame.get("weights", index);
  const out = new Float64Array(query + 1).fill(NaN);
  if (!weights) return out;
  if (!keys) out.set(Array.from(weights).slice(0, query + 1));
  else for (let k = 0; k < keys.length; k++) out[keys[k]] = weights[k];
  return out;
}

function modelOf(frame, pattern, sequence, scale) {
  const { rows, queries, columns } = pattern;
  const colours = new Map();
  const pixels = (i) => {
    if (colours.size > MOST_ROWS) colours.clear();
    if (!colours.has(i)) colours.set(i, packed(scale, weightsOf(frame, rows[i], queries[i])));
    return colours.get(i);
  };
  let last = { i: -1, weights: null };
  const value = (i, j) => {
    if (last.i !== i) last = { i, weights: weightsOf(frame, rows[i], queries[i]) };
    return j <= queries[i] ? last.weights[j] : NaN;
  };
  const named = (pos) => `${pos} “${sequence.token(pos)}”`;
  const words = (i, j) => {
    if (j > queries[i]) return "";
    const weight = value(i, j);
    return `query ${named(queries[i])}, key ${named(j)}: ${Number.isNaN(weight) ? "not among those that were kept" : figure(weight)}`;
  };
  return {
    rows: rows.length, columns, rowTitle: "query", columnTitle: "key", rowLabel: (i) => sequence.token(queries[i]),
    columnLabel: sequence.token, pixels, value, text: (i, j) => (j <= queries[i] && scale.has(value(i, j)) ? value(i, j).toFixed(2) : ""),
    rgb: (i, j) => scale.rgb(value(i, j)), words, upwards: false, square: true, hasText: false, scale,
  };
}

const said = ({ mean, least }) => `Of this head ${figure(mean)} of the mass was kept on average, of each query at least ${figure(least)}. Grey: not kept.`;

function Body({ panel, frame, cursor, move, sequence, scales, height }) {
  const { where, indices } = followed(panel, frame, cursor);
  const place = placeOf(where);
  const pattern = useMemo(() => patternOf(frame, indices), [frame, place]);
  const [root, setRoot] = useState(false);
  const scale = useMemo(() => weightScale(scales, root), [scales, root]);
  const model = useMemo(() => modelOf(frame, pattern, sequence, scale), [pattern, scale, sequence]);
  const choose = html`<${Places} panel=${panel} frame=${frame} where=${where} move=${move} label="Head:" />`;
  if (!indices.length) return html`${choose}<${Elsewhere} panel=${panel} frame=${frame} where=${where} move=${move} />`;
  const i = cursor.token === null ? -1 : pattern.queries.indexOf(cursor.token);
  const keyed = cursor.token !== null && cursor.token < pattern.columns ? cursor.token : -1;
  const go = (row, column) => {
    if (row >= 0 && row !== i) move({ token: pattern.queries[row] });
    else if (column >= 0 && column !== keyed) move({ token: column });
  };
  return html`<div class="patterns">
    ${choose}
    <${Legend} scale=${scale} />
    <label class="places"><input type="checkbox" checked=${root} onChange=${(event) => setRoot(event.target.checked)} /> show small weights (square root)</label>
    ${pattern.mass && html`<p class="kept">${said(pattern.mass)}</p>`}
    <${Heat} model=${model} chosen=${[i, keyed]} choose=${go} height=${height} label="${panel.title}, ${place}" />
  </div>`;
}

function readout(panel, frame, cursor, measure, sequence) {
  const { where, indices } = followed(panel, frame, cursor);
  const index = indices.find((row) => frame.get("query", row) === cursor.token);
  if (index === undefined) return "";
  const weights = weightsOf(frame, index, cursor.token);
  const most = [...weights.keys()].filter((key) => weights[key] > 0).sort((a, b) => weights[b] - weights[a]).slice(0, NAMED);
  const named = most.map((key) => `${key} “${sequence.token(key)}” ${figure(weights[key])}`).join(", ");
  const mass = frame.columns.includes("kept_mass") ? frame.get("kept_mass", index) : null;
  const kept = mass === null ? "" : `; kept mass ${figure(mass)}`;
  return `${placeOf(where)}, query ${cursor.token} “${sequence.token(cursor.token)}”: most on ${named}${kept}`;
}

function draw(pen, { panel, frame, cursor, sequence, scales, theme, width }) {
  const { where, indices } = followed(panel, frame, cursor);
  const model = modelOf(frame, patternOf(frame, indices), sequence, weightScale(scales, false));
  return drawHeat(pen, { ...model, columnTitle: `key (${placeOf(where)})` }, { theme: THEMES[theme], width });
}

export const patterns = { Body, readout, draw };
