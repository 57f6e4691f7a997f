"""How step importance looks on a terminal: a table and bars for each method, and how the methods agree."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import typer

from .over_problems import show_over_problems
from .pictures import show_pictures
from .terminal import interval, number, run_path, show_drawing, show_table, show_warnings, visible

if TYPE_CHECKING:
    from probe.store import Run

BAR = 24


def show_importance(run: Run, *, quiet: bool) -> None:
    """Print a table and bars for each method, how the methods agree, and where the run is."""
    if quiet:
        typer.echo(run_path(run))
        return
    summary = run.summary
    if "problems" in summary:
        _show_problems(run)
        show_over_problems(run)
        show_drawing(summary.get("drawing"))
        show_warnings(run)
        typer.echo(f"run: {run_path(run)}")
        return
    show_warnings(run)
    for name, rows in run.importance.groupby("method", sort=False, observed=True):
        heads = run.manifest["arguments"].get("suppress") if name == "suppression" else None
        typer.echo(f"{name}: {rows['unit'].iloc[0]}" + (f", only {heads}" if heads else ""))
        _show_method(rows, drawn=not sys.stdout.isatty())
        typer.echo("")
    if sys.stdout.isatty():
        show_pictures(run, kinds=("bars", "grid"), tables=("importance", "dependence"), notes=False)
        typer.echo("")
    show_drawing(summary.get("drawing"))
    if summary.get("truncated") and any(summary["truncated"]):
        typer.echo(f"cut off, by boundary: {' '.join(f'{share:.2f}' for share in summary['truncated'])}\n")
    _show_heads(summary.get("receiver"))
    early = summary.get("early_answer")
    if early:
        typer.echo(
            f"commitment step {early['commitment_step']}, area over the curve {early['area_over_curve']:.3f} "
            f"(by tokens {early['area_over_curve_by_tokens']:.3f}); answers {' '.join(early['answers'])}\n"
        )
    agree = [row for row in summary["agreement"] if row["spearman"] is not None and _base(row["a"]) != _base(row["b"])]
    if agree:
        cells = [(row["a"], row["b"], f"{row['spearman']:+.2f}", f"{row['kendall']:+.2f}", str(row["steps"])) for row in agree]
        show_table(("method", "and", "Spearman", "Kendall", "steps"), cells)
    typer.echo(f"reference answer {summary['reference']}\nrun: {run_path(run)}")


def _show_problems(run: Run) -> None:
    """The strongest step of each problem, by each method."""
    rows = []
    for (prompt, method), own in run.importance.groupby(["prompt_id", "method"], sort=False, observed=True):
        measured = own.dropna(subset=["estimate"])
        if measured.empty:
            continue
        most = measured.loc[measured["estimate"].abs().idxmax()]
        rows.append((
            str(prompt), str(method), str(len(own)), f"step{most['step']}", number(most["estimate"], "+.3f"),
            interval(most["ci_low"], most["ci_high"], "+.2f"), number(most["q_value"], ".3g"), visible(most["text"][:60]),
        ))  # fmt: skip
    show_table(("prompt", "method", "steps", "most", "estimate", "95 %", "q", "text"), rows)


def _base(method: str) -> str:
    return method.split("_")[0]


def _show_heads(chosen: dict[str, Any] | None) -> None:
    """Which heads the receiver scores are of, and whether they were chosen on the text that they score."""
    if not chosen:
        return
    names = " ".join(f"{head['layer']}.{head['head']}" for head in chosen["heads"])
    mean = sum(head["kurtosis"] for head in chosen["heads"]) / len(chosen["heads"])
    typer.echo(f"receiver heads, chosen on {chosen['chosen_on']}: {names}")
    typer.echo(
        f"mean kurtosis {mean:+.2f}, with weights shuffled {chosen['kurtosis_shuffled']:+.2f} "
        f"(95 % below {chosen['kurtosis_shuffled_high']:+.2f})\n"
    )


def _show_method(rows: Any, *, drawn: bool) -> None:
    """A row a step; drawn: with a bar in it, where no picture of them follows."""
    largest = rows["estimate"].abs().max() or 1.0
    usual = "+.3f" if largest >= 0.05 else "+.2e"  # weights of single tokens are small

    table = []
    for row in rows.itertuples():
        bar = "" if row.estimate != row.estimate or not drawn else "█" * round(BAR * abs(row.estimate) / largest)
        table.append((
            f"step{row.step}", number(row.estimate, usual), interval(row.ci_low, row.ci_high, "+.2f"),
            number(row.control, usual), "" if row.floor == row.control else number(row.floor, usual),
            number(row.p_value, ".3g"), number(row.q_value, ".3g"), _stopped(row), bar.ljust(BAR), visible(row.text[:60]),
        ))  # fmt: skip
    shown = [i for i, name in enumerate(_COLUMNS) if any(cells[i].strip() for cells in table)]
    show_table([_COLUMNS[i] for i in shown], [[cells[i] for i in shown] for cells in table])


def _stopped(row: Any) -> str:
    """In rounds: why no more was drawn, and how much there is."""
    why = getattr(row, "stopped", None)
    return f"{why}, n = {row.n:.0f}" if isinstance(why, str) else ""


_COLUMNS = ("step", "estimate", "95 %", "control", "by chance", "p", "q", "drawn until", "", "text")
