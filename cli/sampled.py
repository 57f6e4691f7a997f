"""How many answers to each problem look on a terminal: a row a problem, the means, and what was kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from .terminal import interval, number, run_path, show_table, show_warnings, visible

if TYPE_CHECKING:
    from probe.requests import Sample
    from probe.store import Run

ROWS = 40  # problems that are shown
_COLUMNS = ("problem", "right", "95 %", "pass@k", "majority", "", "entropy", "classes", "cut off", "tokens")


def show_sampled(run: Run, *, quiet: bool, request: Sample | None = None) -> None:
    """Print a row a problem, the means over problems, how many were kept and why the others were not, and where the run is."""
    if quiet:
        typer.echo(run_path(run))
        return
    show_warnings(run)
    rows = run.sampled
    table = [_row(row) for row in rows.head(ROWS).itertuples()]
    shown = [i for i, _ in enumerate(_COLUMNS) if any(cells[i].strip() for cells in table)]
    show_table([_COLUMNS[i] for i in shown], [[cells[i] for i in shown] for cells in table])
    if len(rows) > ROWS:
        typer.echo(f"… and {len(rows) - ROWS} more: the table 'sampled' has them all")
    _show_means(run)
    if (sampling := run.summary.get("sampling")) is not None:
        typer.echo(f"drawn at temperature {sampling['temperature']:g}, top-p {number(sampling['top_p'], 'g') or 'none'}, "
                   f"at most {run.summary['max_new']} tokens")  # fmt: skip
    if request is not None and request.keep is not None:
        _show_kept(run, request)
    typer.echo(f"run: {run_path(run)}")


def _row(row: Any) -> tuple[str, ...]:
    known = row.accuracy == row.accuracy
    passes = "" if not known else " ".join(f"{k}:{p:.2f}" for k, p in zip(row.k, row.pass_at_k, strict=True))
    vote = row.majority if row.majority is not None and row.majority == row.majority else None
    tie = f" (of {row.tied} that tie)" if row.tied > 1 else ""
    right = "" if not known else {1.0: "right", 0.0: "wrong"}.get(row.majority_correct, f"right 1 in {row.tied}")
    return (
        str(row.prompt_id), f"{int(row.correct)}/{row.n}" if known else f"?/{row.n}",
        interval(row.ci_low, row.ci_high, ".2f") if known else "", passes,
        visible(f"{vote[:24]} x{row.votes}{tie}") if vote is not None else "none", right, f"{row.entropy:.2f}",
        str(row.classes), f"{row.truncated:.2f}" if row.truncated else "", f"{row.tokens:.0f}",
    )  # fmt: skip


def _show_means(run: Run) -> None:
    means = run.sampled_means
    if not len(means):
        return
    cells = []
    for row in means.itertuples():
        name = {"pass_at_k": f"pass@{row.k}", "majority_correct": f"maj@{_samples(run)}"}.get(row.metric, row.metric)
        between = interval(row.ci_low, row.ci_high, ".3f")
        cells.append((name, f"{row.estimate:.3f}", between, str(row.problems), str(row.rollouts)))
    show_table(("mean over problems", "estimate", "95 %", "problems", "rollouts"), cells)


def _samples(run: Run) -> str:
    counts = sorted(set(run.sampled["n"]))
    return str(counts[0]) if len(counts) == 1 else "n"


def _show_kept(run: Run, request: Sample) -> None:
    from probe.sampling import keep_problems
    from probe.sampling.screening import REASONS

    found = keep_problems(run, request)
    counts = ", ".join(f"{n} {REASONS[reason]}" for reason, n in found.counts.items() if n or reason == "kept")
    typer.echo(f"{request.keep_accuracy} %: {counts}; in {request.keep}")
    if found.accuracy is None:
        return
    chose = f"the kept ones were right {found.accuracy:.3f} of the time in the draws that chose them"
    if found.held_out is None:
        typer.echo(f"{chose}: nearer to the middle than they will be in the next ones; --hold-out says how much")
    else:
        typer.echo(f"{chose}, and {found.held_out:.3f} in the half that was held out")
