"""How a lens looks: each layer's guess at each position, shaded by its probability. Knows no commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from probe.store import Run


def show_lens(run: Run, *, quiet: bool) -> None:
    """Print each layer's top token at each position, the layers where the answer is measured, and where the run is."""
    from .pictures import show_pictures
    from .terminal import run_path, show_table, visible

    if quiet:
        typer.echo(run_path(run))
        return
    show_pictures(run, tables=("lens", "lens_positions"), kinds=("grid", "listing"), notes=False)
    last = run.summary["last"]
    followed = f"target {visible(last['target_token'])}"
    if answered := "answer_logprob" in last["layers"][0]:
        followed = _followed(run.summary)
    typer.echo(f"\nafter {visible(last['token'])} at {last['pos']}, {followed}")
    header = _ANSWER[: 3 if run.summary["against"] else 1] if answered else _TARGET
    rows = [
        (
            str(row["layer"]), visible(row["top"]), f"{row['prob']:.3f}", *(_answer(row) if answered else _target(row)),
            f"{row['entropy']:.3f}", f"{row['kl_to_final']:.3f}",
        )
        for row in reversed(last["layers"])
    ]  # fmt: skip
    show_table(("layer", "top", "prob", *header, "entropy", "KL(final‖layer)"), rows)
    typer.echo(f"the top token there no longer changes from layer {last['settled_layer']} on")
    typer.echo(f"\nrun: {run_path(run)}")


_TARGET = ("target rank", "target prob")
_ANSWER = ("answer log-prob", "against", "difference")


def _target(row: dict[str, Any]) -> tuple[str, ...]:
    return str(row["target_rank"]), f"{row['target_prob']:.3g}"


def _answer(row: dict[str, Any]) -> tuple[str, ...]:
    """Log-probs of the answer, of what it is held against, and their difference."""
    own, other = row["answer_logprob"], row.get("against_logprob")
    return (f"{own:.3f}",) if other is None else (f"{own:.3f}", f"{other:.3f}", f"{own - other:+.3f}")


def _followed(found: dict[str, Any]) -> str:
    """The answer and what it is held against."""
    from .terminal import visible

    against = f" against {visible(found['against'])}" if found["against"] else ""
    return f"{'whole ' if found['whole_answer'] else ''}answer {visible(found['target'])}{against}"
