// The whole text as a strip of colours, which is the scroll bar of its window.
import { html } from "htm/preact";
import { useEffect, useRef } from "preact/hooks";
import { cleared } from "./pen.js";

const WIDTH = 36;
const GUTTER = 6; // where steps begin

// Of the tokens that fall on one pixel the one whose colour is furthest from the text's middle stands for all: what is
// rare is what one looks for.
function middle(places) {
  const known = places.filter((place) => Number.isFinite(place)).sort();
  return known.length ? known[known.length >> 1] : 0.5;
}

function painted(context, { lines, tops, places, colours, height, total }) {
  const scale = height / total;
  const usual = middle(places);
  const columns = WIDTH - GUTTER - 2;
  const rows = Math.max(1, Math.round(height));
  const chosen = new Int32Array(rows * columns).fill(-1);
  const far = (i) => (Number.isFinite(places[i]) ? Math.abs(places[i] - usual) : -1);
  lines.forEach((line, k) => {
    const [from, to] = [Math.floor(tops[k] * scale), Math.max(Math.floor(tops[k] * scale) + 1, Math.floor((tops[k] + line.tall) * scale))];
    const many = line.wide;
    for (let i = line.start; i < line.end; i++) {
      const [left, right] = line.folded ? [0, columns] : [line.x[i - line.start] / many * columns, line.x[i - line.start + 1] / many * columns];
      for (let y = from; y < Math.min(to, rows); y++) {
        for (let x = Math.floor(left); x < Math.min(Math.ceil(right), columns); x++) {
          const at = y * columns + x;
          if (chosen[at] < 0 || far(i) > far(chosen[at])) chosen[at] = i;
        }
      }
    }
  });
  for (let y = 0; y < rows; y++) {
    for (let x = 0, end; x < columns; x = end) {
      const i = chosen[y * columns + x];
      for (end = x + 1; end < columns && chosen[y * columns + end] === i; end++);
      if (i < 0) continue;
      context.fillStyle = colours[i];
      context.fillRect(GUTTER + x, y, end - x, 1);
    }
  }
}

export function Overview({ layout, places, colours, height, viewport, mark, theme, label }) {
  const canvas = useRef(null);
  const thumb = useRef(null);
  const { lines, tops, total, marks } = layout;
  useEffect(() => {
    if (!height || !total) return;
    const context = cleared(canvas.current, WIDTH, height);
    const scale = Math.min(1, height / total);
    painted(context, { lines, tops, places, colours, height: total * scale, total });
    context.fillStyle = getComputedStyle(canvas.current).color;
    for (const y of marks) context.fillRect(0, Math.floor(y * scale), GUTTER - 2, 1);
  }, [layout, places, colours, height, theme]);
  useEffect(() => {
    const box = viewport.current;
    const place = () => {
      const scale = Math.min(1, height / total);
      thumb.current.style.transform = `translateY(${box.scrollTop * scale}px)`;
      thumb.current.hidden = total <= height;
      thumb.current.style.height = `${Math.max(14, Math.min(box.clientHeight, total) * scale)}px`;
      canvas.current.setAttribute("aria-valuenow", Math.round(100 * box.scrollTop / Math.max(1, box.scrollHeight - box.clientHeight)));
    };
    place();
    box.addEventListener("scroll", place, { passive: true });
    return () => box.removeEventListener("scroll", place);
  }, [height, total]);
  const drag = (event) => {
    if (event.type === "pointermove" && !event.buttons) return;
    if (event.type === "pointerdown") event.currentTarget.setPointerCapture(event.pointerId);
    const y = event.clientY - canvas.current.getBoundingClientRect().top;
    viewport.current.scrollTop = y / Math.min(1, height / total) - viewport.current.clientHeight / 2;
  };
  const at = mark === null ? null : mark * Math.min(1, height / total);
  return html`<div class="overview" onPointerDown=${drag} onPointerMove=${drag}>
    <canvas ref=${canvas} width=${WIDTH} style=${{ width: `${WIDTH}px`, height: `${height}px` }} role="scrollbar" aria-orientation="vertical"
      aria-label=${label} aria-valuemin="0" aria-valuemax="100" aria-valuenow="0" />
    <div class="thumb" ref=${thumb} />
    ${at !== null && html`<div class="here" style=${{ transform: `translateY(${at}px)` }} />`}
  </div>`;
}
