"""Progress of long work on standard error, with an estimate of the time left; silent in a pipe."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .printing import console, printable


@contextmanager
def progress(*, shown: bool = True) -> Iterator[Callable[[str, int, int], None] | None]:
    """A callback (what, done, total) that draws one bar for each `what`; None where nobody would see it."""
    if not shown or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(err=True), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield report


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings of the library become one plain line each on standard error."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        print(printable(f"warning: {message}"), file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
