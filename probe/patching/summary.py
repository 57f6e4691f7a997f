"""The totals of a sweep: what was asked, both ends of the scale, the strongest cells. JSON-able."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from probe.patching.metrics import METRICS, defined
from probe.patching.pairs import Pair
from probe.patching.preparing import Plan
from probe.stats import pearson, spearman
from probe.store import Writer

if TYPE_CHECKING:
    import pandas as pd

    from probe.language_model import LanguageModel

STRONGEST = 10
SHOWN = 8  # differing tokens of a pair


def summarize(writer: Writer, lm: LanguageModel, plan: Plan) -> dict[str, Any]:
    """Of the tables that were written."""
    pairs, metric, direction, source = plan.pairs, plan.metric, plan.direction, plan.source
    frame = writer.read("patches").to_pandas()
    several = len(pairs) > 1
    cells = writer.read("patch_means").to_pandas() if several else frame
    order = cells["effect"].abs().sort_values(ascending=False, kind="stable").index[:STRONGEST]
    strongest = [_cell(row) for row in cells.loc[order].to_dict("records") if abs(row["effect"]) > 0]
    ends = frame.groupby("pair")[["clean", "corrupt", "floor"]].first()
    small = ends[(ends["clean"] - ends["corrupt"]).abs() < ends["floor"]]
    return {
        "pairs": len(pairs), "metric": metric, "unit": METRICS[metric], "direction": direction, "from": source,
        "cells": len(frame), "passed": int(frame["passed"].sum()),
        "clean": float(ends["clean"].mean()), "corrupt": float(ends["corrupt"].mean()),
        "floor": _plain(ends["floor"].mean()), "small": [int(i) for i in small.index],
        "undefined": [int(i) for i, row in ends.iterrows() if not defined(row["clean"], row["corrupt"])],
        "answer": pairs[0].answers[0], "against": pairs[0].answers[1], "tokens": len(pairs[0].base(direction)),
        "differing": _differing(lm, pairs[0]), "strongest": strongest, "method": plan.method, "ig": plan.ig, "path": plan.path,
        "agreement": _agreement(frame) if plan.sample else None,
        "measured": None if plan.rewound is None else {
            "measure_at": plan.rewound.measure_at, "pos": plan.rewound.position,
            "total_variation": plan.rewound.variation, "outcome": plan.rewound.outcome,
        },
    }  # fmt: skip


def _agreement(frame: pd.DataFrame) -> dict[str, Any]:
    """How foretold effects go with those of the cells that were run too; None where either does not vary."""
    tried = frame[frame["exact"].notna() & frame["effect"].notna()]
    span = tried["clean"] - tried["corrupt"]
    moved = ((tried["exact"] - tried["patched"]) / span).abs()
    foretold, exact = (tried[name].to_numpy() / span.to_numpy() for name in ("patched", "exact"))
    rho, r = spearman(foretold, exact), pearson(foretold, exact)
    return {"n": len(tried), "spearman": _plain(rho), "pearson": _plain(r), "largest_error": _plain(moved.max())}


def _cell(row: dict[str, Any]) -> dict[str, Any]:
    names = (
        "site",
        "layer",
        "head",
        "pos",
        "step",
        "receiver",
        "token",
        "effect",
        "ci_low",
        "ci_high",
        "change",
        "patched",
        "n",
    )
    return {name: _plain(row[name]) for name in names if name in row}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def _differing(lm: LanguageModel, pair: Pair) -> list[dict[str, Any]]:
    """The first aligned places whose tokens differ."""
    clean, corrupt = (lm.labels(ids) for ids in (pair.clean, pair.corrupt))
    return [{"pos": a, "corrupt_pos": b, "clean": clean[a], "corrupt": corrupt[b]} for a, b in pair.differing[:SHOWN]]
