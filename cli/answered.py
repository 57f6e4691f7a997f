"""How scored answers look on a terminal: a row an answer of one prompt, or how often the right one is the most probable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from . import printing
from .terminal import SOME_FAILED, show_table, visible

if TYPE_CHECKING:
    from probe.store import Run

SHOWN = 20  # answers of one prompt
TOKENS = 12  # of an answer, or of a set
NAMES = {
    "total": "log-prob", "per_token": "log-prob a token", "per_character": "log-prob a character",
    "per_byte": "log-prob a byte", "calibrated": "calibrated log-prob",
}  # fmt: skip
COLUMNS = {"logprob": "log-prob", "per_token": "a token", "per_character": "a character", "per_byte": "a byte"}


def show_answers(run: Run) -> None:
    """Print the answers of the only prompt, and the accuracy over problems where there is one."""
    about = run.summary["answers"]
    typer.echo("")
    if about["problems"] == 1:
        _show_rows(run)
    if about["accuracy"]:
        rows = [
            (NAMES[row["by"]], f"{row['right']:,} of {row['n']:,}", f"{row['accuracy']:.3f} {_interval(row)}")
            for row in about["accuracy"]
        ]
        typer.echo(f"the most probable answer is right (chance {about['chance']:.3f})")
        show_table(("by", "right", "accuracy (95 %)"), rows)
    if about["problems"] > 1 and about.get("sets"):
        rows = [(visible(row["text"]), f"{row['n']:,}", f"{row['logprob']:.3f} {_interval(row)}") for row in about["sets"]]
        show_table(("any of these tokens", "prompts", "mean log-prob (95 %)"), rows)
    left = about["problems"] - about["counted"]
    if about["problems"] > 1 and left and about.get("texts", True):
        typer.echo(
            f"{left:,} of {about['problems']:,} problems are not counted: no right answer is known, or one was not scored"
        )


def end_with_unscored(run: Run) -> None:
    """Say how many answers could not be scored, if any could not, and end: 3, or 1 if none of them could be."""
    about = run.summary.get("answers", {"errors": 0})
    if about["errors"]:
        printing.complain(
            f"{about['errors']:,} of {about['answers']:,} answers could not be scored",
            "the column 'error' of the table 'answers' says why",
        )
        raise typer.Exit(SOME_FAILED if about["errors"] < about["answers"] else 1)


def _interval(row: dict[str, Any]) -> str:
    return f"[{row['ci_low']:.3f}, {row['ci_high']:.3f}]"


def _show_rows(run: Run) -> None:
    rows = run.scan("answers").to_pylist()
    calibrated = any(row["calibrated"] is not None for row in rows)
    shown = []
    for row in rows[:SHOWN]:
        numbers = [_number(row[name]) for name in (*COLUMNS, *(["prior", "calibrated"] if calibrated else []))]
        tokens = " ".join(f"{value:.3f}" for value in (row["logprobs"] or ())[:TOKENS])
        tokens += " …" if len(row["logprobs"] or ()) > TOKENS else ""
        right = {True: "right", False: "", None: ""}[row["correct"]]
        shown.append((visible(row["text"]), *numbers, f"error: {row['error']}" if row["error"] else tokens, right))
    more = ("prior", "calibrated") if calibrated else ()
    show_table(("answer", *COLUMNS.values(), *more, "of each token", ""), shown)
    if len(rows) > SHOWN:
        typer.echo(f"… and {len(rows) - SHOWN} more answers: the table 'answers' has all")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.3f}"
