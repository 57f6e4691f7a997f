"""Each panel of a run as a file: which pictures there are of it, and what their files are called."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from probe import durable
from probe.errors import BadOption
from probe.reporting.plots import charts, maps, paper, texts
from probe.reporting.plots.paper import Content
from probe.reporting.views import Panel, SequenceView, TokenStrip

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Form = Literal["png", "svg"]
MOST = 24  # pictures of one panel that shows another one at each place of the cursor
SIDE, AREA = 2**16 - 64, 6e7  # pixels that Agg draws of a side, and of a picture that fits into anyone's memory

# kind of panel -> what draws it
_DRAWN: dict[str, Callable[[Any, Content], Figure]] = {
    "bars": charts.bars,
    "grid": maps.grid,
    "lines": charts.lines,
    "listing": texts.listing,
    "patterns": maps.patterns,
    "tokens": texts.tokens,
    "tree": texts.tree,
}


class PlotFiles(NamedTuple):
    """The files that were written, and what was not, in words."""

    paths: list[Path]
    left_out: list[str]


def write_plots(
    views: Sequence[SequenceView], folder: Path, form: Form, *, measures: Sequence[str] = (), prefix: str = ""
) -> PlotFiles:
    """Write every panel: `NAME.png`; with several prompts `prompt3-NAME.png`, but for what is about all of them; of a panel
    that follows the cursor a file for each place where it can be (`patterns-layer5-head3.png`), of many only the first.

    measures: columns to draw in place of the first one that a panel has, wherever it has them; `all`: every one. Raises
    `BadOption` without matplotlib and for a measure that no panel has, `StorageFull` where nothing can be written.
    """
    paper.need_matplotlib()
    _check_measures(views, measures)
    with durable.stated(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths, left_out = [], []
    shared = Counter((panel.name, id(panel.frame)) for view in views for panel in view.panels)
    drawn: set[tuple[str, int]] = set()
    with paper.style():
        for view in views:
            tokens = tokens_of(view)
            for panel in view.panels:
                key = panel.name, id(panel.frame)
                plain = getattr(panel, "measures", None) == ()  # a text without a number: there is nothing to colour
                if key in drawn or plain or (not len(panel.frame) and panel.kind != "tree"):
                    continue
                drawn.add(key)
                begin = prefix + (f"prompt{view.prompt_id}-" if len(views) > 1 and shared[key] == 1 else "")
                named, rest = _pictures(panel)
                left_out += [f"{begin}{panel.name}: {rest}"] if rest else []
                for name, where, frame in named:
                    for measure, suffix in _chosen(panel, measures):
                        content = Content(frame, tokens, measure, where)
                        path = folder / f"{_file_name(begin + panel.name + name + suffix)}.{form}"
                        _save(_DRAWN[panel.kind](panel, content), path, form)
                        paths.append(path)
    return PlotFiles(paths, left_out)


def figure_of(panel: Panel, *, tokens: Mapping[int, str] | None = None, measure: str | None = None) -> Figure:
    """A panel as a matplotlib `Figure`, with all its rows, to change and to save with `bbox_inches="tight"`.

    tokens: texts of positions. measure: a column of the panel's measures.
    """
    paper.need_matplotlib()
    number = 0
    if measure is not None:
        number = next((i for i, one in enumerate(getattr(panel, "measures", ())) if one.column == measure), -1)
        if number < 0:
            raise BadOption(f"'{panel.name}' has no measure '{measure}'", hint=_known([panel]))
    with paper.style():
        return _DRAWN[panel.kind](panel, Content(panel.frame, tokens or {}, number))


def tokens_of(view: SequenceView) -> dict[int, str]:
    """The text of each position of a sequence, as its strip has them."""
    strip = next((panel for panel in view.panels if isinstance(panel, TokenStrip)), None)
    return {} if strip is None else dict(zip(strip.frame["pos"].tolist(), strip.frame["token"].tolist(), strict=True))


def _pictures(panel: Panel) -> tuple[list[tuple[str, str, Any]], str]:
    """(end of the name, which rows in words, rows) of each picture of a panel, and what of it is not drawn."""
    columns = list(dict.fromkeys(panel.follows.values()))
    if not columns:
        return [("", "", panel.frame)], ""
    groups = panel.frame.groupby(columns, sort=True, observed=True)
    kept = groups.ngroups if groups.ngroups <= MOST else 1
    found = []
    for key, frame in islice(groups, kept):
        places = list(zip(columns, key, strict=True))
        found.append(("".join(f"-{name}{value}" for name, value in places), ", ".join(f"{n} {v}" for n, v in places), frame))
    if groups.ngroups == kept:
        return found, ""
    hint = "; --heads chooses others" if "head" in columns else ""
    return found, f"1 of {groups.ngroups:,} is drawn, of {found[0][1]}{hint}"


def _chosen(panel: Panel, measures: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Which of its measures are drawn, and what that adds to the name."""
    offered = [one.column for one in getattr(panel, "measures", ())]
    if panel.kind == "lines" and not getattr(panel, "series", None):  # each is a curve of the one picture
        offered = []
    wanted = [i for i, one in enumerate(offered) if one in measures or "all" in measures]
    yield from ((i, f"-{offered[i]}" if i else "") for i in wanted or [0])


def _check_measures(views: Sequence[SequenceView], measures: Sequence[str]) -> None:
    panels = [panel for view in views for panel in view.panels]
    there = {one.column for panel in panels for one in getattr(panel, "measures", ())}
    for one in measures:
        if one != "all" and one not in there:
            raise BadOption(f"no picture of this run has a measure '{one}'", hint=_known(panels))


def _known(panels: Sequence[Panel]) -> str:
    names = sorted({one.column for panel in panels for one in getattr(panel, "measures", ())})
    return f"there are: {', '.join(names) or 'none'}"


def _file_name(name: str) -> str:
    return name.replace("->", "-to-").replace(">", "-to-")


def _save(figure: Figure, path: Path, form: Form) -> None:
    """Whole or not at all; a picture that is too long for its format in fewer dots an inch. No dates: the same bytes again."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg

    box = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())
    box = box.padded(0.06)
    dots = min(figure.dpi, SIDE / max(box.width, box.height), (AREA / (box.width * box.height)) ** 0.5)
    data = io.BytesIO()
    metadata = {"Date": None} if form == "svg" else {"Software": None}
    figure.savefig(data, format=form, dpi=dots, bbox_inches=box, facecolor="white", metadata=metadata)
    durable.write_bytes(path, data.getvalue())
