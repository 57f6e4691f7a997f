"""Which frames of a page fit into its size, and what is rounded or left out where they do not: said in words. Draws nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from probe.reporting.packing import PackedFrame, packed, raw_bytes
from probe.reporting.views import Axis, Measure, Panel, Patterns, ShownColumn, TokenStrip
from probe.sites.positions import listed

if TYPE_CHECKING:
    import pandas as pd

MEGABYTE = 1_000_000
SMALL = MEGABYTE  # bytes of a frame's values; up to it all are exact where they fit
SHADES = 255  # steps of an attention weight, whose picture has no more colours, and of numbers that no picture shows
DIGITS = 4095  # steps of those that a picture also says in words: about three digits
_Field = TypeVar("_Field", Axis, Measure, ShownColumn)
_TAG = len('<script type="application/octet-stream" id="frame-000"></script>\n')


@dataclass(frozen=True, eq=False)
class Placed:
    """A panel on the page. size: bytes of what the page says of it, without its rows."""

    run: str
    prompt: int
    sequence: int  # index among those of the page
    panel: Panel
    size: int


@dataclass(eq=False)
class _Shown:
    """A frame and the panels that show it, as it is going to stand on the page."""

    places: list[Placed]
    packed: PackedFrame | None = None
    heads: pd.DataFrame | None = None  # of patterns: layer and head of each, least needed last
    kept: int = 0  # of them
    whole: int = 0  # about its size with all heads, rounded or not as it is

    @property
    def panel(self) -> Panel:
        return self.places[0].panel

    @property
    def sequence(self) -> int:
        return self.places[0].sequence

    @property
    def size(self) -> int:
        if self.packed is None:
            return 0
        said = len(json.dumps(self.packed.description)) + sum(place.size for place in self.places)
        return said + _TAG + 4 * math.ceil(len(self.packed.stream) / 3)

    def pack(self, *, rounded: bool) -> None:
        panel = self.panel
        frame = panel.frame
        if self.heads is not None and self.kept < len(self.heads):
            keys = list(self.heads.columns)
            wanted = self.heads.iloc[: self.kept].set_index(keys).index
            frame = frame[frame[keys].set_index(keys).index.isin(wanted)]
        self.packed = packed(frame, self._rounding([str(name) for name in frame.columns]) if rounded else None)

    def _rounding(self, names: Sequence[str]) -> dict[str, int]:
        """Steps of each column: none where it says at what place a row stands, fewer where no picture has its values."""
        if isinstance(self.panel, Patterns):
            return dict.fromkeys(set(names) - set(self.panel.follows.values()), SHADES)
        places = {column for place in self.places for column in place.panel.follows.values()}
        places |= {axis.column for axis in self._fields(Axis)}
        measured = {column for measure in self._fields(Measure) for column in (measure.column, *(measure.band or ()))}
        listed = {column.name for column in self._fields(ShownColumn)}
        return {name: DIGITS if name in measured | listed else SHADES for name in names if name not in places}

    def _fields(self, kind: type[_Field]) -> list[_Field]:
        """Fields of that type of all panels that show the frame."""
        values = [getattr(place.panel, one.name) for place in self.places for one in fields(place.panel)]
        items = [item for value in values for item in (value if isinstance(value, tuple) else (value,))]
        return [item for item in items if isinstance(item, kind)]

    def by_heads(self, share: float = 1.0) -> None:
        """Patterns in 255 steps, of a share of the heads."""
        assert isinstance(self.panel, Patterns)
        self.heads = _heads(self.panel)
        n = 0 if self.heads is None else len(self.heads)
        self.kept = max(1, min(n, int(n * share)))
        self.pack(rounded=True)


@dataclass(frozen=True)
class Fitted:
    """What stands on the page.

    frames: those there are, in order. index: panel's place -> its frame. notes: what to add to a panel's note.
    """

    frames: list[PackedFrame]
    index: dict[Placed, int]
    notes: dict[Placed, str]
    left_out: tuple[str, ...]


def fitted(places: Sequence[Placed], *, max_mb: float, beside: int) -> Fitted:
    """The frames of all panels, so that the page has at most `max_mb` megabytes, `beside` bytes of them for other things.

    The texts are exact, and so is every frame up to a megabyte; in larger ones numbers are rounded to 4,095 steps from
    least to largest, attention weights and what no picture shows to 255. Where that is too much, in this order until it
    fits: all numbers are rounded so, largest frames first; attention patterns lose heads (those that look most at the first
    token); panels go, patterns first, then the largest, of the last prompts first; prompts go, last ones first. The text of
    the first stays.
    """
    budget = int(max_mb * MEGABYTE) - beside
    shown = _frames(places)
    for one in shown:
        _begin(one, budget)
    _round(shown, budget)
    for one in shown:
        one.whole = _unreduced(one)
    whole = sum(one.whole for one in shown)
    if whole > budget:
        _fewer_heads(shown, budget)
        _remove(shown, budget)
    standing = [one for one in shown if one.packed is not None]
    return Fitted(
        [one.packed for one in standing if one.packed is not None],
        {place: i for i, one in enumerate(standing) for place in one.places},
        {place: note for one in standing if (note := _note(one)) for place in one.places},
        tuple(_left_out(shown, math.ceil(1.05 * (whole + beside) / MEGABYTE))),
    )


def _frames(places: Sequence[Placed]) -> list[_Shown]:
    """Each frame once, however many panels show it."""
    found: dict[int, _Shown] = {}
    for place in places:
        found.setdefault(id(place.panel.frame), _Shown([])).places.append(place)
    return list(found.values())


def _begin(one: _Shown, budget: int) -> None:
    """All rows, exact where they are few; of large patterns as many heads as could fit, were a weight an eighth of a byte."""
    size = raw_bytes(one.panel.frame)
    if size <= SMALL or isinstance(one.panel, TokenStrip):
        one.pack(rounded=False)
    elif isinstance(one.panel, Patterns):
        one.by_heads(8 * budget / (size / 4))
    else:
        one.pack(rounded=True)


def _heads(panel: Panel) -> pd.DataFrame | None:
    """Layer and head of each pattern, those first that look least at position 0; None where the panel follows no head."""
    keys = [panel.follows[at] for at in ("layer", "head") if at in panel.follows]
    if not keys:
        return None
    frame = panel.frame
    if "weights" not in frame.columns:
        return frame[keys].drop_duplicates()
    keyed = frame["keys"] if "keys" in frame.columns else [None] * len(frame)
    first = [_on_first(k, w) for k, w in zip(keyed, frame["weights"], strict=True)]
    means = frame[keys].assign(first=first).groupby(keys, sort=False)["first"].mean()
    return means.sort_values(kind="stable").index.to_frame(index=False)


def _on_first(keys: Any, weights: Any) -> float:
    if weights is None or not len(weights):
        return 0.0
    if keys is None:
        return float(weights[0])
    return float(np.sum(np.asarray(weights)[np.asarray(keys) == 0]))


def _unreduced(one: _Shown) -> int:
    """Its size with all heads."""
    return one.size if one.heads is None else int(one.size * len(one.heads) / one.kept)


def _round(shown: Sequence[_Shown], budget: int) -> None:
    """Numbers in steps, of the largest frames first, until all fits."""
    total = sum(_unreduced(one) for one in shown)
    for one in sorted(shown, key=lambda one: -one.size):
        if total <= budget:
            return
        if one.packed is not None and not one.packed.steps and raw_bytes(one.panel.frame) > SMALL // 10:
            before = one.size
            if isinstance(one.panel, Patterns):
                one.by_heads()
            else:
                one.pack(rounded=True)
            total -= before - one.size


def _fewer_heads(shown: Sequence[_Shown], budget: int) -> None:
    """Patterns in what the others leave, each its share; none of it where that is not even room for one head."""
    patterns = [one for one in shown if one.heads is not None]
    room = budget - sum(one.size for one in shown if one.heads is None)
    whole = sum(one.whole for one in patterns)
    for one in patterns:
        share = max(0.0, room * one.whole / whole)
        while one.size > share:
            one.kept = max(0, min(one.kept - 1, int(0.97 * one.kept * share / one.size)))
            if one.kept:
                one.pack(rounded=True)
            else:
                one.packed = None


def _remove(shown: Sequence[_Shown], budget: int) -> None:
    """Panels, then the texts of prompts; that of the first stays."""
    total = sum(one.size for one in shown)
    for one in _least_needed(shown):
        if total <= budget:
            return
        total -= one.size
        one.packed = None


def _least_needed(shown: Sequence[_Shown]) -> Iterator[_Shown]:
    others = [one for one in shown if one.packed is not None and not isinstance(one.panel, TokenStrip)]
    yield from sorted(others, key=lambda o: (not isinstance(o.panel, Patterns), -o.size.bit_length(), -o.sequence))
    texts = [one for one in shown if isinstance(one.panel, TokenStrip)]
    yield from sorted(texts, key=lambda one: -one.sequence)[:-1]


def _note(one: _Shown) -> str:
    assert one.packed is not None
    said = []
    if one.heads is not None and one.kept < len(one.heads):
        said.append(f"Shown are {one.kept} of {len(one.heads)} heads, those that look least at the first token.")
    if one.packed.steps:
        steps = ", ".join(f"{name} to steps of {step:.2g}" for name, step in one.packed.steps.items())
        said.append(f"Rounded: {steps}; the table has them exactly.")
    return " ".join(said)


def _left_out(shown: Sequence[_Shown], max_mb: int) -> Iterator[str]:
    """What is not on the page, about how large it is, and what brings it."""
    fewer = [one for one in shown if one.heads is not None and one.kept < len(one.heads)]
    if fewer:
        gone = sum(len(one.heads) - one.kept for one in fewer if one.heads is not None)
        n = sum(len(one.heads) for one in fewer if one.heads is not None)
        missing = _mb(sum(one.whole - one.size for one in fewer))
        yield f"patterns of {gone:,} of {n:,} heads ({missing}): --heads 5.3,7.all for some, --max-mb {max_mb} for all"
    groups: dict[tuple[str, str], list[_Shown]] = {}
    texts = [one for one in shown if one.packed is None and isinstance(one.panel, TokenStrip)]
    without = {one.sequence for one in texts}
    for one in shown:
        if one.packed is None and one not in fewer and one.sequence not in without:
            groups.setdefault((one.places[0].run, one.panel.title), []).append(one)
    for (run, title), some in groups.items():
        yield f"{title} of {_prompts(run, some, shown)} ({_mb(sum(o.whole for o in some))}): --max-mb {max_mb}{_fewer(shown)}"
    for run in dict.fromkeys(one.places[0].run for one in texts):
        some = [one for one in texts if one.places[0].run == run]
        size = sum(one.whole for one in shown if one.sequence in {text.sequence for text in some})
        yield f"{_prompts(run, some, shown)} ({_mb(size)}): --max-mb {max_mb}{_fewer(shown)}"


def _fewer(shown: Sequence[_Shown]) -> str:
    several = len({place.sequence for one in shown for place in one.places}) > 1
    return ", or --prompt K for one prompt" if several else ""


def _prompts(run: str, some: Sequence[_Shown], shown: Sequence[_Shown]) -> str:
    prompts = sorted({place.prompt for one in some for place in one.places})
    which = f"prompt{'s' if len(prompts) > 1 else ''} {listed(prompts)}"
    return which if len({place.run for one in shown for place in one.places}) == 1 else f"{which} of {run}"


def _mb(size: float) -> str:
    return f"about {size / MEGABYTE:.1f} MB" if size >= MEGABYTE / 10 else f"about {max(1, round(size / 1000))} kB"
