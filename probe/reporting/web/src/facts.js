// What a run is: its exact command, model, versions, warnings, and how to go on in pandas or DuckDB.
import { html } from "htm/preact";
import { Code, Snippet } from "./panel.js";
import { number } from "./text.js";

const simple = (value) => value === null || typeof value !== "object";
const empty = (value) => value === null || value === "" || (!simple(value) && !Object.keys(value).length);

function Value({ of }) {
  if (simple(of)) return html`<dd><bdi>${typeof of === "number" ? number(of, 4) : String(of)}</bdi></dd>`;
  if (Array.isArray(of) && of.every(simple)) return html`<dd><bdi>${of.join(", ")}</bdi></dd>`;
  return html`<dd class="nested">${Array.isArray(of) ? of.map((one, i) => html`<${Pairs} key=${i} of=${simple(one) ? { [i]: one } : one} />`) : html`<${Pairs} of=${of} />`}</dd>`;
}

function Pairs({ of, label }) {
  const entries = Object.entries(of || {}).filter(([, value]) => !empty(value));
  return entries.length ? html`<dl aria-label=${label}>${entries.map(([key, value]) => html`<div key=${key} data-nested=${!simple(value) || null}>
    <dt><bdi>${key.replaceAll("_", " ")}</bdi></dt><${Value} of=${value} /></div>`)}</dl>` : null;
}

export function Facts({ run, page, panel, leads, tag }) {
  const id = leads ? "facts" : `facts-${run.id}`;
  const { manifest = {} } = run;
  const took = { started: manifest.started, ended: manifest.ended, seconds: manifest.wall_seconds, "peak memory, bytes": manifest.peak_memory_bytes };
  return html`<section class="panel facts" id=${id} aria-labelledby=${`${id}-title`}>
    <header><h2 id=${`${id}-title`}>${tag && html`<b class="tag">${tag}</b> `}Run <bdi>${run.id}</bdi></h2></header>
    ${run.warnings.length > 0 && html`<ul class="warnings" aria-label="Warnings">${run.warnings.map((text, i) => html`<li key=${i}><bdi>${text}</bdi></li>`)}</ul>`}
    <${Code} name="command" text=${run.typed} />
    ${panel && html`<h3>Rows of “${panel.title}”</h3><${Snippet} snippet=${panel.snippet} />`}
    <div class="facts-columns">
      <div><h3>Summary</h3><${Pairs} of=${run.summary} label="Summary" /></div>
      <div><h3>Model</h3><${Pairs} of=${run.model} label="Model" /></div>
      <div><h3>Versions</h3><${Pairs} of=${run.versions} label="Versions" /></div>
      <div><h3>Made</h3><${Pairs} of=${{ path: run.path, ...took, seed: manifest.seed }} label="Made" /></div>
    </div>
    <details><summary>The manifest</summary><pre class="manifest" tabindex="0"><bdi>${JSON.stringify(manifest, null, 2)}</bdi></pre></details>
    ${leads && page.left_out.length > 0 && html`<h3>Left out of this page</h3>${page.left_out.map((text, i) => html`<p class="left-out" key=${i}>${text}</p>`)}`}
  </section>`;
}
