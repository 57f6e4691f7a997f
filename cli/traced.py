"""How a trace looks on a terminal: the text, a row a prompt, what was asked for before the rest, and what surprised."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import typer

from .answered import show_answers
from .explained import show_explained
from .pictures import show_pictures, show_texts
from .terminal import SHOWN_PROMPTS, interval, run_path, show_table, visible

if TYPE_CHECKING:
    from probe.store import Run

SHOWN_ROWS = 20  # prompts in the table of prompts
LIGHT = 100_000  # rows of attention that are read to show heads
WIDE = 40  # characters of a text in it
TOTALS = (("logprob", "nats"), ("perplexity", ""), ("bits_per_token", "bits"), ("mean_entropy", "nats"))


def show_trace(run: Run, *, quiet: bool) -> None:
    """Print the text coloured by surprisal, the totals, the most surprising tokens, and where the run is."""
    if quiet:
        typer.echo(run_path(run))
        return
    summary = run.summary
    show_texts(run, _first_that_ran(run))
    more = summary["prompts"] - summary["errors"] - SHOWN_PROMPTS
    if more > 0:
        typer.echo(f"… and {more} more prompts")
    typer.echo("")
    if summary["prompts"] > 1:
        _show_prompts(run)
    _show_totals(summary)
    if summary["stop_reasons"]:
        reasons = ", ".join(f"{reason} {n}" for reason, n in summary["stop_reasons"].items())
        typer.echo(f"{'generated':<15}{summary['generated']:,} tokens (stopped by: {reasons})")
    if "transcripts" in summary:
        _show_transcripts(summary["transcripts"])
    if summary["most_surprising"]:
        parts = list(summary["parts"])
        typer.echo("\nmost surprising tokens" + (f" of the {parts[0]}" if len(parts) > 1 else ""))
        several = summary["prompts"] > 1
        rows = [
            (
                *([str(t["prompt_id"])] if several else []), str(t["pos"]), visible(t["token"]), number(t["surprisal"]),
                str(t["rank"]), visible(t["expected"]),
            )
            for t in summary["most_surprising"]
        ]  # fmt: skip
        show_table((*(["prompt"] if several else []), "pos", "token", "surprisal", "rank", "expected"), rows)
    if "experts" in summary:
        _show_experts(summary["experts"])
    if "answers" in summary:
        show_answers(run)
    if sys.stdout.isatty():
        _show_maps(run)
    typer.echo(f"\nrun: {run_path(run)}")
    if "explained" in summary:
        show_explained(summary["explained"])


def _show_maps(run: Run) -> None:
    """What the layers and heads did with the first prompt: the lens, heads by layer, where these are quickly read."""
    from probe.reporting.panels import attended, experts, guessed

    rows = {name: about["rows"] for name, about in run.manifest["tables"].items()}
    light = sum(rows.get(name, 0) for name in ("attention", "attention_rows")) <= LIGHT
    if run.summary["errors"] < run.summary["prompts"]:
        show_pictures(
            run, kinds=("grid",), tables=("lens", "heads", "routing", "expert_load"),
            subjects=(guessed, *((attended,) if light else ()), experts.panels), notes=False,
        )  # fmt: skip


def _show_experts(loads: list[dict[str, Any]]) -> None:
    """A layer a line: how its experts are loaded over all recorded tokens, beside what chance would do."""
    first = loads[0]
    typer.echo(
        f"\nload of experts over {first['tokens']:,} tokens of {first['texts']:,} text{'s' if first['texts'] > 1 else ''}"
    )
    rows = [
        (
            str(one["layer"]), f"{one['chosen']} of {one['experts']}", str(one["never"]),
            f"{one['most']}: {one['share']:.1%} of the tokens", interval(one["low"], one["high"], ".1%"),
            f"{one['max_over_mean']:.2f} ({one['even_max_over_mean']:.2f})",
            f"{one['entropy']:.3f} ({one['even_entropy']:.3f})",
        )
        for one in loads
    ]  # fmt: skip
    header = ("layer", "a token", "never", "most loaded", "95 %", "load / mean (by chance)", "entropy (by chance)")
    show_table(header, rows)


def _show_transcripts(found: dict[str, Any]) -> None:
    """How far this model would have written what came with its prompts, and what of the records is not there."""
    typer.echo(f"{'transcripts':<15}{found['n']:,}, of {found['tokens']:,} scored tokens that this model did not choose here:")
    if found["tokens"]:
        typer.echo(
            f"{'':<15}mean log-prob {number(found['mean_logprob'])} nats a token, its top token {found['top1_agreement']:.1%}, "
            f"below 1 % probability {found['tokens_below_1pct']:,} ({found['below_1pct']:.1%})"
        )
    if found["ids_differ"]:
        which = ", ".join(map(str, found["ids_differ_in"][:SHOWN_ROWS]))
        typer.echo(f"{'':<15}ids are not those of their text in {found['ids_differ']:,} (prompts {which})")
    for what, n in found["left_out"].items():
        typer.echo(f"{'left out':<15}{what} ({n:,} transcript{'s' if n > 1 else ''})")


def _show_totals(summary: dict[str, Any]) -> None:
    """One part a line, or one number a line where there is one part."""
    parts = summary["parts"]
    if len(parts) > 1:
        rows = [(name, f"{part['tokens']:,}", *(number(part[key]) for key, _ in TOTALS)) for name, part in parts.items()]
        show_table(("part", "tokens", "logprob", "perplexity", "bits a token", "mean entropy"), rows)
        return
    for name, unit in TOTALS:
        typer.echo(f"{name.replace('_', ' '):<15}{number(summary[name])} {unit}".rstrip())
    typer.echo(f"{'tokens':<15}{summary['tokens']:,} ({summary['scored']:,} scored)")


def _first_that_ran(run: Run) -> list[int]:
    """The numbers of the prompts whose text is shown."""
    found: list[int] = []
    for prompts in run.batches("prompts"):
        found += [row["prompt_id"] for row in prompts.select(["prompt_id", "error"]).to_pylist() if not row["error"]]
        if len(found) >= SHOWN_PROMPTS:
            break
    return found[:SHOWN_PROMPTS]


def _show_prompts(run: Run) -> None:
    """One prompt a line: its numbers are those of what was generated, or, without anything, of the prompt."""
    first, n, generated = next(run.batches("prompts", SHOWN_ROWS)), run.summary["prompts"], run.summary["stop_reasons"]
    rows = []
    for row in first.to_pandas().itertuples():
        numbers = (number(getattr(row, name)) for name in ("logprob", "perplexity", "mean_entropy"))
        written = row.completion if isinstance(row.completion, str) else None
        last = f"error: {row.error}" if row.error else _short(written) if written is not None else ""
        scored = "–" if math.isnan(row.scored) else f"{int(row.scored):,}"
        rows.append((str(row.prompt_id), _short(row.text), scored, *numbers, last))
    header = ("prompt", "text", "scored", "logprob", "perplexity", "mean entropy", "generated" if generated else "")
    show_table(header, rows)
    if n > SHOWN_ROWS:
        typer.echo(f"… and {n - SHOWN_ROWS} more prompts: the table 'prompts' has all")
    typer.echo("")


def _short(text: str) -> str:
    return visible(text if len(text) <= WIDE else f"{text[: WIDE - 1]}…")


def number(value: float | None) -> str:
    """A number with three decimals; – where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:,.3f}"
