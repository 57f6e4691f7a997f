"""The branches of a run, and of the runs that were made from it, as one tree: drawn, or as Newick. Reads only."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from probe.errors import RunError
from probe.store import Run, list_runs, open_run

Tree = dict[str, Any]


def tree(run: Run, *, root: Path | None = None) -> Tree:
    """The run's original with its arms as children: `name`, `position` of the fork, `n`, `outcomes` {class: count},
    `branches` (each with its branch id, sample, outcome and length in tokens), `children`.

    Runs under `root` (default: the folder the run is in) that went back into this one are children too.
    Raises `RunError` for a run that nothing forks from.
    """
    found = _node(run, root or (run.path.resolve().parent if run.path else None))
    if not found["children"]:
        raise RunError(
            "this run has no branches, and no run beside it was made from it", hint="probe rewind RUN makes some"
        )
    return found


def _node(run: Run, folder: Path | None) -> Tree:
    node: Tree = {
        "name": run.path.name if run.path else run.run_id, "edit": "", "position": 0, "n": 1, "outcomes": {}, "tokens": 0,
        "branches": [], "children": [],
    }  # fmt: skip
    if "branches" in run.tables:
        _add_arms(node, run)
    node["children"] += [_node(child, folder) for child in _children(run, folder)]
    return node


def _add_arms(node: Tree, run: Run) -> None:
    table = run.branches
    original = table[table["arm"] == "original"].iloc[0]
    node |= {
        "position": int(original["draw_pos"]), "outcomes": {str(original["outcome"]): 1}, "tokens": int(original["n_tokens"]),
    }  # fmt: skip
    arms = table[table["arm"] != "original"]
    for name, rows in arms.groupby("arm", sort=False, observed=True):
        node["children"].append({
            "name": str(name), "edit": str(rows["edit"].iloc[0] or ""), "position": int(rows["fork_pos"].iloc[0]),
            "n": len(rows), "outcomes": dict(Counter(map(str, rows["outcome"])).most_common()),
            "tokens": float(rows["n_tokens"].mean()), "children": [],
            "branches": [
                {"branch": int(r.branch), "sample": int(r.sample), "outcome": str(r.outcome), "tokens": int(r.n_tokens)}
                for r in rows.sort_values("sample").itertuples()
            ],
        })  # fmt: skip


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
    names = [_word(f"b{branch['branch']} {branch['outcome']}") for branch in node["branches"]]
    leaves = [f"{name}:{branch['tokens']}" for name, branch in zip(names, node["branches"], strict=True)]
    inside = [*leaves, *map(_newick, node["children"])]
    return (f"({','.join(inside)})" if inside else "") + f"{_word(node['name'])}:{node['tokens']:g}"


def _word(text: str) -> str:
    """A Newick label: quoted where it has to be, quotes doubled."""
    return text if re.fullmatch(r"[\w.-]+", text) else "'" + text.replace("'", "''") + "'"


def drawn(node: Tree) -> list[str]:
    """Lines of text: a line a node, with how often each outcome came out."""
    counts = ", ".join(f"{outcome} ×{count}" for outcome, count in node["outcomes"].items())
    edit = f" ({node['edit']})" if node["edit"] else ""
    lines = [f"{node['name']}{edit} at token {node['position']}: {counts}" if counts else node["name"]]
    for i, child in enumerate(node["children"]):
        last = i == len(node["children"]) - 1
        first, *rest = drawn(child)
        lines.append(f"{'└─ ' if last else '├─ '}{first}")
        lines += [f"{'   ' if last else '│  '}{line}" for line in rest]
    return lines
