"""What a terminal can show: its width and colours, labels of a width, the bar of a scale. Knows no kind of picture."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import typer
from rich.cells import cell_len, set_cell_size
from rich.color import Color
from rich.style import Style
from rich.text import Span, Text

from probe.reporting.scales import ColourScale, ink_on, linear, named
from probe.reporting.views import Axis, Measure, SequenceView, TokenStrip

from ..printing import console, in_a_line, printable
from ..terminal import visible

if TYPE_CHECKING:
    from rich.console import Console

UPPER, LOWER = "▀", "▄"
BAR = 24  # cells of the bar of a scale
BESIDE = " / "
LABEL = 28  # cells of a label at most


@dataclass(frozen=True)
class Screen:
    """Where pictures go. width: cells of a line; None in a pipe, where lines are as long as they must be.

    coloured: it has enough colours for a scale (256 or all of them). Without them a map is its numbers.
    """

    width: int | None
    coloured: bool
    _console: Console | None = field(default=None, repr=False)

    def line(self, text: Text | str = "") -> None:
        """Print one line, which is not broken."""
        if self._console is None:
            typer.echo(printable(str(text)).rstrip())
        else:
            shown = Text(text) if isinstance(text, str) else text
            if self._console.color_system == "256":
                shown.spans = [
                    Span(a, b, _of_few(style) if isinstance(style, Style) else style) for a, b, style in shown.spans
                ]  # fmt: skip
            self._console.print(shown, soft_wrap=True)

    def words(self, text: str) -> None:
        """Print a sentence; on a terminal its lines end between words."""
        if self._console is None:
            self.line(text)
        elif text:
            self._console.print(Text(text))


def screen() -> Screen:
    """The terminal or the pipe that standard output is."""
    if not sys.stdout.isatty():
        return Screen(None, False)
    shown = console()
    coloured = shown.color_system in ("256", "truecolor") and not shown.no_color
    return Screen(max(shown.width, 20), coloured, shown)


@lru_cache(4096)
def paint(upper: tuple[int, ...] | None, lower: tuple[int, ...] | None = None) -> Style:
    """Colours (red, green, blue, …) of letters and of what is behind them; None leaves the terminal's own."""
    return Style(
        color=Color.from_rgb(*upper[:3]) if upper else None, bgcolor=Color.from_rgb(*lower[:3]) if lower else None
    )  # fmt: skip


@lru_cache(4096)
def _of_few(style: Style) -> Style:
    """The same in the nearest of the terminal's 256 colours; rich's own choice has other hues: a tan is pink."""
    near = [
        None if one is None or one.triplet is None else Color.from_ansi(nearest(one.triplet))
        for one in (style.color, style.bgcolor)
    ]
    return Style(color=near[0], bgcolor=near[1], bold=style.bold)


def nearest(colour: Sequence[int]) -> int:
    """The number from 16 to 255 of the colour that looks nearest: of a cube of 6 steps a side, and of 24 greys."""
    return 16 + int(((_oklab(colour) - _FEW) ** 2).sum(axis=-1).argmin())


def _oklab(colour: Any) -> np.ndarray:
    """Red, green, blue (0 to 255) in a space in which equal distances look equal (Ottosson 2020, OKLab)."""
    return np.cbrt(linear(colour) @ _CONES) @ _OPPOSED


_CONES = np.array(
    [[0.41222147, 0.2119035, 0.08830246], [0.53633254, 0.68069955, 0.28171884], [0.05144599, 0.10739696, 0.6299787]]
)
_OPPOSED = np.array(
    [[0.21045426, 1.9779985, 0.02590404], [0.79361778, -2.42859221, 0.78277177], [-0.00407205, 0.45059371, -0.80867577]]
)
_CUBE = (0, 95, 135, 175, 215, 255)
_FEW = _oklab([*product(_CUBE, repeat=3), *((8 + 10 * i,) * 3 for i in range(24))])


def behind(colour: np.ndarray, *, bold: bool = False) -> Style:
    """Letters on a colour (uint8 red, green, blue, opacity): black or white ones, whichever is read more easily."""
    if colour[3] < 255:
        return Style(bold=bold or None)
    ink = (255, 255, 255) if ink_on(colour.astype(float)) == "#ffffff" else (0, 0, 0)
    return paint(ink, tuple(map(int, colour))) + Style(bold=bold or None)


def wide(text: str) -> int:
    """Cells of a terminal that a text takes: two for a wide character, none for a combining mark."""
    return len(text) if text.isascii() else cell_len(text)


def fitted(text: str, cells: int, *, right: bool = False) -> str:
    """Exactly so many cells: filled with spaces, or cut, which … says."""
    if wide(text) > cells:
        text = set_cell_size(text, cells - 1) + "…" if cells > 0 else ""
    space = " " * (cells - wide(text))
    return space + text if right else text + space


def figure(value: float) -> str:
    """A number in three digits that count."""
    if value != value:
        return ""
    text = f"{value:.3g}"
    return f"{value:.0f}" if "e" in text and abs(value) < 1e7 and abs(value) >= 1 else text


def tokens_of(view: SequenceView) -> dict[int, str]:
    """The text of each position, of half a character its bytes."""
    strip = next((panel for panel in view.panels if isinstance(panel, TokenStrip)), None)
    return {} if strip is None else dict(zip(strip.frame["pos"].tolist(), pieces(strip), strict=True))


def pieces(strip: TokenStrip) -> list[str]:
    """What stands for each row of a strip."""
    texts = strip.frame["token"].fillna("").astype(str).tolist()
    if strip.shown is None:
        return texts
    return [one if isinstance(one, str) else text for one, text in zip(strip.frame[strip.shown], texts, strict=True)]


def labels_of(axis: Axis, values: Sequence[Any], tokens: Mapping[int, str]) -> list[str]:
    """What stands beside each value of an axis, in one line: of a position its number and its token."""
    found = []
    for value in values:
        plain = int(value) if isinstance(value, (float, np.number)) and float(value).is_integer() else value
        text = (tokens if axis.labels is None and axis.cursor == "token" else axis.labels or {}).get(value)
        if text is None:
            found.append(in_a_line(str(plain)))
        elif axis.cursor == "token" and isinstance(plain, int) and plain >= 0:
            both = text.split(BESIDE) if text.strip() != BESIDE.strip() else [text]  # tokens of two texts
            found.append(f"{plain} {in_a_line(BESIDE.join(map(visible, both)))}")
        else:
            found.append(in_a_line(text))
    return found


def show_scale(out: Screen, measure: Measure, scale: ColourScale) -> None:
    """The name of a measure and what its colours mean."""
    line = Text(f"{named(measure)}  ")
    if scale.scaling == "classes":
        for name, colour in zip(scale.classes, scale.colours(np.array(scale.classes, object)), strict=True):
            line.append("██", paint(tuple(map(int, colour)))).append(f" {in_a_line(name)}  ")
        out.line(line)
        return
    places = np.linspace(scale.low, scale.high, BAR)
    if scale.scaling == "log":
        places = np.expm1(np.linspace(np.log1p(max(scale.low, 0.0)), np.log1p(max(scale.high, 0.0)), BAR))
    line.append(f"{figure(scale.low)} ")
    for colour in scale.colours(places):
        line.append("█", paint(tuple(map(int, colour))))
    line.append(f" {figure(scale.high)}")
    out.line(line)
