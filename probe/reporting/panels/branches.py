"""Continuations: both arms beside one another, how often each answer came with its interval, the tree they fork in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from probe.errors import RunError
from probe.reporting.panels.context import Context
from probe.reporting.panels.effects import outcome_labels, references, several_steps
from probe.reporting.panels.steps import sentence
from probe.reporting.views import Axis, Bars, Grid, Lines, Listing, Measure, OutcomeTree, Panel, ShownColumn
from probe.stats import wilson

ARMS = ("control", "edited")
BOUNDARY = re.compile(r"boundary-(\d+)")
SHARE = Measure("share", "share of the continuations", low=0.0, high=1.0, band=("ci_low", "ci_high"))
COUNTED = ("count", "drawn", "share", "ci_low", "ci_high")
TREE = ("prompt_id", "branch", "parent", "arm", "sample", "step", "fork_pos", "outcome", "n_tokens")


def panels(context: Context) -> Iterator[Panel]:
    """What the tables `branches`, `labels` and `rounds` show, and the tree of this run and of those that were made from it."""
    branches = context.rows("branches")
    if len(branches):
        branches = branches.sort_values(["sample", "branch"], kind="stable")
        yield from _outcomes(context, branches)
        yield from _arms(context, branches)
    yield from _tree(context, branches)
    yield from _labels(context)
    yield from _rounds(context)


def _outcomes(context: Context, branches: pd.DataFrame) -> Iterator[Panel]:
    """Distributions of outcomes, each share with Wilson's interval."""
    drawn = branches[branches["sample"] >= 0]
    bounds = drawn["arm"].astype(str).str.fullmatch(BOUNDARY)
    if bounds.any():
        yield _by_boundary(context, drawn[bounds])
    arms = drawn[~bounds]
    if arms.empty:
        return
    compared = _compared(context, arms)
    counts = counted(arms[compared], ["prompt_id", "step", "arm"], _order(context, arms))
    names = list(dict.fromkeys(map(str, counts["arm"])))
    more = int((~compared).sum())
    said = f" {more} continuations that were drawn beyond those that were compared are not counted." if more else ""
    yield Bars(
        "outcomes", "Answers in each arm" if len(names) > 1 else "Answers", "branches", counts,
        where={"prompt_id": context.prompt_id, "arm": names}, derived=COUNTED, counted=("prompt_id", "step", "arm", "outcome"),
        follows=several_steps(counts), axis=Axis("outcome", "answer", None, outcome_labels(context)), measure=SHARE,
        series="arm" if len(names) > 1 else None, note=f"95 %, Wilson.{said}",
    )  # fmt: skip


def _compared(context: Context, rows: pd.DataFrame) -> pd.Series:
    """Of the arms that are compared the samples that were: before the step more can have been drawn."""
    places = [one for one in context.summary.get("places", ()) if one["prompt_id"] == context.prompt_id]
    most = {one["step"]: one["samples"] for one in places}
    usual = context.summary.get("samples") or len(rows)
    limits = [most.get(None if step != step else int(step), usual) for step in rows["step"]]
    return (rows["sample"] < pd.Series(limits, rows.index)) | ~rows["arm"].astype(str).isin(ARMS)


def counted(rows: pd.DataFrame, by: Sequence[str], order: Sequence[str]) -> pd.DataFrame:
    """How often each outcome came in each group: `count` of `drawn`, `share`, `ci_low`, `ci_high` (95 %, Wilson). One that
    came in no group of a step has no row there, one that came in another arm of it a count of 0."""
    groups: dict[tuple[Any, ...], dict[tuple[Any, ...], Counter[str]]] = {}
    keys = zip(*(_plain(rows[name]) for name in by), strict=True)
    for key, outcome in zip(keys, map(str, rows["outcome"]), strict=True):
        groups.setdefault(key[:-1], {}).setdefault(key, Counter())[outcome] += 1
    found = []
    for _, arms in sorted(groups.items(), key=lambda item: [(value is None, value or 0) for value in item[0]]):
        came = set().union(*arms.values())
        for key, counts in arms.items():
            n = counts.total()
            for outcome in (one for one in order if one in came):
                interval = wilson(counts[outcome], n)
                found.append({**dict(zip(by, key, strict=True)), "outcome": outcome, "count": counts[outcome], "drawn": n,
                              "share": interval.estimate, "ci_low": interval.low, "ci_high": interval.high})  # fmt: skip
    return pd.DataFrame(found)


def _plain(column: pd.Series) -> list[Any]:
    """Numbers and texts, None where there is none."""
    return [None if value != value else value for value in column.tolist()]


def _order(context: Context, rows: pd.DataFrame) -> list[str]:
    """Outcomes as they are listed: those that are followed, then the commonest."""
    counts = rows["outcome"].astype(str).value_counts()
    followed = [reference for reference, _ in references(context).values()]
    return list(dict.fromkeys([*(one for one in followed if one in counts.index), *counts.index]))


def _by_boundary(context: Context, rows: pd.DataFrame) -> Grid:
    counts = counted(rows, ["prompt_id", "arm"], _order(context, rows))
    numbers = [int(BOUNDARY.fullmatch(str(arm))[1]) for arm in counts["arm"]]  # type: ignore[index]  # chosen by it
    counts = counts.assign(boundary=numbers).sort_values("boundary", kind="stable")
    problem = next((p for p in context.summary.get("problems", ()) if p["prompt_id"] == context.prompt_id), context.summary)
    cut_off = " ".join(f"{share:.2f}" for share in problem.get("truncated") or ())
    return Grid(
        "outcomes-by-boundary", "Answers, by how many steps were kept", "branches", counts,
        where={"prompt_id": context.prompt_id, "arm": list(dict.fromkeys(map(str, counts["arm"])))},
        derived=(*COUNTED, "boundary"), counted=("prompt_id", "arm", "outcome"), measures=(SHARE,),
        rows=Axis("outcome", "answer", None, outcome_labels(context)), columns=Axis("boundary", "steps kept", "step"),
        note="95 %, Wilson." + (f" Cut off, by boundary: {cut_off}." if cut_off else ""),
    )  # fmt: skip


def _arms(context: Context, branches: pd.DataFrame) -> Iterator[Panel]:
    """Both arms of a rewind beside one another, sample by sample; all other continuations by themselves."""
    both = branches["arm"].astype(str).isin(ARMS)
    where = {"prompt_id": context.prompt_id}
    if both.any():
        own = branches[both]
        yield Listing(
            "arms", "Both arms", "branches", own, where={**where, "arm": list(ARMS)}, follows=several_steps(own),
            columns=_columns(own, only=("sample", "outcome")), text="text", beside="arm", note=_edit(context),
        )  # fmt: skip
    rest = branches[~both]
    if len(rest):
        arms = list(dict.fromkeys(map(str, rest["arm"])))
        title = "Other continuations" if both.any() else "Continuations"
        yield Listing(
            "branches", title, "branches", rest, where={**where, "arm": arms} if both.any() else where, columns=_columns(rest),
            text="text",
        )  # fmt: skip


def _columns(rows: pd.DataFrame, *, only: Sequence[str] = ()) -> tuple[ShownColumn, ...]:
    """Those in which something stands; beside one another there is room for a few."""
    words = {"arm": "arm", "step": "step", "sample": "sample", "outcome": "answer", "answer": "as written", "rule": "read by",
             "confidence": "confidence", "stop_reason": "ended by", "n_tokens": "tokens", "edit": "edit"}  # fmt: skip
    found = [ShownColumn("branch", "branch", cursor="branch")]
    for name, title in words.items():
        if (not only or name in only) and (rows[name].notna() & (rows[name].astype(str) != "")).any():
            found.append(ShownColumn(name, title, cursor="step" if name == "step" else None))
    if not only and rows["logprob"].notna().any():
        found.append(ShownColumn("logprob", "log-prob (nats)", 3))
    return (*found, ShownColumn("text", "text"))


def _edit(context: Context) -> str:
    """What was put in the place of what, and how far it is from the model's own words."""
    about = context.summary
    if "old" not in about:
        return "Arms of one sample share their noise."
    new = f", edited: {about['new']!r}" if about["new"] else ""
    far = about.get("off_policy")
    words = (
        ""
        if not far or far["z"] is None
        else f" Off-policy z {far['z']:+.2f} (nats a token, in deviations of the model's own)."
    )
    return f"{sentence(str(about['edit']))} Was: {about['old']!r}{new}. Arms of one sample share their noise.{words}"


def _tree(context: Context, branches: pd.DataFrame) -> Iterator[Panel]:
    found, trouble = context.tables.once("tree", lambda: _whole_tree(context))
    own = None if found is None else _of_problem(found, context.prompt_id)
    if own is None:
        return
    held = len(branches) > 0
    rows = branches[list(TREE)] if held else context.rows("prompts")
    left = f" Runs beside this one are left out: {sentence(trouble)}" if trouble else ""
    yield OutcomeTree(
        "tree", "Where continuations fork", "branches" if held else "prompts", rows, where={"prompt_id": context.prompt_id},
        root=_node(own, mine=held),
        note=f"With the runs that went back into this one. A number: the continuations from there on.{left}",
    )  # fmt: skip


def _whole_tree(context: Context) -> tuple[dict[str, Any] | None, str]:
    """The tree of all prompts, and why there are no other runs in it; None where nothing forks."""
    from probe.trees import Family, node_of

    run, trouble = context.run, ""
    try:
        family = Family.of(run.path.resolve().parent if run.path else None)
        return node_of(run, family), ""
    except RunError as error:  # of a run beside this one: its damage is no reason to show nothing of this one
        trouble = error.message
    return node_of(run, Family.of(None)), trouble


def _of_problem(node: dict[str, Any], prompt_id: int) -> dict[str, Any] | None:
    """Of the tree of a run the part that is of one problem."""
    parts = [node, *node["children"]]
    return next((part for part in parts if part.get("prompt_id") == prompt_id), None)


def _node(node: dict[str, Any], *, mine: bool, root: bool = True) -> dict[str, Any]:
    """As a picture has it. mine: its branches are of this run, so that a click can choose them."""
    mine = mine and (root or "prompt_id" not in node)  # below the root, a node of a problem begins another run
    edit = f" ({node['edit']})" if node["edit"] else ""
    place = f" at token {node['position']}" if node["position"] else ""
    children = [*_classes(node["branches"], mine=mine), *(_node(child, mine=mine, root=False) for child in node["children"])]
    if node["branches"]:
        counts, n = Counter(node["outcomes"]), node["n"]
    else:  # of a text, or a step: all that was drawn from it
        counts = sum((Counter(child["outcomes"]) for child in children), Counter(node["outcomes"]))
        n = node["n"] + sum(child["n"] for child in children)
    return {"label": f"{node['name']}{edit}{place}", "n": n, "outcomes": dict(counts.most_common()), "children": children}


def _classes(branches: Sequence[dict[str, Any]], *, mine: bool) -> list[dict[str, Any]]:
    """Branches under the answer that they come to; one that is alone with it stands by itself."""
    by: dict[str, list[dict[str, Any]]] = {}
    for branch in branches:
        by.setdefault(branch["outcome"], []).append(_leaf(branch, mine=mine))
    found = []
    for outcome, own in sorted(by.items(), key=lambda item: -len(item[1])):
        several = {"label": outcome, "n": len(own), "outcomes": {outcome: len(own)}, "children": own}
        found.append(several if len(own) > 1 else own[0])
    return found


def _leaf(branch: dict[str, Any], *, mine: bool) -> dict[str, Any]:
    below = [_node(child, mine=False) for child in branch["children"]]
    label = f"{branch['outcome']}, sample {branch['sample']}"
    found = {"label": label, "n": 1, "outcomes": {branch["outcome"]: 1}, "children": below}
    return {**found, "branch": branch["branch"]} if mine else found


def _labels(context: Context) -> Iterator[Panel]:
    rows = context.rows("labels")
    if len(rows):
        columns = (ShownColumn("branch", "branch", cursor="branch"), ShownColumn("outcome", "answer"),
                   ShownColumn("source", "said by"), ShownColumn("more", "more"))  # fmt: skip
        yield Listing(
            "labels", "What others say continuations come to", "labels", rows, where={"prompt_id": context.prompt_id},
            columns=columns, text="more",
        )  # fmt: skip


def _rounds(context: Context) -> Iterator[Panel]:
    rows = context.rows("rounds")
    if len(rows):
        names = [f"{row.arm}" if row.step != row.step else f"step {int(row.step)}: {row.arm}" for row in rows.itertuples()]
        yield Lines(
            "rounds", "What was drawn, round by round", "rounds", rows.assign(of=names), where={"prompt_id": context.prompt_id},
            derived=("of",), axis=Axis("round", "round"), series="of",
            measures=(Measure("samples", "continuations after the round", low=0.0),),
        )  # fmt: skip
