// The page: which run, which prompt, which panels stand where; keys; light and dark.
import { html } from "htm/preact";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { bars } from "./bars.js";
import { KEYS, addressWriter, fromAddress, moved, neighbour, reach } from "./cursor.js";
import { Facts } from "./facts.js";
import { followed } from "./following.js";
import { grid } from "./grid.js";
import { lines } from "./lines.js";
import { listing } from "./listing.js";
import { Frame } from "./panel.js";
import { patterns } from "./patterns.js";
import { strip } from "./strip.js";
import { shown, withTexts } from "./text.js";
import { tree } from "./tree.js";

const PICTURES = { tokens: strip, grid, patterns, bars, lines, tree, listing };
const THEME = ["system", "light", "dark"];

// What a reader chose is kept while the page is written anew; a page in a frame has nothing to keep it in.
const chosen = {
  get(name) {
    try { return sessionStorage.getItem(`probe ${name}`); } catch (error) { return null; }
  },
  set(name, value) {
    try { sessionStorage.setItem(`probe ${name}`, value); } catch (error) { /* it lasts as long as the page then */ }
  },
};

// A cursor that the page has: its run and its prompt exist.
function settled(page, cursor) {
  const run = page.runs[cursor.run] && page.prompts(cursor.run).length ? cursor.run : page.beside[0] ?? 0;
  const prompts = page.prompts(run);
  const prompt = prompts.some((one) => one.prompt === cursor.prompt) ? cursor.prompt : prompts[0]?.prompt ?? null;
  return { ...cursor, run, prompt };
}

// What each step does, where the run says so.
async function kindsOf(page, sequence) {
  const panel = sequence.panels.find((one) => one.table === "steps" && one.kind === "listing");
  const frame = panel && await page.frame(panel);
  if (!frame || !frame.columns.includes("kind") || !frame.columns.includes("step")) return new Map();
  return new Map(Array.from({ length: frame.rows }, (_, i) => [frame.get("step", i), frame.get("kind", i)]));
}

// The sequences that are shown: that of the cursor's run, and of the run beside it.
function useSequences(page, cursor) {
  const [found, keep] = useState({ key: null, sequences: [] });
  const side = page.beside.includes(cursor.run) ? page.beside : [cursor.run];
  const runs = [cursor.run, ...side.filter((run) => run !== cursor.run)].sort((a, b) => side.indexOf(a) - side.indexOf(b));
  const key = JSON.stringify([runs, cursor.prompt, cursor.branch]);
  useEffect(() => {
    let here = true;
    const load = async (run) => {
      const sequence = page.sequence(run, cursor.prompt) ?? (run === cursor.run ? null : page.sequence(run, page.prompts(run)[0]?.prompt));
      if (!sequence) return null;
      const panel = sequence.panels.find((one) => one.kind === "tokens");
      const frame = panel ? await page.frame(panel) : null;
      const rows = frame ? followed(panel, frame, cursor).indices : [];
      return { ...withTexts(sequence, panel, frame, rows, await kindsOf(page, sequence)), leads: run === cursor.run };
    };
    Promise.all(runs.map(load)).then((sequences) => here && keep({ key, sequences: sequences.filter(Boolean) }));
    return () => { here = false; };
  }, [page, key]);
  return found;
}

function useCursor(page) {
  const [cursor, set] = useState(() => settled(page, fromAddress(window.location.hash)));
  const now = useRef({ cursor, sequence: null }); // as it was drawn last;
  const write = useMemo(() => addressWriter(window), []);
  const move = useMemo(() => (change) => {
    const next = settled(page, moved(now.current.cursor, change, now.current.sequence));
    now.current.cursor = next; // two keys may come before it is drawn
    set(next);
    write(next);
  }, [page]);
  useEffect(() => {
    const restored = () => set(settled(page, fromAddress(window.location.hash)));
    window.addEventListener("hashchange", restored);
    return () => window.removeEventListener("hashchange", restored);
  }, [page]);
  return [cursor, move, now.current];
}

// Light or dark: as the system has it until a reader chooses.
function useChosenTheme() {
  const [theme, set] = useState(() => (THEME.includes(chosen.get("theme")) ? chosen.get("theme") : "system"));
  useLayoutEffect(() => {
    const system = window.matchMedia("(prefers-color-scheme: dark)");
    const show = () => { document.documentElement.dataset.theme = theme === "system" ? (system.matches ? "dark" : "light") : theme; };
    show();
    chosen.set("theme", theme);
    system.addEventListener("change", show);
    return () => system.removeEventListener("change", show);
  }, [theme]);
  return [theme, () => set((old) => THEME[(THEME.indexOf(old) + 1) % THEME.length])];
}

// `now` has the cursor of the last move: keys that are held down come faster than pictures are drawn.
function useKeys(page, { now, sequence, move, nextMeasure, nextTheme, help }) {
  useEffect(() => {
    const along = async (coordinate, by) => {
      const values = coordinate === "step" ? sequence.steps : coordinate === "prompt" ? page.prompts(now.cursor.run).map((one) => one.prompt)
        : await reach(page, sequence, coordinate);
      const value = neighbour(values, now.cursor[coordinate], by);
      if (value !== null) move({ [coordinate]: value });
    };
    const token = (to) => sequence.length && move({ token: to(now.cursor.token ?? sequence.first - 1) });
    const does = {
      ArrowLeft: () => token((t) => t - 1), ArrowRight: () => token((t) => t + 1),
      Home: () => token(() => sequence.first), End: () => token(() => sequence.last),
      "[": () => along("layer", -1), "]": () => along("layer", 1), "{": () => along("head", -1), "}": () => along("head", 1),
      ",": () => along("step", -1), ".": () => along("step", 1), "<": () => along("branch", -1), ">": () => along("branch", 1),
      "(": () => along("prompt", -1), ")": () => along("prompt", 1), m: nextMeasure, d: nextTheme, "?": help,
    };
    const pressed = (event) => {
      if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || !sequence) return;
      if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) || event.target.closest("dialog") || !does[event.key]) return;
      event.preventDefault();
      does[event.key]();
    };
    document.addEventListener("keydown", pressed);
    return () => document.removeEventListener("keydown", pressed);
  });
}

function Keys({ dialog }) {
  return html`<dialog id="keys" ref=${dialog} aria-labelledby="keys-title" onClick=${(event) => event.target === dialog.current && dialog.current.close()}>
    <h2 id="keys-title">Keys</h2>
    <table><tbody>${KEYS.map(([keys, what]) => html`<tr key=${keys}><th scope="row">${keys.split(" ").map((key) => html`<kbd key=${key}>${key}</kbd> `)}</th><td>${what}</td></tr>`)}</tbody></table>
    <p class="note">Where you are stands in the page's address: send it, and another reader is there too.</p>
    <form method="dialog"><button>Close</button></form>
  </dialog>`;
}

// Which of the runs that stand side by side.
const tagOf = (page, run) => "ABCDEFGH"[page.beside.indexOf(run)] ?? null;

function Bar({ page, cursor, move, theme, nextTheme, help }) {
  const prompts = page.prompts(cursor.run);
  const number = (event) => Number(event.currentTarget.value);
  const named = (run, i) => `${page.beside.length > 1 && page.beside.includes(i) ? `${tagOf(page, i)}  ` : ""}${run.command} · ${run.id}`;
  const missing = () => document.querySelector(".left-out").scrollIntoView();
  return html`<header class="bar">
    <h1><bdi>${page.runs[cursor.run].command}</bdi></h1>
    ${page.runs.length > 1 && html`<label>Run <select name="run" value=${cursor.run} onChange=${(event) => move({ run: number(event) })}>
      ${page.runs.map((run, i) => html`<option key=${i} value=${i}>${named(run, i)}</option>`)}</select></label>`}
    ${prompts.length > 1 && html`<label>Prompt <select name="prompt" value=${cursor.prompt} onChange=${(event) => move({ prompt: number(event) })}>
      ${prompts.map((one) => html`<option key=${one.prompt} value=${one.prompt}>${`${one.prompt}  \u2068${shown(one.title)}\u2069`}</option>`)}</select></label>`}
    <span class="space" />
    ${page.left_out.length > 0 && html`<button onClick=${missing}>${page.left_out.length} left out</button>`}
    <${Written} page=${page} />
    <button name="theme" onClick=${nextTheme} aria-label=${`Colours: ${theme}`} title="Colours: as the system, light, dark">${{ system: "◐", light: "☀", dark: "☾" }[theme]}</button>
    <button name="keys" onClick=${help} aria-label="Keys" title="Keys">?</button>
  </header>`;
}

function Written({ page }) {
  const when = new Date(page.written);
  return html`<p class="written" data-watching=${page.watching || null}>${page.watching ? "still running; " : ""}written
    ${" "}<time datetime=${page.written}>${when.toLocaleString("sv-SE")}</time></p>`;
}

// A growing run's page loads what was written anew. (A <meta> would forget the address's cursor.)
function useReload(page) {
  useEffect(() => {
    if (!page.refresh) return undefined;
    const timer = setTimeout(() => window.location.reload(), 1000 * page.refresh);
    return () => clearTimeout(timer);
  }, [page]);
}

// Where a reader begins: at the first token that the model wrote.
function firstOf(sequence) {
  if (!sequence || !sequence.length) return null;
  return (sequence.steps.length ? sequence.start_of(sequence.steps[0]) : null) ?? sequence.first;
}

// Panels of one name of all sequences that are shown stand beside one another.
function rowsOf(sequences) {
  const rows = new Map();
  for (const sequence of sequences)
    for (const panel of sequence.panels) {
      if (!rows.has(panel.name)) rows.set(panel.name, []);
      rows.get(panel.name).push({ panel, sequence });
    }
  return [...rows];
}

export function App({ page }) {
  const [place, move, now] = useCursor(page);
  const { sequences } = useSequences(page, place);
  useReload(page);
  const [theme, nextTheme] = useChosenTheme();
  const [measures, choose] = useState(() => JSON.parse(chosen.get("measures") ?? "{}"));
  useEffect(() => chosen.set("measures", JSON.stringify(measures)), [measures]);
  const [active, activate] = useState(null);
  const dialog = useRef(null);
  now.sequence = sequences.find((one) => one.leads && one.run === place.run && one.prompt === place.prompt) ?? null;
  const cursor = useMemo(() => moved(place, { token: place.token ?? firstOf(now.sequence) }, now.sequence), [place, now.sequence]);
  now.cursor = cursor;
  const help = () => (dialog.current.open ? dialog.current.close() : dialog.current.showModal());
  const pick = (name, measure) => choose((old) => ({ ...old, [name]: measure }));
  const text = now.sequence?.panel;
  const nextMeasure = () => text && text.measures.length && pick(text.name, ((measures[text.name] ?? 0) + 1) % text.measures.length);
  useEffect(() => { if (sequences.length) document.documentElement.dataset.ready = "yes"; }, [sequences]);
  useKeys(page, { now, sequence: now.sequence, move, nextMeasure, nextTheme, help });
  const shownOne = ({ panel, sequence }) => html`<${Frame} key=${`${sequence.run}.${sequence.prompt}.${panel.name}`} kind=${PICTURES[panel.kind]} page=${page}
    panel=${panel} sequence=${sequence} cursor=${cursor} move=${move} measure=${measures[panel.name] ?? 0}
    tag=${sequences.length > 1 ? tagOf(page, sequence.run) : null} chooseMeasure=${(measure) => pick(panel.name, measure)} active=${active === panel.name} activate=${() => activate(panel.name)} />`;
  const rows = rowsOf(sequences);
  const read = new Set(sequences.map((one) => one.panel?.name)); // the texts; others of their kind stand among the pictures
  const texts = rows.filter(([name]) => read.has(name));
  const others = rows.filter(([name]) => !read.has(name));
  const panel = now.sequence?.panels.find((one) => one.name === active) ?? text;
  return html`<${Bar} page=${page} cursor=${cursor} move=${move} theme=${theme} nextTheme=${nextTheme} help=${help} />
    <main>
      <div class="reading" data-many=${sequences.length > 1 || null}>${texts.flatMap(([, found]) => found.map(shownOne))}</div>
      <div class="pictures">
        ${others.map(([name, found]) => html`<div class="row" key=${name} data-many=${found.length > 1 || null}>${found.map(shownOne)}</div>`)}
        ${sequences.map((one) => html`<${Facts} key=${one.run} run=${page.runs[one.run]} page=${page} leads=${one.leads} tag=${sequences.length > 1 ? tagOf(page, one.run) : null} panel=${one.leads ? panel : null} />`)}
      </div>
    </main>
    <${Keys} dialog=${dialog} />`;
}
