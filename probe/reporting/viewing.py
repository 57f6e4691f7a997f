"""`probe view`: which runs stand on one page, its writing, the page of a run that grows, and pictures as files."""

from __future__ import annotations

import html
import time
import webbrowser
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from probe import durable
from probe.addresses import is_url
from probe.errors import BadOption, ProbeError, RunError
from probe.reporting.differences import same_tokens, with_differences
from probe.reporting.page import Page, PageRun, page_html
from probe.reporting.panels import sequence_views
from probe.reporting.plots import write_plots
from probe.reporting.plots.paper import need_matplotlib
from probe.reporting.views import SequenceView
from probe.requests import ViewRuns, public
from probe.store import Run, list_runs, open_run
from probe.store.catalog import is_run
from probe.store.growing import gone, open_growing
from probe.store.layout import PARTIAL, locked, partial

PROMPTS = 100  # of a run with more, so many are drawn unless others are asked for
ANCESTORS = 8
LOOK, RELOAD = 1.0, 5  # seconds: how often a growing run is looked at, and how often its page loads itself
MISSES = 10  # looks one after another that found no run where one was
AT_THE_END = ("patches", "patch_means", "steering", "steering_means")  # their unit and floor stand in the summary
SILENT = 150.0  # seconds without anything new after which it is asked whether anyone still writes
MARK = b'<script type="application/json" id="page">'
NOTEBOOK_MB, NOTEBOOK_PROMPTS, NOTEBOOK_PATTERNS = 4.0, 20, 20_000_000


class Viewed(NamedTuple):
    """What was written. left_out: what of the runs is not on the page or among the files, and what brings it, in words."""

    page: Path | None
    files: tuple[Path, ...]
    left_out: tuple[str, ...]


def run_view(request: ViewRuns) -> Viewed:
    """Write one HTML file that shows all that a run holds, and opens without a network: `RUN.html` beside it, or `out`.

    The run that it was made of, if it can be found, can be looked at on the same page. With a second run both stand side by
    side; where their token ids are the same, text and heat maps have the differences, B - A, too. With `png` or `svg` each
    panel is a file, and a page is written only if `out` names one. An unfinished run is shown with `watch` only.

    Raises `RunError` for what is no run, `BadOption` for prompts or heads that the run does not have and for a file that is
    there and is no page, `StorageFull` where nothing can be written.
    """
    if request.png is not None or request.svg is not None:
        need_matplotlib()
    if request.watch:
        return _watch(request)
    runs = [open_run(run) for run in (request.run, request.run_b) if run is not None]
    views, told = _views(request, runs)
    left_out = list(told)
    files: list[Path] = []
    for folder, form in ((request.png, "png"), (request.svg, "svg")):
        if folder is not None:
            _outside(Path(folder), runs)
            for prefix, shown in zip(("a-", "b-") if len(runs) > 1 else ("",), views, strict=True):
                written = write_plots(shown, Path(folder), form, measures=request.measures, prefix=prefix)  # type: ignore[arg-type]
                files += written.paths
                left_out += [one for one in written.left_out if one not in left_out]
    page = None
    if request.out is not None or not files:
        page = _page_path(request, runs)
        made = _page(request, runs, views, left_out=told)
        durable.write_bytes(page, made.html.encode())
        left_out += [one for one in made.left_out if one not in left_out]
        _show(request, page)
    return Viewed(page, tuple(files), tuple(left_out))


view = public(run_view, ViewRuns)


def _views(request: ViewRuns, runs: Sequence[Run]) -> tuple[list[list[SequenceView]], list[str]]:
    """The pictures of each run, with differences where there are two; and what of the runs has none."""
    found, left_out = [], []
    for run in runs:
        wanted, told = _prompts(request, run)
        _check_heads(request, run)
        found.append(sequence_views(run, prompts=wanted, heads=request.wanted_heads))
        left_out += [one for one in told if one not in left_out]
    if len(found) == 2:
        a, b = found
        partners = {one.prompt_id: one for one in a}
        if not any(one.prompt_id in partners and same_tokens(partners[one.prompt_id], one) for one in b):
            left_out.append("differences of the two runs: no prompt of theirs has the same token ids in both")
        found = [a, with_differences(a, b)]
    return found, left_out


def _prompts(request: ViewRuns, run: Run) -> tuple[list[int], list[str]]:
    """The prompts of a run that are shown. `BadOption` for a number that it does not have."""
    known = sorted(run.scan("prompts", columns=["prompt_id"])["prompt_id"].to_pylist())
    ranges = request.wanted
    if ranges is not None:
        for one in ranges:
            if not any(number in one for number in known):
                some = f"{known[0]}..{known[-1]}" if known else "none"
                raise BadOption(f"the run '{_name(run)}' has no prompt {one.start}", hint=f"it has: {some}")
        return [number for number in known if any(number in one for one in ranges)], []
    if len(known) <= PROMPTS:
        return known, []
    more = f"{known[PROMPTS]}..{known[min(len(known), 2 * PROMPTS) - 1]}"
    return known[:PROMPTS], [f"all but the first {PROMPTS} of {len(known):,} prompts; --prompt {more} shows others"]


def _check_heads(request: ViewRuns, run: Run) -> None:
    """`BadOption` for heads of which the run holds no pattern."""
    if request.wanted_heads is None:
        return
    if "attention" not in run.tables:
        hint = "record them: probe trace … --attention full or topk:8"
        raise BadOption(f"the run '{_name(run)}' holds no attention patterns", hint=hint)
    keys = run.scan("attention", columns=["layer", "head"]).group_by(["layer", "head"]).aggregate([]).to_pylist()
    there = {(row["layer"], row["head"]) for row in keys}
    layers, heads = sorted({layer for layer, _ in there}), sorted({head for _, head in there})
    for layer, head in request.wanted_heads:
        if not any(layer == one and head in (None, other) for one, other in there):
            hint = f"layers {layers[0]}..{layers[-1]}, heads {heads[0]}..{heads[-1]}" if there else "it has none"
            name = f"{layer}.{'all' if head is None else head}"
            raise BadOption(f"the run '{_name(run)}' holds no pattern of head {name}", hint=hint)


def _page(
    request: ViewRuns, runs: Sequence[Run], views: Sequence[list[SequenceView]], *, left_out: Sequence[str] = (),
    watching: bool = False,
) -> Page:  # fmt: skip
    """The page of the runs, and of those that the first was made of."""
    shown = [PageRun(run, pictures) for run, pictures in zip(runs, views, strict=True)]
    for run in ancestors(runs[0]):
        last = next(i for i in range(len(shown) - 1, -1, -1) if i == 0 or i >= len(runs))
        there = next((i for i, one in enumerate(shown) if one.run.run_id == run.run_id), len(shown))
        shown[last] = replace(shown[last], parent=there)
        if there == len(shown):
            shown.append(PageRun(run, sequence_views(run, prompts=_parents_prompts(run, views[0]), heads=request.wanted_heads)))
        else:
            break
    return page_html(
        shown, beside=tuple(range(len(runs))), max_mb=request.max_mb, watching=watching,
        refresh=RELOAD if watching else None, left_out=left_out,
    )  # fmt: skip


def _parents_prompts(parent: Run, views: Sequence[SequenceView]) -> list[int]:
    """Of the run that another was made of, the prompts that are shown of that."""
    known = set(parent.scan("prompts", columns=["prompt_id"])["prompt_id"].to_pylist())
    return [one.prompt_id for one in views if one.prompt_id in known]


def ancestors(run: Run) -> list[Run]:
    """The run that a run was made of, the one that that was made of, and so on, as far as they are found: at the path that
    the manifest has, or by their id in the folder of the run. Damaged ones end the line."""
    found: list[Run] = []
    while len(found) < ANCESTORS:
        parent = _parent((found or [run])[-1])
        if parent is None or parent.run_id in {one.run_id for one in (run, *found)}:
            break
        found.append(parent)
    return found


def _parent(run: Run) -> Run | None:
    told = run.manifest.get("parent") or {}
    path, run_id = told.get("path"), told.get("run")
    places: list[Path | str] = [path if is_url(path) else Path(path)] if path else []
    if run.path is not None:
        beside = run.path.resolve().parent
        places += [beside / place.name for place in places if isinstance(place, Path)]
        places += [listed.path for listed in list_runs(beside) if listed.run_id == run_id] if run_id else []
    for place in places:
        try:
            if is_run(place) and (parent := open_run(place)).run_id == run_id:
                return parent
        except ProbeError:  # unfinished, damaged or out of reach: the page is of the run that was asked for
            continue
    return None


def _page_path(request: ViewRuns, runs: Sequence[Run]) -> Path:
    """Where the page goes. `BadOption` where something else is."""
    if request.out is not None:
        path = Path(request.out)
    elif runs[0].path is None:
        raise BadOption("the run is only in memory: where is the page to go?", hint="out='page.html'")
    else:
        path = Path(runs[0].path.name).absolute() if is_url(runs[0].address) else runs[0].path.resolve()
        beside = "".join(f"+{one.path.name}" for one in runs[1:] if one.path)
        path = path.with_name(f"{path.name.removesuffix(PARTIAL)}{beside}.html")
    _outside(path, runs)
    if path.is_dir():
        raise BadOption(f"'{path}' is a folder", hint="name a file: -o page.html")
    if path.exists():
        with durable.stated(path), path.open("rb") as file:
            if MARK not in file.read(1 << 20):
                raise BadOption(f"'{path}' is there already, and is no page of probe", hint="choose another name with -o")
    if not path.parent.is_dir():
        raise BadOption(f"there is no folder '{path.parent}'", hint="make it, or choose another name with -o")
    return path


def _outside(path: Path, runs: Sequence[Run]) -> None:
    """`BadOption` for a place inside a run: nothing writes into one."""
    for run in runs:
        if run.path is not None and run.path.resolve() in (path.resolve(), *path.resolve().parents):
            raise BadOption(f"'{path}' is inside the run '{run.path}', which stays as it is", hint="write it elsewhere")


def _show(request: ViewRuns, page: Path) -> None:
    if request.open and not webbrowser.open(page.resolve().as_uri()):
        raise BadOption("there is no browser to open the page in", hint=f"it is written: open {page} yourself")


def _name(run: Run) -> str:
    return run.address or run.run_id


def _watch(request: ViewRuns) -> Viewed:
    """Write the page of a run whenever it has grown, until it is whole; a Ctrl-C leaves the page as it is then."""
    if isinstance(request.run, Run):
        return run_view(replace(request, watch=False))
    if is_url(request.run):
        raise BadOption(
            "a run at a URL is not watched while it grows", hint="leave out --watch; probe runs ls says how far it is"
        )
    drawn, missed, page, since, asked = -1, 0, None, time.monotonic(), False
    try:
        while True:
            units = None
            try:
                run, units = open_growing(request.run, without=AT_THE_END)
                if units is None:
                    return run_view(replace(request, run=run, watch=False, open=request.open and page is None))
                if units > drawn and "prompts" in run.tables:
                    page = _draw_growing(request, run, first=page is None)
                    drawn, since, asked = units, time.monotonic(), False
                missed = 0
            except RunError as error:  # while it is being finished or removed
                missed += 1
                if missed > MISSES or (page is None and not gone(error)):
                    raise
            _report(request, "units are drawn" if page else "nothing is on the disk yet; units", max(drawn, 0))
            if not asked and time.monotonic() - since > SILENT:
                asked = True
                _report(request, "units; nobody writes the run now" if not _written(request.run) else "units", max(drawn, 0))
            time.sleep(LOOK)
    except KeyboardInterrupt:
        if page is not None:
            run, _ = open_growing(request.run, without=AT_THE_END)
            _draw_growing(request, run, watching=False)
        raise


def _draw_growing(request: ViewRuns, run: Run, *, first: bool = False, watching: bool = True) -> Path:
    views, told = _views(request, [run])
    page = _page_path(request, [run])
    durable.write_bytes(page, _page(request, [run], views, left_out=told, watching=watching).html.encode())
    if first:
        _show(request, page)
    return page


def _written(path: Any) -> bool:
    path = Path(path)
    return locked(path if path.suffix == PARTIAL else partial(path))


def _report(request: ViewRuns, what: str, done: int) -> None:
    if request.progress is not None:
        request.progress(what, done, done)


def notebook_html(run: Run) -> str | None:
    """The page of a run for a notebook, in a frame that can reach nothing outside it; None where it cannot be made, or would
    be too large."""
    large = run.manifest["tables"].get("attention", {}).get("bytes", 0) > NOTEBOOK_PATTERNS
    try:
        known = sorted(run.scan("prompts", columns=["prompt_id"])["prompt_id"].to_pylist())[:NOTEBOOK_PROMPTS]
        views = sequence_views(run, prompts=known, heads=() if large else None)
        page = page_html([PageRun(run, views)], max_mb=NOTEBOOK_MB)
    except ProbeError:
        return None
    if len(page.html) > NOTEBOOK_MB * 1e6:
        return None
    return (
        f'<iframe sandbox="allow-scripts allow-downloads" srcdoc="{html.escape(page.html)}" title="{html.escape(run.run_id)}" '
        f'style="width:100%;height:40em;border:1px solid #8888"></iframe>'
    )
