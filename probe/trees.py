"""The branches of a run, and of the runs that were made from it, as one tree: drawn, or as Newick. Reads only."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.errors import RunError
from probe.store import Run, list_runs, open_run

if TYPE_CHECKING:
    import pandas as pd

Tree = dict[str, Any]
ORIGINAL = "original"
COLUMNS = ("prompt_id", "branch", "arm", "sample", "step", "fork_pos", "draw_pos", "edit", "outcome", "n_tokens")
BEYOND = "more from before the step"


def tree(run: Run, *, root: Path | None = None, prompt_id: int | None = None) -> Tree:
    """The run's original with its arms as children: `name`, `position` of the fork, `n`, `outcomes` {class: count},
    `branches` (each with its branch id, sample, outcome, length in tokens and `children`), `children`.

    A run of several problems has a node a problem as children, each with its `prompt_id`, and a problem that was gone back
    to at several steps a node a step. prompt_id: only that problem.
    Arms hold the samples that were compared; what was drawn beyond them, to see what the model itself would say before the
    step, is an arm of its own. Runs under `root` (default: the folder the run is in) that went back into this one are
    children too: of the branch that they went back into, or of the problem if that was its original. The original of such
    a run is there already, so that it counts none.
    Raises `RunError` for a run, or a problem of it, that nothing forks from.
    """
    found = node_of(run, Family.of(root or (run.path.resolve().parent if run.path else None)), prompt_id)
    if found is None:
        if prompt_id is not None:
            raise RunError(f"nothing forks from prompt {prompt_id}", hint="without --prompt there is the tree of all prompts")
        hint = "probe rewind RUN makes some"
        raise RunError("this run has no branches, and no run beside it was made from it", hint=hint)
    return found


class Family:
    """Runs by the run that they went back into, each read once."""

    def __init__(self, children: dict[str, list[Run]]) -> None:
        self._children = children
        self._rows: dict[str, pd.DataFrame] = {}

    @classmethod
    def of(cls, folder: Path | None) -> Family:
        """Of the whole runs in a folder that have branches; in no folder there are none."""
        found: dict[str, list[Run]] = {}
        for listed in list_runs(folder) if folder is not None else []:
            if listed.status == "whole" and listed.command in ("rewind", "importance"):
                run = open_run(listed.path)
                parent = run.manifest.get("parent") or {}
                if "branches" in run.tables and "run" in parent:
                    found.setdefault(parent["run"], []).append(run)
        return cls(found)

    def branches(self, run: Run) -> pd.DataFrame | None:
        """A run's branches; None where it has none."""
        if "branches" not in run.tables:
            return None
        if run.run_id not in self._rows:
            self._rows[run.run_id] = run.scan("branches", columns=COLUMNS).to_pandas()
        return self._rows[run.run_id]

    def children(self, run: Run) -> list[tuple[Run, pd.DataFrame]]:
        """Runs that went back into this one, and their branches."""
        found = [(child, self.branches(child)) for child in self._children.get(run.run_id, ())]
        return [(child, rows) for child, rows in found if rows is not None]


def node_of(run: Run, family: Family, prompt_id: int | None = None, *, inside: bool = False) -> Tree | None:
    """As `tree`, in a family that was read before; None where nothing forks. inside: it is a child of another node."""
    table, below = family.branches(run), family.children(run)
    prompts = {
        int(prompt) for rows in (table, *(rows for _, rows in below)) if rows is not None for prompt in rows["prompt_id"]
    }
    found = []
    for prompt in sorted(prompts if prompt_id is None else prompts & {prompt_id}):
        own = None if table is None else table[table["prompt_id"] == prompt]
        children = [(child, rows[rows["prompt_id"] == prompt]) for child, rows in below]
        problem = _problem(run, prompt, own, [(child, rows) for child, rows in children if len(rows)], family, inside=inside)
        if problem["children"] or inside:
            found.append(problem)
    if not found:
        return None
    name = run.path.name if run.path else run.run_id
    if len(found) == 1:
        return {**found[0], "name": name}
    counts: Counter[str] = sum((Counter(problem["outcomes"]) for problem in found), Counter())
    n = sum(problem["n"] for problem in found)
    return {**_plain(name, 0), "n": n, "outcomes": dict(counts.most_common()), "children": found}


def _problem(
    run: Run, prompt: int, rows: pd.DataFrame | None, children: list[tuple[Run, pd.DataFrame]], family: Family, *, inside: bool
) -> Tree:  # fmt: skip
    """The original of one problem with what was drawn from it in this run (None: nothing) and in those made from it."""
    node = {**_plain(f"prompt {prompt}", 0), "prompt_id": prompt, "n": 0 if inside else 1}
    if rows is not None:
        originals = list(rows[rows["arm"] == ORIGINAL].itertuples())
        node["children"] = _arms(rows[rows["arm"] != ORIGINAL], _compared(run, prompt))
        if not originals:  # answers were drawn to a prompt that nothing was generated for
            node |= {"n": 0, "position": min(one["position"] for one in node["children"])}
        elif inside:
            parent = run.manifest["parent"]
            node["position"] = int(parent["position"] or min((one["position"] for one in node["children"]), default=0))
        else:
            (original,) = originals
            node |= {
                "position": int(original.draw_pos),
                "outcomes": {str(original.outcome): 1},
                "tokens": int(original.n_tokens),
            }
    own = {branch["branch"]: branch for arm in _each_arm(node) for branch in arm["branches"]}
    for child, of_child in children:
        if rows is None and not inside:  # a plain trace: how it came out, only those who went back know
            (original,) = of_child[of_child["arm"] == ORIGINAL].itertuples()
            node["outcomes"].setdefault(str(original.outcome), 1)
        branch = own.get(int(child.manifest["parent"].get("branch") or 0), node)
        if (made := node_of(child, family, prompt, inside=True)) is not None:
            branch["children"].append(made)
    return node


def _plain(name: str, position: int) -> Tree:
    return {"name": name, "edit": "", "position": position, "n": 0, "outcomes": {}, "tokens": 0, "branches": [], "children": []}


def _compared(run: Run, prompt: int) -> dict[int | None, int]:
    """How many samples of an arm were compared, by the step that was gone back to; None: where nothing is said of the step."""
    places = [one for one in run.summary.get("places", ()) if one["prompt_id"] == prompt]
    found: dict[int | None, int] = {one["step"]: one["samples"] for one in places}
    return {**found, None: run.summary["samples"]} if run.summary.get("samples") else found


def _arms(rows: Any, compared: dict[int | None, int]) -> list[Tree]:
    """Nodes of the arms; of several steps, under a node a step, and beside these the arms that go back to no step."""
    steps = sorted({int(step) for step in rows["step"].dropna()}) if "step" in rows else []
    if len(steps) < 2:
        return _arms_of_place(rows, compared.get(steps[0] if steps else None, compared.get(None)))
    found = []
    for step in steps:
        arms = _arms_of_place(rows[rows["step"] == step], compared.get(step, compared.get(None)))
        found.append({**_plain(f"step {step}", arms[0]["position"]), "step": step, "children": arms})
    outside = rows[rows["step"].isna()]
    return [*found, *_arms_of_place(outside, compared.get(None))]


def _arms_of_place(rows: Any, compared: int | None) -> list[Tree]:
    extra = (rows["sample"] >= (compared or len(rows))) & rows["arm"].isin(["control", "edited"])
    found = [_arm(str(name), own) for name, own in rows[~extra].groupby("arm", sort=False, observed=True)]
    return [*found, _arm(BEYOND, rows[extra])] if extra.any() else found


def _each_arm(node: Tree) -> Iterator[Tree]:
    for child in node["children"]:
        yield child
        yield from _each_arm(child)


def _arm(name: str, rows: Any) -> Tree:
    each = rows[["branch", "sample", "outcome", "n_tokens"]].sort_values("sample")
    return {
        "name": name, "edit": str(rows["edit"].iloc[0] or ""), "position": int(rows["fork_pos"].iloc[0]),
        "n": len(rows), "outcomes": dict(Counter(map(str, rows["outcome"])).most_common()),
        "tokens": float(rows["n_tokens"].mean()), "children": [],
        "branches": [
            {"branch": branch, "sample": sample, "outcome": str(outcome), "tokens": tokens, "children": []}
            for branch, sample, outcome, tokens in zip(*(each[name].tolist() for name in each), strict=True)
        ],
    }  # fmt: skip


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
