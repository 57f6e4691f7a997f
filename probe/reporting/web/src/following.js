// Which rows of a panel are shown: those at the cursor, by the columns named in `follows`.
import { html } from "htm/preact";

// {where, indices}: where the cursor says nothing, the first value that there is
export function followed(panel, frame, cursor) {
  const where = {};
  for (const [coordinate, column] of Object.entries(panel.follows || {})) {
    let value = cursor[coordinate] ?? null;
    if (value === null) {
      const rows = rowsAt(frame, where);
      value = rows.length ? frame.get(column, rows[0]) : null;
    }
    where[column] = value;
  }
  return { where, indices: rowsAt(frame, where) };
}

const rowsAt = (frame, where) =>
  Object.keys(where).length ? frame.indices(where) : Int32Array.from({ length: frame.rows }, (_, i) => i);

// "layer 12, head 3"
export const placeOf = (where) => Object.entries(where).map(([column, value]) => `${column} ${value ?? "–"}`).join(", ");

// the places that there are rows of, at most `most`
function places(panel, frame, most) {
  const columns = Object.values(panel.follows);
  const found = new Map();
  for (let i = 0; i < frame.rows && found.size < most; i++) {
    const values = columns.map((column) => frame.get(column, i));
    found.set(JSON.stringify(values), values);
  }
  return [...found.values()];
}

// said where the cursor is at a place of which the run has no rows, with ways to those of which it has
export function Elsewhere({ panel, frame, where, move }) {
  const coordinates = Object.keys(panel.follows);
  const columns = Object.values(panel.follows);
  if (!frame.rows) return html`<p class="elsewhere">There are no rows.</p>`;
  return html`<p class="elsewhere">
    Nothing at ${placeOf(where)}. There are:${" "}
    ${places(panel, frame, 60).map((values) => {
      const there = placeOf(Object.fromEntries(columns.map((column, i) => [column, values[i]])));
      const go = () => move(Object.fromEntries(coordinates.map((coordinate, i) => [coordinate, values[i]])));
      return html`<button type="button" key=${there} onClick=${go}>${there}</button> `;
    })}
  </p>`;
}
