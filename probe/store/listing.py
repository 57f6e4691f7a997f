"""The runs of a folder, as a list: what each says about itself, which are wanted, in which order. Writes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from probe.addresses import is_url, last_name
from probe.errors import BadOption, RunError
from probe.patterns import Pattern
from probe.store import layout, manifest, remote_runs
from probe.store.catalog import is_run
from probe.store.claiming import claimed
from probe.store.layout import PARTIAL, REMOVING, STATE
from probe.store.remote import RemoteFolder
from probe.store.run import DiskReader, read_manifest

_PROMPTS = "prompts"  # the table of which a line shows something
FIRST = 60  # characters of a prompt that stand for it in a list
GREP_HINT = "as --grep 'apples|pears', or text with \\ before its special characters"
SINCE_HINT = "as --since 2026-11-28, 2026-11-28T14:30, 2d, 3h or 45m"
ARGUMENTS = ("prompts", "texts", "clean", "source", "positive")
"""Of requests: those that hold what was read, where the run has no table of it."""


class Listed(NamedTuple):
    """One run of a folder. `status`: whole, partial, running (a living process writes it), altered (its manifest is another
    than was written), removing (its deletion was cut short) or damaged, for the `reason`."""

    path: Path | str  # its URL, of one that is at a URL
    status: str
    run_id: str
    command: str
    started: str
    rows: int
    bytes: int
    units: int | None  # finished units of a partial run
    model: str = ""
    prompt: str = ""  # its first words
    prompts: int = 0
    reason: str = ""


SORTED = ("started", "name", "command", "model", "prompt", "status", "rows", "size")


def list_runs(
    root: Path | str = "runs", *, model: str | None = None, command: str | None = None, grep: str | None = None,
    since: str | None = None, sort: str = "started",
) -> list[Listed]:  # fmt: skip
    """The runs right under a folder or a URL, oldest first; other folders are passed over.

    model: those whose model's name or source has this text in it. command: those that it made. grep: those in whose name or
    any of whose prompts this regular expression is found. since: those begun since a date and time, of this machine's clock,
    or since so long ago (2d, 3h, 45m). Case does not matter. A damaged run is in the list unless a filter asks for what it
    cannot say. sort: `SORTED`, with a minus for the greatest first. Raises `BadOption`.
    """
    pattern = None if grep is None else Pattern(f"(?i:{Pattern(grep, hint=GREP_HINT).written})", hint=GREP_HINT)
    begun, key = None if since is None else since_of(since), _order(sort)
    found = []
    for path, (run, about) in _all(root):
        wanted = (
            (model is None or any(model.lower() in name.lower() for name in _models(about)))
            and (command is None or command.lower() == run.command.lower())
            and (begun is None or ((then := _moment(run.started)) is not None and then >= begun))
            and (pattern is None or any(pattern.search(text) for text in _texts(path, about)))
        )
        found += [run] if wanted else []
    return sorted(sorted(found, key=lambda run: (run.started, _name(run))), key=key, reverse=sort.startswith("-"))


def _all(root: Path | str) -> Iterator[tuple[Path, tuple[Listed, dict[str, Any]]]]:
    """The folder of each run under a folder or a URL, with its line, and its manifest or state."""
    if is_url(root):
        for url in remote_runs.runs_in(root):
            with remote_runs.glimpse(url, _PROMPTS) as path:
                yield path, _described_remote(url, path)
        return
    root = Path(root)
    with layout.readable(root):
        paths = [path for path in sorted(root.iterdir()) if path.is_dir() and is_run(path)] if root.is_dir() else []
    for path in paths:
        yield path, _described(path)


def _name(run: Listed) -> str:
    return last_name(run.path) if isinstance(run.path, str) else run.path.name


def describe(path: Path | str) -> Listed:
    """What a run says about itself."""
    if is_url(path):
        with remote_runs.glimpse(path, _PROMPTS) as folder:
            return _described_remote(path, folder)[0]
    return _described(Path(path))[0]


def _described_remote(url: str, folder: Path) -> tuple[Listed, dict[str, Any]]:
    line, about = _described(folder)
    status = "running" if line.status == "partial" and claimed(RemoteFolder(url)) else line.status
    return line._replace(path=url, status=status), about


def since_of(text: str) -> datetime:
    """The moment that `2d`, `3h`, `45m` ago was, or that a date and time of this machine's clock is. Raises `BadOption`."""
    if ago := re.fullmatch(r"(\d{1,6})([mhdw])", text.strip()):
        unit = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}[ago[2]]
        with suppress(OverflowError):
            return datetime.now(UTC) - timedelta(**{unit: int(ago[1])})
    with suppress(ValueError, OverflowError, OSError):
        return datetime.fromisoformat(text.strip()).astimezone(UTC)  # without a zone it is this machine's
    raise BadOption(f"cannot read the time '{text}'", hint=SINCE_HINT)


def _moment(started: str) -> datetime | None:
    """When a run says that it was begun; None if that is no time."""
    try:
        then = datetime.fromisoformat(started)
    except ValueError:
        return None
    return then if then.tzinfo else then.replace(tzinfo=UTC)


def _order(sort: str) -> Any:
    name = sort.removeprefix("-")
    if name not in SORTED:
        raise BadOption(f"cannot sort by '{sort}'", hint=f"--sort takes {', '.join(SORTED)}; -size has the largest first")
    field = {"size": "bytes", "name": "path"}.get(name, name)
    return lambda run: _name(run) if field == "path" else getattr(run, field)


def _described(path: Path) -> tuple[Listed, dict[str, Any]]:
    """A run's line, and its manifest or state."""
    about: dict[str, Any] = {}
    try:
        if (path / REMOVING).is_file():
            removal = manifest.read(path / REMOVING, manifest.Removal)
            return Listed(path, "removing", removal["run_id"], "", "", 0, 0, None), about
        if path.suffix == PARTIAL:
            about = manifest.read(path / STATE, manifest.State)
            records = manifest.read_records(path)
            parts = [part for record in records for part in record["parts"]]
            units = sum(len(record["units"]) for record in records)
            status = "running" if layout.locked(path) else "partial"
        else:
            about = read_manifest(path)
            parts, units = list(about["tables"].values()), None
            status = "altered" if manifest.altered(about) else "whole"
        rows, size = sum(p["rows"] for p in parts), sum(p["bytes"] for p in parts)
        prompt, count = _first_prompt(path, about)
        name = next(iter(_models(about)), "")
        line = Listed(path, status, about["run_id"], about["command"], about["started"], rows, size, units, name, prompt, count)
        return line, about
    except (RunError, OSError, ValueError) as error:
        return _damaged(path, about, getattr(error, "message", str(error))), about


def _damaged(path: Path, about: Mapping[str, Any], reason: str) -> Listed:
    """What can be said of a run that is not as it was written."""
    model = next(iter(_models(about)), "")
    told = about.get("run_id", path.name), about.get("command", ""), about.get("started", "")
    return Listed(path, "damaged", *told, 0, 0, None, model, reason=reason)


def _models(about: Mapping[str, Any]) -> Iterator[str]:
    """The names of the models that a run was made on, and where they came from."""
    for key in ("model", "other_model"):
        if isinstance(model := about.get(key), dict):
            yield from (str(model[name]) for name in ("name", "source") if model.get(name))
    if isinstance(model := about.get("resolved", {}).get("model"), str):
        yield model


def _first_prompt(path: Path, about: Mapping[str, Any]) -> tuple[str, int]:
    """The first words of the first prompt, and how many prompts there are."""
    if "prompts" in about.get("tables", {}):
        rows = about["tables"]["prompts"]["rows"]
        for text in _table(path, about):
            return _words(text), rows
    texts = _given(about["arguments"])
    return (_words(texts[0]) if texts else ""), len(texts)


def _texts(path: Path, about: Mapping[str, Any]) -> Iterator[str]:
    """All that a run can be found by: its name, and its prompts."""
    yield path.name
    if not about:
        return
    if "prompts" in about.get("tables", {}):
        with suppress(RunError):  # its prompts are damaged, and its line says so
            yield from _table(path, about)
    else:
        yield from _given(about["arguments"])


def _table(path: Path, about: Mapping[str, Any]) -> Iterator[str]:
    """The texts of the table `prompts`."""
    for batch in DiskReader(path, about).batches("prompts", 1024):
        for text, rendered in zip(batch["text"].to_pylist(), batch["rendered"].to_pylist(), strict=True):
            yield _of_chat(text or "") if rendered != text else text or ""


def _of_chat(text: str) -> str:
    """The words of a text that a template was applied to, which may be messages in JSON."""
    with suppress(ValueError, RecursionError):
        turns = json.loads(text)
        return _said(turns) if isinstance(turns, list) and _is_chat(turns) else text
    return text


def _given(arguments: Mapping[str, Any]) -> list[str]:
    """The texts that stand in a run's arguments."""
    value = next((arguments[name] for name in ARGUMENTS if arguments.get(name) is not None), None)
    if isinstance(value, dict):
        return [str(value["file"])] if "file" in value else []
    if isinstance(value, list) and not _is_chat(value):
        return [_said(one) for one in value]
    return [] if value is None else [_said(value)]


def _is_chat(value: list[Any]) -> bool:
    return bool(value) and isinstance(value[0], dict) and "role" in value[0]


def _said(prompt: Any) -> str:
    """A prompt's own words: of a chat, those of the user's last turn."""
    if not isinstance(prompt, list):
        return prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False)
    turns = [turn for turn in prompt if isinstance(turn, dict)]
    content = next((turn.get("content") for turn in reversed(turns) if turn.get("role") == "user"), None)
    if isinstance(content, list):
        content = " ".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in content)
    return content if isinstance(content, str) else json.dumps(prompt, ensure_ascii=False)


def _words(text: str) -> str:
    """The first words of a text, in a line."""
    line = " ".join(text[: 4 * FIRST].split())
    return line if len(line) <= FIRST else line[: FIRST - 1].rstrip() + "…"
