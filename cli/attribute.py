"""`probe attribute`: options in, one library verb, the strongest parts and their sum out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o
from . import sources as r
from . import sources as s

if TYPE_CHECKING:
    from probe.store import Run

Answer = Annotated[
    str | None, typer.Option("--answer", help="Whose logit: this text's first token [default: the top token].")
]
Against = Annotated[str | None, typer.Option("--against", help="Less the logit of this text's first token.")]
Sources = Annotated[bool, typer.Option("--sources", help="Also from which positions each head's write came.")]
BAR = 24


def command(
    source: s.Source,
    answer: Answer = None,
    against: Against = None,
    position: s.Position = "last",
    sources: Sources = False,
    prompt: r.PromptId = None,
    branch: r.Branch = 0,
    chat: o.Chat = False,
    system: o.System = None,
    template_option: o.TemplateOption = None,
    allow_template_loss: o.TemplateLoss = False,
    model: s.Model = None,
    revision: o.Revision = None,
    trust_remote_code: o.RemoteCode = False,
    allow_pickle: o.Pickle = False,
    adapter: o.Adapter = None,
    context_length: o.ContextLength = None,
    allow_fetch: o.Fetch = False,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    device_map: o.DeviceMap = None,
    out: o.Out = None,
    resume: o.Resume = False,
    dry_run: o.DryRun = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    no_progress: o.NoProgress = False,
) -> None:
    """What did each head, MLP and embedding write towards an answer? Parts that sum to its logit."""
    import probe
    from probe.attributing import plan_attribute

    from .progress import plain_warnings, progress
    from .terminal import show_json, show_plan, show_warnings

    what: dict[str, Any] = {
        "answer": answer, "against": against, "position": position, "by_source": sources, "prompt_id": prompt,
        "branch": branch, "chat": chat, "system": system,
        **o.template(template_option, allow_template_loss), "other_model": model is not None,
    }  # fmt: skip
    with plain_warnings(), progress(shown=not (quiet or no_progress)) as report:
        lm = s.load_for(
            source, model, revision=revision, device=device, dtype=dtype, device_map=device_map,
            trust_remote_code=trust_remote_code, allow_pickle=allow_pickle,
            adapter=adapter, context_length=context_length, allow_fetch=allow_fetch, progress=report,
        )  # fmt: skip
        if dry_run:
            show_plan(plan_attribute(lm, source, **what), as_json=as_json)
            return
        run = probe.attribute(lm, source, **what, out=out or "auto", resume=resume, progress=report)
    show_warnings(run)
    if as_json:
        show_json(run, "attribute")
    else:
        show_attribute(run, quiet=quiet)


def show_attribute(run: Run, *, quiet: bool) -> None:
    """Print what wrote most for and against the answer, the sum at each position with its residual, and where the run is."""
    from .terminal import run_path, show_table, visible

    if quiet:
        typer.echo(run_path(run))
        return
    summary = run.summary
    last = summary["positions"][-1]
    what = visible(summary["answer"]) + (f" against {visible(summary['against'])}" if summary["against"] else "")
    typer.echo(f"the logit of {what} after {visible(last['token'])} at {last['pos']}")
    both = [*summary["up"], *summary["down"][::-1]]
    largest = max((abs(row["contribution"]) for row in both), default=1.0) or 1.0
    rows = [
        (_where(row), f"{row['contribution']:+.3f}", "█" * round(BAR * abs(row["contribution"]) / largest))
        for row in both
    ]  # fmt: skip
    show_table(("part", "contribution", ""), rows)
    if "attribution_sources" in run.tables:
        _show_sources(run, last["pos"])
    typer.echo("")
    for row in summary["positions"]:
        capped = f"; {row['logit']:+.4f} after the cap" if summary["cap"] is not None else ""
        typer.echo(
            f"{summary['components']} parts at {row['pos']} sum to {row['sum']:+.4f}; "
            f"the model's logit {row['before_cap']:+.4f}{capped}; residual {row['residual']:.1e}"
        )
    typer.echo(f"\nrun: {run_path(run)}")


def _where(row: dict[str, Any]) -> str:
    head = "" if row["head"] < 0 else f".{row['head']}"
    return row["component"] if row["layer"] < 0 else f"{row['component']}@{row['layer']}{head}"


def _show_sources(run: Run, pos: int) -> None:
    """The strongest (head, source position) pairs."""
    from .terminal import show_table

    rows = run.attribution_sources
    rows = rows[rows["pos"] == pos]
    strongest = rows.reindex(rows["contribution"].abs().sort_values(ascending=False).index)[:8]
    typer.echo("")
    cells = [
        (f"attn@{row.layer}.{row.head}", str(row.source), f"{row.contribution:+.3f}") for row in strongest.itertuples()
    ]
    show_table(("head", "read at", "contribution"), cells)
