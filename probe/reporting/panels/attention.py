"""Attention: a card of each head, patterns in full or cut, and what is known of each of their rows."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from probe.errors import BadOption
from probe.reporting.panels.context import Context, Head, noted
from probe.reporting.views import Axis, Grid, Lines, Measure, Panel, Patterns

WEIGHTS, ROWS = 20_000_000, 400_000  # of patterns in one view: 160 MB at most where weights have keys beside them

LAYERS, HEADS = Axis("layer", "layer", "layer"), Axis("head", "head", "head")
QUERIES = Axis("query", "position that looks", "token")
KEYS = {"run_id", "prompt_id", "branch", "layer", "head", "query", "max_key"}
STATISTICS = {
    measure.column: measure
    for measure in (
        Measure("entropy", "entropy of a row", "nats", low=0.0),
        Measure("perplexity", "effective number of keys, exp(entropy)", "keys", low=1.0),
        Measure("ess", "effective number of keys, 1 / sum of squares", "keys", low=1.0),
        Measure("sink", "weight on the first position", low=0.0, high=1.0),
        Measure("prev", "weight on the position before", low=0.0, high=1.0),
        Measure("duplicate", "weight on earlier places of the same token", low=0.0, high=1.0),
        Measure("induction", "weight on what followed earlier places of the same token", low=0.0, high=1.0),
        Measure("distance", "mean distance looked back", "tokens", low=0.0),
        Measure("max_weight", "largest weight", low=0.0, high=1.0),
        Measure("rows", "query positions averaged", "rows", low=0.0),
    )
}
SHARES = ("sink", "prev", "duplicate", "induction", "max_weight")


def attended(context: Context) -> Iterator[Panel]:
    """Cards, then patterns, then statistics of single rows: whatever of them the run has."""
    if len(cards := context.sequence_rows("heads")):
        yield Grid(
            "heads", "Heads", "heads", cards, where=context.where(),
            rows=LAYERS, columns=HEADS, measures=_statistics(cards), upwards=True,
            note="Means over the positions that look, but the first.",
        )  # fmt: skip
    yield from _patterns(context)
    yield from _rows(context)


def _statistics(frame: pd.DataFrame) -> tuple[Measure, ...]:
    """Every statistic that has a value somewhere; one that is not known here under its own name."""
    numbers = {n for n in frame if n not in KEYS and pd.api.types.is_numeric_dtype(frame[n]) and frame[n].notna().any()}
    others = [name for name in frame if name in numbers and name not in STATISTICS]
    known = [measure for name, measure in STATISTICS.items() if name in numbers]
    return (*known, *(Measure(name, name) for name in others))


def _patterns(context: Context) -> Iterator[Panel]:
    keys = context.sequence_rows("attention", columns=["layer", "head", "query", "kept_mass"])
    if not len(keys):
        return
    there = list(keys.groupby(["layer", "head"]).groups)
    chosen = _chosen(context, there)
    frame = _rows_of(context, chosen)
    where = context.where(layer=sorted({layer for layer, _ in chosen}), head=sorted({head for _, head in chosen}))
    fits = len(chosen) == len(there)
    why = "" if context.heads else ", those that look least at the first position,"
    some = "" if fits else f"{len(chosen)} of the {len(there)} heads that were recorded{why} stand here; --heads names others."
    yield Patterns(
        "patterns", "Attention pattern", "attention", frame,
        where=context.where() if fits else where, follows={"layer": "layer", "head": "head"},
        note=noted("A row is a position that looks, its weights are on what it looks at.", _kept(frame), some),
    )  # fmt: skip


def _rows_of(context: Context, chosen: list[tuple[int, int]]) -> pd.DataFrame:
    """The patterns of these heads, a layer at a time: no more of them is read than that."""
    heads: dict[int, list[int]] = {}
    for layer, head in chosen:
        heads.setdefault(layer, []).append(head)
    parts = [context.sequence_rows("attention", layer=layer, head=own) for layer, own in heads.items()]
    return pd.concat(parts, ignore_index=True)


def _kept(frame: pd.DataFrame) -> str:
    """How much of the rows there is."""
    kept = frame["kept_mass"].astype(float)
    if frame["keys"].isna().all():
        return "The weights of each row are all there."
    most = int(frame["keys"].map(lambda keys: 0 if keys is None else len(keys)).max())
    return (
        f"The {most} largest weights of each row were kept: {kept.mean():.0%} of its mass on average, {kept.min():.0%} in the "
        "worst row; a cell that is blank has less than each of those."
    )


def _chosen(context: Context, there: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The heads whose patterns are shown: those asked for, else as many as one view holds."""
    if context.heads is not None:
        found = [(layer, head) for layer, head in there if _meant(layer, head, context.heads)]
        for layer, head in context.heads:
            if not any(_meant(*one, ((layer, head),)) for one in there):
                first, last = there[0], there[-1]
                raise BadOption(
                    f"the run holds no attention pattern of {layer}.{'all' if head is None else head}",
                    hint=f"it has {len(there)}, from {first[0]}.{first[1]} to {last[0]}.{last[1]}",
                )
        return found
    one = context.sequence_rows("attention", columns=["weights"], layer=there[0][0], head=there[0][1])
    weights = sum(map(len, one["weights"]))
    room = max(1, min(WEIGHTS // max(weights, 1), ROWS // len(one)))
    if room >= len(there):
        return there
    cards = context.sequence_rows("heads", columns=["layer", "head", "sink"])
    if not len(cards):
        return there[:room]
    order = cards.sort_values(["sink", "layer", "head"], kind="stable")
    wanted = [one for one in zip(order["layer"], order["head"], strict=True) if one in set(there)]
    return sorted((int(layer), int(head)) for layer, head in wanted[:room])


def _meant(layer: int, head: int, asked: tuple[Head, ...]) -> bool:
    return (layer, head) in asked or (layer, None) in asked


def _rows(context: Context) -> Iterator[Panel]:
    """One row of a pattern is one number: every head of a layer at every position, and one head by itself."""
    frame = context.sequence_rows("attention_rows")
    if not len(frame):
        return
    yield Grid(
        "attention-rows", "Heads of a layer, position by position", "attention_rows", frame,
        where=context.where(), follows={"layer": "layer"},
        rows=HEADS, columns=QUERIES, measures=_statistics(frame), upwards=True,
        note="What is known of each row of each pattern, of one layer.",
    )  # fmt: skip
    yield Lines(
        "attention-shares", "Where a head looks, position by position", "attention_rows", frame,
        where=context.where(), follows={"layer": "layer", "head": "head"},
        axis=QUERIES, measures=tuple(STATISTICS[name] for name in SHARES),
        note="Shares of a row's weight, of one head. Duplicate and induction can be the same weight.",
    )  # fmt: skip
