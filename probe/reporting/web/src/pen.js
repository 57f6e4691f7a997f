// One drawing for the page's canvases and for PNG and SVG files. Lengths are CSS pixels; a text's y is the middle of its line.
import { html } from "htm/preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { THEMES } from "./colour.js";

export const SANS = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', sans-serif";
export const MONO = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace";
const font = (size, mono) => `${size}px ${mono ? MONO : SANS}`;

export class CanvasPen {
  constructor(context) {
    this.context = context;
  }

  rect(x, y, w, h, fill) {
    this.context.fillStyle = fill;
    this.context.fillRect(x, y, w, h);
  }

  line(points, stroke, width = 1) {
    this.#path(points);
    this.context.strokeStyle = stroke;
    this.context.lineWidth = width;
    this.context.stroke();
  }

  area(points, fill) {
    this.#path(points);
    this.context.fillStyle = fill;
    this.context.fill();
  }

  text(text, x, y, { fill, size = 12, anchor = "start", rotate = 0, mono = false }) {
    const c = this.context;
    c.save();
    c.translate(x, y);
    if (rotate) c.rotate((rotate * Math.PI) / 180);
    c.font = font(size, mono);
    c.fillStyle = fill;
    c.textAlign = anchor === "middle" ? "center" : anchor === "end" ? "right" : "left";
    c.direction = "ltr";
    c.fillText(text, 0, 0.35 * size);
    c.restore();
  }

  // cells as one picture: pixels (columns × rows, bytes r, g, b, a), each drawn as a sharp rectangle
  image(pixels, columns, rows, x, y, w, h) {
    this.context.imageSmoothingEnabled = false;
    this.context.drawImage(sheet(pixels, columns, rows), x, y, w, h);
  }

  #path(points) {
    this.context.beginPath();
    points.forEach(([x, y], i) => (i ? this.context.lineTo(x, y) : this.context.moveTo(x, y)));
  }
}

// what XML can't hold (control characters, half characters) is shown as a replacement character
const escaped = (text) =>
  `${text}`.replace(/[\u0000-\u001f\ufffe\uffff]|[\ud800-\udfff]/gu, "\ufffd")
    .replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
const short = (x) => Number(x.toFixed(2));
const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${short(x)} ${short(y)}`).join("");
// "#rrggbbaa" is not a colour in every reader of SVG
const paint = (kind, colour) =>
  colour.length === 9 && colour[0] === "#"
    ? `${kind}="${colour.slice(0, 7)}" ${kind}-opacity="${short(parseInt(colour.slice(7), 16) / 255)}"`
    : `${kind}="${escaped(colour)}"`;

export class SvgPen {
  #parts = [];

  rect(x, y, w, h, fill) {
    this.#parts.push(`<rect x="${short(x)}" y="${short(y)}" width="${short(w)}" height="${short(h)}" ${paint("fill", fill)}/>`);
  }

  line(points, stroke, width = 1) {
    this.#parts.push(`<path d="${path(points)}" fill="none" ${paint("stroke", stroke)} stroke-width="${short(width)}"/>`);
  }

  area(points, fill) {
    this.#parts.push(`<path d="${path(points)}Z" ${paint("fill", fill)}/>`);
  }

  text(text, x, y, { fill, size = 12, anchor = "start", rotate = 0, mono = false }) {
    const turned = rotate ? ` transform="rotate(${rotate} ${short(x)} ${short(y)})"` : "";
    const lower = `dy="${short(0.35 * size)}" font-size="${size}" text-anchor="${anchor}"`;
    const family = `font-family="${escaped(mono ? MONO : SANS)}" direction="ltr" unicode-bidi="isolate" xml:space="preserve"`;
    this.#parts.push(`<text x="${short(x)}" y="${short(y)}" ${lower} ${family} ${paint("fill", fill)}${turned}>${escaped(text)}</text>`);
  }

  image(pixels, columns, rows, x, y, w, h) {
    const place = `x="${short(x)}" y="${short(y)}" width="${short(w)}" height="${short(h)}" preserveAspectRatio="none"`;
    const data = sheet(pixels, columns, rows).toDataURL("image/png");
    this.#parts.push(`<image ${place} style="image-rendering:pixelated" href="${data}"/>`);
  }

  svg(width, height) {
    const size = `width="${short(width)}" height="${short(height)}" viewBox="0 0 ${short(width)} ${short(height)}"`;
    return `<svg xmlns="http://www.w3.org/2000/svg" ${size}>\n${this.#parts.join("\n")}\n</svg>\n`;
  }
}

// a canvas of one pixel a cell
export function sheet(pixels, columns, rows) {
  const canvas = document.createElement("canvas");
  canvas.width = columns;
  canvas.height = rows;
  const bytes = new Uint8ClampedArray(pixels.buffer, pixels.byteOffset, 4 * columns * rows);
  canvas.getContext("2d").putImageData(new ImageData(bytes, columns, rows), 0, 0);
  return canvas;
}

let ruler = null;
export function widthOf(text, { size = 12, mono = false } = {}) {
  ruler ||= document.createElement("canvas").getContext("2d");
  ruler.font = font(size, mono);
  return ruler.measureText(text).width;
}

// as much of a text as a width has room for, with "…" where something is cut
export function fitted(text, width, how = {}) {
  if (widthOf(text, how) <= width) return text;
  const letters = [...text];
  let [low, high] = [0, letters.length];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (widthOf(`${letters.slice(0, middle).join("")}…`, how) <= width) low = middle;
    else high = middle - 1;
  }
  return low ? `${letters.slice(0, low).join("")}…` : "";
}

// about `wanted` round numbers from low to high
export function ticksOf(low, high, wanted = 5) {
  if (!(high > low)) return [low];
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) ticks.push(i * step + 0);
  return ticks.map((t) => Number(t.toPrecision(12)));
}

const themeNow = () => THEMES[document.documentElement.dataset.theme] || THEMES.light;

// the colours of the page's theme, now and when it changes
export function useTheme() {
  const [theme, change] = useState(themeNow);
  useEffect(() => {
    const watch = new MutationObserver(() => change(themeNow()));
    watch.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    change(themeNow());
    return () => watch.disconnect();
  }, []);
  return theme;
}

// the width of an element, now and when it changes
export function useWidth(ref) {
  const [width, change] = useState(0);
  useEffect(() => {
    const watch = new ResizeObserver(() => change(ref.current ? ref.current.clientWidth : 0));
    watch.observe(ref.current);
    change(ref.current.clientWidth);
    return () => watch.disconnect();
  }, []);
  return width;
}

// a canvas made as large and as sharp as the screen shows it, empty
export function cleared(canvas, width, height) {
  const sharp = globalThis.devicePixelRatio || 1;
  const [w, h] = [Math.max(1, Math.round(width * sharp)), Math.max(1, Math.round(height * sharp))];
  if (canvas.width !== w) canvas.width = w;
  if (canvas.height !== h) canvas.height = h;
  const context = canvas.getContext("2d");
  context.setTransform(sharp, 0, 0, sharp, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

// a line in pieces of 4 pixels
export function dashed(pen, [x0, y0], [x1, y1], stroke, width = 1) {
  const length = Math.hypot(x1 - x0, y1 - y0);
  const on = (part) => [x0 + ((x1 - x0) * part) / length, y0 + ((y1 - y0) * part) / length];
  for (let part = 0; part < length; part += 7) pen.line([on(part), on(Math.min(length, part + 4))], stroke, width);
}

// A canvas as wide as its place. paint(pen, width, theme) draws it and returns {height}; at(x, y, width) is called for a click,
// step(by) for an arrow key, hint(x, y, width) is what stands there in words.
export function Painted({ paint, label, at, step, hint }) {
  const [place, canvas] = [useRef(null), useRef(null)];
  const width = useWidth(place);
  const theme = useTheme();
  const [tip, say] = useState(null);
  useEffect(() => {
    if (!width) return;
    const measured = paint(new NoPen(), width, theme);
    canvas.current.style.height = `${measured.height}px`;
    paint(new CanvasPen(cleared(canvas.current, width, measured.height)), width, theme);
  });
  const spot = (event) => {
    const box = canvas.current.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top, width];
  };
  const keys = (event) => {
    const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (!by || event.ctrlKey || event.metaKey || event.altKey) return;
    step(by);
    event.preventDefault();
    event.stopPropagation();
  };
  const over = hint && ((event) => say({ text: hint(...spot(event)), at: spot(event) }));
  return html`<div class="painted" ref=${place}>
    <canvas ref=${canvas} role="img" aria-label=${label} style=${{ width: "100%", display: "block" }}
      tabindex=${step ? 0 : undefined} onKeyDown=${step && keys} onClick=${at && ((event) => at(...spot(event)))} onMouseMove=${over} onMouseLeave=${() => say(null)} />
    ${tip && tip.text && html`<${Tip} text=${tip.text} x=${tip.at[0]} y=${tip.at[1]} width=${width} />`}
  </div>`;
}

// what is under the pointer, in words
export function Tip({ text, x, y, width }) {
  const right = x > width / 2;
  const place = { top: `${y + 14}px`, [right ? "right" : "left"]: `${right ? Math.max(0, width - x - 8) : x + 8}px` };
  return html`<div class="tip" role="tooltip" style=${place}><bdi>${text}</bdi></div>`;
}

// for measuring: draws nothing
class NoPen {
  rect() {}
  line() {}
  area() {}
  text() {}
  image() {}
}

// a colour of which `part` (0 to 1) covers what lies below
export const translucent = (hex, part) => hex.slice(0, 7) + Math.round(255 * part).toString(16).padStart(2, "0");
