"""Runs as one HTML file that needs no network, no server and no other file. Draws nothing: the script in it does."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from probe import durable
from probe.reporting import colours, snippets
from probe.reporting.fitting import Fitted, Placed, fitted
from probe.reporting.packing import EXACT
from probe.reporting.views import Panel, SequenceView, TokenStrip

if TYPE_CHECKING:
    from probe.store.run import Run


@dataclass(frozen=True)
class PageRun:
    """A run on a page. parent: the index, among the runs of the page, of the run that it was made of."""

    run: Run
    views: Sequence[SequenceView]
    parent: int | None = None


@dataclass(frozen=True)
class Page:
    """left_out: what of the runs is not on it, its size, and the option that brings it."""

    html: str = field(repr=False)
    left_out: tuple[str, ...]


def page_html(
    runs: Sequence[PageRun], *, beside: Sequence[int] = (0,), max_mb: float = 20.0, watching: bool = False,
    refresh: int | None = None, left_out: Sequence[str] = (),
) -> Page:  # fmt: skip
    """The page of some runs as one text, to be written in UTF-8; all that a run says is ASCII in it.

    beside: which of them are shown side by side (indices). max_mb: megabytes (10^6 bytes) that the page may have.
    watching: it says that the run still grows. refresh: seconds after which it loads itself again.
    left_out: what was not given to it, in words: the page says so, too.
    """
    about: dict[str, Any] = {
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "watching": watching,
        "refresh": refresh,
        "version": version("mechprobe"),
        "scales": {
            "sequential": colours.SEQUENTIAL,
            "diverging": colours.DIVERGING,
            "classes": colours.CLASSES,
            "missing": colours.MISSING,
        },
        "runs": [_facts(one) for one in runs],
        "beside": beside,
    }
    title = " + ".join(runs[i].run.run_id for i in beside)
    panels = _panels(runs)
    beginning = len(_document(title, _json(about), []))
    fit = fitted(list(panels), max_mb=max_mb, beside=beginning)
    about |= {
        "sequences": list(_sequences(runs, panels, fit)),
        "frames": [frame.description for frame in fit.frames],
        "left_out": (*left_out, *fit.left_out),
    }
    return Page(_document(title, _json(about), [frame.stream for frame in fit.frames]), about["left_out"])


def _panels(runs: Sequence[PageRun]) -> dict[Placed, dict[str, Any]]:
    """What the page says of each panel, without its rows."""
    found = {}
    views = [(one.run, view) for one in runs for view in one.views]
    for i, (run, view) in enumerate(views):
        for panel in view.panels:
            said = _panel(panel, run)
            found[Placed(run.run_id, view.prompt_id, i, panel, len(_json(said)))] = said
    return found


def _sequences(runs: Sequence[PageRun], panels: Mapping[Placed, dict[str, Any]], fit: Fitted) -> Iterator[dict[str, Any]]:
    """The prompts with those of their panels that are on the page; without its text none of a prompt is."""
    views = [(i, view) for i, one in enumerate(runs) for view in one.views]
    of: list[dict[Placed, dict[str, Any]]] = [{} for _ in views]
    for place, said in panels.items():
        of[place.sequence][place] = said
    for (i, view), own in zip(views, of, strict=True):
        if any(isinstance(place.panel, TokenStrip) and place not in fit.index for place in own):
            continue
        standing = [
            {**said, "frame": fit.index[place], "note": " ".join(filter(None, (said["note"], fit.notes.get(place))))}
            for place, said in own.items()
            if place in fit.index
        ]
        yield {"run": i, "prompt": view.prompt_id, "title": view.title, "panels": standing}


def _facts(one: PageRun) -> dict[str, Any]:
    run = one.run
    return {
        "id": run.run_id,
        "command": run.command,
        "typed": run.manifest.get("typed", ""),
        "path": run.address,
        "parent": one.parent,
        "model": run.manifest.get("model"),
        "versions": run.manifest.get("versions", {}),
        "warnings": run.manifest.get("warnings", []),
        "summary": run.manifest.get("summary", {}),
        "manifest": run.manifest,
    }


def _panel(panel: Panel, run: Run) -> dict[str, Any]:
    """The fields of a panel by their names, as `web/README.md` has them."""
    found = {one.name: _plain(getattr(panel, one.name)) for one in fields(panel) if one.name not in {"frame", "_"}}
    return {**found, "kind": panel.kind, "snippet": snippets.of_panel(panel, run)}


def _plain(value: Any) -> Any:
    """Axes, measures and columns as objects; labels, whose keys are not only texts, as pairs."""
    if hasattr(value, "__dataclass_fields__"):
        found = {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
        if found.get("labels") is not None:
            found["labels"] = [[key, label] for key, label in value.labels.items()]
        return found
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _json(value: Any) -> str:
    """ASCII that can stand in a script element: no `<`; what JSON or a double does not have, null or digits as a text."""
    text = json.dumps(_exact(durable.jsonable(value)), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _exact(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _exact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_exact(item) for item in value]
    return str(value) if isinstance(value, int) and abs(value) > EXACT else value


def _document(title: str, about: str, streams: Sequence[bytes]) -> str:
    built = files("probe.reporting") / "built"
    script, style = ((built / name).read_text("utf-8") for name in ("page.js", "page.css"))
    policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title).encode('ascii', 'xmlcharrefreplace').decode()}</title>",
        f"<style>{style}</style></head><body>",
        "<noscript>This page draws its pictures with a script of its own: allow scripts to see them.</noscript>",
        f'<script type="application/json" id="page">{about}</script>',
        *(
            f'<script type="application/octet-stream" id="frame-{i}">{base64.b64encode(stream).decode()}</script>'
            for i, stream in enumerate(streams)
        ),
        f"<script>{script}</script></body></html>",
    ]
    return "\n".join(lines) + "\n"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
