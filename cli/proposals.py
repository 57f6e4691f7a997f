"""How speculation looks on a terminal: the text with what was accepted and rejected, rates, speed, where the draft fails."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from .printing import printable
from .terminal import SHOWN_PROMPTS, run_path, show_table, show_warnings

if TYPE_CHECKING:
    import pandas as pd

    from probe.store import Run

STYLES = {"prompt": "", "accepted": "green", "rejected": "red strike", "correction": "yellow", "bonus": "bold"}
MARKS = {"prompt": "{}", "accepted": "{}", "rejected": "[-{}-]", "correction": "{{+{}+}}", "bonus": "{{={}=}}"}
LEGEND = "accepted as it is, [-rejected-]{+correction+}, {=the target's own=}"


def show_speculation(run: Run, *, quiet: bool) -> None:
    """Print the marked text, acceptance three ways, tokens a pass, speed, where the draft fails, and where the run is."""
    if quiet:
        typer.echo(run_path(run))
        return
    summary = run.summary
    _texts(run)
    _acceptance(summary)
    _speed(summary)
    _groups("what was drafted", summary["by_kind"])
    _groups("the target's entropy there, nats", summary["by_entropy"])
    show_warnings(run)
    typer.echo(f"\nrun: {run_path(run)}")


def _texts(run: Run) -> None:
    if "tokens" not in run.tables:
        return
    tokens = run.tokens
    proposals = run.proposals if "proposals" in run.tables else None
    prompts = tokens["prompt_id"].unique()
    for prompt in prompts[:SHOWN_PROMPTS]:
        own = None if proposals is None else proposals[proposals["prompt_id"] == prompt]
        _show(list(marked(tokens[tokens["prompt_id"] == prompt], own)))
    if len(prompts) > SHOWN_PROMPTS:
        typer.echo(f"… and {len(prompts) - SHOWN_PROMPTS} more prompts")


def marked(tokens: pd.DataFrame, proposals: pd.DataFrame | None) -> Iterator[tuple[str, str]]:
    """(style, text) of one sequence, with the rejected proposals where they were made."""
    decided = {}
    if proposals is not None:
        told = proposals[proposals["verdict"] != "discarded"]
        decided = {pos: (verdict, text) for pos, verdict, text in told[["pos", "verdict", "token"]].itertuples(index=False)}
    for pos, token in zip(tokens["pos"], tokens["token"], strict=True):
        verdict, proposed = decided.get(pos, ("prompt", ""))
        if verdict == "rejected":
            yield "rejected", proposed
            yield "correction", token
        else:
            yield verdict, token


def _show(parts: list[tuple[str, str]]) -> None:
    if not sys.stdout.isatty():
        typer.echo("".join(MARKS[style].format(printable(text)) for style, text in parts))
        typer.echo(f"({LEGEND})\n")
        return
    from rich.text import Text

    from .printing import console

    text = Text()
    for style, piece in parts:
        text.append(printable(piece), style=STYLES[style])
    text.append("\n")
    for style in ("accepted", "rejected", "correction", "bonus"):
        text.append(style, style=STYLES[style]).append(" ")
    console().print(text, soft_wrap=True)


def _acceptance(summary: dict[str, Any]) -> None:
    counts = {"accepted/drafted": summary["drafted"], "accepted/tested": summary["tested"]}
    rows = [
        (name, _rate(found), f"{summary['accepted']} of {counts[name]}" if name in counts else "no sampling noise of the draft")
        for name, found in summary["acceptance"].items()
    ]  # fmt: skip
    typer.echo(f"draft {summary['draft']}, block {summary['block']}: {summary['generated']} tokens")
    show_table(("acceptance", "95 % interval", ""), rows)
    seen = summary["tokens_per_pass"]
    if seen["measured"]:
        typer.echo(
            f"\ntokens a target pass {_rate(seen['measured'], 2)} in {summary['passes']} passes; "
            f"{seen['predicted']:.2f} by the formula"
        )


def _speed(summary: dict[str, Any]) -> None:
    speed = summary["speed"]
    if speed["measured"] is not None:
        typer.echo(
            f"speed-up             {speed['measured']:.2f}x measured ({speed['tokens_per_second']:.1f} tokens/s against "
            f"{speed['plain_tokens_per_second']:.1f}); {speed['predicted']:.2f}x by the formula"
        )
        typer.echo(
            f"  a drafted token costs {speed['draft_cost']:.3f} of a plain step, a pass {speed['pass_cost']:.2f} "
            f"(the formula says 1; with this it gives {speed['predicted_with_pass_cost']:.2f}x)"
        )
        if speed["measured"] < 1:
            typer.echo("  slower than plain decoding on this machine")
    if summary["same_as_plain"] is not None:
        same = "the same tokens as" if summary["same_as_plain"] else "not the same tokens as (a near tie in rounding?)"
        typer.echo(f"  greedy: {same} plain decoding")


def _groups(title: str, rows: list[dict[str, Any]]) -> None:
    if rows:
        typer.echo("")
        show_table(
            (title, "tested", "accepted", "mean sum of min(p, q)"),
            [(_group(row), str(row["tested"]), _rate(row), f"{row['mean_overlap']:.3f}") for row in rows],
        )


def _group(row: dict[str, Any]) -> str:
    return f"{row['from']:.2f} to {row['to']:.2f}" if "from" in row else str(row["group"])


def _rate(found: dict[str, Any], digits: int = 3) -> str:
    if found["estimate"] is None:
        return "–"
    return f"{found['estimate']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"
