"""How a comparison of two models looks: means with intervals, where they part, layer by layer. Knows no commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from .terminal import run_path, show_table, show_warnings, visible

if TYPE_CHECKING:
    from probe.store import Run

MEASURES = {
    "kl_ab": "KL(A || B), nats",
    "kl_ba": "KL(B || A), nats",
    "js": "Jensen-Shannon, nats",
    "tv": "total variation",
    "accept": "accepted if drafted: 1 - TV",
    "same_top": "same top token",
    "difference": "log-prob B - A, nats",
    "logprob_a": "log-prob A, nats",
    "logprob_b": "log-prob B, nats",
    "entropy_a": "entropy A, nats",
    "entropy_b": "entropy B, nats",
}
LAYERS = 10  # shown of the residual stream


def show_comparison(run: Run, *, quiet: bool) -> None:
    """Print who was compared, the means, the largest differences, the residual stream, and where the run is."""
    if quiet:
        typer.echo(run_path(run))
        return
    summary = run.summary
    for side in ("a", "b"):
        edit = f" with {', '.join(summary['edit'])}" if side == "b" and summary["edit"] else ""
        kind = summary[f"dtype_{side}"].removeprefix("torch.")
        typer.echo(f"{side.upper()} {summary[side]} ({kind}){edit}")
    by_tokens = summary["aligned_by"] == "tokens"
    typer.echo("")
    if by_tokens:
        typer.echo(f"{summary['scored']:,} of {summary['tokens']:,} tokens are scored; means over them:")
    else:
        _say_characters(summary)
    rows = [(name, *_mean(summary["means"][key])) for key, name in MEASURES.items() if key in summary["means"]]
    show_table(("measure", "mean", "95 % interval"), [row for row in rows if row[1]])
    typer.echo(f"({summary['interval'].removeprefix('95 %, ')})")
    for parting in summary.get("partings", [])[:5]:
        typer.echo(f"the texts part at {parting['pos']}: A {visible(parting['token_a'])}, B {visible(parting['token_b'])}")
    _show_largest(summary, by_tokens)
    if "similarity" in summary:
        _show_layers(summary["similarity"])
    else:
        typer.echo(f"\nno residual streams: {summary['no_similarity']}")
    show_warnings(run)
    if run.path:
        typer.echo(f"\nrun: {run_path(run)}")


def _say_characters(summary: dict[str, Any]) -> None:
    a, b = (f"{summary[f'tokens_{side}']:,}" for side in ("a", "b"))
    typer.echo("different tokenizers: distributions can't be compared; log-probs are, summed between the characters where both")
    typer.echo(f"have a boundary: {summary['segments']:,} segments, {a} tokens of A and {b} of B")
    bits = (summary[f"bits_per_character_{side}"] for side in ("a", "b"))
    typer.echo(f"bits a character: A {_number(next(bits))}, B {_number(next(bits))}")
    typer.echo("means over the segments:")


def _mean(found: dict[str, float | None]) -> tuple[str, str]:
    if found["mean"] is None:
        return ("infinite", f"at {found['infinite']:,} tokens") if "infinite" in found else ("", "")
    return _number(found["mean"]), f"[{_number(found['low'])}, {_number(found['high'])}]"


def _show_largest(summary: dict[str, Any], by_tokens: bool) -> None:
    largest = summary["largest"]
    if not largest:
        typer.echo("\nthey differ nowhere")
        return
    measured = by_tokens and largest[0]["js"] is not None
    typer.echo("\nwhere they part most" + (" (by Jensen-Shannon)" if measured else " (by log-prob)"))
    if not by_tokens:
        rows = [
            (str(row["text_start"]), visible(row["text"]), *(_number(row[k]) for k in ("logprob_a", "logprob_b", "difference")))
            for row in largest
        ]
        show_table(("character", "text", "log-prob A", "log-prob B", "B - A"), rows)
        return
    keys = ("logprob_a", "logprob_b", *(("kl_ab", "kl_ba", "tv") if measured else ()))
    names = ("log-prob A", "log-prob B", *(("KL(A || B)", "KL(B || A)", "TV") if measured else ()))
    tops = [[visible(row[k]) if row[k] is not None else "" for k in ("top_a", "top_b")] for row in largest]
    rows = [
        (str(row["pos"]), visible(row["token"]), *(_number(row[key]) for key in keys), *top)
        for row, top in zip(largest, tops, strict=True)
    ]
    show_table(("pos", "token", *names, "top A", "top B"), rows)


def _show_layers(layers: list[dict[str, Any]]) -> None:
    """At most LAYERS of them, the first and the last among them."""
    typer.echo(f"\nresidual stream, {layers[0]['n']:,} positions (the first of a text left out)")
    step = (len(layers) - 1) / (LAYERS - 1)
    shown = layers if len(layers) <= LAYERS else [layers[round(i * step)] for i in range(LAYERS)]
    names = ("cosine", "cosine_min", "distance", "cka", "cka_debiased")
    rows = [(f"{row['site']}@{row['layer']}", *(_ratio(row[name]) for name in names)) for row in shown]
    show_table(("place", "cosine", "smallest", "distance", "CKA", "CKA debiased"), rows)


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return "0" if value == 0 else f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.3g}"
