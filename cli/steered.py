"""How a scan of strengths looks, and a direction that was made. Knows no commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from probe.store import Run


def show_scan(run: Run, *, quiet: bool) -> None:
    """Print the effect at each strength with its interval, beside the random directions' and what it costs."""
    from .terminal import interval, number, run_path, show_table, show_warnings

    found = run.summary
    if quiet:
        typer.echo(run_path(run))
        return
    place = found["site"] if found["layer"] < 0 else f"{found['site']}@{found['layer']}"
    where = f"{place}:{found['positions']} of {found['prompts']} prompts"
    typer.echo(f"strength x direction (norm {found['norm']:.3f}) added to {where}")
    typer.echo(f"effect on: {found['metric']}; beside {found['controls']} random directions of the same norm")
    show_warnings(run)
    typer.echo("")
    header = ("strength", "value", "effect", "95 % interval", "random", "least, greatest", "p", "KL", "nats a token lost")
    rows = [
        (
            f"{r['strength']:g}", f"{r['value']:.3f}", f"{r['effect']:+.3f}",
            interval(r["ci_low"], r["ci_high"], "+.3f"),
            f"{r['control_mean']:+.3f}", interval(r["control_low"], r["control_high"], "+.3f"),
            "" if r["strength"] == 0 else f"{r['p_value']:.3g}", number(r["kl"], ".3f"), number(r["lost"], "+.3f"),
        )
        for r in found["strengths"]
    ]  # fmt: skip
    show_table(header, rows)
    if found["written"]:
        _show_written(run)
    if found["prompts"] == 1:
        typer.echo("\none prompt: no interval over prompts")
    typer.echo(f"\nrun: {run_path(run)}")


def _show_written(run: Run) -> None:
    """What the first prompt was continued by under the direction itself, and what a token of it costs without."""
    from .terminal import show_table, visible

    first = min(run.scan("steering", columns=["prompt_id"])["prompt_id"].to_pylist())
    rows = run.scan("steering", prompt_id=first, control=0).sort_by("strength").to_pylist()
    tokens = run.scan("steering_tokens", columns=["strength", "plain_logprob"], prompt_id=first, control=0).to_pandas()
    costs = -tokens.groupby("strength")["plain_logprob"].mean()
    typer.echo(f"\nwhat prompt {first} is continued by, and what a token of it costs the model without the direction")
    shown = [(f"{row['strength']:g}", f"{costs[row['strength']]:.3f}", visible(row["text"])) for row in rows]
    show_table(("strength", "nats a token", "continuation"), shown)


def show_direction(run: Run, *, quiet: bool) -> None:
    """Print where the direction is, how long it is, how well it tells left-out texts apart, and where the run is."""
    from .terminal import run_path

    found = run.summary
    if quiet:
        typer.echo(found["direction"])
        return
    head = "" if found["head"] is None else f".{found['head']}"
    place = found["site"] if found["layer"] < 0 else f"{found['site']}@{found['layer']}{head}"
    typer.echo(f"{found['direction']}: {found['positive']} - {found['negative']} texts at {place}:{found['positions']}")
    typer.echo(f"norm {found['norm']:.3f}, {found['relative_norm']:.3f} of the mean norm there")
    if found["accuracy"] is None:
        typer.echo("nothing can be left out: give at least two texts a set to see whether it tells others apart")
    else:
        typer.echo(
            f"left-out texts on their side: {found['accuracy']:.3f}; with shuffled labels {found['shuffled']:.3f} "
            f"(95 % below {found['shuffled_high']:.3f}), p = {found['p_value']:.3g}"
        )
    typer.echo(f"\nrun: {run_path(run)}")
