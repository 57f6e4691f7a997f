"""What a draft proposed and the target made of it."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from probe.reporting.panels.comparing import finite_high
from probe.reporting.panels.context import Context
from probe.reporting.views import Axis, Grid, Listing, Measure, Panel, ShownColumn

VERDICT = Measure("verdict", "verdict on the draft", scaling="classes")
DECIDED = "Where the verdict is rejected, the target's own token stands in place of the draft's."
NOTE = (
    "Accepted: the draft's token stands. Rejected: the target's own stands in its place. Bonus: the target's own after a block "
    "that was accepted whole. Discarded: after a rejection or the end, never tested."
)


def verdicts(context: Context) -> tuple[pd.DataFrame, tuple[Measure, ...]]:
    """By position: what became of the proposal there, and how likely it was to be accepted; of none where none was made.

    Of each position one proposal decided: an accepted one, a rejected one whose correction stands there, or a bonus.
    """
    frame = context.rows("proposals")
    if not len(frame):
        return pd.DataFrame(), ()
    decided = frame[frame["verdict"].isin(["accepted", "rejected", "bonus"])].set_index("pos")
    found = decided[["verdict", "accept_prob", "p", "q", "tv"]].rename(
        columns={"p": "p_target", "q": "q_draft", "tv": "tv_draft"}
    )
    found["verdict"] = found["verdict"].astype(str)
    return found, (
        VERDICT,
        Measure("accept_prob", "chance of acceptance", low=0.0, high=1.0),
        Measure("p_target", "the target's probability of the proposal", low=0.0, high=1.0),
        Measure("q_draft", "the draft's probability of it", low=0.0, high=1.0),
        Measure("tv_draft", "total variation of target and draft", low=0.0, high=1.0),
    )  # fmt: skip


def speculated(context: Context) -> Iterator[Panel]:
    """Blocks as they were drafted, pass by pass, and each proposal by itself."""
    frame = context.rows("proposals")
    if not len(frame):
        return
    where = {"prompt_id": context.prompt_id}
    measures = (
        Measure("verdict", "verdict", scaling="classes"),
        Measure("accept_prob", "chance of acceptance, min(1, p / q)", low=0.0, high=1.0),
        Measure("tv", "total variation of target and draft", low=0.0, high=1.0),
        Measure("kl", "KL(target || draft)", "nats", low=0.0, high=finite_high(frame["kl"])),
        Measure("p", "the target's probability", low=0.0, high=1.0), Measure("q", "the draft's", low=0.0, high=1.0),
        Measure("entropy", "the target's entropy", "nats", low=0.0), Measure("draft_entropy", "the draft's", "nats", low=0.0),
    )  # fmt: skip
    yield Grid(
        "verdicts", "What was drafted, pass by pass", "proposals", frame, where=where,
        rows=Axis("index", "place in the block"), columns=Axis("round", "pass of the target"), text="token", note=NOTE,
        measures=tuple(one for one in measures if frame[one.column].notna().any()),
    )  # fmt: skip
    yield Listing(
        "proposals", "Proposals, one by one", "proposals", frame, where=where, note=NOTE,
        columns=(
            ShownColumn("round", "pass"), ShownColumn("index", "place"), ShownColumn("pos", "position", cursor="token"),
            ShownColumn("token", "token"), ShownColumn("kind", "kind"), ShownColumn("verdict", "verdict"),
            ShownColumn("p", "target's p", 4), ShownColumn("q", "draft's q", 4),
            ShownColumn("accept_prob", "min(1, p / q)", 4), ShownColumn("uniform", "accepted if at most that", 4),
            ShownColumn("correction", "in its place"), ShownColumn("tv", "total variation", 3),
        ),
    )  # fmt: skip
