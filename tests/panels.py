"""Panels made by hand: one of each kind, with texts that are hard to draw."""

from __future__ import annotations

import numpy as np
import pandas as pd

from probe.reporting.views import (
    Axis,
    Bars,
    Grid,
    Lines,
    Listing,
    Measure,
    OutcomeTree,
    Panel,
    Patterns,
    SequenceView,
    ShownColumn,
    TokenStrip,
)

TOKENS = ["The", " capital", " of", " France", " is", " Paris", ".\n", "</script>", " $x^2$", "\x1b[31m", "中文",
          "שלום", "\u202eabc", "e\u0301", "\u0301", "\ufffd", "  ", "\t", "🙂", " it", "\n\n"]  # fmt: skip
N = len(TOKENS)
LOGPROB = Measure("logprob", "log-prob", "nats", high=0.0)
LAYER = Axis("layer", "layer", cursor="layer")
POS = Axis("pos", "position", cursor="token")


def strip() -> TokenStrip:
    """A text with log-probs, ranks, and a class a token."""
    rank = np.arange(N) ** 3
    frame = pd.DataFrame({
        "pos": range(N), "token": TOKENS, "segment": ["prompt"] * 5 + ["completion"] * (N - 5),
        "step": [None] * 5 + [0] * 4 + [1] * (N - 9), "logprob": [np.nan, *(-np.linspace(0, 9, N - 1))], "rank": rank,
        "verdict": [None] * 5 + ["accepted", "rejected"] * ((N - 5) // 2),
    })  # fmt: skip
    measures = (LOGPROB, Measure("rank", "rank", scaling="log"), Measure("verdict", "verdict", scaling="classes"))
    return TokenStrip("tokens", "Text", "tokens", frame, measures=measures)


def grid(rows: int = 6, columns: int = N) -> Grid:
    """A lens: layers up, positions across, one cell without a row and one without a value."""
    at = [(i, j) for i in range(rows) for j in range(columns) if (i, j) != (2, 3)]
    values = [np.nan if (i, j) == (1, 1) else (i - rows / 2) * (j + 1) for i, j in at]
    frame = pd.DataFrame({"layer": [i for i, _ in at], "pos": [j for _, j in at], "effect": values,
                          "guess": [TOKENS[(i + j) % N] for i, j in at]})  # fmt: skip
    measures = (Measure("effect", "effect", scaling="diverging"), Measure("pos", "position"))
    return Grid("lens", "Lens", "lens", frame, rows=LAYER, columns=POS, measures=measures, text="guess", upwards=True,
                note="0 is corrupt, 1 is clean.")  # fmt: skip


def patterns() -> Patterns:
    """Two heads: one with every key, one with the two largest weights."""
    rows = []
    for query in range(N):
        full = np.arange(1, query + 2, dtype=np.float32) / np.sum(np.arange(1, query + 2))
        rows.append((0, 0, query, None, full, 1.0))
        keys = np.arange(max(0, query - 1), query + 1, dtype=np.int32)
        rows.append((0, 1, query, keys, full[keys], float(full[keys].sum())))
    frame = pd.DataFrame(rows, columns=["layer", "head", "query", "keys", "weights", "kept_mass"])
    return Patterns("patterns", "Attention", "attention", frame, follows={"layer": "layer", "head": "head"})


def bars() -> Bars:
    """Importance of three steps by two methods, under their tokens, one without an interval."""
    frame = pd.DataFrame({
        "step": [0, 1, 2] * 2, "method": ["resampling"] * 3 + ["rescore"] * 3, "start": [5, 9, 12] * 2, "end": [9, 12, N] * 2,
        "estimate": [0.3, -0.1, 0.5, 2.0, 4.0, 3.0], "low": [0.2, -0.2, 0.4, 1.5, np.nan, 2.5],
        "high": [0.4, 0.0, 0.6, 2.5, np.nan, 3.5],
    })  # fmt: skip
    measure = Measure("estimate", "importance", scaling="diverging", band=("low", "high"))
    labels = {0: "step0", 1: "step1", 2: "step2"}
    return Bars("importance", "Importance", "importance", frame, axis=Axis("step", "step", "step", labels), measure=measure,
                facet="method", span=("start", "end"))  # fmt: skip


def outcomes() -> Bars:
    """Outcome distributions of two arms."""
    frame = pd.DataFrame({
        "outcome": ["18", "20", "no answer"] * 2, "arm": ["control"] * 3 + ["edited"] * 3,
        "share": [0.7, 0.2, 0.1, 0.3, 0.6, 0.1],
        "low": [0.5, 0.1, 0.0, 0.2, 0.4, 0.0], "high": [0.8, 0.4, 0.2, 0.5, 0.8, 0.2],
    })  # fmt: skip
    return Bars("outcomes", "Outcomes", "branches", frame, axis=Axis("outcome", "outcome"), series="arm",
                measure=Measure("share", "share", low=0.0, high=1.0, band=("low", "high")))  # fmt: skip


def lines() -> Lines:
    """A strength scan with its control band."""
    x = np.linspace(-4, 4, 9)
    frame = pd.DataFrame({"strength": np.tile(x, 2), "effect": np.concatenate([np.tanh(x), 0.1 * x]),
                          "direction": ["v"] * 9 + ["random"] * 9})  # fmt: skip
    frame["low"], frame["high"] = frame["effect"] - 0.2, frame["effect"] + 0.2
    return Lines("scan", "Strength scan", "effects", frame, axis=Axis("strength", "strength"), series="direction",
                 measures=(Measure("effect", "logit difference", "nats", band=("low", "high")),))  # fmt: skip


def tree() -> OutcomeTree:
    """A prompt with two arms, each with its outcomes."""
    found = {"control": {"18": 6, "20": 2}, "edited $1 <b>": {"20": 7, "no answer": 1}}
    arms = [{"label": name, "n": 8, "outcomes": of, "children": [], "branch": i} for i, (name, of) in enumerate(found.items())]
    root = {"label": "prompt", "n": 16, "outcomes": {"18": 6, "20": 9, "no answer": 1}, "children": arms}
    return OutcomeTree("tree", "Branches", "branches", pd.DataFrame({"branch": [0, 1]}), root=root)


def listing() -> Listing:
    """Branches of two arms with their texts."""
    frame = pd.DataFrame({"branch": [0, 1, 2], "arm": ["control", "control", "edited"], "logprob": [-1.25, np.nan, -3.0],
                          "text": ["It is 18.", "$\x1b[2J" * 30, "中文 שלום"]})  # fmt: skip
    columns = (ShownColumn("branch", "branch", cursor="branch"), ShownColumn("logprob", "log-prob", digits=2))
    return Listing("branches", "Continuations", "branches", frame, columns=columns, text="text", beside="arm")


def every_kind() -> list[Panel]:
    """One panel or more of each kind."""
    return [strip(), grid(), patterns(), bars(), outcomes(), lines(), tree(), listing()]


def view() -> SequenceView:
    """All of them as one sequence."""
    return SequenceView(0, "The capital", tuple(every_kind()))
