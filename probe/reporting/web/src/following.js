// Which rows of a panel are shown: those at the cursor, by the columns named in `follows`.
import { html } from "htm/preact";

// {where, indices}: where the cursor says nothing, the first place that there is
export function followed(panel, frame, cursor) {
  const follows = Object.entries(panel.follows || {});
  const places = placesOf(frame, follows.map(([, column]) => column));
  const wanted = follows.map(([coordinate]) => cursor[coordinate] ?? null);
  const fits = ({ values }) => wanted.every((value, k) => value === null || value === values[k]);
  const found = places.get(wanted.join()) || [...places.values()].find(fits);
  const values = found ? found.values : wanted;
  const where = Object.fromEntries(follows.map(([, column], k) => [column, values[k]]));
  return { where, indices: found ? found.indices : new Int32Array(0) };
}

const KEPT = new WeakMap(); // frame -> columns -> their places

// "12,3" -> {values, indices}: rows by their values of some columns; of no columns all rows, at ""
function placesOf(frame, columns) {
  if (!KEPT.has(frame)) KEPT.set(frame, new Map());
  const kept = KEPT.get(frame);
  if (kept.has(columns.join())) return kept.get(columns.join());
  const places = new Map();
  for (let i = 0; i < frame.rows; i++) {
    const values = columns.map((column) => frame.get(column, i));
    const key = values.join();
    if (!places.has(key)) places.set(key, { values, indices: [] });
    places.get(key).indices.push(i);
  }
  for (const place of places.values()) place.indices = Int32Array.from(place.indices);
  kept.set(columns.join(), places);
  return places;
}

// "layer 12, head 3"
export const placeOf = (where) => Object.entries(where).map(([column, value]) => `${column} ${value ?? "–"}`).join(", ");

// said where the cursor is at a place of which the run has no rows, with ways to those of which it has
export function Elsewhere({ panel, frame, where, move }) {
  const coordinates = Object.keys(panel.follows);
  const columns = Object.values(panel.follows);
  if (!frame.rows) return html`<p class="elsewhere">There are no rows.</p>`;
  return html`<p class="elsewhere">
    Nothing at ${placeOf(where)}. There are:${" "}
    ${[...placesOf(frame, columns).values()].slice(0, 60).map(({ values }) => {
      const there = placeOf(Object.fromEntries(columns.map((column, i) => [column, values[i]])));
      const go = () => move(Object.fromEntries(coordinates.map((coordinate, i) => [coordinate, values[i]])));
      return html`<button type="button" key=${there} onClick=${go}>${there}</button> `;
    })}
  </p>`;
}

// a choice among the places that there are rows of
export function Places({ panel, frame, where, move, label }) {
  const follows = Object.entries(panel.follows || {});
  const columns = follows.map(([, column]) => column);
  const places = [...placesOf(frame, columns).entries()];
  if (!follows.length || places.length < 2) return null;
  const choose = (event) => {
    const { values } = places.find(([key]) => key === event.target.value)[1];
    move(Object.fromEntries(follows.map(([coordinate], k) => [coordinate, values[k]])));
  };
  const here = columns.map((column) => where[column]).join();
  return html`<label class="places">${label}${" "}
    <select value=${here} onChange=${choose}>${places.map(([key, { values }]) =>
      html`<option key=${key} value=${key}>${columns.map((column, k) => `${column} ${values[k] ?? "–"}`).join(", ")}</option>`)}</select>
  </label>`;
}
