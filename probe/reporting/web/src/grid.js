// Heat maps: a measure by rows and columns.
import { html } from "htm/preact";
import { useMemo, useState } from "preact/hooks";
import { axisOf, moveTo, placeOn } from "./axis.js";
import { THEMES, figure, numbers, packed, scaleOf } from "./colour.js";
import { Elsewhere, followed } from "./following.js";
import { drawHeat } from "./heatfile.js";
import { Heat } from "./heat.js";
import { Legend } from "./legend.js";
import { shown } from "./text.js";

// a number as short as it stands in a cell
const inCell = (value) => {
  if (typeof value !== "number") return value ?? "";
  if (Number.isNaN(value)) return "";
  const size = Math.abs(value);
  return figure(Number.isInteger(value) || size >= 1000 ? value : Number(value.toFixed(size < 10 ? 2 : size < 100 ? 1 : 0)));
};

const worded = (text) => (text === null ? "" : shown(text));

const measureOf = (panel, measure) => panel.measures[measure] || panel.measures[0];

const KEPT = new WeakMap(); // panel -> the cells that were looked at last

// cells of the rows at the cursor: for each the row of the frame, -1 where there is none
function cellsOf(panel, frame, indices, sequence) {
  const last = KEPT.get(panel);
  if (last && last.frame === frame && last.indices === indices && last.sequence === sequence) return last.cells;
  const cells = cellsAt(panel, frame, indices, sequence);
  KEPT.set(panel, { frame, indices, sequence, cells });
  return cells;
}

function cellsAt(panel, frame, indices, sequence) {
  const chosen = indices.length < frame.rows ? indices : null;
  const rows = axisOf(panel.rows, frame, sequence, chosen);
  const columns = axisOf(panel.columns, frame, sequence, chosen);
  const cells = new Int32Array(rows.values.length * columns.values.length).fill(-1);
  for (const index of indices) {
    const i = rows.at(frame.get(panel.rows.column, index));
    const j = columns.at(frame.get(panel.columns.column, index));
    const cell = i * columns.values.length + j;
    if (i >= 0 && j >= 0 && cells[cell] < 0) cells[cell] = index;
  }
  return { rows, columns, cells };
}

export function modelOf(panel, frame, chosen, { rows, columns, cells }, scale) {
  const [n, m] = [rows.values.length, columns.values.length];
  const classes = chosen.scaling === "classes";
  const column = classes ? null : numbers(frame, chosen.column);
  const value = (i, j) => {
    const index = cells[i * m + j];
    return index < 0 ? (classes ? null : NaN) : classes ? frame.get(chosen.column, index) : column[index];
  };
  const kept = new Map();
  const pixels = (i) => {
    if (!kept.has(i)) {
      kept.set(i, packed(scale, Array.from({ length: m }, (_, j) => value(i, j))));
      for (let j = 0; j < m; j++) if (cells[i * m + j] < 0) kept.get(i)[j] = 0; // blank, and not missing
    }
    return kept.get(i);
  };
  const text = (i, j) => {
    const index = cells[i * m + j];
    if (index < 0) return "";
    return panel.text ? worded(frame.get(panel.text, index)) : inCell(value(i, j));
  };
  return {
    rows: n, columns: m, rowTitle: rows.title, columnTitle: columns.title, rowLabel: rows.label, columnLabel: columns.label,
    pixels, value, text, rgb: (i, j) => (scale.has(value(i, j)) ? scale.rgb(value(i, j)) : [255, 255, 255]),
    words: (i, j) => wordsOf(panel, frame, chosen, rows, columns, cells[i * m + j], i, j),
    upwards: panel.upwards, square: false, hasText: Boolean(panel.text), scale,
  };
}

function wordsOf(panel, frame, chosen, rows, columns, index, i, j) {
  const place = `${rows.full(i)}, ${columns.full(j)}`;
  if (index < 0) return `${place}: nothing`;
  const [low, high] = (chosen.band || []).map((column) => frame.get(column, index));
  const band = chosen.band && low !== null && high !== null ? ` (${figure(low)} to ${figure(high)})` : "";
  const text = panel.text ? `, “${worded(frame.get(panel.text, index))}”` : "";
  return `${place}: ${chosen.title} ${figure(frame.get(chosen.column, index), chosen.unit)}${band}${text}`;
}

function Body({ panel, frame, cursor, move, sequence, scales, measure, height }) {
  const { where, indices } = followed(panel, frame, cursor);
  const [own, keep] = useState([-1, -1]); // of axes that the cursor has no part in
  const cells = cellsOf(panel, frame, indices, sequence);
  const chosen = measureOf(panel, measure);
  const scale = useMemo(() => scaleOf(chosen, frame, scales), [frame, chosen, scales]);
  const model = useMemo(() => modelOf(panel, frame, chosen, cells, scale), [cells, chosen, scale]);
  if (!indices.length) return html`<${Elsewhere} panel=${panel} frame=${frame} where=${where} move=${move} />`;
  const { rows, columns } = cells;
  const here = [rows, columns].map((axis, k) => (axis.cursor ? placeOn(axis, cursor, sequence) : own[k]));
  const choose = (i, j) => {
    keep([i, j]);
    const to = { ...moveTo(rows, i), ...moveTo(columns, j) };
    if (Object.keys(to).length) move(to);
  };
  return html`<div class="grid">
    <${Legend} scale=${model.scale} />
    <${Heat} model=${model} chosen=${here} choose=${choose} height=${height} label="${panel.title}, ${chosen.title}" />
  </div>`;
}

function readout(panel, frame, cursor, measure, sequence) {
  const { indices } = followed(panel, frame, cursor);
  const { rows, columns, cells } = cellsOf(panel, frame, indices, sequence);
  const known = [rows, columns].map((axis) => placeOn(axis, cursor, sequence));
  if (known.every((k) => k < 0)) return "";
  // where the reader has chosen no layer yet it is the last one
  const [i, j] = [rows, columns].map((axis, k) => (known[k] < 0 && axis.cursor && cursor[axis.cursor] === null ? (axis.cursor === "layer" ? axis.values.length - 1 : 0) : known[k]));
  if (i < 0 || j < 0) return "";
  const index = cells[i * columns.values.length + j];
  return wordsOf(panel, frame, measureOf(panel, measure), rows, columns, index, i, j);
}

function draw(pen, { panel, frame, cursor, measure, sequence, scales, theme, width }) {
  const { indices } = followed(panel, frame, cursor);
  const chosen = measureOf(panel, measure);
  const cells = cellsOf(panel, frame, indices, sequence);
  const model = modelOf(panel, frame, chosen, cells, scaleOf(chosen, frame, scales));
  return drawHeat(pen, model, { theme: THEMES[theme], width });
}

export const grid = { Body, readout, draw };
