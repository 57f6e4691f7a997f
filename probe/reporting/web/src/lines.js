// Curves over a numeric axis, with their bands.
import { html } from "htm/preact";
import { useMemo } from "preact/hooks";
import { axisOf, moveTo, placeOn } from "./axis.js";
import { THEMES, classScale, figure } from "./colour.js";
import { Elsewhere, followed } from "./following.js";
import { Legend, drawLegend } from "./legend.js";
import { Painted, dashed, fitted, ticksOf, translucent } from "./pen.js";

const TALL = 260;
const SMALL = { size: 11 };
const MARKED = 80; // points up to so many are marked

// {axis, x, curves: [{name, y, low, high, unit}], scale, title, low, high, to, ticks}: one curve a value of `series`, else one a measure
function contentOf(panel, frame, indices, sequence, scales, chosen) {
  const axis = axisOf(panel.axis, frame, sequence, indices);
  const x = axis.values.filter((value) => typeof value === "number");
  const measure = panel.measures[chosen] || panel.measures[0];
  const parts = panel.series
    ? [...new Set([...indices].map((index) => frame.get(panel.series, index)))].map((name) => ({ name, measure, where: (index) => frame.get(panel.series, index) === name }))
    : panel.measures.map((one) => ({ name: one.title, measure: one, where: () => true }));
  const curves = parts.map(({ name, measure: one, where }) => {
    const rows = new Map();
    for (const index of indices) {
      const value = frame.get(panel.axis.column, index);
      if (where(index) && !rows.has(value)) rows.set(value, index);
    }
    const column = (of) => x.map((value) => (rows.has(value) && of ? frame.get(of, rows.get(value)) : null)).map((v) => (Number.isFinite(v) ? v : null));
    return { name, unit: one.unit || "", y: column(one.column), low: column(one.band && one.band[0]), high: column(one.band && one.band[1]) };
  });
  const names = panel.series ? frame.distinct(panel.series) : curves.map(({ name }) => name);
  const scale = classScale(names.length ? names : [""], scales);
  const title = panel.series || panel.measures.length === 1 ? measure.title : [...new Set(panel.measures.map((one) => one.unit))].filter(Boolean).join(", ");
  const unit = panel.series || panel.measures.length === 1 ? measure.unit : "";
  return { panel, axis, x, curves, scale, title: title + (unit && title !== unit ? ` (${unit})` : ""), ...heightsOf(curves, panel.series ? [measure] : panel.measures) };
}

// the ends of the upright axis, what a value's height is by, and its ticks
function heightsOf(curves, measures) {
  const all = curves.flatMap(({ y, low, high }) => [...y, ...low, ...high]).filter((v) => v !== null);
  const given = (name) => measures.map((one) => one[name]).filter((v) => v !== null && v !== undefined);
  const diverging = measures.some((one) => one.scaling === "diverging");
  let low = Math.min(...all, ...given("low"), ...(diverging || !all.length ? [0] : []));
  let high = Math.max(...all, ...given("high"), ...(diverging ? [0] : []), ...(all.length ? [] : [1]));
  if (measures.every((one) => one.scaling === "log")) {
    const to = (v) => (v === null ? null : Math.log1p(Math.max(0, v)));
    const ticks = [0, 1, 10, 100, 1e3, 1e4, 1e5, 1e6].filter((tick) => tick >= low && tick <= high * 1.2 + 1);
    return { low: to(low), high: to(high) || 1, to, ticks: ticks.map((tick) => [to(tick), figure(tick)]) };
  }
  const air = 0.04 * (high - low || Math.abs(high) || 1);
  if (!given("low").includes(low)) low -= air;
  if (!given("high").includes(high)) high += air;
  return { low, high, to: (v) => v, ticks: ticksOf(low, high, 5).map((tick) => [tick, figure(tick)]) };
}

const ticksAlong = ({ axis, x }, room) => {
  const named = Boolean(axis.named);
  if (!named) return ticksOf(x[0], x[x.length - 1], Math.max(2, Math.min(10, room / 70))).map((tick) => [tick, figure(tick)]);
  const every = Math.max(1, Math.ceil(x.length / Math.max(2, room / 90)));
  return x.filter((_, i) => i % every === 0).map((value) => [value, fitted(axis.label(axis.at(value)), 84, SMALL)]);
};

const wordsAt = ({ axis, x, curves }, k) => {
  const place = axis.full(axis.at(x[k]));
  const said = curves.filter(({ y }) => y[k] !== null).map(({ name, y, low, high, unit }) => {
    const band = low[k] !== null && high[k] !== null ? ` (${figure(low[k])} to ${figure(high[k])})` : "";
    return `${name} ${figure(y[k], unit)}${band}`;
  });
  return said.length ? `${place}: ${said.slice(0, 12).join("; ")}${said.length > 12 ? "; …" : ""}` : "";
};

function Body({ panel, frame, cursor, move, sequence, scales, measure }) {
  const { where, indices } = followed(panel, frame, cursor);
  const place = JSON.stringify(where);
  const content = useMemo(() => contentOf(panel, frame, indices, sequence, scales, measure), [panel, frame, place, sequence, scales, measure]);
  if (!content.x.length) return html`<${Elsewhere} panel=${panel} frame=${frame} where=${where} move=${move} />`;
  const { axis, x } = content;
  const here = placeOn(axis, cursor, sequence);
  const go = (k) => axis.cursor && k >= 0 && k < x.length && move(moveTo(axis, axis.at(x[k])));
  const paint = (pen, width, theme) => {
    drawCurves(pen, content, { width, top: 12, theme, here: here < 0 ? null : axis.values[here] });
    return { height: 12 + TALL + 44 };
  };
  return html`<div class="lines">
    ${content.curves.length > 1 && html`<${Legend} scale=${content.scale} />`}
    <${Painted} paint=${paint} label=${panel.title} at=${(px, _, width) => go(nearest(content, px, width))} step=${(by) => go(here < 0 ? 0 : here + by)}
      hint=${(px, _, width) => wordsAt(content, nearest(content, px, width))} />
  </div>`;
}

function readout(panel, frame, cursor, measure, sequence) {
  const { indices } = followed(panel, frame, cursor);
  const content = contentOf(panel, frame, indices, sequence, { classes: ["#000000"], missing: "#000000" }, measure);
  const here = placeOn(content.axis, cursor, sequence);
  return here < 0 ? "" : wordsAt(content, content.x.indexOf(content.axis.values[here]));
}

function draw(pen, { panel, frame, cursor, measure, sequence, scales, theme, width = 900 }) {
  const { indices } = followed(panel, frame, cursor);
  const content = contentOf(panel, frame, indices, sequence, scales, measure);
  const colours = THEMES[theme];
  const many = content.curves.length > 1;
  const top = 12 + (many ? drawLegend(pen, content.scale, { x: 8, y: 4, width: width - 16, theme: colours }) : 0);
  if (content.x.length) drawCurves(pen, content, { width, top, theme: colours });
  return { width, height: top + TALL + 44 };
}

// where a value of the axis stands in a picture of a width
function acrossOf({ x }, width) {
  const [left, room] = [70, width - 70 - 24];
  const [first, last] = [x[0], x[x.length - 1]];
  return { left, room, across: (value) => left + (last > first ? (value - first) / (last - first) : 0.5) * room };
}

// the place on the axis that is nearest to a point of the picture
function nearest(content, px, width) {
  const { across } = acrossOf(content, width);
  return content.x.reduce((best, value, k) => (Math.abs(across(value) - px) < Math.abs(across(content.x[best]) - px) ? k : best), 0);
}

// here: the value at the cursor, or null
function drawCurves(pen, content, { width, top, theme, here = null }) {
  const { x, curves, scale, low, high, ticks, axis, to } = content;
  const { left, room, across } = acrossOf(content, width);
  const up = (value) => top + TALL - ((to(value) - low) / (high - low)) * TALL;
  for (const [at, name] of ticks) {
    const y = top + TALL - ((at - low) / (high - low)) * TALL;
    pen.line([[left, y], [left + room, y]], theme.line);
    pen.text(name, left - 6, y, { ...SMALL, fill: theme.faint, anchor: "end" });
  }
  for (const [at, name] of ticksAlong(content, room)) pen.text(name, across(at), top + TALL + 12, { ...SMALL, fill: theme.faint, anchor: "middle" });
  if (to(0) > low && to(0) < high) dashed(pen, [left, up(0)], [left + room, up(0)], theme.faint);
  const known = (values) => x.map((value, k) => [value, values[k]]).filter(([, v]) => v !== null).map(([value, v]) => [across(value), up(v)]);
  for (const { name, low: lower, high: upper } of curves) {
    const edge = [...known(upper), ...known(lower).reverse()];
    if (edge.length > 2) pen.area(edge, translucent(scale.colour(name), 0.22));
  }
  for (const { name, y } of curves) {
    const points = known(y);
    if (points.length > 1) pen.line(points, scale.colour(name), 1.7);
    if (points.length <= MARKED) for (const [px, py] of points) pen.rect(px - 2, py - 2, 4, 4, scale.colour(name));
  }
  if (here !== null) pen.line([[across(here), top], [across(here), top + TALL]], theme.ink);
  pen.text(axis.title, left + room / 2, top + TALL + 30, { ...SMALL, fill: theme.ink, anchor: "middle" });
  pen.text(content.title, 12, top + TALL / 2, { ...SMALL, fill: theme.ink, anchor: "middle", rotate: -90 });
}

export const lines = { Body, readout, draw };
