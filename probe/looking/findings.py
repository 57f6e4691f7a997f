"""What a finding is, and in which order findings are told. Computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

KINDS = ("cause", "part", "writer", "settled", "surprise", "uncertain", "massive", "sink")
"""First what changes the answer when it is taken out, then what wrote it and where, then the text, then the stream."""


@dataclass(frozen=True)
class Finding:
    """A fact: `value` in `unit`, where `control_of` has `control`; where it is, and the command that shows more of it."""

    kind: str
    finding: str
    value: float
    unit: str
    control: float
    control_of: str
    command: str
    place: str = ""
    layer: int = -1
    head: int = -1
    pos: int = -1
    token: str = ""


def ranked(findings: Sequence[Finding]) -> list[Finding]:
    """By kind, in the order of `KINDS`; within a kind the greatest value first."""
    return sorted(findings, key=lambda one: (KINDS.index(one.kind), -abs(one.value)))


def rows(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Rows of the table `findings`, but for the prompt."""
    return [{"rank": rank, **asdict(one)} for rank, one in enumerate(findings)]
