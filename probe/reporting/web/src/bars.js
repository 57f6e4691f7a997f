// Estimates with their intervals: under the tokens that they are about, side by side, or one below the other.
import { html } from "htm/preact";
import { useMemo, useRef } from "preact/hooks";
import { axisOf, moveTo, placeOn } from "./axis.js";
import { THEMES, classScale, figure } from "./colour.js";
import { Elsewhere, followed } from "./following.js";
import { Legend, drawLegend } from "./legend.js";
import { Painted, dashed, fitted, ticksOf, widthOf } from "./pen.js";

const LYING = 60; // up to so many values that have names stand one below the other
const TALL = 96; // of a row of bars
const SMALL = { size: 11 };

// Facets with their bars: {name, bars: [{index, i (place on the axis), lane, lanes, value, low, high, floor, from, until}], low, high}
function contentOf(panel, frame, indices, sequence, scales) {
  const axis = axisOf(panel.axis, frame, sequence, indices);
  const { measure } = panel;
  const read = (column, index) => (column && frame.columns.includes(column) ? frame.get(column, index) : null);
  const names = panel.facet ? new Set([...indices].map((index) => frame.get(panel.facet, index))) : [null];
  const facets = [...names].map((name) => {
    const rows = [...indices].filter((index) => !panel.facet || frame.get(panel.facet, index) === name);
    const bars = rows.map((index) => ({
      index, i: axis.at(frame.get(panel.axis.column, index)), value: read(measure.column, index), facet: name,
      low: measure.band ? read(measure.band[0], index) : null, high: measure.band ? read(measure.band[1], index) : null,
      floor: read(panel.floor, index), series: read(panel.series, index),
      from: panel.span ? read(panel.span[0], index) : null, until: panel.span ? read(panel.span[1], index) : null,
    }));
    inLanes(bars);
    return { name, bars, ...endsOf(bars, measure) };
  });
  const series = panel.series ? classScale(frame.distinct(panel.series), scales) : null;
  const colour = (bar) => (series ? series.colour(bar.series) : scales.classes[0]);
  const under = Boolean(panel.span) && facets.every(({ bars }) => bars.every((bar) => bar.from !== null));
  const named = axis.values.some((value) => typeof value === "string") || Boolean(panel.axis.labels);
  const way = under ? "under" : named && axis.values.length <= LYING ? "lying" : "standing";
  const length = under ? Math.max(sequence.length || 0, ...facets.flatMap(({ bars }) => bars.map((bar) => bar.until))) : axis.values.length;
  return { panel, frame, axis, facets, series, colour, way, length, sequence };
}

// bars of one place share its room
function inLanes(bars) {
  const counts = new Map();
  for (const bar of bars) {
    bar.lane = counts.get(bar.i) || 0;
    counts.set(bar.i, bar.lane + 1);
  }
  for (const bar of bars) bar.lanes = counts.get(bar.i);
}

function endsOf(bars, measure) {
  const all = bars.flatMap((bar) => [bar.value, bar.low, bar.high, bar.floor]).filter((v) => v !== null && Number.isFinite(v));
  const low = measure.scaling !== "diverging" && measure.low !== null && measure.low !== undefined ? measure.low : Math.min(0, ...all);
  const high = measure.scaling !== "diverging" && measure.high !== null && measure.high !== undefined ? measure.high : Math.max(0, ...all);
  const air = 0.03 * (high - low); // so that the ends of intervals are seen
  const widened = (end, given) => (end === 0 || end === given ? 0 : air);
  return high > low ? { low: low - widened(low, measure.low), high: high + widened(high, measure.high) } : { low, high: low + 1 };
}

const wordsOf = ({ panel, frame, axis }, bar) => {
  const band = bar.low !== null && bar.high !== null ? ` (${figure(bar.low)} to ${figure(bar.high)})` : "";
  const floor = bar.floor === null ? "" : `, where nothing differs ${figure(bar.floor)}`;
  const names = [bar.facet, bar.series].filter((name) => name !== null).map((name) => `${name}, `).join("");
  return `${names}${axis.full(bar.i)}: ${panel.measure.title} ${figure(bar.value, panel.measure.unit)}${band}${floor}`;
};

// Draws all facets; hits gets {x, y, w, h, bar}. here: place of the cursor on the axis, at: its token.
function paint(pen, content, { width, theme, top = 0, here, at, hits = [] }) {
  const { facets, way } = content;
  let y = top;
  for (const facet of facets) {
    if (facet.name !== null) pen.text(fitted(`${facet.name}`, width - 8, SMALL), 4, y + 9, { ...SMALL, fill: theme.ink });
    y += facet.name !== null ? 20 : 4;
    y += (way === "lying" ? paintLying : paintStanding)(pen, content, facet, { width, y, theme, here, at, hits }) + 10;
  }
  const { panel } = content;
  const title = panel.measure.title + (panel.measure.unit && ` (${panel.measure.unit})`);
  if (way !== "lying") y += paintPlaces(pen, content, { width, y, theme, here });
  pen.text(fitted(way === "lying" ? title : `${title}, by ${way === "under" ? "position" : content.axis.title}`, width - 8, SMALL), 4, y + 6, { ...SMALL, fill: theme.faint });
  return { height: y + 18 };
}

const LEFT = 52;
const plotOf = (width) => ({ left: LEFT, room: Math.max(20, width - LEFT - 8) });

// where a bar stands: [from, width] along the axis
function placeIn({ way, length }, bar, { left, room }) {
  const one = room / Math.max(1, length);
  if (way === "under") return [left + bar.from * one, Math.max(1, (bar.until - bar.from) * one - 1)];
  const gap = Math.min(4, one * 0.2);
  const lane = (one - gap) / bar.lanes;
  return [left + bar.i * one + gap / 2 + bar.lane * lane, Math.max(1, lane - (lane > 4 ? 1 : 0))];
}

function paintStanding(pen, content, facet, { width, y, theme, here, at, hits }) {
  const plot = plotOf(width);
  const up = (value) => y + TALL - ((value - facet.low) / (facet.high - facet.low)) * TALL;
  for (const tick of ticksOf(facet.low, facet.high, 3)) {
    pen.line([[plot.left, up(tick)], [plot.left + plot.room, up(tick)]], theme.line);
    pen.text(figure(tick), plot.left - 5, up(tick), { ...SMALL, fill: theme.faint, anchor: "end" });
  }
  if (content.way === "under" && at !== null) {
    const x = plot.left + ((at + 0.5) * plot.room) / content.length;
    pen.line([[x, y - 3], [x, y + TALL + 3]], theme.ink);
  }
  for (const bar of facet.bars) {
    const [x, w] = placeIn(content, bar, plot);
    hits.push({ x, y, w: Math.max(w, 3), h: TALL, bar });
    if (bar.i === here) pen.rect(x - 1, y, w + 2, TALL, theme.line);
    if (bar.value === null) continue;
    const [first, second] = [up(Math.max(0, facet.low)), up(bar.value)].sort((a, b) => a - b);
    pen.rect(x, first, w, Math.max(1, second - first), content.colour(bar));
    if (bar.low !== null && bar.high !== null) whisker(pen, [x + w / 2, up(bar.low)], [x + w / 2, up(bar.high)], Math.min(4, w / 2), theme);
    if (bar.floor !== null) dashed(pen, [x, up(bar.floor)], [x + w, up(bar.floor)], theme.ink);
  }
  pen.line([[plot.left, up(Math.max(0, facet.low))], [plot.left + plot.room, up(Math.max(0, facet.low))]], theme.faint);
  return TALL;
}

function whisker(pen, from, to, cap, theme) {
  const flat = from[1] === to[1]; // lies
  const ends = (point) => (flat ? [[point[0], point[1] - cap], [point[0], point[1] + cap]] : [[point[0] - cap, point[1]], [point[0] + cap, point[1]]]);
  for (const [stroke, width] of [[theme.paper, 3], [theme.ink, 1.2]])
    for (const points of [[from, to], ends(from), ends(to)]) pen.line(points, stroke, width);
}

function paintLying(pen, content, facet, { width, y, theme, here, hits }) {
  const { axis } = content;
  const names = axis.values.map((_, i) => axis.label(i));
  const left = Math.min(Math.max(...names.map((name) => widthOf(name, SMALL))) + 12, Math.max(90, width * 0.45));
  const room = Math.max(20, width - left - 14);
  const across = (value) => left + ((value - facet.low) / (facet.high - facet.low)) * room;
  const starts = [];
  let at = y;
  names.forEach((_, i) => {
    starts.push(at);
    at += 14 * Math.max(1, ...facet.bars.filter((bar) => bar.i === i).map((bar) => bar.lanes)) + 6;
  });
  for (const tick of ticksOf(facet.low, facet.high, Math.max(2, Math.min(6, room / 70)))) {
    pen.line([[across(tick), y], [across(tick), at]], theme.line);
    pen.text(figure(tick), across(tick), at + 8, { ...SMALL, fill: theme.faint, anchor: "middle" });
  }
  names.forEach((name, i) => {
    const tall = (starts[i + 1] ?? at) - starts[i];
    if (i === here) pen.rect(0, starts[i] - 1, width, tall, theme.line);
    pen.text(fitted(name, left - 12, SMALL), left - 8, starts[i] + tall / 2 - 3, { ...SMALL, fill: theme.ink, anchor: "end" });
  });
  for (const bar of facet.bars) {
    const top = starts[bar.i] + 14 * bar.lane;
    hits.push({ x: 0, y: top, w: width, h: 14, bar });
    if (bar.value === null) continue;
    const [first, second] = [across(Math.max(0, facet.low)), across(bar.value)].sort((a, b) => a - b);
    pen.rect(first, top, Math.max(1, second - first), 12, content.colour(bar));
    if (bar.low !== null && bar.high !== null) whisker(pen, [across(bar.low), top + 6.5], [across(bar.high), top + 6.5], 3, theme);
    if (bar.floor !== null) dashed(pen, [across(bar.floor), top], [across(bar.floor), top + 12], theme.ink);
  }
  pen.line([[across(Math.max(0, facet.low)), y], [across(Math.max(0, facet.low)), at]], theme.faint);
  return at - y + 16;
}

// tokens, positions or the axis' values below the bars
function paintPlaces(pen, { way, axis, length, sequence }, { width, y, theme, here }) {
  const { left, room } = plotOf(width);
  const one = room / Math.max(1, length);
  const tokens = way === "under" && one >= 9;
  const labelled = tokens || way === "standing";
  if (!labelled) {
    for (const tick of ticksOf(0, length, Math.max(2, Math.min(10, room / 80))))
      pen.text(figure(tick), left + tick * one, y + 2, { ...SMALL, fill: theme.faint, anchor: tick * one > room - 20 ? "end" : "middle" });
    return 14;
  }
  const every = Math.max(1, Math.ceil(13 / one));
  const name = (i) => (tokens ? sequence.token(i) : axis.label(i));
  const flat = !tokens && Array.from({ length }, (_, i) => name(i)).every((text) => widthOf(text, SMALL) < one * every - 4);
  for (let i = 0; i < length; i += every) {
    const [x, fill] = [left + (i + 0.5) * one, i === here && !tokens ? theme.ink : theme.faint];
    if (flat) pen.text(name(i), x, y + 2, { ...SMALL, fill, anchor: "middle" });
    else pen.text(fitted(name(i), 56, SMALL), x, y - 4, { ...SMALL, fill, anchor: "end", rotate: -90, mono: tokens });
  }
  return flat ? 14 : 62;
}

function Body({ panel, frame, cursor, move, sequence, scales }) {
  const { where, indices } = followed(panel, frame, cursor);
  const place = JSON.stringify(where);
  const content = useMemo(() => contentOf(panel, frame, indices, sequence, scales), [panel, frame, place, sequence, scales]);
  const hits = useRef([]);
  if (!indices.length) return html`<${Elsewhere} panel=${panel} frame=${frame} where=${where} move=${move} />`;
  const { axis } = content;
  const here = placeOn(axis, cursor, sequence);
  const under = (x, y) => hits.current.find((hit) => x >= hit.x && x <= hit.x + hit.w && y >= hit.y && y <= hit.y + hit.h);
  const draw = (pen, width, theme) => paint(pen, content, { width, theme, here, at: cursor.token, hits: (hits.current = []) });
  const go = (i) => axis.cursor && i >= 0 && i < axis.values.length && move(moveTo(axis, i));
  const press = (x, y) => under(x, y) && go(under(x, y).bar.i);
  return html`<div class="bars">
    ${content.series && html`<${Legend} scale=${content.series} />`}
    <${Painted} paint=${draw} label=${panel.title} at=${press} step=${axis.cursor && ((by) => go(here < 0 ? 0 : here + by))}
      hint=${(x, y) => under(x, y) && wordsOf(content, under(x, y).bar)} />
  </div>`;
}

function readout(panel, frame, cursor, measure, sequence) {
  const { indices } = followed(panel, frame, cursor);
  const content = contentOf(panel, frame, indices, sequence, { classes: ["#000000"], missing: "#000000" });
  const here = placeOn(content.axis, cursor, sequence);
  const bars = here < 0 ? [] : content.facets.flatMap((facet) => facet.bars.filter((bar) => bar.i === here));
  return bars.map((bar) => wordsOf(content, bar)).join("; ");
}

function draw(pen, { panel, frame, cursor, sequence, scales, theme, width = 900 }) {
  const { indices } = followed(panel, frame, cursor);
  const content = contentOf(panel, frame, indices, sequence, scales);
  const colours = THEMES[theme];
  const top = 4 + (content.series ? drawLegend(pen, content.series, { x: 8, y: 4, width: width - 16, theme: colours }) : 0);
  return { width, height: paint(pen, content, { width, theme: colours, top, here: -1, at: null }).height };
}

export const bars = { Body, readout, draw };
