"""Tokens that the model did not expect, and places where it did not know how to go on."""

from __future__ import annotations

import numpy as np
import pandas as pd

from probe.looking.findings import Finding
from probe.looking.subject import Subject

DEVIATIONS = 3.0  # of the surprisal, by the model's own distribution
RATIO = 2.0  # times the median entropy
FEWEST = 8  # tokens of a text whose median says something
TOLD = 3


def surprises(subject: Subject, tokens: pd.DataFrame) -> list[Finding]:
    """Tokens whose surprisal is above what the model itself expected there (the entropy) by three of the surprisal's own
    standard deviations (the root of the varentropy). tokens: the table of that name."""
    known = tokens[tokens["surprisal"].notna() & (tokens["pos"] <= subject.position)]
    beyond = known["entropy"] + DEVIATIONS * np.sqrt(known["varentropy"])
    told = known[known["surprisal"] > beyond].sort_values("surprisal", ascending=False).head(TOLD)
    return [
        Finding(
            "surprise", f"{subject.label(row.pos)} at {row.pos} was not expected: probability {row.prob:.2g}, rank {row.rank}",
            row.surprisal, "nats", row.entropy, "the surprisal that the model expected there: its entropy",
            subject.command("lens", "--position", str(row.pos - 1)), pos=row.pos, token=subject.label(row.pos),
        )
        for row in told.itertuples()
    ]  # fmt: skip


def uncertain(subject: Subject, tokens: pd.DataFrame) -> list[Finding]:
    """The places before which the model knew least what would come: entropy at least twice the text's median."""
    known = tokens[tokens["entropy"].notna() & (tokens["pos"] <= subject.position)]
    if len(known) < FEWEST:
        return []
    middle = float(known["entropy"].median())
    told = known[known["entropy"] >= RATIO * middle].sort_values("entropy", ascending=False).head(TOLD)
    return [
        Finding(
            "uncertain", f"before {subject.label(row.pos)} at {row.pos} many tokens could have come: "
            f"{np.exp(row.entropy):.0f} equally probable ones would be as uncertain",
            row.entropy, "nats", middle, "the median entropy of the text",
            subject.command("lens", "--position", str(row.pos - 1)), pos=row.pos, token=subject.label(row.pos),
        )
        for row in told.itertuples()
    ]  # fmt: skip
