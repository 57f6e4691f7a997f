"""How a file of texts looks once a place was followed through it: the texts that move it, or its means. Knows no commands."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from probe.store import Run

SHOWN = 12  # places of which the texts are printed
ROWS = 40  # of the table of means
WIDE = 60  # characters on a side of the token
NAMES = {"top": "largest", "bottom": "smallest", "random": "random texts, by their largest"}
MEASURES = {
    "activation": "its activation", "norm": "the Euclidean norm there", "projection": "the projection h·v/‖v‖",
}  # fmt: skip


def show_top(run: Run, *, quiet: bool) -> None:
    """Print each place with the spread of its values, and the texts in which it is largest and smallest, and random ones."""
    from .terminal import run_path

    if quiet:
        typer.echo(run_path(run))
        return
    summary = run.summary
    _show_read(summary)
    for value in summary["values"][:SHOWN]:
        rows = run.scan("top", place=value["place"]).to_pylist()
        _show_place(value, rows)
    if summary["places"] > SHOWN:
        typer.echo(f"\n… and {summary['places'] - SHOWN} more places: the tables 'top' and 'top_values' have all")
    typer.echo(f"\nrun: {run_path(run)}")


def _show_read(summary: dict[str, Any]) -> None:
    texts = summary["prompts"] - summary["errors"]
    skipped = f", the first {summary['skip']} of a text left out" if summary["skip"] else ""
    typer.echo(
        f"{summary['counted']:,} tokens of {texts:,} text{'s' if texts > 1 else ''}{skipped}; "
        f"windows of {summary['window']:,} tokens"
    )


def _show_place(value: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    typer.echo(f"\n{value['place']}: {MEASURES[value['measure']]}")
    above = "" if value["measure"] == "norm" else f", above 0: {value['above_zero']:.2%}"
    typer.echo(
        f"mean {value['mean']:.4g}, sd {value['sd']:.4g}{above}; of all tokens "
        f"50 % below {value['q50']:.4g}, 99 % {value['q99']:.4g}, 99.9 % {value['q999']:.4g}; least {value['minimum']:.4g}, "
        f"greatest {value['maximum']:.4g}"
    )
    for kind, name in NAMES.items():
        own = sorted((row for row in rows if row["kind"] == kind), key=lambda row: row["rank"])
        typer.echo(f"  {name}")
        for row in own:
            where = row["row_id"] if row["row_id"] is not None else row["prompt_id"]
            _show_text(f"  {row['value']:>10.4g}  text {where}, token {row['pos']}  ", row)


def _show_text(begin: str, row: dict[str, Any]) -> None:
    """One line, the token between marks; in reverse on a terminal."""
    from .printing import console, in_a_line

    before, token, after = in_a_line(row["before"])[-WIDE:], in_a_line(row["token"]), in_a_line(row["after"])[:WIDE]
    if sys.stdout.isatty():
        from rich.text import Text

        console().print(Text.assemble(begin, before, (token, "reverse"), after), soft_wrap=True)
    else:
        typer.echo(f"{begin}{before}⟦{token}⟧{after}")


def show_means(run: Run, *, quiet: bool) -> None:
    """Print what of each place's mean and variance fits in a line, and how it is used."""
    from .terminal import run_path, show_table

    if quiet:
        typer.echo(run_path(run))
        return
    _show_read(run.summary)
    found = run.summary["means"]
    rows = [
        (
            _place(row), f"{row['mean_norm']:.4g}", f"{row['norm_of_mean']:.4g}", f"{row['total_variance']:.4g}",
            f"{row['largest_mean']:+.4g} at {row['largest_entry']}",
        )
        for row in found[:ROWS]
    ]  # fmt: skip
    typer.echo("")
    show_table(("place", "mean norm", "norm of the mean", "total variance", "largest entry of the mean"), rows)
    if len(found) > ROWS:
        typer.echo(f"… and {len(found) - ROWS} more places: the table 'means' has all")
    typer.echo(f"\nrun: {run_path(run)}\nput a mean in: --edit {_place(found[0])}=mean:{run_path(run)}")


def _place(row: dict[str, Any]) -> str:
    """As it is written on the command line."""
    from probe.sites import SITES
    from probe.sites.positions import listed

    if row.get("units"):
        letter = SITES[row["site"]].unit[0]
        return f"{row['site']}@" + ",".join(f"{row['layer']}.{letter}{some}" for some in listed(row["units"]).split(","))
    layer = "" if row["layer"] < 0 else f"@{row['layer']}"
    return f"{row['site']}{layer}{'' if row['head'] < 0 else '.' + str(row['head'])}"
