"""How a look at weights reads: the heads that copy and compose most, the matrices that differ. Knows no commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from probe.store import Run


def show_weights(run: Run, *, quiet: bool) -> None:
    """Print what was looked at and what stands out, and where the run is."""
    from .terminal import run_path, show_table

    if quiet:
        typer.echo(run_path(run))
        return
    summary = run.summary
    if "matrices" in summary:
        typer.echo(f"{summary['matrices']:,} matrices, {summary['entries']:,} entries")
        _show_roles(run)
    if "heads" in summary:
        typer.echo(f"\n{summary['copying_heads']} of {summary['heads']} heads copy (q ≤ 0.05 against random rotations)")
        header = ("head", "copying", "z", "QK matching", "z")
        columns = ("copying", "copying_z", "matching", "matching_z")
        show_table(header, [(_head(row), *(_number(row[name]) for name in columns)) for row in summary["copies_most"]])
    if "composed" in summary:
        typer.echo(f"\n{summary['composed']:,} of {summary['pairs']:,} compositions are beyond random rotations (q ≤ 0.05)")
        rows = [
            (row["kind"], f"{row['writer_layer']}.{row['writer']}", _head(row), _number(row["score"]), _number(row["z"]))
            for row in summary["composes_most"]
        ]
        show_table(("through", "writer", "reader", "score", "z"), rows)
    if "tokens" in summary["what"]:
        frame = run.scan("token_circuits").to_pandas().head(20)
        typer.echo("\ntokens in heads: what each attends to as a query, and what attending to it raises most")
        shown = [
            (_head(row), _word(row["token"]), _word(row["attends"]), _word(row["writes"])) for row in frame.to_dict("records")
        ]
        show_table(("head", "token", "attends to", "writes"), shown)
    if "neurons" in summary:
        typer.echo(
            f"\n{summary['neurons']:,} neurons: {summary['along_tokens']:,} of {summary['directions']:,} directions lie nearer "
            "to a token than random ones (q ≤ 0.05)"
        )
        near = [
            (f"{row['layer']}.n{row['neuron']}", str(row["direction"]), _number(row["cosine"]), _word(row["up_token"]),
             _word(row["down_token"]))
            for row in summary["along_most"]
        ]  # fmt: skip
        show_table(("neuron", "direction", "cosine", "most along it", "most against it"), near)
    if "against" in summary:
        typer.echo(f"\n{summary['differ']} matrices differ from {summary['against']}")
        keys = ("relative", "spectral", "effective_rank")
        rows = [(r["name"], *(_number(r[k]) for k in keys), str(r["rank"])) for r in summary["differ_most"]]
        show_table(("name", "relative", "spectral", "effective rank", "rank"), rows)
    typer.echo(f"\n{summary['ignored']}\nrun: {run_path(run)}")


def _show_roles(run: Run) -> None:
    from .terminal import show_table

    frame = run.scan("matrices").to_pandas()
    keys = ["spectral", "stable_rank", "effective_rank"]
    found = frame.groupby("role", sort=False, observed=True)[keys].median()
    counts = frame["role"].value_counts()
    rows = [(str(role), str(counts[role]), *(_number(row[k]) for k in keys)) for role, row in found.iterrows()]
    show_table(("role", "matrices", "spectral norm", "stable rank", "effective rank"), rows)


def _head(row: dict[str, Any]) -> str:
    return f"{row['layer']}.{row['head']}"


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.3f}"


def _word(text: Any) -> str:
    """A token between quotes; empty where there is none."""
    from .terminal import visible

    return visible(text) if isinstance(text, str) else ""
