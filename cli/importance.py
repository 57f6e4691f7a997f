"""`probe importance`: options in, one library verb, a table and bars out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probe.registries.importance_methods import METHODS
from probe.registries.step_edits import STUB

from . import options as o
from . import rewind as r

if TYPE_CHECKING:
    from probe.store import Run

Method = Annotated[
    str,
    typer.Option(
        "--method",
        help=f"{'; '.join(f'{one.name}: {one.help}' for one in METHODS.values())} Several with commas, or all.",
    ),
]
Samples = Annotated[int, typer.Option("--samples", "-n", min=1, help="Continuations from each boundary.")]
Stub = Annotated[str | None, typer.Option("--stub", help="Text that asks for the answer, for early-answer.")]
Candidate = Annotated[
    list[str] | None, typer.Option("--candidate", help="An answer to score, for early-answer; repeatable.")
]
Embedder = Annotated[str | None, typer.Option("--embedder", help="A sentence-transformers model, for counterfactual.")]
Suppress = Annotated[
    str | None, typer.Option("--suppress", help="Only these heads look away, for suppression: pattern@5.3,7.1.")
]
Heads = Annotated[
    Path | None, typer.Option("--heads", help="Take the receiver heads of this importance run over another text.")
]
BAR = 24


def command(
    run: r.RunPath,
    method: Method = "resampling",
    samples: Samples = 16,
    max_new: r.MaxNew = None,
    answer: r.Answer = "auto",
    expect: r.Expect = None,
    stub: Stub = None,
    candidate: Candidate = None,
    embedder: Embedder = None,
    suppress: Suppress = None,
    heads: Heads = None,
    split: o.Split = "sentence",
    prompt: r.PromptId = None,
    branch: r.Branch = 0,
    temperature: r.Warm = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repetition_penalty: o.RepetitionPenalty = None,
    generation_config: o.GenerationConfig = "none",
    stop: o.Stop = None,
    model: r.OtherModel = None,
    trust_remote_code: o.RemoteCode = False,
    allow_pickle: o.Pickle = False,
    allow_fetch: o.Fetch = False,
    adapter: o.Adapter = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    out: o.Out = None,
    resume: o.Resume = False,
    seed: o.Seed = 0,
    dry_run: o.DryRun = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    no_progress: o.NoProgress = False,
) -> None:
    """How much does each step of a run's generation matter?"""
    import probe
    from probe.step_importance import plan_importance

    from .progress import plain_warnings, progress
    from .terminal import show_json, show_plan

    source = probe.open_run(run)
    what: dict[str, Any] = {
        "method": method, "samples": samples, "max_new": max_new, "answer": answer, "expect": expect,
        "stub": STUB if stub is None else stub, "candidates": tuple(candidate or ()), "embedder": embedder, "split": split,
        "suppress": suppress, "heads": heads,
        "prompt_id": prompt, "branch": branch, "seed": seed, "other_model": model is not None,
    }  # fmt: skip
    with plain_warnings(), progress(shown=not (quiet or no_progress)) as report:
        lm = r.load(
            source, model, device=device, dtype=dtype, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle,
            allow_fetch=allow_fetch, adapter=adapter, progress=report,
        )  # fmt: skip
        what["sampling"] = r.sampling(
            lm, generation_config, temperature, top_k, top_p, min_p, repetition_penalty, stop, seed
        )
        if dry_run:
            show_plan(plan_importance(source, lm=lm, **what), as_json=as_json)
            return
        done = probe.importance(source, lm=lm, **what, out=out or "auto", resume=resume, progress=report)
    if as_json:
        show_json(done, "importance")
    else:
        show_importance(done, quiet=quiet)


def show_importance(run: Run, *, quiet: bool) -> None:
    """Print a table and bars for each method, how the methods agree, and where the run is."""
    from .terminal import run_path, show_table, show_warnings

    if quiet:
        typer.echo(run_path(run))
        return
    summary = run.summary
    show_warnings(run)
    for name, rows in run.importance.groupby("method", sort=False, observed=True):
        heads = run.manifest["arguments"].get("suppress") if name == "suppression" else None
        typer.echo(f"{name}: {rows['unit'].iloc[0]}" + (f", only {heads}" if heads else ""))
        _show_method(rows)
        typer.echo("")
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
        cells = [
            (row["a"], row["b"], f"{row['spearman']:+.2f}", f"{row['kendall']:+.2f}", str(row["steps"]))
            for row in agree
        ]
        show_table(("method", "and", "Spearman", "Kendall", "steps"), cells)
    typer.echo(f"reference answer {summary['reference']}\nrun: {run_path(run)}")


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


def _show_method(rows: Any) -> None:
    from .terminal import show_table, visible

    largest = rows["estimate"].abs().max() or 1.0
    usual = "+.3f" if largest >= 0.05 else "+.2e"  # weights of single tokens are small

    def number(value: Any, form: str = usual) -> str:
        return "" if value is None or value != value else format(value, form)

    table = []
    for row in rows.itertuples():
        interval = "" if row.ci_low != row.ci_low else f"[{row.ci_low:+.2f}, {row.ci_high:+.2f}]"
        bar = "" if row.estimate != row.estimate else "█" * round(BAR * abs(row.estimate) / largest)
        table.append((
            f"step{row.step}", number(row.estimate), interval, number(row.control),
            "" if row.floor == row.control else number(row.floor), number(row.p_value, ".3g"),
            number(row.q_value, ".3g"), bar.ljust(BAR), visible(row.text[:60]),
        ))  # fmt: skip
    shown = [i for i, name in enumerate(_COLUMNS) if any(cells[i].strip() for cells in table)]
    show_table([_COLUMNS[i] for i in shown], [[cells[i] for i in shown] for cells in table])


_COLUMNS = ("step", "estimate", "95 %", "control", "by chance", "p", "q", "", "text")
