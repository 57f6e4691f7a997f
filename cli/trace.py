"""`probe trace`: options in, one library verb, the coloured text out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options as o

PromptText = Annotated[
    str | None,
    typer.Argument(
        help="The prompt; - reads many from standard input (see --file). After --, it may begin with a dash."
    ),
]
Generate = Annotated[int, typer.Option("--generate", "-n", min=0, help="Let the model continue by N tokens.")]
Capture = Annotated[
    list[str] | None,
    typer.Option(
        "--capture", "--at", help="A place SITE[@LAYERS[.HEADS]][:POSITIONS], e.g. resid_post@all; repeatable."
    ),
]
Attention = Annotated[str, typer.Option("--attention", help="none, heads, summary, topk:K or full.")]
Lens = Annotated[bool, typer.Option("--lens", help="Record each layer's guess at every position.")]
Top = Annotated[int, typer.Option("--top", min=0, help="Alternatives a position.")]
Explain = Annotated[
    str | None,
    typer.Option("--explain", help="Tell how these tokens were chosen: 7, -1, 3..9, last, completion, tok=Paris."),
]
Order = Annotated[
    str | None, typer.Option("--order", help="Also in another engine's order of stages: hf, vllm, llamacpp or all.")
]
Store = Annotated[str, typer.Option("--store", help="Vectors exact, or rounded to bf16 (less than half the disk).")]
BatchTokens = Annotated[int, typer.Option("--batch-tokens", min=1, help="At most this many padded tokens a batch.")]


def command(
    prompt: PromptText = None,
    file: o.PromptFile = None,
    form: o.Format = None,
    column: o.TextColumn = None,
    generate: Generate = 0,
    capture: Capture = None,
    attention: Attention = "heads",
    lens: Lens = False,
    edit: o.Edits = None,
    top: Top = 5,
    temperature: o.Temperature = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repetition_penalty: o.RepetitionPenalty = None,
    generation_config: o.GenerationConfig = "none",
    stop: o.Stop = None,
    explain: Explain = None,
    order: Order = None,
    split: o.Split = "sentence",
    chat: o.Chat = False,
    system: o.System = None,
    template_option: o.TemplateOption = None,
    allow_template_loss: o.TemplateLoss = False,
    model: o.Model = "smollm2",
    revision: o.Revision = None,
    trust_remote_code: o.RemoteCode = False,
    allow_pickle: o.Pickle = False,
    adapter: o.Adapter = None,
    context_length: o.ContextLength = None,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    device_map: o.DeviceMap = None,
    out: o.Out = None,
    resume: o.Resume = False,
    seed: o.Seed = 0,
    store: Store = "exact",
    batch_tokens: BatchTokens = 4096,
    dry_run: o.DryRun = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    no_progress: o.NoProgress = False,
) -> None:
    """Record what the model does with a prompt: log-probs, entropies, attention, activations."""
    given = prompts_given(prompt, file, form, column)
    import probe
    from probe.decoding import sampling_for
    from probe.tracing import plan_trace

    from .explained import show_explained
    from .progress import plain_warnings, progress
    from .terminal import end_with_failed, show_json, show_plan, show_warnings
    from .traced import show_trace

    drawn: dict[str, Any] = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty,
        "stop": tuple(stop or ()), "seed": seed,
    }  # fmt: skip
    # what the options alone decide is checked before a model is loaded
    sampling = (
        None if generation_config == "model" else sampling_for(None, generation_config=generation_config, **drawn)
    )
    what: dict[str, Any] = {
        "generate": generate, "capture": capture or [], "attention": attention, "lens": lens,
        "top": top, "split": split, "chat": chat, "system": system,
        **o.template(template_option, allow_template_loss), "batch_tokens": batch_tokens, "store": store,
        "edit": edit or [], "explain": explain, "order": order,
    }  # fmt: skip
    with plain_warnings(), progress(shown=not (quiet or no_progress)) as report:
        lm = probe.load(
            model, revision=revision, device=device, dtype=dtype, device_map=device_map,
            trust_remote_code=trust_remote_code, allow_pickle=allow_pickle,
            adapter=adapter, context_length=context_length, progress=report,
        )  # fmt: skip
        what["sampling"] = sampling or sampling_for(lm, generation_config=generation_config, **drawn)
        if dry_run:
            plan = plan_trace(lm, given, **what)
        else:
            run = probe.trace(lm, given, **what, out=out or "auto", resume=resume, progress=report)
    if dry_run:
        show_plan(plan, as_json=as_json)
        return
    if as_json:
        show_json(run, "trace")
    else:
        show_trace(run, quiet=quiet)
        if explain is not None and not quiet:
            show_explained(run.summary["explained"])
    show_warnings(run)
    end_with_failed(run, "prompts could not be run")


def prompts_given(prompt: str | None, file: Path | None, form: str | None = None, column: str | None = None) -> object:
    """The prompt text, or the prompts of a file or of standard input."""
    if (prompt is None) == (file is None):
        raise typer.BadParameter("give a prompt, or a file of prompts with --file")
    if prompt is not None and prompt != "-":
        if form is not None or column is not None:
            raise typer.BadParameter("--format and --column are for --file and for standard input")
        return prompt
    from probe.texts import read_prompts

    return read_prompts(sys.stdin.buffer if file is None or str(file) == "-" else file, kind=form, column=column)
