"""`probe shell`: a prompt at which each line is a command, and models are loaded once."""

from __future__ import annotations

import sys

import typer

from .command import with_options
from .groups import PlacementOptions
from .serve import StayingModels, check_system, in_words, warmed_up


@with_options
def command(context: typer.Context, staying: StayingModels, placement: PlacementOptions) -> None:
    """Type one command after the other: models are loaded once, and TAB completes sites, steps, runs and what else there is."""
    from probe.language_model.home import home
    from probe.language_model.names import default_name

    from .staying.prompt import CommandPrompt

    check_system("shell")
    models = warmed_up(context, staying, placement)
    if sys.stdin.isatty():
        typer.echo(f"{in_words(models)}: type a command without probe; help tells of them, Ctrl-D leaves", err=True)
        if staying.model and (usual := default_name()) not in staying.model:
            typer.echo(f"a command without --model takes {usual}, and loads it", err=True)
    code = CommandPrompt(context.find_root().command, history=home() / "shell_history").talk()
    raise typer.Exit(code)
