// Rows as a table, of which only those in sight are in the document, and the whole text of the row at the cursor.
import { html } from "htm/preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { THEMES } from "./colour.js";
import { Elsewhere, followed } from "./following.js";
import { fitted, widthOf } from "./pen.js";
import { number } from "./text.js";

const ROW = 26;
const TALL = 400;
const WIDEST = 340; // of a column
const SMALL = { size: 12 };
const FILE_ROWS = 300;

const shownAs = (value, digits) => {
  if (value === null || value === undefined) return "";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") return digits === null || digits === undefined ? `${value}` : number(value, digits);
  if (typeof value === "string") return value;
  return Array.from(value, (one) => shownAs(one, digits)).join(", ");
};
const oneLine = (text) => text.replace(/[\u0000-\u001f\u007f-\u009f\s]+/g, " ").trim();
const cellOf = (frame, column, index) => oneLine(shownAs(frame.get(column.name, index), column.digits));
const isNumber = (frame, column, indices) => indices.length > 0 && indices.slice(0, 50).every((i) => ["number", "boolean"].includes(typeof (frame.get(column.name, i) ?? 0)));

// what a click on a row moves
const placeOf = (panel, frame, index) =>
  Object.fromEntries(panel.columns.filter(({ cursor }) => cursor).map(({ name, cursor }) => [cursor, frame.get(name, index)]).filter(([, value]) => value !== null));

// Whether a row is where the cursor is. A row of a step begins at a token: its step says more.
function isAt(panel, frame, index, cursor) {
  const marked = panel.columns.filter((column) => column.cursor && (cursor[column.cursor] ?? null) !== null);
  const better = marked.filter((column) => column.cursor !== "token");
  const asked = better.length ? better : marked;
  return asked.length > 0 && asked.every((column) => frame.get(column.name, index) === cursor[column.cursor]);
}

function sorted(frame, indices, order) {
  if (!order) return indices;
  const key = (index) => frame.get(order.name, index);
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    const way = typeof x === "string" ? x.localeCompare(y) : x - y;
    return order.down ? -way : way;
  };
  return [...indices].sort(compare);
}

function widthsOf(panel, frame, indices) {
  return panel.columns.map((column) => {
    const texts = [`${column.title}  ↓`, ...Array.from(indices.slice(0, 200), (index) => cellOf(frame, column, index))];
    return Math.min(WIDEST, Math.max(...texts.map((text) => widthOf(text.slice(0, 80), SMALL))) + 22);
  });
}

function Rows({ panel, frame, indices, here, press, height, order, sort, label }) {
  const scroller = useRef(null);
  const [top, see] = useState(0);
  const widths = useMemo(() => widthsOf(panel, frame, indices), [panel, frame, indices]);
  const right = useMemo(() => panel.columns.map((column) => isNumber(frame, column, Array.from(indices))), [panel, frame, indices]);
  const rows = useMemo(() => sorted(frame, indices, order), [frame, indices, order]);
  const from = Math.max(0, Math.floor(top / ROW) - 8);
  const until = Math.min(rows.length, Math.ceil((top + height) / ROW) + 8);
  const place = here === null ? -1 : rows.indexOf(here);
  useEffect(() => {
    const node = scroller.current;
    if (place >= 0 && (place * ROW < node.scrollTop || (place + 2) * ROW > node.scrollTop + node.clientHeight)) node.scrollTop = Math.max(0, (place - 3) * ROW);
  }, [place]);
  const keys = (event) => {
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
    press(rows[Math.min(rows.length - 1, Math.max(0, place + by))]);
    event.preventDefault();
    event.stopPropagation();
  };
  const gap = (n) => n > 0 && html`<tr aria-hidden="true" style=${{ height: `${n * ROW}px` }}><td colspan=${panel.columns.length} /></tr>`;
  return html`<div class="listing-window" ref=${scroller} tabindex="0" role="group" aria-label="${label}. Arrow keys move." onKeyDown=${keys}
    onScroll=${() => see(scroller.current.scrollTop)} style=${{ maxHeight: `${height}px` }}>
    <table aria-rowcount=${rows.length + 1} style=${{ width: `max(100%, ${widths.reduce((a, b) => a + b, 0)}px)` }}>
      <colgroup>${widths.map((width, k) => html`<col key=${k} style=${{ width: `${width}px` }} />`)}</colgroup>
      <thead><tr>${panel.columns.map(({ name, title }, c) => html`<th key=${name} scope="col" class=${right[c] ? "right" : ""}
        aria-sort=${order && order.name === name ? (order.down ? "descending" : "ascending") : "none"}>
        <button type="button" onClick=${() => sort(name)}>${title}${order && order.name === name ? (order.down ? " ↓" : " ↑") : ""}</button></th>`)}</tr></thead>
      <tbody>${gap(from)}
        ${Array.from(rows.slice(from, until), (index, k) => html`<tr key=${index} aria-rowindex=${from + k + 2} class=${index === here ? "here" : ""}
          aria-selected=${index === here} style=${{ height: `${ROW}px` }} onClick=${() => press(index)}>
          ${panel.columns.map((column, c) => html`<td key=${column.name} class=${right[c] ? "right" : ""}><bdi>${cellOf(frame, column, index)}</bdi></td>`)}</tr>`)}
        ${gap(rows.length - until)}</tbody>
    </table></div>`;
}

// rows by the values of `beside`, each group with its row at the cursor: of the others the one of the same sample, else of the same place
function groupsOf(panel, frame, indices, cursor, own) {
  const names = panel.beside ? [...new Set(Array.from(indices, (index) => frame.get(panel.beside, index)))] : [null];
  const groups = names.map((name) => ({ name, rows: panel.beside ? indices.filter((index) => frame.get(panel.beside, index) === name) : indices }));
  const anchor = indices.find((index) => isAt(panel, frame, index, cursor)) ?? (own !== null && indices.includes(own) ? own : null);
  const home = groups.find(({ rows }) => anchor !== null && rows.includes(anchor));
  const sample = frame.columns.includes("sample") ? (index) => frame.get("sample", index) : null;
  for (const group of groups) {
    if (!home) group.here = null;
    else if (group === home) group.here = anchor;
    else group.here = (sample ? group.rows.find((index) => sample(index) === sample(anchor)) : group.rows[home.rows.indexOf(anchor)]) ?? null;
  }
  return groups;
}

function Body({ panel, frame, cursor, move, height = TALL }) {
  const { where, indices } = followed(panel, frame, cursor);
  const [own, keep] = useState(null); // the row chosen where no column is the cursor's
  const [order, arrange] = useState(null);
  const groups = useMemo(() => groupsOf(panel, frame, indices, cursor, own), [panel, frame, indices, cursor, own]);
  if (!indices.length) return html`<${Elsewhere} panel=${panel} frame=${frame} where=${where} move=${move} />`;
  const sort = (name) => arrange((old) => (!old || old.name !== name ? { name, down: false } : old.down ? null : { name, down: true }));
  const press = (index) => {
    keep(index);
    const to = placeOf(panel, frame, index);
    if (Object.keys(to).length) move(to);
  };
  return html`<div class=${`listing${groups.length > 1 ? " beside" : ""}`}>${groups.map(({ name, rows, here }) => html`<section key=${name}>
    ${name !== null && html`<h4><bdi>${name}</bdi> (${rows.length})</h4>`}
    <${Rows} panel=${panel} frame=${frame} indices=${rows} here=${here} press=${press} height=${height} order=${order} sort=${sort} label=${name === null ? panel.title : `${panel.title}: ${name}`} />
    ${panel.text && here !== null && html`<p class="whole-text" dir="auto">${shownAs(frame.get(panel.text, here))}</p>`}
  </section>`)}</div>`;
}

function readout(panel, frame, cursor) {
  const { indices } = followed(panel, frame, cursor);
  const index = indices.find((one) => isAt(panel, frame, one, cursor));
  if (index === undefined) return "";
  return panel.columns.filter(({ name }) => name !== panel.text && frame.get(name, index) !== null)
    .map((column) => `${column.title} ${cellOf(frame, column, index)}`).join(", ");
}

function draw(pen, { panel, frame, cursor, theme }) {
  const { indices } = followed(panel, frame, cursor);
  const colours = THEMES[theme];
  const rows = indices.slice(0, FILE_ROWS);
  const widths = widthsOf(panel, frame, rows);
  const width = Math.max(320, widths.reduce((a, b) => a + b, 0) + 12);
  const put = (texts, y, fill) => {
    let x = 6;
    texts.forEach((text, k) => {
      pen.text(fitted(text, widths[k] - 10, SMALL), x, y, { ...SMALL, fill });
      x += widths[k];
    });
  };
  put(panel.columns.map(({ title }) => title), 16, colours.faint);
  pen.line([[4, 28], [width - 4, 28]], colours.faint);
  Array.from(rows).forEach((index, r) => {
    if (isAt(panel, frame, index, cursor)) pen.rect(2, 31 + r * 20, width - 4, 20, colours.line);
    put(panel.columns.map((column) => cellOf(frame, column, index)), 41 + r * 20, colours.ink);
  });
  const left = indices.length - rows.length;
  if (left > 0) pen.text(`… and ${left} more rows`, 6, 41 + rows.length * 20, { ...SMALL, fill: colours.faint });
  return { width, height: 41 + (rows.length + (left > 0 ? 1 : 0)) * 20 };
}

export const listing = { Body, readout, draw };
