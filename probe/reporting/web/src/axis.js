// The values of an axis, and where the cursor is on it.
import { shown } from "./text.js";

const keyOf = (value) => (value === null ? "\u0000none" : value);

// what stands at a place of one or of both texts: "clean / corrupt"
function tokens(label) {
  const both = label.split(" / ");
  return both.every(Boolean) ? both.map(shown).join(" / ") : shown(label);
}

// {values, index (value -> place), label(place), title, cursor}; rows that have no value stand last
export function axisOf(axis, frame, sequence, indices = null) {
  const values = indices ? valuesOf(frame, axis.column, indices) : frame.distinct(axis.column).slice();
  if (indices ? false : hasNone(frame, axis.column)) values.push(null);
  const index = new Map(values.map((value, i) => [keyOf(value), i]));
  const named = new Map((axis.labels || []).map(([value, label]) => [keyOf(value), label]));
  const label = (i) => {
    const value = values[i];
    if (named.has(keyOf(value))) return axis.cursor === "token" ? tokens(named.get(keyOf(value))) : named.get(keyOf(value));
    if (value === null) return "–";
    return axis.cursor === "token" ? sequence.token(value) : `${value}`;
  };
  // a token is known by its position too: the same word stands in many places
  const full = (i) => (axis.cursor === "token" ? `${values[i]} “${label(i)}”` : `${axis.title} ${label(i)}`);
  return { values, index, label, full, title: axis.title, cursor: axis.cursor, named: named.size > 0, at: (value) => index.get(keyOf(value)) ?? -1 };
}

function hasNone(frame, column) {
  for (let i = 0; i < frame.rows; i++) if (frame.get(column, i) === null) return true;
  return false;
}

function valuesOf(frame, column, indices) {
  const found = new Map();
  for (const i of indices) found.set(keyOf(frame.get(column, i)), frame.get(column, i));
  const values = [...found.values()];
  const known = values.filter((value) => value !== null);
  if (known.every((value) => typeof value === "number")) known.sort((a, b) => a - b);
  return known.length < values.length ? [...known, null] : known;
}

// where the cursor is on an axis: -1 if it is nowhere on it
export function placeOn(axis, cursor, sequence) {
  if (!axis.cursor) return -1;
  const value = cursor[axis.cursor] ?? null;
  if (value !== null) return axis.at(value);
  return axis.cursor === "step" && cursor.token !== null ? axis.at(sequence.step_of(cursor.token)) : -1;
}

// what a click on a place of an axis moves
export const moveTo = (axis, i) => (axis.cursor && i >= 0 ? { [axis.cursor]: axis.values[i] } : {});
