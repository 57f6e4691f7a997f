"""`probe speculate`: options in, one library verb, the marked text out."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import options as o
from .options import PromptText, Top, prompts_given

DraftName = Annotated[
    str,
    typer.Option(
        "--draft", help="A model with the same tokenizer, layers:N (the target's own first N blocks) or ngram[:N]."
    ),
]
Generate = Annotated[int, typer.Option("--generate", "-n", min=1, help="Continue by at most N tokens.")]
Block = Annotated[str, typer.Option("--block", "-b", help="Tokens drafted at once: a number, or adaptive.")]
Plain = Annotated[bool, typer.Option("--plain/--no-plain", help="Time plain decoding of the target too.")]


def command(
    draft: DraftName,
    prompt: PromptText = None,
    file: o.PromptFile = None,
    form: o.Format = None,
    column: o.TextColumn = None,
    generate: Generate = 64,
    block: Block = "4",
    plain: Plain = True,
    top: Top = 5,
    temperature: o.Temperature = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repetition_penalty: o.RepetitionPenalty = None,
    generation_config: o.GenerationConfig = "none",
    stop: o.Stop = None,
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
    dry_run: o.DryRun = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    no_progress: o.NoProgress = False,
) -> None:
    """Speculative decoding, looked into: what a draft proposed, what the target kept, and why."""
    given = prompts_given(prompt, file, form, column)
    import probe
    from probe.decoding import sampling_for
    from probe.speculating import is_model, plan_speculate

    from .progress import plain_warnings, progress
    from .proposals import show_speculation
    from .terminal import end_with_failed, show_json, show_plan

    drawn: dict[str, Any] = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty,
        "stop": tuple(stop or ()), "seed": seed,
    }  # fmt: skip
    # what the options alone decide is checked before a model is loaded
    sampling = (
        None if generation_config == "model" else sampling_for(None, generation_config=generation_config, **drawn)
    )
    what: dict[str, Any] = {
        "generate": generate, "block": block, "plain": plain, "top": top, "split": split,
        "chat": chat, "system": system, **o.template(template_option, allow_template_loss),
    }  # fmt: skip
    placed: dict[str, Any] = {
        "device": device, "dtype": dtype, "device_map": device_map, "trust_remote_code": trust_remote_code,
        "allow_pickle": allow_pickle,
    }  # fmt: skip
    with plain_warnings(), progress(shown=not (quiet or no_progress)) as report:
        lm = probe.load(
            model, revision=revision, adapter=adapter, context_length=context_length, **placed, progress=report
        )
        other = is_model(draft) and (draft != lm.name or adapter is not None)
        drafting = probe.load(draft, **placed, progress=report) if other else lm if draft == lm.name else draft
        what["sampling"] = sampling or sampling_for(lm, generation_config=generation_config, **drawn)
        if dry_run:
            show_plan(plan_speculate(lm, given, draft=drafting, **what), as_json=as_json)
            return
        run = probe.speculate(lm, given, draft=drafting, **what, out=out or "auto", resume=resume, progress=report)
    if as_json:
        show_json(run, "speculate")
    else:
        show_speculation(run, quiet=quiet)
    end_with_failed(run, "prompts could not be run")
