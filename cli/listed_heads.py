"""How heads look: layer by head, how many are of each kind, and those that stand out. Knows no commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from probe.store import Run

STATISTICS = ("induction", "duplicate", "prev", "sink", "entropy", "perplexity", "ess", "distance")
KERNEL = {
    "similarity": "similar", "popularity": "popular", "covariance": "covary", "bandwidth_ratio": "bandwidth", 
    "gaussian_r2": "R2", "output_error": "error without",
}  # fmt: skip
INPUTS = {"repeated": "random tokens, twice over", "text": "the text"}


def show_heads(run: Run, *, quiet: bool) -> None:
    """Print a grid of the statistic that was asked for, the heads that have most of it, and where the run is."""
    from .pictures import show_pictures
    from .terminal import number, run_path, show_table

    if quiet:
        typer.echo(run_path(run))
        return
    found, sort = run.summary, run.summary["sort"]
    known = any(row.get(sort) is not None for row in found["listed"])  # texts in which nothing repeats have no induction
    measure = sort if known and sort in STATISTICS else "kind" if any(found["kinds"].values()) else None
    show_pictures(run, tables=("head_kinds",), kinds=("grid",), measure=measure, notes=False)
    for which, kinds in found["kinds"].items():
        listed = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items(), key=lambda one: -one[1]))
        typer.echo(f"\n{INPUTS[which]}: {listed or 'too short to tell kinds'}")
    typer.echo(f"\nby {sort}, on {INPUTS[found['sorted_on']]}")
    kernel = any("kernel" in row for row in found["listed"])
    header = ("head", "kind", *STATISTICS, *(KERNEL.values() if kernel else ()))
    show_table(header, [_line(row, number, kernel) for row in found["listed"]])
    if kernel:
        typer.echo("similar to error without: as a kernel, on the text")
    if "memory" in found:
        typer.echo("\n" + _memories(found["memory"], number))
    if "keys" in found:
        _show_keys(found["keys"], number)
    typer.echo(f"\nrun: {run_path(run)}")


def _line(row: dict[str, Any], number: Any, kernel: bool) -> tuple[str, ...]:
    shown = [number(row[name], ".2f") for name in STATISTICS]
    more = [number(row["kernel"][name], ".2f") for name in KERNEL] if kernel else []
    return (f"{row['layer']}.{row['head']}", row["kind"] or "", *shown, *more)


def _memories(found: dict[str, Any], number: Any) -> str:
    """The medians over heads, by rule."""
    parts = [
        f"{rule} {number(one.get('error'), '.2f')}, stored values {number(one['retrieval_error'], '.2f')}"
        if "error" in one else f"{rule} stored values {number(one['retrieval_error'], '.2f')}"
        for rule, one in sorted(found.items(), reverse=True)
    ]  # fmt: skip
    return "as memories, median relative error of the output with all pairs stored: " + "; ".join(parts)


def _show_keys(found: dict[str, Any], number: Any) -> None:
    """How many heads' keys agree with what, those that agree most, and the clusters of the first."""
    from .terminal import interval, show_table, visible

    tagged = f", {found['tagged']:,} of them tagged" if found["tagged"] else ""
    typer.echo(
        f"\nclusters of keys, of {found['n']:,} tokens{tagged}; heads that agree with p <= 0.05, mean excess, residual's"
    )
    rows = [
        (space, labels, f"{within}s", f"{one['heads']} of {one['of']}", number(one["excess"], ".3f"),
         number(one["resid_excess"], ".3f"))
        for space, by in found["agree"].items() for labels, per in by.items() for within, one in per.items()
    ]  # fmt: skip
    show_table(("rotation", "labels", "fixed", "heads", "excess", "residual"), rows)
    labels = found["listed"][0]["labels"] if found["listed"] else ""
    typer.echo(f"\nby the least excess of {labels}, {found['space']} rotation")
    show_table(("head", "k", "NMI", "fixed", "floor", "excess", "95 %", "p", "residual"), [
        (f"{row['layer']}.{row['head']}", str(row["k"]), number(row["nmi"], ".3f"), f"{row['shuffled']}s",
         number(row["floor"], ".3f"), number(row["excess"], ".3f"), interval(row["low"], row["high"], ".3f"),
         number(row["p"], ".3f"), number(row["resid_excess"], ".3f"))
        for row in found["listed"]
    ])  # fmt: skip
    for row in found["listed"][:1]:
        typer.echo(f"\nclusters of {row['layer']}.{row['head']}")
        show_table(("size", "tags", "positions", "tokens"), [
            (str(one["size"]), _shares(one), f"{one['pos_first']}-{one['pos_last']}", " ".join(map(visible, one["tokens"])))
            for one in row["clusters"]
        ])  # fmt: skip


def _shares(cluster: dict[str, Any]) -> str:
    """Its most frequent tags."""
    return ", ".join(f"{tag} {share:.0%}" for tag, share in zip(cluster["tags"][:3], cluster["tag_shares"], strict=False))
