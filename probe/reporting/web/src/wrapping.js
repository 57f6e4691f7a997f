// A text as lines of tokens of a given width, with a line for each folded step. Knows no page.

// Sections of a text: tokens of one step (or, where there is none, of one segment) that stand together.
export function sections(frame, rows) {
  const has = (name) => frame.columns.includes(name);
  const found = [];
  rows.forEach((row, i) => {
    const step = has("step") ? frame.get("step", row) : null;
    const segment = has("segment") ? frame.get("segment", row) : null;
    const last = found[found.length - 1];
    if (last && last.step === step && last.segment === segment) last.end = i + 1;
    else found.push({ step, segment, start: i, end: i + 1, key: `${segment}.${step}.${i}` });
  });
  return found;
}

export const sectionName = (section) => (section.step !== null ? `step ${section.step}` : section.segment ?? "text");

// Lines: {start, end (tokens, indices into rows), section, first (of its section), folded}. Breaks stand before white space
// where the line has any, since a token is often a part of a word.
export function wrapped(parts, folded, texts, widthOf, width) {
  const lines = [];
  for (const section of parts) {
    if (folded.has(section.key)) {
      lines.push({ start: section.start, end: section.end, section, first: true, folded: true });
      continue;
    }
    let [start, x, chance, first] = [section.start, 0, -1, true];
    const close = (end) => {
      lines.push({ start, end, section, first, folded: false });
      [start, x, chance, first] = [end, 0, -1, false];
    };
    for (let i = section.start; i < section.end; i++) {
      const text = texts[i];
      const wide = Math.min(widthOf(text), width);
      if (x + wide > width && i > start) {
        close(chance > start && !/^\s/.test(text) ? chance : i);
        for (let k = start; k < i; k++) x += Math.min(widthOf(texts[k]), width);
      }
      if (/^[\s\u3000-\u9fff]/.test(text)) chance = i;
      x += wide;
      if (text.includes("\n")) close(i + 1);
    }
    if (start < section.end) close(section.end);
  }
  return lines;
}

// Where each line lies: {tops, height}; a section and a segment have a little room above them.
export function placed(lines, line, gap) {
  const tops = new Float64Array(lines.length + 1);
  let y = 0;
  lines.forEach((one, i) => {
    if (i && one.first) y += one.section.segment !== lines[i - 1].section.segment ? gap + line : gap;
    else if (!i && one.section.segment !== null) y += line;
    tops[i] = y;
    y += line;
  });
  tops[lines.length] = y;
  return tops;
}

// The last line that begins at or above y.
export function lineAt(tops, y) {
  let [low, high] = [0, tops.length - 2];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (tops[middle] <= y) low = middle;
    else high = middle - 1;
  }
  return low;
}

export function lineOf(lines, i) {
  let [low, high] = [0, lines.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (lines[middle].start <= i) low = middle;
    else high = middle - 1;
  }
  return low;
}
