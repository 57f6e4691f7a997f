"""Kinds of attention heads, each with the number that makes a head one. Knows no model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from probe.errors import BadOption

SHORTEST = 32  # tokens of a text from which on its means say what kind a head is
MIXED = "mixed"  # none of the kinds


class HeadKind(NamedTuple):
    """A kind: the statistic that decides, at least or at most which value of it, and what that is in words.

    of_uniform: the value is a share of what attention to all keys alike has.
    """

    statistic: str
    threshold: float
    side: Literal["at least", "at most"]
    doc: str
    of_uniform: bool = False


KINDS: dict[str, HeadKind] = {
    "induction": HeadKind("induction", 0.4, "at least", "weight on what followed the query's token earlier"),
    "duplicate": HeadKind("duplicate", 0.4, "at least", "weight on earlier places of the query's token"),
    "previous-token": HeadKind("prev", 0.4, "at least", "weight on the position before"),
    "sink": HeadKind("sink", 0.5, "at least", "weight on the first position"),
    "local": HeadKind("distance", 4.0, "at most", "mean distance looked back, in tokens"),
    "broad": HeadKind("perplexity", 0.5, "at least", "effective keys, as a share of those of uniform attention", True),
}
"""In the order in which they are tried: the most special first."""

SORTS = ("induction", "duplicate", "prev", "sink", "entropy", "perplexity", "ess", "distance", "layer")


def kind_of(means: dict[str, float], uniform: float, thresholds: dict[str, float]) -> str:
    """The first kind that a head's mean statistics make it; `mixed` if none. uniform: effective keys of uniform attention."""
    for name, kind in KINDS.items():
        value = means[kind.statistic] / (uniform if kind.of_uniform else 1.0)
        if value >= thresholds[name] if kind.side == "at least" else value <= thresholds[name]:
            return name
    return MIXED


def kinds_help() -> str:
    """The thresholds in a sentence."""
    return "; ".join(f"{name}: {kind.doc} {kind.side} {kind.threshold:g}" for name, kind in KINDS.items()) + "."


def parse_thresholds(texts: Iterable[str]) -> dict[str, float]:
    """`KIND=NUMBER` -> thresholds. Raises `BadOption`."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in KINDS or not equals:
            raise BadOption(f"'{text}' is no threshold", hint=f"KIND=NUMBER, of the kinds {', '.join(KINDS)}")
        try:
            found[name] = float(value)
        except ValueError:
            raise BadOption(f"'{value}' is no number", hint=f"as in {name}={KINDS[name].threshold:g}") from None
    return found
