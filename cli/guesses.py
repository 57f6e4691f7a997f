"""How a lens looks: each layer's guess at each position, shaded by its probability. Knows no commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from probe.store import Run


def show_lens(run: Run, *, quiet: bool) -> None:
    """Print each layer's top token at each position, the layers at the last position, and where the run is."""
    from .pictures import show_pictures
    from .terminal import run_path, show_table, visible

    if quiet:
        typer.echo(run_path(run))
        return
    show_pictures(run, tables=("lens", "lens_positions"), kinds=("grid", "listing"), notes=False)
    last = run.summary["last"]
    typer.echo(f"\nafter {visible(last['token'])} at {last['pos']}, target {visible(last['target_token'])}")
    rows = [
        (
            str(row["layer"]), visible(row["top"]), f"{row['prob']:.3f}", str(row["target_rank"]),
            f"{row['target_prob']:.3g}", f"{row['entropy']:.3f}", f"{row['kl_to_final']:.3f}",
        )
        for row in reversed(last["layers"])
    ]  # fmt: skip
    show_table(("layer", "top", "prob", "target rank", "target prob", "entropy", "KL(final‖layer)"), rows)
    typer.echo(f"the top token there no longer changes from layer {last['settled_layer']} on")
    typer.echo(f"\nrun: {run_path(run)}")
