"""How a lens looks: each layer's guess at each position, shaded by its probability. Knows no commands."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import pandas as pd

    from probe.language_model import LanguageModel
    from probe.store import Run

# background colours of the terminal's 256, from an unsure guess to a sure one, and the probability where each begins
SHADES = ((0.0, None), (0.1, 194), (0.3, 157), (0.6, 120), (0.9, 83))
WIDTH = 10  # of a cell


def show_lens(run: Run, lm: LanguageModel, *, quiet: bool) -> None:
    """Print each layer's top token at each position, the layers at the last position, and where the run is."""
    from .terminal import run_path, show_table, visible

    if quiet:
        typer.echo(run_path(run))
        return
    _grid(run.lens, run.lens_positions, lm)
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


def _grid(lens: pd.DataFrame, positions: pd.DataFrame, lm: LanguageModel) -> None:
    """Layers downwards from the last, positions to the right; on a terminal as many of the last positions as fit."""
    from .terminal import visible

    shown = list(positions["pos"])
    if sys.stdout.isatty():
        from .printing import console

        fits = max(1, (console().width - 8) // (WIDTH + 2))
        if len(shown) > fits:
            typer.echo(f"the last {fits} of {len(shown)} positions; choose others with --position")
            shown = shown[-fits:]
    cut = [f"{pos} {visible(token)[:WIDTH]}" for pos, token in zip(positions["pos"], positions["token"], strict=True)]
    cells: dict[tuple[int, int], tuple[str, float]] = {}
    for row in lens.itertuples():
        best = lm.token_text(int(row.top_ids[0]))
        cells[int(row.layer), int(row.pos)] = visible(best)[: WIDTH + 3], math.exp(row.top_logprobs[0])
    header = ["layer", *cut[-len(shown) :]]
    table = [
        [(str(layer), 0.0), *(cells[layer, pos] for pos in shown)]
        for layer in sorted(set(lens["layer"]), reverse=True)
    ]  # fmt: skip
    settled = [(str(n), 0.0) for n in positions["settled_layer"][-len(shown) :]]
    _print_cells(header, [*table, [("settled", 0.0), *settled]])


def _print_cells(header: list[str], rows: list[list[tuple[str, float]]]) -> None:
    """Cells (text, probability) in columns; shaded by probability on a terminal."""
    from .terminal import show_table

    if not sys.stdout.isatty():
        show_table(header, [[text for text, _ in row] for row in rows])
        return
    from rich.table import Table
    from rich.text import Text

    from .printing import console

    table = Table(padding=(0, 1), box=None)
    for name in header:
        table.add_column(Text(name))
    for row in rows:
        styled = []
        for text, probability in row:
            shade = [colour for at, colour in SHADES if probability >= at][-1]
            styled.append(Text(text, style=f"color(16) on color({shade})" if shade else ""))
        table.add_row(*styled)
    console().print(table)
