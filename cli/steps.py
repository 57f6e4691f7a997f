"""`probe steps`: the reasoning steps of a run, one a row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cli import options as o

RunPath = Annotated[Path, typer.Argument(help="A run directory.")]
PromptId = Annotated[int | None, typer.Option("--prompt", min=0, help="Only this prompt's steps.")]


def command(run: RunPath, split: o.Split = "sentence", prompt: PromptId = None, as_json: o.AsJson = False) -> None:
    """Show the reasoning steps of a run: id, token span, kind, log-prob, mean entropy, text."""
    import probe
    from cli.terminal import show_document, show_table, visible
    from probe.tracing import steps_of

    opened = probe.open_run(run)
    table = steps_of(opened, split=split, prompt_id=prompt)
    if as_json:
        steps = json.loads(table.to_json(orient="records"))
        show_document({"run": str(opened.path), "command": "steps", "summary": {"steps": steps}})
        return
    rows = [
        (
            str(row.prompt_id), f"step{row.step}", f"{row.start}..{row.end - 1}", str(row.kind),
            f"{row.logprob:.3f}", f"{row.mean_entropy:.3f}", visible(row.text),
        )
        for row in table.itertuples()
    ]  # fmt: skip
    show_table(("prompt", "step", "tokens", "kind", "logprob", "mean entropy", "text"), rows)
