"""What all files of pictures share: sizes in inches, letters that there are, titles, notes, scales. Knows no kind of them."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from probe.errors import BadOption
from probe.reporting import colours
from probe.reporting.scales import ColourScale, named, numbers
from probe.reporting.views import Axis, Measure, Panel

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE = 7.0  # inches of a picture that has nothing to say how wide it is: the text of a paper
WIDEST, HIGHEST = 16.0, 300.0
DPI = 200
SIZE, SMALL = 8.0, 7.0  # points
MONO, SANS = ["DejaVu Sans Mono"], ["DejaVu Sans"]  # matplotlib brings these
EM = 0.602 / 72  # inches that a letter of the fixed font is wide, a point of its size
INK, FAINT = "#1a1a1a", "#5f5f5f"
HATCHES = ("", "////", "....", "xxxx")  # of classes beyond those that have a colour of their own
SHOWN = {" ": "·", "\n": "↵", "\t": "⇥"}  # as on the page
_NO_TEXT = ("Last Resort", "cm", "STIXNon", "STIXSize")  # boxes, and fonts of TeX with other letters in the places of letters


@dataclass(frozen=True)
class Content:
    """What is drawn of a panel: its rows, and what they stand in. tokens: the text of each position of the sequence."""

    frame: pd.DataFrame
    tokens: Mapping[int, str]
    measure: int = 0
    where: str = ""  # which of its rows, in words


def need_matplotlib() -> None:
    """Raises `BadOption` where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        hint = "pip install 'mechprobe[plot]'; the page (-o page.html) needs none"
        raise BadOption("pictures as files need the matplotlib package", hint=hint) from error


@contextmanager
def style() -> Iterator[None]:
    """The same drawing whatever the reader's own matplotlib settings are, which come back afterwards."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["svg.fonttype"] = "path"  # the same letters wherever it is opened
        matplotlib.rcParams["svg.hashsalt"] = "probe"  # the same names in it, and so the same bytes, each time
        matplotlib.rcParams["axes.unicode_minus"] = False
        yield


def sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one pair of axes of so many inches; what stands around them is added when it is written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    thin(axes)
    return figure, axes


def thin(axes: Axes) -> None:
    """Frame and ticks in thin lines."""
    axes.tick_params(labelsize=SMALL, color=FAINT, labelcolor=INK, width=0.6, length=2.5)
    for spine in axes.spines.values():
        spine.set(linewidth=0.6, color=FAINT)


def finish(figure: Figure, lowest: Axes, panel: Panel, content: Content, *, more: str = "", top: Axes | None = None) -> None:
    """The title over the highest axes, and under the lowest what a reader must know."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    title = f"{panel.title}, {content.where}" if content.where else panel.title
    width, height = figure.get_size_inches()
    letters = max(60, int(max(width, 4.0) / (0.5 * SIZE / 72)))
    text = "\n".join(textwrap.wrap(written(title), letters))
    highest = top or lowest
    lift = 14 if highest.get_title(loc="left") else 5
    highest.annotate(
        text, (0, 1), (0, lift), xycoords="axes fraction", textcoords="offset points", va="bottom", fontsize=SIZE + 1,
        family=fonts(text, SANS), color=INK, parse_math=False, annotation_clip=False,
    )  # fmt: skip
    note = " ".join(one for one in (panel.note, more) if one)
    if note:
        renderer = FigureCanvasAgg(figure).get_renderer()
        box = lowest.get_tightbbox(renderer)  # with the labels under the axes
        below = 0.0 if box is None else box.y0 / figure.dpi / height
        text = "\n".join(textwrap.wrap(written(note), letters))
        figure.text(0, min(0.0, below) - 0.08 / height, text, va="top", fontsize=SMALL, family=fonts(text, SANS), color=FAINT,
                    parse_math=False)  # fmt: skip


def positions_of(frame: pd.DataFrame, span: tuple[str, str]) -> tuple[float, float] | None:
    """From the first position to one past the last; None without any."""
    start, end = (numbers(frame[name]) for name in span)
    there = np.isfinite(start) & np.isfinite(end)
    return (float(start[there].min()), float(end[there].max())) if there.any() else None


def add_scale(figure: Figure, scale: ColourScale, measure: Measure) -> None:
    """Beside the axes: a bar with the colours between the ends, or each class with its own."""
    width, height = figure.get_size_inches()
    title = named(measure)
    if scale.scaling == "classes":
        add_classes(figure, scale.classes, title)
        return
    long = min(max(height, 0.9), 2.2)
    bar = figure.add_axes((1 + 0.12 / width, 1 - long / height, 0.11 / width, long / height))
    places = np.linspace(0.0, 1.0, 257)
    low, high = np.log1p(max(scale.low, 0.0)) if scale.scaling == "log" else scale.low, scale.high
    high = np.log1p(max(high, 0.0)) if scale.scaling == "log" else high
    values = low + (high - low) * places
    shown = scale.colours(np.expm1(values) if scale.scaling == "log" else values)
    bar.imshow(shown[:, None], origin="lower", aspect="auto", extent=(0, 1, 0, 1))
    bar.set_xticks([])
    marks = _marks(scale)
    bar.yaxis.tick_right()
    bar.set_yticks([place for place, _ in marks], [text for _, text in marks], fontsize=SMALL, parse_math=False)
    thin(bar)
    title = "\n".join(textwrap.wrap(title, max(16, int(long / (0.55 * SMALL / 72)))))
    bar.set_ylabel(title, fontsize=SMALL, family=fonts(title, SANS), color=INK, parse_math=False)
    bar.yaxis.set_label_position("right")


def add_classes(figure: Figure, classes: Sequence[str], title: str) -> None:
    """A legend beside the axes, of classes with their colours."""
    from matplotlib.patches import Rectangle

    width, _ = figure.get_size_inches()
    names = ["\n".join(textwrap.wrap(shortened(one, 120), 32)) or "–" for one in classes]
    squares = [Rectangle((0, 0), 1, 1, linewidth=0, edgecolor="white", **class_fill(i)) for i in range(len(names))]
    legend = figure.legend(squares, names, title=written(title), loc="upper left", bbox_to_anchor=(1 + 0.06 / width, 1),
                           fontsize=SMALL, title_fontsize=SMALL, frameon=False, borderaxespad=0, alignment="left",
                           handlelength=1.0, handleheight=1.0)  # fmt: skip
    for text in (*legend.get_texts(), legend.get_title()):
        text.set(family=fonts(text.get_text(), SANS), parse_math=False, color=INK)


def _marks(scale: ColourScale) -> list[tuple[float, str]]:
    """Places on a scale, 0 to 1, and what stands there: its ends and round numbers between them."""
    from matplotlib.ticker import MaxNLocator

    if scale.high <= scale.low:
        return [(0.5 if scale.scaling == "diverging" else 0.0, f"{scale.low:.4g}")]
    if scale.scaling == "log":
        tens = [0.0] + [10.0**k for k in range(10)]
        at = sorted({scale.low, *(one for one in tens if scale.low < one < 0.6 * scale.high), scale.high})
    else:
        at = [one for one in MaxNLocator(5).tick_values(scale.low, scale.high) if scale.low <= one <= scale.high]
    places = scale.places(at).tolist()
    return [(place, f"{one:,.6g}" if abs(one) < 1e6 else f"{one:.3g}") for one, place in zip(at, places, strict=True)]


def class_colour(i: int) -> str:
    """The colour of class i; there are as many as a reader can tell apart, and then they come again."""
    return colours.CLASSES[i % len(colours.CLASSES)]


def class_fill(i: int) -> dict[str, Any]:
    """How an area of class i is filled: where its colour comes again with a pattern."""
    return {"facecolor": class_colour(i), "hatch": HATCHES[i // len(colours.CLASSES) % len(HATCHES)]}


def hexes(rgba: np.ndarray) -> list[str]:
    """uint8 (n, 4) -> `#rrggbbaa`."""
    return ["#" + bytes(row).hex() for row in rgba]


def labels_of(axis: Axis, values: Sequence[Any], tokens: Mapping[int, str], *, numbered: bool) -> list[str]:
    """What stands beside each value of an axis; of a position its token, with its number where not every one has a label."""
    found = []
    for value in values:
        text = None if axis.labels is None else axis.labels.get(value)
        if text is None and axis.labels is None and axis.cursor == "token" and value in tokens:
            text = shortened(tokens[value], 16)
            text = f"{value} {text}" if numbered else text
        found.append(shortened(str(_plain(value)) if text is None else text, 48))
    return found


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def shortened(text: str, letters: int) -> str:
    """`written`, and no longer than so many letters."""
    text = written(text)
    return text if len(text) <= letters else text[: letters - 1] + "…"


def written(text: str) -> str:
    """Text as a picture can show it: spaces at an end and controls as signs, what no font here has and what would turn a line
    round by its number."""
    body = text.strip(" ")
    lead, trail = len(text) - len(text.lstrip(" ")), len(text) - len(text.rstrip(" "))
    text = " " * len(text) if not body else text
    parts = ["·" * len(text)] if not body else ["·" * lead, "".join(_letter(c) for c in body), "·" * trail]
    found = "".join(parts)
    return "◌" + found if found and unicodedata.combining(found[0]) else found


def _letter(c: str) -> str:
    if c in SHOWN:
        return c if c == " " else SHOWN[c]
    if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") or not _font_of(c):
        return f"⟨U+{ord(c):04X}⟩"
    return c


def fonts(text: str, first: Sequence[str]) -> list[str]:
    """Families that together have every letter of a text, the usual one first."""
    own = _letters(first[0])
    return list(dict.fromkeys([*first, *(family for c in text if ord(c) not in own and (family := _font_of(c)))]))


@cache
def _font_of(c: str) -> str:
    """A family of this machine that has a letter; empty if none has. Those that matplotlib brings are asked first."""
    return next((family for family in _families() if ord(c) in _letters(family)), "")


@cache
def _families() -> dict[str, str]:
    """Families with upright letters of usual weight -> their files."""
    from matplotlib import font_manager

    found = {
        entry.name: entry.fname
        for entry in sorted(font_manager.fontManager.ttflist, key=lambda entry: entry.name)
        if entry.style == "normal" and entry.weight in (400, "normal", "regular") and not entry.name.startswith(_NO_TEXT)
    }
    return {name: found[name] for name in dict.fromkeys([*MONO, *SANS, *found])}


@cache
def _letters(family: str) -> frozenset[int]:
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(_families()[family]).get_charmap())
