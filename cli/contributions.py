"""How an attribution looks: the strongest parts as bars, their sum and its residual. Knows no commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from probe.store import Run

BAR = 24


def show_attribute(run: Run, *, quiet: bool) -> None:
    """Print what wrote most for and against the answer, the sum at each position with its residual, and where the run is."""
    from .terminal import run_path, show_table, visible

    if quiet:
        typer.echo(run_path(run))
        return
    summary = run.summary
    last = summary["positions"][-1]
    what = visible(summary["answer"]) + (f" against {visible(summary['against'])}" if summary["against"] else "")
    of = summary.get("of", "logit")
    typer.echo(f"the {of} of {'the whole ' if of == 'log-prob' else ''}{what} after {visible(last['token'])} at {last['pos']}")
    both = [*summary["up"], *summary["down"][::-1]]
    largest = max((abs(row["contribution"]) for row in both), default=1.0) or 1.0
    rows = [
        (_where(row), f"{row['contribution']:+.3f}", "█" * round(BAR * abs(row["contribution"]) / largest))
        for row in both
    ]  # fmt: skip
    show_table(("part", "contribution", ""), rows)
    if "attribution_sources" in run.tables:
        _show_sources(run, last["pos"])
    typer.echo("")
    for row in summary["positions"]:
        capped = f"; {row['logit']:+.4f} after the cap" if summary["cap"] is not None else ""
        typer.echo(
            f"{summary['components']} parts at {row['pos']} sum to {row['sum']:+.4f}; "
            f"the model's {of} {row['before_cap']:+.4f}{capped}; residual {row['residual']:.1e}"
        )
    typer.echo(f"\nrun: {run_path(run)}")


def _where(row: dict[str, Any]) -> str:
    head = f".n{row['neuron']}" if row.get("neuron", -1) >= 0 else "" if row["head"] < 0 else f".{row['head']}"
    return row["component"] if row["layer"] < 0 else f"{row['component']}@{row['layer']}{head}"


def _show_sources(run: Run, pos: int) -> None:
    """The strongest (head, source position) pairs."""
    from .terminal import show_table

    rows = run.attribution_sources
    rows = rows[rows["pos"] == pos]
    strongest = rows.reindex(rows["contribution"].abs().sort_values(ascending=False).index)[:8]
    typer.echo("")
    cells = [(f"attn@{row.layer}.{row.head}", str(row.source), f"{row.contribution:+.3f}") for row in strongest.itertuples()]
    show_table(("head", "read at", "contribution"), cells)
