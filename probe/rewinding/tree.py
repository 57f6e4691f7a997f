"""The branches of a run, and of the runs that were made from it, as one tree: drawn, or as Newick. Reads only."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from probe.errors import RunError
from probe.store import Run, list_runs, open_run

Tree = dict[str, Any]
BEYOND = "more from before the step"


def tree(run: Run, *, root: Path | None = None) -> Tree:
    """The run's original with its arms as children: `name`, `position` of the fork, `n`, `outcomes` {class: count},
    `branches` (each with its branch id, sample, outcome, length in tokens and `children`), `children`.

    Arms hold the samples that were compared; what was drawn beyond them, to see what the model itself would say before the
    step, is an arm of its own. Runs under `root` (default: the folder the run is in) that went back into this one are
    children too: of the branch that they went back into, or of the run if that was its original. The original of such a
    run is there already, so that it counts none.
    Raises `RunError` for a run that nothing forks from.
    """
    found = _node(run, root or (run.path.resolve().parent if run.path else None))
    if not found["children"]:
        raise RunError("this run has no branches, and no run beside it was made from it", hint="probe rewind RUN makes some")
    return found


def _node(run: Run, folder: Path | None, *, inside: bool = False) -> Tree:
    node: Tree = {
        "name": run.path.name if run.path else run.run_id, "edit": "", "position": 0, "n": 0 if inside else 1, "outcomes": {},
        "tokens": 0, "branches": [], "children": [],
    }  # fmt: skip
    if "branches" in run.tables:
        _add_arms(node, run)
    if inside:
        parent = run.manifest["parent"]
        node |= {"position": int(parent["position"]), "outcomes": {}, "tokens": 0}
    own = {branch["branch"]: branch for arm in node["children"] for branch in arm["branches"]}
    for child in _children(run, folder):
        if "branches" not in run.tables and not inside:  # a plain trace: how it came out, only those who went back know
            original = child.branches[child.branches["arm"] == "original"].iloc[0]
            node["outcomes"].setdefault(str(original["outcome"]), 1)
        branch = own.get(int(child.manifest["parent"].get("branch") or 0), node)
        branch["children"].append(_node(child, folder, inside=True))
    return node


def _add_arms(node: Tree, run: Run) -> None:
    table = run.branches
    original = table[table["arm"] == "original"].iloc[0]
    node |= {
        "position": int(original["draw_pos"]), "outcomes": {str(original["outcome"]): 1}, "tokens": int(original["n_tokens"]),
    }  # fmt: skip
    arms = table[table["arm"] != "original"]
    compared = run.summary.get("samples") or len(table)
    extra = (arms["sample"] >= compared) & arms["arm"].isin(["control", "edited"])
    for name, rows in arms[~extra].groupby("arm", sort=False, observed=True):
        node["children"].append(_arm(str(name), rows))
    if extra.any():
        node["children"].append(_arm(BEYOND, arms[extra]))


def _arm(name: str, rows: Any) -> Tree:
    return {
        "name": name, "edit": str(rows["edit"].iloc[0] or ""), "position": int(rows["fork_pos"].iloc[0]),
        "n": len(rows), "outcomes": dict(Counter(map(str, rows["outcome"])).most_common()),
        "tokens": float(rows["n_tokens"].mean()), "children": [],
        "branches": [
            {"branch": int(r.branch), "sample": int(r.sample), "outcome": str(r.outcome), "tokens": int(r.n_tokens),
             "children": []}
            for r in rows.sort_values("sample").itertuples()
        ],
    }  # fmt: skip


def _children(run: Run, folder: Path | None) -> list[Run]:
    """Whole runs in the folder whose manifest names this run as its parent, and that have branches."""
    found = []
    for listed in list_runs(folder) if folder is not None else []:
        if listed.status == "whole" and listed.command in ("rewind", "importance"):
            other = open_run(listed.path)
            if (other.manifest.get("parent") or {}).get("run") == run.run_id and "branches" in other.tables:
                found.append(other)
    return found


def newick(node: Tree) -> str:
    """The tree in Newick's notation; leaves are branches named by id and outcome, lengths are drawn tokens."""
    return _newick(node) + ";"


def _newick(node: Tree) -> str:
    return _inside([*map(_leaf, node["branches"]), *map(_newick, node["children"])], node["name"], node["tokens"])


def _leaf(branch: Tree) -> str:
    name = f"b{branch['branch']} {branch['outcome']}"
    return _inside([*map(_newick, branch["children"])], name, branch["tokens"])


def _inside(parts: list[str], name: str, tokens: float) -> str:
    return (f"({','.join(parts)})" if parts else "") + f"{_word(name)}:{tokens:g}"


def _word(text: str) -> str:
    """A Newick label: quoted where it has to be, quotes doubled."""
    return text if re.fullmatch(r"[\w.-]+", text) else "'" + text.replace("'", "''") + "'"


def drawn(node: Tree) -> list[str]:
    """Lines of text: a line a node, with how often each outcome came out; of single branches those that were gone back into."""
    counts = ", ".join(f"{outcome} ×{count}" for outcome, count in node["outcomes"].items())
    edit = f" ({node['edit']})" if node["edit"] else ""
    place = f" at token {node['position']}" if node["position"] else ""
    lines = [f"{node['name']}{edit}{place}" + (f": {counts}" if counts else "")]
    below = [drawn(child) for child in node["children"]]
    for branch in node["branches"]:
        if branch["children"]:
            own = {"name": f"branch {branch['branch']}", "edit": "", "position": 0, "outcomes": {branch["outcome"]: 1}}
            below.append(drawn({**branch, **own, "branches": []}))
    for i, (first, *rest) in enumerate(below):
        last = i == len(below) - 1
        lines.append(f"{'└─ ' if last else '├─ '}{first}")
        lines += [f"{'   ' if last else '│  '}{line}" for line in rest]
    return lines
