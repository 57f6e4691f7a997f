"""How a rewind looks on a terminal: the step before and after, both arms, the difference and whether it is resolved."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from .over_problems import show_over_problems
from .terminal import interval, number, run_path, show_drawing, show_table, show_warnings, visible

if TYPE_CHECKING:
    from probe.store import Run

ARMS = {"before": "before the step", "control": "control", "edited": "edited"}
NAMES = {
    "total_variation": "total variation", "jensen_shannon": "Jensen-Shannon (nats)", "kl_jeffreys": "KL, Jeffreys ½ (nats)",
    "flip_rate": "flip rate", "accuracy": "accuracy", "tokens": "tokens drawn",
}  # fmt: skip
SHOWN = 8


def show_rewind(run: Run, *, quiet: bool, explain: bool) -> None:
    """Print what was put where, how far it is from the model's own words, what came of it, and where the run is."""
    if quiet:
        typer.echo(run_path(run))
        return
    summary = run.summary
    if "places" in summary:
        _show_places(summary)
        if "over_problems" in summary:
            show_over_problems(run)
        show_drawing(summary.get("drawing"))
        show_warnings(run)
        typer.echo(f"\nrun: {run_path(run)}")
        return
    _show_edit(summary)
    _show_arms(summary)
    if summary["effects"]:
        _show_effects(summary)
    show_drawing(summary.get("drawing"))
    if explain:
        _show_answers(run)
    _show_examples(summary)
    show_warnings(run)
    if summary["no_answer"]:
        typer.echo("warning: no continuation gave an answer: raise --max-new, or say how answers look with --answer", err=True)
    typer.echo(f"\nrun: {run_path(run)}")


def _show_places(summary: dict[str, Any]) -> None:
    """A line for each place of each problem."""
    rows = []
    for one in summary["places"]:
        measured = one["difference"]
        difference, p = ("", "") if measured is None else (_signed(measured), f"{measured['p_value']:.3g}")
        headroom = "" if one["headroom"] is None else f"{one['headroom']:.2f}"
        rows.append((
            str(one["prompt_id"]), f"step{one['step']}", visible(one["edit"]), visible(one["reference"]), str(one["samples"]),
            headroom, difference, p, measured.get("stopped") or "" if measured else "",
        ))  # fmt: skip
    header = ("prompt", "at", "edit", "reference", "n", "headroom", "P changes by", "p", "drawn until")
    kept = header if any(row[-1] for row in rows) else header[:-1]
    show_table(kept, [row[: len(kept)] for row in rows])


def _show_edit(summary: dict[str, Any]) -> None:
    typer.echo(f"step {summary['step']}, token {summary['position']}: {summary['edit']}")
    typer.echo(f"  was {visible(summary['old'])}")
    if summary["new"]:
        typer.echo(f"  now {visible(summary['new'])}" + ("" if summary["same_length"] else " (another number of tokens)"))
    if summary["mid_token"]:
        typer.echo("  the place begins inside a token: the whole token belongs to it")
    far = summary["off_policy"]
    if far:
        z = "–" if far["z"] is None else f"{far['z']:+.2f}"
        typer.echo(
            f"off-policy z {z}: {far['edit_logprob']:.3f} nats a token over {far['tokens']} tokens, the model's own "
            f"{far['own_steps']} there {far['own_logprob']:.3f} ± {far['own_sd']:.3f}"
        )
        if far["far"]:
            typer.echo("warning: the model would hardly say this: what follows may be its surprise (z < -3)", err=True)
    typer.echo(f"drawn at {_sampling(summary['sampling'])}")
    if summary["headroom"] is not None:
        typer.echo(f"headroom {summary['headroom']:.3f} nats: entropy of the outcome before the step")


def _sampling(sampling: dict[str, Any]) -> str:
    """What the continuations were drawn with: the temperature, and the filters that were set."""
    found = [f"temperature {sampling['temperature']:g}" if sampling["temperature"] else "temperature 0 (greedy)"]
    found += [f"{key.replace('_', '-')} {sampling[key]:g}" for key in ("top_k", "top_p", "min_p") if sampling[key] is not None]
    penalty = sampling["repetition_penalty"]
    return ", ".join([*found, *([f"repetition-penalty {penalty:g}"] if penalty != 1 else [])])


def _show_arms(summary: dict[str, Any]) -> None:
    arms = summary["arms"]
    order: dict[str, None] = {summary["reference"]: None}  # shown whatever else is cut off
    for name in ("control", "edited", "before"):
        order.update(dict.fromkeys(row["outcome"] for row in arms.get(name, {"outcomes": []})["outcomes"]))
    names = [name for name in ("control", "edited", "before") if name in arms]
    rows = []
    for outcome in list(order)[:SHOWN]:
        cells = [next((r for r in arms[name]["outcomes"] if r["outcome"] == outcome), None) for name in names]
        mark = " *" if outcome == summary["reference"] else ""
        rows.append((visible(outcome) + mark, *(_share(cell) for cell in cells)))
    typer.echo("")
    show_table(("outcome", *(f"{ARMS[name]} (n = {arms[name]['n']})" for name in names)), rows)
    if len(order) > SHOWN:
        typer.echo(f"… and {len(order) - SHOWN} more outcomes")
    cut = ", ".join(f"{ARMS[name]} {arms[name]['cut_off']} of {arms[name]['n']}" for name in names)
    if any(arms[name]["cut_off"] for name in names):
        typer.echo(f"cut off after {summary['max_new']} tokens: {cut}")
    typer.echo(f"* {'expected' if summary['expected'] else 'the original answer'}; shares with 95 % Wilson intervals")


def _share(cell: dict[str, Any] | None) -> str:
    return "0" if cell is None else f"{cell['share']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]"


def _show_effects(summary: dict[str, Any]) -> None:
    headline = summary["difference"]
    typer.echo(
        f"\nP({visible(headline['outcome'])}) changes by {_signed(headline)}, {_test(headline)} = {headline['p_value']:.3g}: "
        f"{summary['resolution']}"
    )
    rows = []
    for row in summary["effects"]:
        if row["metric"] == "share":
            continue
        rows.append((
            NAMES[row["metric"]], f"{row['difference']:.3f}", interval(row["ci_low"], row["ci_high"], ".3f"),
            number(row["null_high"], ".3f"), number(row["p_value"], ".3g"),
        ))  # fmt: skip
    show_table(("measure", "value", "95 % interval", "null 95 %", "p"), rows)
    scored = summary["rescored"]
    if scored:
        worst = scored["most_changed"]
        typer.echo(
            f"the {scored['tokens']} tokens that followed: {scored['logprob']:.3f} nats, with the edit "
            f"{scored['logprob_edited']:.3f} ({scored['difference']:+.3f}; most at {worst['pos']} "
            f"{visible(worst['token'])}, {worst['difference']:+.3f})"
        )


def _test(headline: dict[str, Any]) -> str:
    """What the p is of."""
    if headline.get("stopped") is not None:
        return "anytime-valid p"
    return f"{headline['method'].split(' exact')[0].split(' and')[0]} p"


def _signed(row: dict[str, Any]) -> str:
    return f"{row['difference']:+.3f} [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"


def _show_answers(run: Run) -> None:
    from probe.answers import TRUNCATED, explain

    how = run.summary["answers"]
    rows = []
    for row in run.branches.itertuples():
        cut_off = f"chosen, but cut off: {TRUNCATED}"
        for found in explain(row.text, how):
            rows.append(
                (
                    str(row.branch),
                    str(row.arm),
                    found.rule,
                    visible(found.text),
                    visible(found.key),
                    found.confidence,
                    (cut_off if row.outcome == TRUNCATED else "chosen" if row.outcome == found.key else "")
                    if found.chosen
                    else "",
                )
            )
    read_by = ", ".join(f"{rule} {n}" for rule, n in run.summary["rules"].items())
    typer.echo(f"\nanswers read by: {read_by or 'no rule'}; all that was found in what was drawn")
    show_table(("branch", "arm", "rule", "as written", "class", "confidence", ""), rows)


def _show_examples(summary: dict[str, Any]) -> None:
    for name, example in summary["examples"].items():
        typer.echo(f"\n{ARMS[name]}, sample {example['sample']} -> {visible(example['outcome'])}")
        typer.echo("  " + json.dumps(example["text"], ensure_ascii=False)[1:-1])
