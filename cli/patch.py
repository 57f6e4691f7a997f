"""`probe patch`: options in, one library verb, a heat map out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options as o
from . import sources as r

Clean = Annotated[str | None, typer.Option("--clean", help="The text with the right answer, or a run.")]
Corrupt = Annotated[str | None, typer.Option("--corrupt", help="The same text with another answer, or a run.")]
Answer = Annotated[str | None, typer.Option("--answer", help="What follows the clean text, with its space: ' Mary'.")]
Against = Annotated[str | None, typer.Option("--against", help="What follows the corrupt text: ' John'.")]
Pairs = Annotated[
    Path | None,
    typer.Option("--file", "-f", help="Many pairs: .jsonl or .csv with clean, corrupt, answer, against; averaged."),
]
Rewind = Annotated[
    Path | None,
    typer.Option("--from-rewind", help="A rewind's run: where does its step travel to the answer? By step and layer."),
]
MeasureAt = Annotated[
    str | None,
    typer.Option(
        "--measure-at",
        help="Of a rewind: parting (the first token after the step that the arms expect otherwise), answer, or a position"
        " [default: parting].",
    ),
]
Sites = Annotated[
    list[str],
    typer.Option(
        "--sites",
        help="resid_pre, resid_mid, resid_post, attn_out, mlp_out, mlp_post, z, q, k, v; or places: z@9.6,9.9.",
    ),
]
Layers = Annotated[str, typer.Option("--layers", help="Of sites that name none: all, 5, 0..4, -1, with commas.")]
Heads = Annotated[str | None, typer.Option("--heads", help="Of z, q, k, v: all, 3, 0..4.")]
Positions = Annotated[str, typer.Option("--positions", help="all, last, 7, 3..9, step3, tok=Paris, with commas.")]
By = Annotated[
    str | None,
    typer.Option(
        "--by",
        help="What is patched apart: pos, head, step, with commas; the rest at once [default: head if there are, else pos].",
    ),
]
From = Annotated[
    str, typer.Option("--from", help="What is put in: clean (the other text), zero, mean, noise, resample.")
]
Direction = Annotated[
    str | None,
    typer.Option("--direction", help="denoise (into the corrupt run) or noise (into the clean) [default: by --from]."),
]
Metric = Annotated[str, typer.Option("--metric", help="logit-diff, logprob, prob or kl, after the last token.")]
Align = Annotated[
    str | None, typer.Option("--align", help="Where lengths differ, which positions are one: left, right or ends.")
]
Method = Annotated[
    str, typer.Option("--method", help="exact, or attribution: estimated from one gradient, all cells at once.")
]
Ig = Annotated[
    int, typer.Option("--ig", help="Of attribution: average the gradient over so many points between the texts.", min=0)
]
Sample = Annotated[
    int | None,
    typer.Option("--sample", help="Of attribution: random cells that are run too, to compare [default: 40]."),
]
Path_ = Annotated[
    str | None,
    typer.Option(
        "--path", help="Send a change along direct paths alone: 'z@5.3->q@8.1', 'z@all->logits'. Needs quotes."
    ),
]
Memory = Annotated[str, typer.Option("--memory", help="What a pass may take; sizes the batches.")]


def command(
    ctx: typer.Context,
    clean: Clean = None,
    corrupt: Corrupt = None,
    answer: Answer = None,
    against: Against = None,
    file: Pairs = None,
    from_rewind: Rewind = None,
    measure_at: MeasureAt = None,
    sites: Sites = ["resid_pre"],  # noqa: B006  (typer copies it)
    layers: Layers = "all",
    heads: Heads = None,
    positions: Positions = "all",
    by: By = None,
    source: From = "clean",
    direction: Direction = None,
    metric: Metric = "logit-diff",
    align: Align = None,
    method: Method = "exact",
    ig: Ig = 0,
    sample: Sample = None,
    path: Path_ = None,
    memory: Memory = "1GB",
    edit: o.Edits = None,
    model: o.Model = "smollm2",
    revision: o.Revision = None,
    trust_remote_code: o.RemoteCode = False,
    allow_pickle: o.Pickle = False,
    adapter: o.Adapter = None,
    context_length: o.ContextLength = None,
    allow_fetch: o.Fetch = False,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    device_map: o.DeviceMap = None,
    chat: o.Chat = False,
    system: o.System = None,
    template_option: o.TemplateOption = None,
    allow_template_loss: o.TemplateLoss = False,
    out: o.Out = None,
    resume: o.Resume = False,
    seed: o.Seed = 0,
    dry_run: o.DryRun = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    no_progress: o.NoProgress = False,
) -> None:
    """Put one run's activations into another's, place by place: what carries the answer, and along which path?"""
    import probe
    from probe.patching import plan_patch
    from probe.store import run_of

    from .heatmap import show_patch
    from .progress import plain_warnings, progress
    from .terminal import show_json, show_plan

    what: dict[str, Any] = {
        "clean": clean, "corrupt": corrupt, "answer": answer, "against": against, "pairs": file or (), "sites": sites,
        "layers": layers, "heads": heads, "positions": positions, "by": by, "source": source, "direction": direction,
        "metric": metric, "align": align, "method": method, "ig": ig, "sample": sample, "path": path, "memory": memory,
        "rewind": from_rewind, "measure_at": measure_at, "edit": edit or [], "chat": chat, "system": system,
        **o.template(template_option, allow_template_loss), "seed": seed,
    }  # fmt: skip
    with plain_warnings(), progress(shown=not (quiet or no_progress)) as report:
        default = ctx.get_parameter_source("model")
        run = run_of(from_rewind or clean) if default is not None and default.name == "DEFAULT" else None
        loading: dict[str, Any] = {
            "revision": revision, "trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle, "adapter": adapter,
            "context_length": context_length, "device": device, "dtype": dtype, "device_map": device_map,
        }  # fmt: skip
        if run is None:
            lm = probe.load(model, **loading, progress=report)
        else:
            lm = r.load(run, None, allow_fetch=allow_fetch, **loading, progress=report)
        if dry_run:
            show_plan(plan_patch(lm, **what), as_json=as_json)
            return
        done = probe.patch(lm, **what, out=out or "auto", resume=resume, progress=report)
    if as_json:
        show_json(done, "patch")
    else:
        show_patch(done, quiet=quiet)
