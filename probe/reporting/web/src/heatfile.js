// A whole heat map with its axes and its scale, for PNG and SVG files.
import { inkOn } from "./colour.js";
import { holdsText, layoutOf, rowAt, windowOf } from "./heat.js";
import { drawLegend } from "./legend.js";
import { fitted } from "./pen.js";

const MOST_RECTANGLES = 20000; // more cells are one picture in the file
const WIDEST = 8000; // a canvas has no more than 16,384 pixels, and files are drawn twice as sharp
const LABEL = 11;

// how cells are drawn in a file of about `width`: narrower than on the page where there are many
function layout(model, width) {
  const first = layoutOf(model, width, 560);
  const most = (WIDEST - first.margins.left) / model.columns;
  const wide = first.cell.width > 3 ? Math.floor(first.cell.width) : first.cell.width; // whole pixels leave no seams
  return layoutOf(model, width, 560, Math.min(most, wide));
}

export function drawHeat(pen, model, { theme, width = 900 }) {
  const { margins, cell } = layout(model, width);
  const [plotWidth, plotHeight] = [model.columns * cell.width, model.rows * cell.height];
  const whole = { width: Math.max(margins.left + plotWidth + margins.right + 4, 320), height: 0 };
  const top = 6 + drawLegend(pen, model.scale, { x: 8, y: 4, width: whole.width - 16, theme });
  whole.height = top + plotHeight + margins.bottom;
  const left = Math.ceil(margins.left);
  if (model.rows * model.columns > MOST_RECTANGLES) {
    const pixels = windowOf(model, { from: 0, until: model.columns }, { from: 0, until: model.rows });
    pen.image(pixels, model.columns, model.rows, left, top, plotWidth, plotHeight);
  } else drawCells(pen, model, { left, top, cell });
  if (holdsText(model, cell)) drawTexts(pen, model, { left, top, cell });
  drawAxes(pen, model, { left, top, cell, plotHeight, theme, margins });
  return whole;
}

const eachCell = (model, visit) => {
  for (let r = 0; r < model.rows; r++)
    for (let j = 0, i = rowAt(model, r); j < model.columns; j++) visit(r, i, j);
};

function drawCells(pen, model, { left, top, cell }) {
  eachCell(model, (r, i, j) => {
    if (!model.pixels(i)[j]) return; // blank: there is no row
    const fill = model.scale.colour(model.value(i, j));
    pen.rect(left + j * cell.width, top + r * cell.height, cell.width, cell.height, fill);
  });
}

function drawTexts(pen, model, { left, top, cell }) {
  const how = { size: Math.min(12, cell.height - 4), mono: true, anchor: "middle" };
  eachCell(model, (r, i, j) => {
    const text = model.text(i, j);
    if (!text) return;
    const short = fitted(text, cell.width - 4, how);
    pen.text(short, left + (j + 0.5) * cell.width, top + (r + 0.5) * cell.height, { ...how, fill: inkOn(model.rgb(i, j)) });
  });
}

function drawAxes(pen, model, { left, top, cell, plotHeight, theme, margins }) {
  const how = { size: LABEL, mono: true, fill: theme.ink };
  const rows = Math.max(1, Math.ceil((LABEL + 1) / cell.height));
  for (let r = 0; r < model.rows; r++) {
    const i = rowAt(model, r);
    if (i % rows) continue;
    pen.text(fitted(model.rowLabel(i), margins.left - 8, how), left - 5, top + (r + 0.5) * cell.height, { ...how, anchor: "end" });
  }
  const columns = Math.max(1, Math.ceil((LABEL + 2) / cell.width));
  for (let j = 0; j < model.columns; j += columns) {
    const x = left + (j + 0.5) * cell.width;
    const text = model.columnLabel(j);
    if (margins.flat) pen.text(fitted(text, cell.width - 4, how), x, top + plotHeight + 11, { ...how, anchor: "middle" });
    else pen.text(fitted(text, margins.bottom - 18, how), x, top + plotHeight + 4, { ...how, anchor: "end", rotate: -90 });
  }
  pen.text(model.rowTitle, 2, top + plotHeight + 12, { size: LABEL, fill: theme.faint });
  pen.text(model.columnTitle, left, top + plotHeight + margins.bottom - 8, { size: LABEL, fill: theme.faint });
}
