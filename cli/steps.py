"""`probe steps`: the reasoning steps of a run, one a row."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from .command import with_options
from .completing import completed
from .groups import Output

RunPath = Annotated[str, typer.Argument(help="A run directory, or its URL.", autocompletion=completed("runs"))]
PromptId = Annotated[str | None, typer.Option("--prompt", help="Only this prompt's steps: 3, 0,4..9 or all [default: all].")]
Split = Annotated[
    str,
    typer.Option(
        "--split", help="sentence, line, paragraph, token, regex:PATTERN or spans:FILE.", autocompletion=completed("splits")
    ),
]
Branch = Annotated[int | None, typer.Option("--branch", min=0, help="Only this branch of a run made by rewind.")]


@with_options
def command(run: RunPath, output: Output, split: Split = "sentence", prompt: PromptId = None, branch: Branch = None) -> None:
    """Show the reasoning steps of a run: id, token span, kind, log-prob, mean entropy, text."""
    import probe
    from probe.texts import steps_of

    from .terminal import number, show_document, show_table, visible

    opened = probe.open_run(run)
    table = steps_of(opened, split=split, prompt_id=prompt, branch=branch)
    if output.as_json:
        steps = json.loads(table.to_json(orient="records"))
        show_document({"run": opened.address, "command": "steps", "summary": {"steps": steps}})
        return
    branched = bool(table["branch"].any())
    rows = [
        (
            str(row.prompt_id), *([str(row.branch)] if branched else []), f"step{row.step}", f"{row.start}..{row.end - 1}",
            str(row.kind), number(row.logprob, ".3f"), number(row.mean_entropy, ".3f"), visible(row.text),
        )
        for row in table.itertuples()
    ]  # fmt: skip
    heads = ("prompt", *(["branch"] if branched else []), "step", "tokens", "kind", "logprob", "mean entropy", "text")
    show_table(heads, rows)
