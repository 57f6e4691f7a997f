// The frame of one panel: title, note, measure, readout, its files, its rows as a table. Knows no kind of picture.
import { html } from "htm/preact";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { THEMES } from "./colour.js";
import { followed } from "./following.js";
import { CanvasPen, SvgPen, useTheme } from "./pen.js";
import { plain } from "./text.js";

const LARGEST = 16000; // pixels a side, and a quarter of a gigapixel in all: what browsers give a canvas
const AREA = 2.4e8;

export function saved(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name.replace(/-?>/g, "-to-"); // as --png and --svg name it
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

export function svgOf(kind, given) {
  const { width, height } = kind.draw(new SvgPen(), given); // for its size
  const pen = new SvgPen();
  pen.rect(0, 0, width, height, THEMES[given.theme].paper);
  kind.draw(pen, given);
  return pen.svg(width, height);
}

export function pngOf(kind, given) {
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d");
  const { width, height } = kind.draw(new CanvasPen(context), given); // for its size
  const sharp = Math.min(2, LARGEST / width, LARGEST / height, Math.sqrt(AREA / (width * height)));
  [canvas.width, canvas.height] = [Math.ceil(width * sharp), Math.ceil(height * sharp)];
  context.scale(sharp, sharp);
  context.fillStyle = THEMES[given.theme].paper;
  context.fillRect(0, 0, width, height);
  kind.draw(new CanvasPen(context), given);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

// A frame, decoded when the panel comes near to the window: a page of many panels opens as quickly as one of few.
function useFrame(page, panel, place) {
  const [found, keep] = useState({ panel: null, frame: null, error: null });
  useEffect(() => {
    let here = true;
    const load = () => page.frame(panel).then(
      (frame) => here && keep({ panel, frame, error: null }),
      (error) => here && keep({ panel, frame: null, error }),
    );
    const watch = new IntersectionObserver((seen) => {
      if (!seen.some((one) => one.isIntersecting)) return;
      watch.disconnect();
      load();
    }, { rootMargin: "1200px" });
    watch.observe(place.current);
    return () => {
      here = false;
      watch.disconnect();
    };
  }, [page, panel]);
  return found.panel === panel ? found : { frame: null, error: null };
}

// Whether an element is in the window, or nearly.
function useSeen(place) {
  const [seen, set] = useState(true);
  useEffect(() => {
    const watch = new IntersectionObserver((all) => set(all[all.length - 1].isIntersecting), { rootMargin: "200px" });
    watch.observe(place.current);
    return () => watch.disconnect();
  }, []);
  return seen;
}

// The cursor as a panel knows it: at once where it is seen, a moment after the last move where it is not.
function useLagging(cursor, seen) {
  const [late, set] = useState(cursor);
  useEffect(() => {
    const timer = setTimeout(() => set(cursor), seen ? 0 : 150);
    return () => clearTimeout(timer);
  }, [cursor, seen]);
  return seen ? cursor : late;
}

export function Frame({ kind, page, panel, sequence, cursor: now, move, measure, chooseMeasure, active, activate, height, tag }) {
  const place = useRef(null);
  const theme = useTheme();
  const { frame, error } = useFrame(page, panel, place);
  const cursor = useLagging(now, useSeen(place));
  const given = { panel, frame, cursor, move, measure, sequence, scales: page.scales, height, theme: theme.dark ? "dark" : "light" };
  const drawn = () => ({ ...given, width: Math.max(480, place.current.clientWidth) });
  const actions = frame && {
    CSV: () => saved(`${panel.name}.csv`, new Blob([frame.csv(panel)], { type: "text/csv" })),
    PNG: async () => saved(`${panel.name}.png`, await pngOf(kind, drawn())),
    SVG: () => saved(`${panel.name}.svg`, new Blob([svgOf(kind, drawn())], { type: "image/svg+xml" })),
  };
  const at = useMemo(() => (frame ? kind.readout(panel, frame, cursor, measure, sequence) : ""), [frame, panel, cursor, measure, sequence]);
  return html`<section class=${`panel ${panel.kind}`} ref=${place} data-panel=${panel.name} data-kind=${panel.kind} data-run=${sequence.run}
      data-active=${active || null} aria-label=${panel.title} onPointerDown=${activate} onFocusIn=${activate}>
    <header>
      <h2>${tag && html`<b class="tag">${tag}</b> `}<bdi>${panel.title}</bdi></h2>
      <${Measures} panel=${panel} measure=${measure} choose=${chooseMeasure} />
      <div class="files" role="group" aria-label=${`Files of ${panel.title}`}>
        ${["CSV", "PNG", "SVG"].map((name) => html`<button key=${name} name=${name.toLowerCase()} disabled=${!frame}
          onClick=${() => actions[name]()} aria-label=${`${name} of ${panel.title}`}>${name}</button>`)}
      </div>
    </header>
    ${panel.note && html`<p class="note"><bdi>${panel.note}</bdi></p>`}
    <${Readout} text=${at} active=${active} />
    ${error && html`<p class="error">This panel's data cannot be read: ${error.message}</p>`}
    <div class="picture">${frame ? html`<${kind.Body} ...${given} />` : !error && html`<div class="waiting" />`}</div>
    ${frame && html`<footer>
      <${Unfolding} name="as-table" title="Rows"><${Rows} panel=${panel} frame=${frame} cursor=${cursor} /><//>
      <${Unfolding} name="as-code" title="Code"><${Snippet} snippet=${panel.snippet} /><//>
    </footer>`}
  </section>`;
}

// What the panel shows at the cursor. It keeps the room of its longest text: what is below stays where it is.
function Readout({ text, active }) {
  const line = useRef(null);
  useLayoutEffect(() => { line.current.style.minHeight = `${line.current.offsetHeight}px`; }, [text]);
  return html`<p class="readout" ref=${line} title=${text} aria-live=${active ? "polite" : "off"}><bdi>${text || "\u00a0"}</bdi></p>`;
}

// What is in it is made once it is open.
function Unfolding({ name, title, children }) {
  const [opened, open] = useState(false);
  return html`<details class=${name} onToggle=${(event) => open(event.currentTarget.open)}><summary>${title}</summary>${opened && children}</details>`;
}

function Measures({ panel, measure, choose }) {
  const together = panel.kind === "lines" && !panel.series; // a curve for each
  if (!panel.measures || panel.measures.length < 2 || together) return null;
  return html`<label class="measure"><span class="unseen">Measure of ${panel.title}</span>
    <select name="measure" value=${measure} onChange=${(event) => choose(Number(event.currentTarget.value))}>
      ${panel.measures.map((one, i) => html`<option key=${i} value=${i}>${one.title}</option>`)}
    </select></label>`;
}

// The rows that the picture shows, as text.
export function Rows({ panel, frame, cursor }) {
  const [most, show] = useState(100);
  const { where, indices } = useMemo(() => followed(panel, frame, cursor), [panel, frame, cursor]);
  const chosen = Object.entries(where).map(([column, value]) => `${column} ${value}`).join(", ");
  const rows = [...indices.slice(0, most)];
  return html`<div class="rows" tabindex="0" role="region" aria-label=${`Rows of ${panel.title}`}>
    <table>
      <caption>${panel.table}${chosen && `: ${chosen}`}; ${indices.length.toLocaleString("en-US")} rows</caption>
      <thead><tr>${frame.columns.map((name) => html`<th scope="col" key=${name}>${name}</th>`)}</tr></thead>
      <tbody>${rows.map((row) => html`<tr key=${row}>${frame.columns.map((name) => html`<td key=${name}><bdi>${cell(frame.get(name, row))}</bdi></td>`)}</tr>`)}</tbody>
    </table>
    ${indices.length > most && html`<button onClick=${() => show(most * 5)}>more rows</button>`}
  </div>`;
}

function cell(value) {
  if (value === null || typeof value !== "object") return plain(value);
  const items = [...value];
  return items.slice(0, 12).map(plain).join(", ") + (items.length > 12 ? `, … (${items.length})` : "");
}

export function Snippet({ snippet }) {
  return html`<div class="snippets">${Object.entries(snippet).map(([name, text]) => html`<${Code} key=${name} name=${name} text=${text} />`)}</div>`;
}

export function Code({ name, text }) {
  const [said, say] = useState("copy");
  const block = useRef(null);
  const copy = async () => {
    say((await copied(text, block.current)) ? "copied" : "selected");
    setTimeout(() => say("copy"), 1500);
  };
  return html`<figure class="code"><figcaption>${name}<button onClick=${copy} aria-label=${`Copy ${name}`}>${said}</button></figcaption>
    <pre ref=${block} tabindex="0" role="region" aria-label=${name}><bdi>${text}</bdi></pre></figure>`;
}

// A page from a file may not be allowed to write to the clipboard: its text is selected then, for the reader's own keys.
async function copied(text, block) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch (error) {
    const range = document.createRange();
    range.selectNodeContents(block);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    return document.execCommand("copy");
  }
}
