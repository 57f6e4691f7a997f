"""How what holds over the problems of a run looks on a terminal: means with intervals, what goes along with them, curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from .terminal import show_table

if TYPE_CHECKING:
    from probe.store import Run

WIDTH = 31
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
LISTED = ("all", "kind", "quarter")
TERMS = {
    "entropy": "entropy of the outcome before it, a nat", "position": "where it begins, the whole reasoning",
    "length": "length, a token", "truncated": "draws that were cut off, all",
    "budget": "what a draw could have, a token",
}  # fmt: skip


def show_over_problems(run: Run) -> None:
    """Print the tables over problems that a run has."""
    about = run.summary["over_problems"]
    left = f", {about['left_out']} left out" if about["left_out"] else ""
    typer.echo(
        f"\nover {about['problems']} problems{left}: {about['steps']:,} steps, {about['rollouts']:,} rollouts; "
        "means of problems' means, 95 % over problems"
    )
    if not about["intervals_hold"]:
        typer.echo(f"with fewer than {about['fewest_problems']} problems an interval holds only where problems are normal (t)")
    if "importance_means" in run.tables:
        rows = run.importance_means
        _show_means(rows, "method", "estimate")
        _show_covariates(run.covariates if "covariates" in run.tables else None)
    if "effect_means" in run.tables:
        rows = run.effect_means
        names = rows["edit"].astype(str) + ": " + rows["metric"].astype(str).str.replace("_", " ")
        _show_means(rows.assign(effect=names), "effect", "difference")
    if "curves" in run.tables:
        _show_curves(run.curves, about["areas"])


def _show_means(rows: Any, name: str, value: str) -> None:
    """A block for each method or effect: all steps, by kind, by quarter, each with a bar of its interval."""
    for label, own in rows.groupby(name, sort=False, observed=True):
        own = own[own["grouped_by"].astype(str).isin(LISTED)]
        order = own["grouped_by"].astype(str).map(LISTED.index)
        own = own.assign(order=order).sort_values("order", kind="stable")
        if own[value].isna().all():
            continue
        least, most = _scale(own, value)
        cells = [
            (
                str(row.value) or "all steps", _number(getattr(row, value)), _interval(row.ci_low, row.ci_high),
                _bar(getattr(row, value), row.ci_low, row.ci_high, least, most), _above(row),
                _number(getattr(row, "floor", None)), str(row.discovered), str(row.problems), str(row.steps),
                f"{row.rollouts:,}",
            )
            for row in own.itertuples()
        ]  # fmt: skip
        unit = f": {own['unit'].iloc[0]}" if "unit" in own else ""
        typer.echo(f"\n{label}{unit}")
        heads = ("", "mean", "95 %", "", "above chance", "by chance", "q ≤ 0.05", "problems", "steps", "rollouts")
        _show(heads, cells)


def _scale(rows: Any, value: str) -> tuple[float, float]:
    """Both ends of the bars: they hold zero, all means and the intervals of most rows. Of few problems some are far wider."""
    ends = rows[value].dropna().tolist()
    for column, share in (("ci_low", 0.2), ("ci_high", 0.8)):
        known = rows[column].dropna()
        ends += [float(known.quantile(share))] if len(known) else []
    return min(0.0, *ends, 0.0), max(0.0, *ends, 0.0)


def _above(row: Any) -> str:
    """The mean of what is above the floor, with its interval."""
    found = getattr(row, "above", None)
    return "" if found is None or found != found else f"{_number(found)} {_interval(row.above_low, row.above_high)}"


def _show_covariates(rows: Any) -> None:
    """For each method what its importance goes along with, and what kinds of steps add to that."""
    if rows is None:
        return
    for method, own in rows.groupby("method", sort=False, observed=True):
        plain = own[(own["design"] == "covariates") & own["term"].isin(TERMS) & own["coefficient"].notna()]
        if plain.empty:
            continue
        kinds = own[own["design"] == "kinds"].set_index("term")
        more = kinds["partial_r2"].get("all kinds", float("nan"))
        told = f", and of the rest kinds of steps explain {more:.2f}" if more == more else ""
        halves = {"shared": "; read from the same draws, whose noise is in both"}.get(str(own["halves"].iloc[0]), "")
        typer.echo(f"\n{method} goes along with (together they explain {plain['r2'].iloc[0]:.2f}{told}{halves})")
        cells = [
            (TERMS[str(row.term)], _number(row.coefficient, small=True), _interval(row.ci_low, row.ci_high, small=True),
             f"{row.partial_r2:.2f}", str(row.problems), str(row.steps))
            for row in plain.itertuples()
        ]  # fmt: skip
        _show(("more by", "changes it by", "95 %", "explains of the rest", "problems", "steps"), cells)


def _show_curves(rows: Any, areas: Sequence[dict[str, Any]]) -> None:
    """For each curve its values along the steps that are kept, and the area over it in both weightings."""
    along = rows[rows["along"] == "steps"]
    cells = []
    for curve, own in along.groupby("curve", sort=False, observed=True):
        by_share = {round(row.share, 1): row for row in own.itertuples()}
        found = {area["along"]: area for area in areas if area["curve"] == curve}
        over = [_with_interval(found[way]) for way in ("steps", "tokens")]
        cells.append((str(curve), *(_number(by_share[share].estimate, signed=False) for share in SHARES), *over,
                      str(found["steps"]["problems"])))  # fmt: skip
    typer.echo("\ncurves, by the share of the steps that is kept; AOC: area over the curve")
    _show(("curve", *(f"{share:.0%}" for share in SHARES), "AOC, by steps", "AOC, by tokens", "problems"), cells)
    for what in dict.fromkeys(area["what"] for area in areas):
        typer.echo(f"  {what}")
    for way, formula in dict.fromkeys((area["along"], area["formula"]) for area in areas):
        typer.echo(f"  AOC by {way}: {formula}")


def _show(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """A table without the columns in which nothing stands."""
    shown = [i for i in range(len(heads)) if any(row[i].strip() for row in cells)]
    show_table([heads[i] for i in shown], [[row[i] for i in shown] for row in cells])


def _bar(value: float, low: float, high: float, least: float, most: float) -> str:
    """The interval as a line on a scale from `least` to `most`, with the estimate ● and zero │ on it; ‹ and › where it goes
    further."""
    span = (most - least) or 1.0
    line = [" "] * WIDTH

    def at(x: float) -> int:
        return max(0, min(WIDTH - 1, round((x - least) / span * (WIDTH - 1))))

    if low == low:
        line[at(low) : at(high) + 1] = "─" * (at(high) - at(low) + 1)
    line[at(0.0)] = "│"
    if low < least:
        line[0] = "‹"
    if high > most:
        line[-1] = "›"
    if value == value:
        line[at(value)] = "●"
    return "".join(line)


def _interval(low: float | None, high: float | None, *, small: bool = False) -> str:
    return "" if low is None or low != low else f"[{_number(low, small=small)}, {_number(high, small=small)}]"


def _with_interval(area: dict[str, Any]) -> str:
    low, high = area["ci_low"], area["ci_high"]
    return _number(area["area_over_curve"], signed=False) + ("" if low is None else f" [{low:.2f}, {high:.2f}]")


def _number(value: float | None, *, small: bool = False, signed: bool = True) -> str:
    """Empty where there is none. small: figures that may be thousandths have three digits that count."""
    if value is None or value != value:
        return ""
    form = ".3g" if small and 0 < abs(value) < 0.1 else ".3f"
    return f"{value:{'+' if signed else ''}{form}}"
