"""What axes and colours of a picture mean, for everything that is drawn in Python. Draws nothing itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from probe.reporting import colours
from probe.reporting.views import Measure, Scaling

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ColourScale:
    """Where values of a measure stand between the ends of its scale, and in which colour."""

    scaling: Scaling
    low: float  # ends, in the unit of the values; of classes 0 and their number
    high: float
    classes: tuple[str, ...] = ()

    def places(self, values: Any) -> np.ndarray:
        """Values -> float64 of the same shape, 0 at the low end and 1 at the high one; of classes their number. NaN: no value.
        What lies beyond an end is at it; where both ends are one value, it is at the low end (of a diverging scale in the
        middle)."""
        if self.scaling == "classes":
            number = {name: float(i) for i, name in enumerate(self.classes)}
            found = [number.get(str(one), np.nan) for one in np.asarray(values, object).ravel()]
            return np.asarray(found, np.float64).reshape(np.shape(values))
        low, high = self._bent(np.array([self.low, self.high]))
        bent = self._bent(numbers(values))
        if high > low:
            return np.clip((bent - low) / (high - low), 0.0, 1.0)
        return np.where(np.isnan(bent), np.nan, 0.5 if self.scaling == "diverging" else 0.0)

    def colours(self, values: Any) -> np.ndarray:
        """Values -> uint8 (..., 4): red, green, blue, opacity; between two steps of a scale the mean, weighted, of both."""
        places = self.places(values)
        steps = rgb(colours.CLASSES if self.scaling == "classes" else _STEPS[self.scaling])
        missing = np.isnan(places)
        at = np.where(missing, 0.0, places)
        if self.scaling == "classes":
            colour = steps[at.astype(int) % len(steps)]
        else:
            at = at * (len(steps) - 1)
            below = np.minimum(at.astype(int), len(steps) - 2)
            share = (at - below)[..., None]
            colour = steps[below] * (1 - share) + steps[below + 1] * share
        out = np.concatenate([colour, np.full((*places.shape, 1), 255.0)], axis=-1)
        out[missing] = _MISSING
        return np.rint(out).astype(np.uint8)

    def _bent(self, values: np.ndarray) -> np.ndarray:
        return np.log1p(np.maximum(values, 0.0)) if self.scaling == "log" else values


def scale_of(measure: Measure, values: pd.Series) -> ColourScale:
    """The scale of a measure over all values of a picture. Infinite ones do not stretch it: they are drawn at its ends."""
    if measure.scaling == "classes":
        classes = tuple(map(str, distinct(values)))
        return ColourScale("classes", 0.0, float(len(classes)), classes)
    there = numbers(values)
    there = there[np.isfinite(there)]
    low, high = (float(there.min()), float(there.max())) if there.size else (0.0, 1.0)
    if measure.scaling == "diverging":
        ends = [abs(end) for end in (measure.low, measure.high) if end is not None]
        most = max(ends) if ends else max(abs(low), abs(high))
        return ColourScale("diverging", -most, most)
    return ColourScale(
        measure.scaling, low if measure.low is None else measure.low, high if measure.high is None else measure.high
    )  # fmt: skip


def numbers(values: Any) -> np.ndarray:
    """float64 of the same shape; NaN where there is none."""
    import pandas as pd

    flat = pd.Series(np.asarray(values, object).ravel())
    return np.asarray(pd.to_numeric(flat, errors="coerce"), np.float64).reshape(np.shape(values))


def rgb(hexes: tuple[str, ...]) -> np.ndarray:
    """`#rrggbb` -> float64 (n, 3), 0 to 255."""
    return np.array([[int(one[i : i + 2], 16) for i in (1, 3, 5)] for one in hexes], np.float64)


def linear(rgb: Any) -> np.ndarray:
    """Red, green, blue of sRGB, 0 to 255 -> how much light each is, 0 to 1."""
    channel = np.asarray(rgb, np.float64) / 255.0
    return np.where(channel <= 0.04045, channel / 12.92, ((channel + 0.055) / 1.055) ** 2.4)


def ink_on(rgba: np.ndarray) -> str:
    """Black or white: what is easier to read on a colour (relative luminance as in WCAG 2)."""
    light = float(linear(rgba[:3]) @ np.array([0.2126, 0.7152, 0.0722]))
    return "#ffffff" if 1.05 / (light + 0.05) > (light + 0.05) / 0.05 and rgba[3] > 127 else "#000000"


def named(measure: Measure) -> str:
    """The title of a measure with its unit."""
    return f"{measure.title} ({measure.unit})" if measure.unit and measure.unit not in measure.title else measure.title


def distinct(column: pd.Series) -> list[Any]:
    """Values of an axis: numbers ascending, texts in the order in which they come."""
    from pandas.api.types import is_numeric_dtype

    found = column.dropna().unique().tolist()
    return sorted(found) if is_numeric_dtype(column) else found


def index_in(values: Sequence[Any], column: pd.Series) -> np.ndarray:
    """Where each value of a column stands on its axis."""
    place = {value: i for i, value in enumerate(values)}
    return np.array([place[one] for one in column.tolist()], int)


_STEPS = {"sequential": colours.SEQUENTIAL, "log": colours.SEQUENTIAL, "diverging": colours.DIVERGING}
_MISSING = np.array([int(colours.MISSING[i : i + 2], 16) for i in (1, 3, 5, 7)], np.float64)
