"""How the path of a token looks: a table of stages, and one of the tokens that could have been. Knows no commands."""

from __future__ import annotations

from typing import Any

import typer

from .terminal import show_table, visible

ORDERS = {"hf": "transformers", "vllm": "vLLM", "llamacpp": "llama.cpp"}
STAGE = ("stage", "setting", "kept", "removed", "kept mass", "raw mass", "entropy", "rank", "prob")
CANDIDATE = ("token", "rank", "raw prob", "final prob", "removed by", "noise", "noise/prob", "")


def show_explained(entries: list[dict[str, Any]]) -> None:
    """Print every explained token: its stages, its rivals, and what another engine's order would have made of it."""
    happened: dict[str, Any] = {}
    for entry in entries:
        drawn = entry["chosen"] is not None
        typer.echo("")
        if entry["order"] == "hf":
            happened = entry
            where = "chosen" if drawn else "in the prompt: nothing was drawn"
            typer.echo(f"token {entry['pos']}, {visible(entry['token'])}, {where} (stages in the order of transformers)")
        else:
            typer.echo(f"the same in the order of {ORDERS[entry['order']]}: {_compared(happened, entry)}")
        show_table(STAGE, [_stage(row) for row in entry["stages"]])
        typer.echo("")
        show_table(CANDIDATE, [_candidate(row) for row in entry["candidates"]])


def _compared(happened: dict[str, Any], other: dict[str, Any]) -> str:
    """What is left and who wins, against what happened."""
    here, there = (entry["stages"][-1]["kept"] for entry in (happened, other))
    left = f"{there:,} left" if here == there else f"{there:,} left, not {here:,}"
    if other["chosen"] is None:
        return left
    same = other["chosen"] == happened["chosen"]
    return f"{left}; the same noise chooses {'the same token' if same else visible(other['chosen'])}"


def _stage(row: dict[str, Any]) -> tuple[str, ...]:
    setting = "" if row["setting"] is None else f"{row['setting']:g}"
    rank = "out" if row["rank"] is None else f"{row['rank']:,}"
    numbers = (f"{row[name]:.3f}" for name in ("kept_mass", "raw_mass", "entropy"))
    return (row["name"], setting, f"{row['kept']:,}", f"{row['removed']:,}", *numbers, rank, f"{row['prob']:.4f}")


def _candidate(row: dict[str, Any]) -> tuple[str, ...]:
    marks = [word for word, there in (("in the text", row["actual"]), ("wins", row["chosen"])) if there]
    noise = "" if row["noise"] is None else f"{row['noise']:.4f}"
    race = "" if row["race"] is None else f"{row['race']:.4f}"
    return (
        visible(row["token"]), f"{row['rank']:,}", f"{row['raw_prob']:.4f}", f"{row['final_prob']:.4f}",
        row["removed_by"] or "", noise, race, ", ".join(marks),
    )  # fmt: skip
