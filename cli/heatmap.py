"""How a sweep looks on a terminal: tokens that differ, a heat map for each site, the strongest places."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from .pictures import show_pictures
from .terminal import interval, run_path, show_table, show_warnings, visible

if TYPE_CHECKING:
    from probe.store import Run


def show_patch(run: Run, *, quiet: bool) -> None:
    """Print what was asked, a heat map for each site, the strongest places, and where the run is."""
    show_warnings(run)
    if quiet:
        typer.echo(run_path(run))
        return
    summary = run.summary
    _show_question(summary)
    means = summary["pairs"] > 1
    show_pictures(
        run, prompt=int(summary["direction"] == "denoise"), kinds=("grid",), tables=("patch_means" if means else "patches",),
        notes=False,
    )  # fmt: skip
    _show_strongest(summary)
    typer.echo(f"\nrun: {run_path(run)}")


def _measure(summary: dict[str, Any]) -> str:
    """The column that is shown: shares, but where most pairs' clean and corrupt hardly differ their differences."""
    return "change" if 2 * len(summary.get("small", ())) > summary["pairs"] else "effect"


def _show_question(summary: dict[str, Any]) -> None:
    against = "" if summary["against"] is None else f" against {visible(summary['against'])}"
    mean = f", mean of {summary['pairs']} pairs" if summary["pairs"] > 1 else ""
    typer.echo(f"{summary['metric']} of {visible(summary['answer'])}{against} ({summary['unit']}){mean}")
    floor = summary.get("floor")
    typer.echo(
        f"clean {summary['clean']:+.3f}, corrupt {summary['corrupt']:+.3f}"
        + ("" if floor is None else f"; 95 % of random patches of the same norm move it by less than {floor:.3f}")
    )
    if at := summary.get("at"):
        where = "" if summary["pairs"] > 1 else f", {at['pos']} {visible(at['token'])}"
        typer.echo(f"measured after {at['measure_at']} of the clean text{where}: both are read up to there")
    if summary.get("measured"):
        _show_measured(summary["measured"])
    into = (
        "the corrupt run: 0 is corrupt, 1 is clean"
        if summary["direction"] == "denoise"
        else "the clean run: 0 is clean, 1 is corrupt"
    )
    what = {"clean": "clean" if summary["direction"] == "denoise" else "corrupt"}.get(summary["from"], summary["from"])
    typer.echo(f"{what} put into {into}")
    tokens = ", ".join(f"{d['pos']} {visible(d['clean'])} / {visible(d['corrupt'])}" for d in summary["differing"])
    typer.echo(f"tokens that differ: {tokens or 'none that are aligned'}")
    idle = "" if summary["passed"] == summary["cells"] else f", {summary['passed']:,} of them run: the others change nothing"
    if summary.get("neurons"):
        _show_chosen(summary, summary["neurons"])
    elif summary["method"] != "exact":
        typer.echo(f"{summary['cells']:,} cells, estimated from the gradient{_points(summary)}")
    else:
        typer.echo(f"{summary['cells']:,} {'paths of ' + summary['path'] if summary['path'] else 'cells'}{idle}")
    _show_agreement(summary)


def _show_measured(measured: dict[str, Any]) -> None:
    """Where the arms of a rewind are compared, and what the step does to the outcome in the end."""
    where = {"parting": "the first place after the step where the arms part", "answer": "the answer"}
    typer.echo(
        f"measured at {measured['pos']}, {where.get(measured['measure_at'], 'as asked')}: total variation of the next token "
        f"{measured['total_variation']:.3f}"
    )
    total = measured["outcome"]
    if total:
        typer.echo(
            f"total effect of the step: P({visible(total['outcome'])}) changes by {total['difference']:+.3f} "
            f"[{total['ci_low']:+.3f}, {total['ci_high']:+.3f}]"
        )


def _points(summary: dict[str, Any]) -> str:
    return f", averaged over {summary['ig']} points between the texts" if summary["ig"] else ""


def _show_chosen(summary: dict[str, Any], neurons: dict[str, Any]) -> None:
    """Which neurons were patched, and what others do that were drawn at random."""
    where = "" if summary["pairs"] > 1 else f" of {neurons['of']:,}"
    typer.echo(f"{neurons['chosen']}{where} neurons, those that the gradient{_points(summary)} promises most of")
    if neurons["control"]:
        measure = _measure(summary)
        most = neurons[f"control_{measure}"]
        known = "" if most is None else f": {measure} {most:.3f} at most"
        typer.echo(f"{neurons['control']} others, drawn at random{known}")


def _show_agreement(summary: dict[str, Any]) -> None:
    """How good the estimates are."""
    found = summary["agreement"]
    if found is None:
        return
    numbers = ", ".join(
        f"{name} {'undefined' if found[key] is None else format(found[key], '.3f')}"
        for name, key in (("Spearman", "spearman"), ("Pearson", "pearson"), ("largest error of an effect", "largest_error"))
    )
    cells = "neurons" if summary.get("neurons") else "random cells that can matter"
    typer.echo(f"estimates against exact patches of {found['n']} {cells}: {numbers}")


def _show_strongest(summary: dict[str, Any]) -> None:
    rows, measure = [], _measure(summary)
    for cell in summary["strongest"]:
        place = f"{cell['site']}@{cell['layer']}" if cell["layer"] >= 0 else cell["site"]
        place += f".{cell['head']}" if cell["head"] >= 0 else f".n{cell['neuron']}" if cell.get("neuron", -1) >= 0 else ""
        where = (
            f"{cell['pos']}"
            if cell["pos"] != -1 or summary["pairs"] > 1
            else f"step{cell['step']}"
            if cell["step"] >= 0
            else "all"
        )
        place += f" -> {cell['receiver']}" if cell["receiver"] else ""
        token = visible(cell["token"]) if cell.get("token") is not None else ""
        between = "" if measure == "change" else interval(cell.get("ci_low"), cell.get("ci_high"), "+.3f")
        estimate = cell.get("estimate")
        promised = "" if estimate is None or measure == "change" else f"{estimate:+.3f}"
        rows.append((place, where, token, f"{cell[measure]:+.3f}", between, promised, f"{cell['patched']:+.3f}"))
    if not rows:
        typer.echo("\nno effect is defined: clean and corrupt do not differ in this metric")
        return
    header = ("place", "at", "token", measure, "95 %", "estimate", summary["metric"])
    shown = [i for i in range(len(header)) if any(row[i] for row in rows)]
    typer.echo("\nstrongest places")
    show_table([header[i] for i in shown], [[row[i] for i in shown] for row in rows])
