// A text, its tokens coloured by a measure; only the lines in the window are in the document.
import { html } from "htm/preact";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { THEMES, classScale, figure, scaleOf } from "./colour.js";
import { followed } from "./following.js";
import { Legend, drawLegend } from "./legend.js";
import { Overview } from "./overview.js";
import { translucent, useTheme, widthOf as widthIn } from "./pen.js";
import { parts, plain, shown, withTexts } from "./text.js";
import { lineAt, lineOf, placed, sectionName, sections, wrapped } from "./wrapping.js";

const [LINE, GAP, GUTTER, ROOM] = [25, 6, 34, 14]; // px: of a line, above a section, of the steps' numbers, lines kept beyond the window
const tint = (theme) => (theme.dark ? 0.5 : 0.42); // how much of a colour lies under the letters

// The tokens of a panel: those of the sequence, or of a text that the run has beside it (as rescored tokens).
const ownTexts = new WeakMap();
function textsOf(sequence, panel, frame, cursor) {
  if (sequence.panel === panel) return sequence;
  const branch = JSON.stringify(Object.keys(panel.follows || {}).map((coordinate) => cursor[coordinate]));
  const known = ownTexts.get(frame);
  if (known && known.branch === branch && known.panel === panel) return known.texts;
  const texts = { ...withTexts(sequence, panel, frame, followed(panel, frame, cursor).indices), leads: false };
  ownTexts.set(frame, { branch, panel, texts });
  return texts;
}

const measureOf = (panel, measure) => panel.measures[measure] ?? panel.measures[0] ?? null;

// Widths of texts in the font of an element, each measured once.
function ruler(font) {
  const context = document.createElement("canvas").getContext("2d");
  context.font = font;
  const known = new Map();
  return (text) => {
    if (!known.has(text)) known.set(text, context.measureText(shown(text)).width + 2);
    return known.get(text);
  };
}

function coloured(panel, frame, rows, measure, scales) {
  const one = measureOf(panel, measure);
  if (!one) return { scale: null, colours: [...rows].fill(scales.missing), places: new Float64Array(rows.length) };
  const scale = scaleOf(one, frame, scales);
  const values = [...rows].map((row) => frame.get(one.column, row));
  return { scale, colours: values.map(scale.colour), places: Float64Array.from(values, (v) => (scale.has(v) ? scale.at(v) : NaN)) };
}

function useSize(ref) {
  const [size, set] = useState([0, 0]);
  useLayoutEffect(() => {
    const look = () => set((old) => {
      const now = [ref.current.clientWidth, ref.current.clientHeight];
      return now[0] === old[0] && now[1] === old[1] ? old : now;
    });
    const watch = new ResizeObserver(look);
    watch.observe(ref.current);
    look();
    return () => watch.disconnect();
  }, []);
  return size;
}

function token({ key, text, bytes, pos, colour, chosen, id }) {
  return html`<span key=${key} class="t" data-pos=${pos} data-at=${chosen || null} data-long=${text.length > 24 || null} role="option" id=${chosen ? id : undefined}
    aria-selected=${chosen} style=${{ background: colour }}><bdi>${bytes ? html`<i>${shown(text)}</i>` : parts(text).map(([part, sign]) => (sign ? html`<i>${part}</i>` : part))}</bdi></span>`;
}

// The same lines are kept while others come and go.
const Line = (given) => useMemo(() => drawnLine(given), [given.line, given.top, given.text, given.colours, given.at]);

function drawnLine({ line, top, text, colours, at, fold, id }) {
  const { section } = line;
  const kind = section.step === null ? null : text.kind_of(section.step);
  const tokens = [];
  for (let i = line.start; i < (line.folded ? Math.min(line.end, line.start + 40) : line.end); i++)
    tokens.push(token({ key: i, text: text.texts[i], bytes: text.bytes[i], pos: text.poses[i], colour: colours[i], chosen: i === at, id }));
  return html`<div class="line" data-folded=${line.folded || null} role="presentation" style=${{ top: `${top}px` }}>
    ${line.segment && html`<span class="segment">${line.segment}</span>`}
    ${kind && html`<span class="kind" style=${{ background: text.kinds.colour(kind) }} />`}
    ${line.first && html`<button type="button" class="fold" tabindex="-1" aria-expanded=${!line.folded} onClick=${() => fold(section)}
      title=${kind} aria-label=${`${line.folded ? "Unfold" : "Fold"} ${sectionName(section)}`}>${section.step ?? ""}<i>${line.folded ? "▸" : "▾"}</i></button>`}
    ${tokens}
  </div>`;
}

// The lines of a text at a width, and where they lie.
function useLayout(frame, rows, texts, folded, width, widthOf) {
  const split = useMemo(() => sections(frame, rows), [frame, rows]);
  return useMemo(() => {
    const lines = width ? wrapped(split, folded, texts, widthOf, width) : [];
    lines.forEach((line, k) => {
      const before = k ? lines[k - 1].section.segment : null;
      line.segment = line.first && line.section.segment !== before ? line.section.segment : null;
      line.tall = LINE;
      line.x = [0];
      for (let i = line.start; i < line.end; i++) line.x.push(line.x[line.x.length - 1] + Math.min(widthOf(texts[i]), width));
      line.wide = width;
    });
    const tops = placed(lines, LINE, GAP);
    return { split, lines, tops, total: tops[lines.length] + GAP, marks: lines.flatMap((line, k) => (line.first ? [tops[k]] : [])) };
  }, [split, texts, folded, width, widthOf]);
}

// Keys that need to know where lines are; those that are held down come faster than the text is drawn.
function useKeys({ layout, at: drawnAt, poses, move, viewport, fold, foldAll, mine }) {
  const latest = useRef(drawnAt);
  latest.current = drawnAt;
  useEffect(() => {
    if (!mine) return undefined;
    const pressed = (event) => {
      if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
      const { lines } = layout;
      const at = latest.current;
      const page = Math.max(1, Math.floor(viewport.current.clientHeight / LINE) - 2);
      const by = { ArrowUp: -1, ArrowDown: 1, PageUp: -page, PageDown: page }[event.key];
      if (event.key === "f" && lines.length) fold(lines[lineOf(lines, Math.max(at, 0))].section);
      else if (event.key === "F") foldAll();
      else if (by && lines.length) {
        const here = lineOf(lines, Math.max(at, 0));
        const there = Math.min(Math.max(here + by, 0), lines.length - 1);
        const x = at < 0 || lines[here].folded ? 0 : lines[here].x[at - lines[here].start];
        const line = lines[there];
        let i = line.start;
        if (!line.folded) while (i + 1 < line.end && line.x[i + 1 - line.start] <= x + 1) i++;
        latest.current = there === here ? (by < 0 ? line.start : line.end - 1) : i;
        move({ token: poses[latest.current] });
      } else return;
      event.preventDefault();
    };
    document.addEventListener("keydown", pressed);
    return () => document.removeEventListener("keydown", pressed);
  });
}

// The lines that are in the window, or nearly.
function Window({ viewport, layout, height, text, colours, at, fold, id, label, choose, look }) {
  const { lines, tops, total } = layout;
  const [first, set] = useState(0);
  const scrolled = () => set(Math.floor(viewport.current.scrollTop / (LINE * 4)) * LINE * 4); // draws again every four lines only
  const shownAt = useRef(-1);
  useLayoutEffect(() => {
    if (!lines.length || !height) return;
    const box = viewport.current;
    const top = at < 0 ? 0 : tops[lineOf(lines, at)];
    if (at >= 0 && at !== shownAt.current && (top < box.scrollTop + LINE || top > box.scrollTop + height - 2 * LINE)) box.scrollTop = top - height / 3;
    shownAt.current = at;
    scrolled();
  }, [at, layout, height]);
  const pos = (event) => { const found = event.target.closest("[data-pos]"); return found ? Number(found.dataset.pos) : null; };
  const [begin, end] = lines.length ? [lineAt(tops, first - ROOM * LINE), lineAt(tops, first + height + ROOM * LINE) + 1] : [0, 0];
  return html`<div class="viewport" ref=${viewport} tabindex="0" role="listbox" aria-label=${label} aria-activedescendant=${at >= 0 ? id : null} onScroll=${scrolled}
      onClick=${(event) => pos(event) !== null && choose(pos(event))} onPointerOver=${(event) => look(pos(event))} onPointerLeave=${() => look(null)}>
    <div class="lines" role="presentation" style=${{ height: `${total}px` }}>
      ${lines.slice(begin, end).map((line, k) => html`<${Line} key=${line.start} line=${line} top=${tops[begin + k]} text=${text} colours=${colours}
        at=${at >= line.start && at < line.end ? at : -1} fold=${fold} id=${id} />`)}
    </div>
  </div>`;
}

// What is shown of a text, whatever the cursor does.
function useText(panel, frame, sequence, measure, scales, theme) {
  const { rows } = sequence;
  const text = useMemo(() => ({
    texts: [...rows].map(sequence.text_at), bytes: [...rows].map(sequence.bytes_at), poses: [...rows].map((row) => frame.get("pos", row)),
    kind_of: sequence.kind_of, kinds: classScale(sequence.kinds, scales),
  }), [frame, rows, sequence.kind_of]);
  const { scale, colours, places } = useMemo(() => coloured(panel, frame, rows, measure, scales), [panel, frame, rows, measure, scales]);
  const tinted = useMemo(() => colours.map((colour) => (colour.length > 7 ? "transparent" : translucent(colour, tint(theme)))), [colours, theme]);
  return { text, scale, colours, places, tinted };
}

function Body({ panel, frame, cursor, move, sequence: whole, scales, measure }) {
  const sequence = textsOf(whole, panel, frame, cursor);
  const viewport = useRef(null);
  const theme = useTheme();
  const [width, height] = useSize(viewport);
  const [folded, setFolded] = useState(() => new Set());
  const [hover, look] = useState(null);
  const { text, scale, colours, places, tinted } = useText(panel, frame, sequence, measure, scales, theme);
  const widthOf = useMemo(() => (width ? ruler(getComputedStyle(viewport.current).font) : null), [width > 0]);
  const layout = useLayout(frame, sequence.rows, text.texts, folded, Math.max(0, width - GUTTER - 14), widthOf);
  const at = cursor.token === null ? -1 : text.poses.indexOf(cursor.token);
  const fold = (section) => setFolded((old) => {
    const next = new Set(old);
    if (!next.delete(section.key)) next.add(section.key);
    return next;
  });
  const foldAll = () => setFolded((old) => new Set(old.size ? [] : layout.split.map((section) => section.key)));
  useKeys({ layout, at, poses: text.poses, move, viewport, fold, foldAll, mine: sequence.leads !== false });
  const here = hover ?? cursor.token;
  return html`<div class="strip">
    ${scale && html`<${Legend} scale=${scale} />`}
    <p class="hovered"><bdi>${here === null ? "\u00a0" : readout(panel, frame, { ...cursor, token: here }, measure, sequence)}</bdi></p>
    <div class="text-and-overview" style=${{ flexBasis: `${layout.total + 2}px` }}>
      <${Window} viewport=${viewport} layout=${layout} height=${height} text=${text} colours=${tinted} at=${at} fold=${fold} label=${`Tokens: ${panel.title}`}
        id=${`token-of-${sequence.run}-${panel.name}`} choose=${(token) => move({ token })} look=${look} />
      <${Overview} label=${`The whole of ${panel.title}`} theme=${theme} layout=${layout} places=${places} colours=${colours} height=${height} viewport=${viewport}
        mark=${at < 0 || !layout.lines.length ? null : layout.tops[lineOf(layout.lines, at)]} />
    </div>
    <${Details} panel=${panel} frame=${frame} cursor=${cursor} sequence=${sequence} />
  </div>`;
}

const columnsOf = (frame, names) => names.filter((name) => frame.columns.includes(name));

// What is known of the token at the cursor: what could have stood there, what the sampler saw, and its row.
function Details({ panel, frame, cursor, sequence }) {
  const row = cursor.token === null ? null : sequence.row_of(cursor.token);
  if (row === null) return html`<div class="details"><p class="note">Choose a token: click it, or use the arrow keys. <kbd>?</kbd> lists the keys.</p></div>`;
  const measured = panel.measures.filter((one) => frame.get(one.column, row) !== null);
  const kind = sequence.kind_of(sequence.step_of(cursor.token));
  const named = columnsOf(frame, ["token_id", "step", "segment"]).filter((name) => !measured.some((one) => one.column === name));
  return html`<div class="details">
    <p class="token"><b>${cursor.token}</b> <bdi>${shown(sequence.text_at(row))}</bdi></p>
    <${Alternatives} panel=${panel} frame=${frame} row=${row} />
    <dl>
      ${named.map((name) => html`<div key=${name}><dt>${name.replace("_", " ")}</dt><dd>${plain(frame.get(name, row))}</dd></div>`)}
      ${kind && html`<div key="kind"><dt>kind of step</dt><dd>${kind}</dd></div>`}
      ${measured.map((one) => html`<div key=${one.column}><dt>${one.title}</dt><dd>${plain(frame.get(one.column, row))} ${one.unit}</dd></div>`)}
    </dl>
  </div>`;
}

// [text, log-prob] of the most probable tokens at a row, best first
function alternativesAt(panel, frame, row) {
  if (!panel.alternatives) return [];
  const [texts, logprobs] = panel.alternatives.map((column) => frame.get(column, row));
  return texts && logprobs ? [...texts].map((text, i) => [text ?? "", logprobs[i]]) : [];
}

function Alternatives({ panel, frame, row }) {
  const found = alternativesAt(panel, frame, row);
  if (!found.length) return null;
  const own = frame.get("token", row);
  return html`<ol class="alternatives" aria-label="Most probable tokens here">${found.map(([text, logprob], k) => {
    const probability = Math.exp(logprob);
    return html`<li key=${k} data-own=${text === own || null}><bdi>${shown(text)}</bdi><span class="chance"><i style=${{ width: `${100 * probability}%` }} /></span>
      <span class="value">${(100 * probability).toFixed(probability < 0.1 ? 2 : 1)} %</span></li>`;
  })}</ol>`;
}

function readout(panel, frame, cursor, measure, whole) {
  const sequence = textsOf(whole, panel, frame, cursor);
  const row = cursor.token === null ? null : sequence.row_of(cursor.token);
  if (row === null) return "";
  const one = measureOf(panel, measure);
  const value = one ? frame.get(one.column, row) : null;
  const said = one ? `: ${one.title} ${typeof value === "number" ? figure(value, one.unit) : plain(value)}` : "";
  return `${cursor.token} “${sequence.token(cursor.token)}”${said}`;
}

function draw(pen, { panel, frame, cursor, measure, sequence: whole, scales, theme, width }) {
  const sequence = textsOf(whole, panel, frame, cursor);
  const how = { size: 13, mono: true };
  const known = new Map();
  const widthOf = (text) => {
    if (!known.has(text)) known.set(text, widthIn(shown(text), how) + 1);
    return known.get(text);
  };
  const { rows } = sequence;
  const texts = [...rows].map((row) => sequence.text_at(row));
  width = Math.max(width, Math.min(1500, 20 * Math.sqrt(rows.length))); // a long text would be a ribbon
  const lines = wrapped(sections(frame, rows), new Set(), texts, widthOf, width - 2 * GUTTER);
  const { scale, colours } = coloured(panel, frame, rows, measure, scales);
  const look = THEMES[theme];
  const { ink, faint } = look;
  pen.text(panel.title, 8, 16, { fill: ink, size: 14 });
  let y = 30 + (scale ? drawLegend(pen, scale, { x: 8, y: 30, width: width - 16, theme: look }) : 0) + 8;
  lines.forEach((line, k) => {
    if (k && line.first) y += GAP;
    if (line.first && line.section.step !== null) pen.text(String(line.section.step), GUTTER - 6, y + 10, { fill: faint, size: 11, anchor: "end" });
    let x = GUTTER;
    for (let i = line.start; i < line.end; i++) {
      const wide = widthOf(texts[i]);
      pen.rect(x, y, wide - 1, 19, colours[i].length > 7 ? colours[i] : translucent(colours[i], tint(look)));
      if (cursor.token !== null && frame.get("pos", rows[i]) === cursor.token) pen.rect(x, y + 19, wide - 1, 2, ink);
      pen.text(shown(texts[i]), x, y + 10, { ...how, fill: ink });
      x += wide;
    }
    y += 22;
  });
  return { width, height: y + 8 };
}

export const strip = { Body, readout, draw };
