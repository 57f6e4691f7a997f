"""`probe view`: runs in, one page out; says what it left out."""

from __future__ import annotations

from dataclasses import replace

import typer

from probe.requests import ViewRuns

from .command import Begun, with_options
from .groups import Showing


@with_options
def command(begun: Begun[ViewRuns], showing: Showing) -> None:
    """Write one page that shows all that a run holds and opens without a network; two runs stand side by side."""
    request = begun.build()
    from probe.reporting.viewing import run_view

    from .terminal import show_document

    with showing.progress() as report:
        made = run_view(replace(request, progress=report))
    if showing.as_json:
        files = {"page": made.page, "files": list(made.files), "left_out": list(made.left_out)}
        show_document({"run": str(request.run), "command": "view", "summary": files})
        return
    for text in made.left_out:
        typer.echo(f"left out: {text}", err=True)
    if made.files:
        folders = ", ".join(sorted({str(path.parent) for path in made.files}))
        n = len(made.files)
        typer.echo(folders if showing.quiet else f"{n} picture{'s' if n > 1 else ''} in {folders}")
    if made.page is not None:
        typer.echo(str(made.page) if showing.quiet else f"page: {made.page}")
