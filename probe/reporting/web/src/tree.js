// Where continuations fork: a tree of which each node has the counts of its outcomes.
import { html } from "htm/preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { hierarchy, tree as layout } from "d3-hierarchy";
import { THEMES, classScale } from "./colour.js";
import { Legend, drawLegend } from "./legend.js";
import { fitted, useWidth, widthOf } from "./pen.js";

const ROW = 24; // height of a node
const BAR = 44; // width of its outcomes
const FORK = 34; // room for the lines between two columns
const LABEL = 210; // longest label
const CLOSED = 12; // a node of more leaves than this is closed at first
const TALL = 460;
const FILE = { row: 17, most: 7600 };
const SMALL = { size: 12 };

const line = (text) => `${text}`.replace(/\s+/g, " ").trim();
const said = (node) => Object.entries(node.outcomes || {}).map(([outcome, n]) => `${line(outcome)} ${n}`).join(", ");
const labelOf = ({ data }) => `${line(data.label)}${data.n > 1 ? ` (${data.n})` : ""}`;

// what is at the ends of a tree, counted: the root of a rewind counts its own text alone
function endsOf(root) {
  const counts = new Map();
  const visit = (node) => {
    const children = node.children || [];
    children.forEach(visit);
    if (!children.length) for (const [outcome, n] of Object.entries(node.outcomes || {})) counts.set(outcome, (counts.get(outcome) || 0) + n);
  };
  visit(root);
  for (const outcome of Object.keys(root.outcomes || {})) if (!counts.has(outcome)) counts.set(outcome, 0);
  return new Map([...counts].sort((a, b) => b[1] - a[1]));
}

// nodes have an address of child numbers: "0", "0.2"
function closedAtFirst(root) {
  const closed = new Set();
  const visit = (node, path) => {
    const children = node.children || [];
    if (path !== "0" && children.length > CLOSED && children.every((child) => !(child.children || []).length)) closed.add(path);
    children.forEach((child, i) => visit(child, `${path}.${i}`));
  };
  visit(root, "0");
  return closed;
}

// {nodes, width, height}: each node with x, y (middle of its row), path, and `more`: it has children, shown or not
export function placed(root, closed, { row = ROW, longest = LABEL } = {}) {
  const paths = new Map([[root, "0"]]);
  const below = (data) => {
    const children = data.children || [];
    children.forEach((child, i) => paths.set(child, `${paths.get(data)}.${i}`));
    return closed.has(paths.get(data)) ? null : children;
  };
  const top = layout().nodeSize([row, 1]).separation(() => 1)(hierarchy(root, below));
  const nodes = [];
  top.eachBefore((node) => nodes.push(node));
  const widths = [];
  for (const node of nodes) widths[node.depth] = Math.max(widths[node.depth] || 0, Math.min(longest, widthOf(labelOf(node), SMALL)));
  const starts = [8];
  widths.forEach((width, depth) => starts.push(starts[depth] + BAR + 8 + width + 18 + FORK));
  const least = nodes.reduce((low, node) => Math.min(low, node.x), Infinity);
  for (const node of nodes) {
    node.y0 = node.x - least + row / 2 + 2;
    node.x0 = starts[node.depth];
    node.path = paths.get(node.data);
    node.room = widths[node.depth];
    node.end = node.x0 + BAR + 28 + Math.min(node.room, widthOf(labelOf(node), SMALL));
    node.more = (node.data.children || []).length > 0;
  }
  return { nodes, width: starts[widths.length] - FORK, height: Math.max(...nodes.map((node) => node.y0)) + row / 2 + 2 };
}

// stubs and spines: [[x, y], [x, y]] for all that is seen between two heights
function linksOf(nodes, from, until) {
  const found = [];
  for (const node of nodes) {
    if (!node.children) continue;
    const fork = node.children[0].x0 - FORK / 2;
    const ends = [node.y0, ...node.children.map((child) => child.y0)];
    const [high, low] = [Math.max(from, Math.min(...ends)), Math.min(until, Math.max(...ends))];
    if (high <= low) found.push([[fork, high], [fork, low]]);
    if (node.y0 >= from && node.y0 <= until) found.push([[node.end, node.y0], [fork, node.y0]]);
    for (const child of node.children) if (child.y0 >= from && child.y0 <= until) found.push([[fork, child.y0], [child.x0 - 4, child.y0]]);
  }
  return found;
}

// the node of a branch, and those above it
function pathTo(node, branch, above = []) {
  if (branch === null || branch === undefined) return null;
  if (node.branch === branch) return [...above, node];
  for (const child of node.children || []) {
    const found = pathTo(child, branch, [...above, node]);
    if (found) return found;
  }
  return null;
}

function Node({ node, scale, here, active, id, press, toggle, closed }) {
  const { data } = node;
  const total = Object.values(data.outcomes || {}).reduce((a, b) => a + b, 0) || 1;
  const place = { left: `${node.x0}px`, top: `${node.y0 - ROW / 2}px`, height: `${ROW - 2}px` };
  const open = node.more ? !closed.has(node.path) : undefined;
  return html`<div id=${id} role="treeitem" aria-level=${node.depth + 1} aria-expanded=${open} aria-selected=${here} style=${place}
    class=${`node${here ? " here" : ""}${active ? " active" : ""}`} title=${`${line(data.label)}: ${said(data)}`} onClick=${press}>
    <span class="shares" style=${{ width: `${BAR}px` }}>${Object.entries(data.outcomes || {}).map(([outcome, n]) =>
      html`<i key=${outcome} style=${{ width: `${(BAR * n) / total}px`, background: scale.colour(outcome) }} />`)}</span>
    <bdi dir="ltr" style=${{ maxWidth: `${node.room + 4}px` }}>${labelOf(node)}</bdi>
    ${node.more && html`<b aria-hidden="true" onClick=${(event) => (event.stopPropagation(), toggle())}>${open ? "▾" : "▸"}</b>`}
  </div>`;
}

function Body({ panel, cursor, move, scales, height = TALL }) {
  const { root } = panel;
  const [closed, close] = useState(() => closedAtFirst(root));
  const [active, act] = useState("0");
  const scroller = useRef(null);
  const [seen, see] = useState({ from: 0, until: height });
  const scale = useMemo(() => classScale([...endsOf(root).keys()], scales), [root, scales]);
  const width = useWidth(scroller);
  const longest = Math.min(LABEL, Math.max(110, Math.round(0.3 * width)));
  const drawn = useMemo(() => placed(root, closed, { longest }), [root, closed, longest]);
  const chosen = useMemo(() => pathTo(root, cursor.branch), [root, cursor.branch]);
  const look = () => scroller.current && see({ from: scroller.current.scrollTop - 100, until: scroller.current.scrollTop + height + 100 });
  useEffect(look, [height, drawn]);
  useEffect(() => {
    scroller.current.scrollTop = drawn.nodes[0].y0 - height / 2;
  }, [root]);
  useEffect(() => {
    if (!chosen) return;
    const above = chosen.slice(0, -1).map((_, k) => ["0", ...chosen.slice(1, k + 1).map((node, i) => chosen[i].children.indexOf(node))].join("."));
    if (above.some((path) => closed.has(path))) close(new Set([...closed].filter((path) => !above.includes(path))));
  }, [chosen]);
  const sought = useRef(null); // the branch to be brought into sight, once
  useEffect(() => {
    sought.current = chosen && chosen[chosen.length - 1];
  }, [chosen]);
  useEffect(() => {
    const node = sought.current && drawn.nodes.find(({ data }) => data === sought.current);
    if (!node) return;
    bring(scroller.current, node);
    sought.current = null;
  }, [chosen, drawn]);
  const flip = (path) => close((old) => {
    const next = new Set(old);
    if (!next.delete(path)) next.add(path);
    return next;
  });
  const press = (node) => {
    act(node.path);
    if (node.data.branch !== undefined && node.data.branch !== null) move({ branch: node.data.branch });
    else if (node.more) flip(node.path);
  };
  const keys = (event) => onKey(event, { nodes: drawn.nodes, active, act, closed, flip, press, scroller });
  const inside = (node) => node.y0 >= seen.from && node.y0 <= seen.until;
  const [name, all] = [`tree-${panel.name}`, () => close(new Set())];
  const few = () => close(closedAtFirst(root));
  return html`<div class="tree">
    <${Legend} scale=${scale} />
    <div class="tree-window" ref=${scroller} role="tree" tabindex="0" aria-label=${panel.title} aria-activedescendant=${`${name}-${active}`}
      onScroll=${look} onKeyDown=${keys} style=${{ maxHeight: `${height}px` }}>
      <div class="tree-whole" style=${{ width: `${drawn.width}px`, height: `${drawn.height}px` }}>
        <svg width=${drawn.width} height=${drawn.height} aria-hidden="true">
          <path d=${linksOf(drawn.nodes, seen.from, seen.until).map(([a, b]) => `M${a.join()}L${b.join()}`).join("")} /></svg>
        ${drawn.nodes.filter(inside).map((node) => html`<${Node} key=${node.path} id=${`${name}-${node.path}`} node=${node} scale=${scale}
          here=${Boolean(chosen) && node.data === chosen[chosen.length - 1]} active=${node.path === active} closed=${closed}
          press=${() => press(node)} toggle=${() => flip(node.path)} />`)}
      </div>
    </div>
    <div class="sizes"><button type="button" onClick=${all}>open all</button><button type="button" onClick=${few}>close the long ones</button></div>
  </div>`;
}

function bring(scroller, node) {
  const { scrollTop, clientHeight, scrollLeft, clientWidth } = scroller;
  if (node.y0 < scrollTop + ROW || node.y0 > scrollTop + clientHeight - ROW) scroller.scrollTop = node.y0 - clientHeight / 2;
  if (node.x0 < scrollLeft || node.x0 > scrollLeft + clientWidth - 80) scroller.scrollLeft = node.x0 - 40;
}

// up and down through what is open, right into a node, left out of it, Enter chooses
function onKey(event, { nodes, active, act, closed, flip, press, scroller }) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const at = Math.max(0, nodes.findIndex((node) => node.path === active));
  const node = nodes[at];
  const go = (to) => to && (act(to.path), bring(scroller.current, to));
  const moves = {
    ArrowDown: () => go(nodes[at + 1]),
    ArrowUp: () => go(nodes[at - 1]),
    ArrowRight: () => (closed.has(node.path) ? flip(node.path) : go(node.children && node.children[0])),
    ArrowLeft: () => (node.children ? flip(node.path) : go(node.parent)),
    Enter: () => press(node),
    " ": () => press(node),
  };
  if (!moves[event.key]) return;
  moves[event.key]();
  event.preventDefault();
  event.stopPropagation();
}

function readout(panel, frame, cursor) {
  const chosen = pathTo(panel.root, cursor.branch);
  if (chosen) return chosen.map((node) => line(node.label)).join(" › ");
  const ends = [...endsOf(panel.root)];
  return `${ends.reduce((sum, [, n]) => sum + n, 0)} ends: ${ends.map(([outcome, n]) => `${line(outcome)} ${n}`).join(", ")}`;
}

function draw(pen, { panel, cursor, scales, theme }) {
  const { root } = panel;
  const colours = THEMES[theme];
  let drawn = placed(root, new Set(), { row: FILE.row });
  if (drawn.height > FILE.most) drawn = placed(root, closedAtFirst(root), { row: FILE.row });
  const scale = classScale([...endsOf(root).keys()], scales);
  const width = Math.max(drawn.width + 12, 420);
  const top = 6 + drawLegend(pen, scale, { x: 8, y: 4, width: width - 16, theme: colours });
  const lower = ([x, y]) => [x, y + top];
  for (const link of linksOf(drawn.nodes, 0, drawn.height)) pen.line(link.map(lower), colours.line);
  for (const node of drawn.nodes) {
    const y = node.y0 + top;
    const total = Object.values(node.data.outcomes || {}).reduce((a, b) => a + b, 0) || 1;
    let x = node.x0;
    for (const [outcome, n] of Object.entries(node.data.outcomes || {})) {
      pen.rect(x, y - 5, (BAR * n) / total, 10, scale.colour(outcome));
      x += (BAR * n) / total;
    }
    const here = cursor.branch !== null && node.data.branch === cursor.branch;
    pen.text(fitted(labelOf(node), node.room + 4, SMALL), node.x0 + BAR + 8, y, { ...SMALL, fill: here ? colours.ink : colours.faint });
  }
  return { width, height: top + drawn.height + 6 };
}

export const tree = { Body, readout, draw };
