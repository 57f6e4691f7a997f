// What the colours of a picture mean.
import { html } from "htm/preact";
import { figure, hexOf } from "./colour.js";
import { widthOf } from "./pen.js";

// on the page
export function Legend({ scale }) {
  if (scale.words)
    return html`<p class="legend">${scale.words.map((word) => html`<span key=${word} class="class">
      <i style=${{ background: scale.colour(word) }} /><bdi>${word}</bdi></span>`)}</p>`;
  const ramp = `linear-gradient(to right, ${scale.ramp.map(hexOf).join(", ")})`;
  return html`<p class="legend">${scale.title}${scale.unit && ` (${scale.unit})`}
    <span class="ramp"><b>${figure(scale.low)}</b><i style=${{ background: ramp }} /><b>${figure(scale.high)}</b></span></p>`;
}

// in a file: returns its height
export function drawLegend(pen, scale, { x, y, width, theme }) {
  if (scale.words) return drawClasses(pen, scale, { x, y, width, theme });
  const title = scale.title + (scale.unit && ` (${scale.unit})`);
  const how = { size: 11, fill: theme.ink };
  pen.text(title, x, y + 8, how);
  let at = Math.round(x + widthOf(title, how) + 12);
  pen.text(figure(scale.low), at, y + 8, { ...how, fill: theme.faint });
  at = Math.round(at + widthOf(figure(scale.low), how) + 6);
  const steps = 64;
  for (let i = 0; i < steps; i++) pen.rect(at + 2 * i, y + 2, 2, 12, hexOf(scale.rgb(rampValue(scale, i / (steps - 1)))));
  pen.text(figure(scale.high), at + 2 * steps + 6, y + 8, { ...how, fill: theme.faint });
  return 22;
}

function drawClasses(pen, scale, { x, y, width, theme }) {
  let [at, line] = [x, 0];
  for (const word of scale.words) {
    const room = widthOf(word, { size: 11 }) + 30;
    if (at + room > x + width && at > x) [at, line] = [x, line + 18];
    pen.rect(at, y + line + 2, 12, 12, scale.colour(word));
    pen.text(word, at + 17, y + line + 8, { size: 11, fill: theme.ink });
    at += room;
  }
  return line + 22;
}

// the value at a part of a scale from 0 to 1
function rampValue(scale, part) {
  let [low, high] = [scale.low, scale.high];
  if (!(high > low)) return low;
  for (let i = 0; i < 40; i++) {
    const middle = (low + high) / 2;
    if (scale.at(middle) < part) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}
