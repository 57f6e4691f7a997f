// Cells in rows and columns, of which only the visible window is drawn: what grids and patterns share.
import { html } from "htm/preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { inkOn } from "./colour.js";
import { CanvasPen, MONO, Tip, cleared, fitted, sheet, useTheme, useWidth, widthOf } from "./pen.js";

const LABEL = 11; // size of the axes' letters
const FLAT_FROM = 40; // columns from this width on have their labels lying, if these lose no more than a fifth
const LONGEST = 110; // of labels that stand
export const holdsText = (model, cell) => cell.height >= 13 && cell.width >= (model.hasText ? 26 : 44);

// A model has {rows, columns} (numbers of them), pixels(i) (colours of row i, packed), rowLabel(i), columnLabel(j), rowTitle,
// columnTitle, text(i, j), rgb(i, j), words(i, j), upwards, square, and hasText (words, so that cells should be wide).

export function layoutOf(model, width, height, zoom = null) {
  const margins = marginsOf(model, width);
  const room = Math.max(40, width - margins.left - margins.right);
  const first = zoom ?? firstWidth(model, room);
  const cell = { width: first > 4 ? Math.floor(first) : Math.max(1, first), height: 1 };
  margins.flat = cell.width >= FLAT_FROM && model.longest * 0.8 <= cell.width - 4;
  margins.bottom = margins.flat ? 36 : Math.min(model.longest, LONGEST) + 20;
  cell.height = heightOf(model, cell.width, height - margins.top - margins.bottom);
  return { margins, room, cell };
}

function marginsOf(model, width) {
  if (model.widest === undefined) {
    const widest = (n, label) => Math.max(0, ...Array.from({ length: Math.min(n, 400) }, (_, i) => widthOf(label(i), { size: LABEL, mono: true })));
    model.widest = Math.max(widthOf(model.rowTitle, { size: LABEL }) + 4, widest(model.rows, model.rowLabel));
    model.longest = widest(model.columns, model.columnLabel);
  }
  return { left: Math.min(model.widest, Math.max(60, width * 0.3)) + 10, bottom: 0, top: 4, right: 2 };
}

// cells' width when a picture is first shown: wide enough for text where there is some, else for tokens on the axis
function firstWidth(model, room) {
  const fit = room / model.columns;
  if (model.square) return Math.max(1, Math.min(fit, 22));
  return Math.max(model.hasText ? 56 : 12, Math.min(Math.floor(fit), model.hasText ? 110 : 56));
}

function heightOf(model, width, room) {
  if (model.square) return width;
  if (model.hasText || model.rows <= 40) return Math.min(22, Math.max(model.hasText ? 16 : 12, Math.floor(room / model.rows)));
  return Math.min(12, Math.max(1, room / model.rows));
}

// the rows and columns that are seen: from, until (not included), and where the first one begins
export const span = (offset, room, size, count) => {
  const from = Math.max(0, Math.floor(offset / size));
  return { from, until: Math.min(count, Math.ceil((offset + room) / size)), start: from * size - offset };
};

export const rowAt = (model, r) => (model.upwards ? model.rows - 1 - r : r);

// pixels of a window of cells, row by row as they are seen
export function windowOf(model, across, down) {
  const columns = across.until - across.from;
  const out = new Uint32Array(columns * (down.until - down.from));
  for (let r = down.from; r < down.until; r++) {
    const row = model.pixels(rowAt(model, r));
    out.set(row.subarray(across.from, Math.min(across.until, row.length)), (r - down.from) * columns);
  }
  return out;
}

// the picture at a scroll offset, in a canvas of width × height; cell: {width, height}
function paintWindow(context, model, { width, height, margins, cell, x, y, chosen, theme }) {
  const [plotWidth, plotHeight] = [width - margins.left - margins.right, height - margins.top - margins.bottom];
  const across = span(x, plotWidth, cell.width, model.columns);
  const down = span(y, plotHeight, cell.height, model.rows);
  const [columns, rows] = [across.until - across.from, down.until - down.from];
  const pen = new CanvasPen(context);
  if (columns < 1 || rows < 1) return;
  const [left, top] = [margins.left + across.start, margins.top + down.start];
  const room = { width: Math.min(plotWidth, model.columns * cell.width), height: Math.min(plotHeight, model.rows * cell.height) };
  context.save();
  context.beginPath();
  context.rect(margins.left, margins.top, room.width, room.height);
  context.clip();
  pen.image(windowOf(model, across, down), columns, rows, left, top, columns * cell.width, rows * cell.height);
  if (holdsText(model, cell)) paintTexts(context, model, { across, down, left, top, cell });
  outline(context, model, { chosen, margins, cell, x, y, room });
  context.restore();
  const common = { margins, cell, theme, chosen };
  columnLabels(pen, model, { ...common, across, start: left, room, floor: margins.top + room.height });
  rowLabels(pen, model, { ...common, down, start: top, room });
}

function paintTexts(context, model, { across, down, left, top, cell }) {
  const how = { size: Math.min(12, cell.height - 4), mono: true };
  model.fitted ||= new Map();
  context.font = `${how.size}px ${MONO}`;
  context.textAlign = "center";
  context.direction = "ltr";
  for (let r = down.from; r < down.until; r++) {
    for (let j = across.from; j < across.until; j++) {
      const text = model.text(rowAt(model, r), j);
      if (!text) continue;
      const key = `${cell.width} ${text}`;
      let short = model.fitted.get(key);
      if (short === undefined) model.fitted.set(key, (short = fitted(text, cell.width - 4, how)));
      context.fillStyle = inkOn(model.rgb(rowAt(model, r), j));
      const y = top + (r - down.from + 0.5) * cell.height + 0.35 * how.size;
      context.fillText(short, left + (j - across.from + 0.5) * cell.width, y);
    }
  }
}

// the cursor's row and column: black in white, so that they are seen on every colour
function outline(context, model, { chosen, margins, cell, x, y, room }) {
  const [i, j] = chosen;
  const left = margins.left + j * cell.width - x;
  const top = margins.top + (model.upwards ? model.rows - 1 - i : i) * cell.height - y;
  const frames = [];
  if (j >= 0) frames.push([left, margins.top - 3, Math.max(cell.width, 3), room.height + 6]);
  if (i >= 0) frames.push([margins.left - 3, top, room.width + 6, Math.max(cell.height, 3)]);
  for (const [stroke, width] of [["#ffffff", 3], ["#000000", 1]]) {
    context.strokeStyle = stroke;
    context.lineWidth = width;
    for (const frame of frames) context.strokeRect(...frame);
  }
}

function columnLabels(pen, model, { margins, cell, theme, chosen, across, start, room, floor }) {
  const { flat } = margins;
  const every = Math.max(1, Math.ceil((LABEL + 2) / cell.width));
  const how = { size: LABEL, mono: true };
  const put = (j, fill) => {
    const x = start + (j - across.from + 0.5) * cell.width;
    if (x < margins.left || x > margins.left + room.width) return;
    const text = model.columnLabel(j);
    if (flat) pen.text(fitted(text, cell.width - 4, how), x, floor + 11, { ...how, fill, anchor: "middle" });
    else pen.text(fitted(text, margins.bottom - 18, how), x, floor + 4, { ...how, fill, anchor: "end", rotate: -90 });
  };
  const [, j] = chosen;
  for (let k = across.from + ((every - (across.from % every)) % every); k < across.until; k += every)
    if (k !== j && (j < 0 || Math.abs(k - j) * cell.width >= LABEL || flat)) put(k, theme.faint);
  if (j >= across.from && j < across.until) put(j, theme.ink);
  pen.text(model.columnTitle, margins.left, floor + margins.bottom - 8, { size: LABEL, fill: theme.faint });
}

function rowLabels(pen, model, { margins, cell, theme, chosen, down, start, room }) {
  const every = Math.max(1, Math.ceil((LABEL + 1) / cell.height));
  const how = { size: LABEL, mono: true };
  for (let r = down.from; r < down.until; r++) {
    const i = rowAt(model, r);
    const y = start + (r - down.from + 0.5) * cell.height;
    const here = i === chosen[0];
    const crowded = chosen[0] >= 0 && Math.abs(i - chosen[0]) * cell.height < LABEL;
    if (y < margins.top || y > margins.top + room.height || (!here && (crowded || i % every))) continue;
    pen.text(fitted(model.rowLabel(i), margins.left - 8, how), margins.left - 5, y, { ...how, fill: here ? theme.ink : theme.faint, anchor: "end" });
  }
  pen.text(model.rowTitle, 2, margins.top + room.height + 12, { size: LABEL, fill: theme.faint });
}

// model: see above; chosen: [row, column] or -1; choose(row, column); height: at most this high
export function Heat({ model, chosen, choose, height = 560, label }) {
  const [box, scroller, canvas] = [useRef(null), useRef(null), useRef(null)];
  const width = useWidth(box);
  const theme = useTheme();
  const [zoom, setZoom] = useState(null);
  const { margins, room, cell } = layoutOf(model, width || 600, height, zoom);
  const whole = { width: model.columns * cell.width + margins.left + margins.right, height: model.rows * cell.height + margins.top + margins.bottom };
  const tall = Math.min(height, Math.ceil(whole.height));
  const draw = () => {
    if (!width || !canvas.current) return;
    const { scrollLeft: x, scrollTop: y } = scroller.current;
    paintWindow(cleared(canvas.current, width, tall), model, { width, height: tall, margins, cell, x, y, chosen, theme });
  };
  const frame = useRef({ draw, asked: 0 });
  frame.current.draw = draw;
  const soon = () => {
    frame.current.asked ||= requestAnimationFrame(() => {
      frame.current.asked = 0;
      frame.current.draw();
    });
  };
  useEffect(() => () => cancelAnimationFrame(frame.current.asked), []);
  useLayoutEffect(() => {
    if (width) bring(scroller.current, model, { chosen, cell, room, tall: tall - margins.top - margins.bottom });
  }, [chosen[0], chosen[1], cell.width, cell.height, width, model]);
  useLayoutEffect(draw);
  const spot = (event) => {
    const place = canvas.current.getBoundingClientRect();
    const [px, py] = [event.clientX - place.left, event.clientY - place.top];
    const j = Math.floor((px - margins.left + scroller.current.scrollLeft) / cell.width);
    const r = Math.floor((py - margins.top + scroller.current.scrollTop) / cell.height);
    return { px, py, j: px >= margins.left && j < model.columns ? j : -1, i: r >= 0 && r < model.rows && py < tall - margins.bottom ? rowAt(model, r) : -1 };
  };
  const press = (event) => {
    const { i, j } = spot(event);
    if (i >= 0 || j >= 0) choose(i, j);
  };
  const keys = (event) => onKey(event, { model, chosen, choose, zoomBy });
  const zoomBy = (factor) => setZoom(factor ? Math.min(160, Math.max(1, cell.width * factor)) : room / model.columns);
  const size = { width: `${whole.width}px`, height: `${Math.max(tall, whole.height)}px` };
  return html`<div class="heat" ref=${box}>
    ${whole.width > width && !model.square && html`<${Overview} model=${model} scroller=${scroller} margins=${margins} whole=${whole.width} width=${width} />`}
    <div class="heat-place"><div class="heat-window" ref=${scroller} tabindex="-1" onScroll=${soon} style=${{ height: `${tall}px` }}>
      <div style=${size}><canvas ref=${canvas} role="img" tabindex="0" aria-label="${label}. Arrow keys move, + and − change the size."
        onClick=${press} onKeyDown=${keys}
        style=${{ width: `${width}px`, height: `${tall}px` }} /></div>
    </div>
    <${Hover} canvas=${canvas} spot=${spot} model=${model} width=${width} /></div>
    <div class="sizes" role="group" aria-label="size of the cells">
      <button type="button" aria-label="smaller cells" onClick=${() => zoomBy(1 / 1.5)}>−</button>
      <button type="button" aria-label="larger cells" onClick=${() => zoomBy(1.5)}>+</button>
      <button type="button" onClick=${() => zoomBy(0)}>all</button>
    </div>
  </div>`;
}

function onKey(event, { model, chosen, choose, zoomBy }) {
  const up = model.upwards ? 1 : -1;
  const moves = { ArrowUp: [up, 0], ArrowDown: [-up, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const sizes = { "+": 1.5, "=": 1.5, "-": 1 / 1.5, 0: 0 };
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in moves) {
    const [di, dj] = moves[event.key];
    const within = (at, by, n) => (by ? Math.min(n - 1, Math.max(0, at + by)) : at);
    choose(within(chosen[0], di, model.rows), within(chosen[1], dj, model.columns));
  } else if (event.key in sizes) zoomBy(sizes[event.key]);
  else return;
  event.preventDefault();
  event.stopPropagation();
}

// scrolls only where the cursor is out of sight
function bring(scroller, model, { chosen: [i, j], cell, room, tall }) {
  const left = j * cell.width;
  if (j >= 0 && (left < scroller.scrollLeft || left + cell.width > scroller.scrollLeft + room)) scroller.scrollLeft = left - room / 2;
  const top = (model.upwards ? model.rows - 1 - i : i) * cell.height;
  if (i >= 0 && (top < scroller.scrollTop || top + cell.height > scroller.scrollTop + tall)) scroller.scrollTop = top - tall / 2;
}

// the cell under the pointer, in words; a component of its own, so that the picture is not drawn again
function Hover({ canvas, spot, model, width }) {
  const [over, set] = useState(null);
  const latest = useRef(spot);
  latest.current = spot;
  useEffect(() => {
    const node = canvas.current;
    const move = (event) => set(latest.current(event));
    const leave = () => set(null);
    node.addEventListener("mousemove", move);
    node.addEventListener("mouseleave", leave);
    return () => {
      node.removeEventListener("mousemove", move);
      node.removeEventListener("mouseleave", leave);
    };
  }, []);
  if (!over || over.i < 0 || over.j < 0) return null;
  const text = model.words(over.i, over.j);
  return text && html`<${Tip} text=${text} x=${over.px} y=${over.py} width=${width} />`;
}

const MOST_CELLS = 4e6; // of an overview

// the whole picture in a strip, with the window that is seen: it is the scroll bar
function Overview({ model, scroller, margins, whole, width }) {
  const strip = useRef(null);
  const theme = useTheme();
  const made = useRef({ model: null, sheet: null });
  const [room, tall] = [width - margins.left - margins.right, 26];
  const draw = () => {
    if (!strip.current || room < 20 || model.rows * model.columns > MOST_CELLS) return;
    if (made.current.model !== model) {
      const all = windowOf(model, { from: 0, until: model.columns }, { from: 0, until: model.rows });
      made.current = { model, sheet: sheet(all, model.columns, model.rows) };
    }
    const context = cleared(strip.current, room, tall);
    context.imageSmoothingQuality = "high";
    context.drawImage(made.current.sheet, 0, 0, room, tall);
    const part = room / (whole - margins.left - margins.right);
    context.strokeStyle = theme.ink;
    context.lineWidth = 2;
    context.strokeRect(scroller.current.scrollLeft * part + 1, 1, Math.max(6, room * part) - 2, tall - 2);
  };
  useEffect(() => {
    draw();
    const node = scroller.current;
    node.addEventListener("scroll", draw, { passive: true });
    return () => node.removeEventListener("scroll", draw);
  });
  const go = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    if (event.type === "pointerdown") strip.current.setPointerCapture(event.pointerId);
    const x = event.clientX - strip.current.getBoundingClientRect().left;
    scroller.current.scrollLeft = (x / room) * (whole - margins.left - margins.right) - room / 2;
  };
  if (model.rows * model.columns > MOST_CELLS) return null;
  return html`<canvas class="heat-overview" ref=${strip} aria-hidden="true" onPointerDown=${go} onPointerMove=${go}
    style=${{ marginLeft: `${margins.left}px`, width: `${room}px`, height: `${tall}px` }} />`;
}
