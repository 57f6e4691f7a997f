"""`probe rewind`: options in, one library verb, the effect out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options as o

RunPath = Annotated[Path, typer.Argument(help="A run with a generation (probe trace PROMPT --generate N).")]
To = Annotated[str, typer.Option("--to", help="Where to: step4, 57 (a position), tok=TEXT[#2] or regex=/PATTERN/.")]
Replace = Annotated[str | None, typer.Option("--replace", help="Put this in the step's place.")]
Insert = Annotated[str | None, typer.Option("--insert", help="Put this before the step.")]
Swap = Annotated[str | None, typer.Option("--swap", help="Put a step of another run in its place: RUN:step3.")]
SwapPrompt = Annotated[
    int | None, typer.Option("--swap-prompt", min=0, help="Which prompt of the run that --swap names.")
]
SwapBranch = Annotated[
    int | None, typer.Option("--swap-branch", min=0, help="Which branch of the run that --swap names.")
]
SwapSplit = Annotated[str | None, typer.Option("--swap-split", help="How that run is cut [default: as --split].")]
PromptB = Annotated[str | None, typer.Option("--prompt-b", help="Keep the reasoning, change the prompt.")]
Delete = Annotated[bool, typer.Option("--delete", help="Take the step out; the model goes on without it.")]
Truncate = Annotated[bool, typer.Option("--truncate", help="Answer now: see --stub.")]
AppendWait = Annotated[bool, typer.Option("--append-wait", help="Say 'Wait,' after the step.")]
Numbers = Annotated[bool, typer.Option("--numbers", help="Change the step's last number.")]
Negate = Annotated[bool, typer.Option("--negate", help="Turn the step's claim round, by rules.")]
Filler = Annotated[bool, typer.Option("--filler", help="Dots in the step's place, as many tokens.")]
Resample = Annotated[
    bool, typer.Option("--resample-until-different", help="Another step of the model's own that says something else.")
]
Samples = Annotated[int, typer.Option("--samples", "-n", min=1, help="Continuations of each arm.")]
Until = Annotated[float | None, typer.Option("--until", help="Draw on until the difference is known to ± this.")]
MaxNew = Annotated[
    int | None,
    typer.Option(
        "--max-new", "--max-new-tokens", min=1, help="Tokens of a continuation [default: 1.5 x what was left]."
    ),
]
Answer = Annotated[str, typer.Option("--answer", help="auto, last-number, boxed, choice, yes-no or regex=PATTERN.")]
Expect = Annotated[str | None, typer.Option("--expect", help="The right answer.")]
Stub = Annotated[str | None, typer.Option("--stub", help="Text that asks for the answer, for --truncate.")]
PromptId = Annotated[int | None, typer.Option("--prompt", min=0, help="Which prompt of the run.")]
Branch = Annotated[int, typer.Option("--branch", min=0, help="Which branch of a run made by rewind.")]
Explain = Annotated[bool, typer.Option("--explain-answer", help="Say how each answer was found.")]
Merge = Annotated[bool, typer.Option("--merge-answers", help="Answers whose formulas simplify to one are one.")]
OtherModel = Annotated[
    str | None, typer.Option("--model", "-m", help="Another model than the run's, with the same tokenizer.")
]
Warm = Annotated[float | None, typer.Option("--temperature", "-t", min=0.0, help="[default: as the run]")]


def command(
    run: RunPath,
    to: To,
    replace: Replace = None,
    insert: Insert = None,
    swap: Swap = None,
    swap_prompt: SwapPrompt = None,
    swap_branch: SwapBranch = None,
    swap_split: SwapSplit = None,
    prompt_b: PromptB = None,
    delete: Delete = False,
    truncate: Truncate = False,
    append_wait: AppendWait = False,
    numbers: Numbers = False,
    negate: Negate = False,
    filler: Filler = False,
    resample_until_different: Resample = False,
    edit: o.Edits = None,
    samples: Samples = 16,
    until: Until = None,
    max_new: MaxNew = None,
    answer: Answer = "auto",
    expect: Expect = None,
    merge_answers: Merge = False,
    explain_answer: Explain = False,
    stub: Stub = None,
    split: o.Split = "sentence",
    prompt: PromptId = None,
    branch: Branch = 0,
    temperature: Warm = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repetition_penalty: o.RepetitionPenalty = None,
    generation_config: o.GenerationConfig = "none",
    stop: o.Stop = None,
    model: OtherModel = None,
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
    """Go back to a reasoning step, put another in its place, and measure what changes."""
    import probe
    from probe.registries.step_edits import STUB
    from probe.rewinding import plan_rewind

    from .effects import show_rewind, show_rewind_plan
    from .progress import plain_warnings, progress
    from .terminal import show_json

    source = probe.open_run(run)
    what: dict[str, Any] = {
        "to": to, "replace": replace, "insert": insert, "swap": swap, "swap_prompt": swap_prompt,
        "swap_branch": swap_branch, "swap_split": swap_split, "prompt_b": prompt_b, "delete": delete,
        "truncate": truncate, "append_wait": append_wait, "numbers": numbers, "negate": negate, "filler": filler,
        "resample_until_different": resample_until_different, "edit": edit or [],
        "samples": samples, "until": until, "max_new": max_new,
        "answer": answer, "merge_answers": merge_answers,
        "expect": expect, "stub": STUB if stub is None else stub, "split": split, "prompt_id": prompt,
        "branch": branch, "seed": seed, "other_model": model is not None,
    }  # fmt: skip
    with plain_warnings(), progress(shown=not (quiet or no_progress)) as report:
        lm = load(
            source, model, device=device, dtype=dtype, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle,
            allow_fetch=allow_fetch, adapter=adapter, progress=report,
        )  # fmt: skip
        what["sampling"] = sampling(
            lm, generation_config, temperature, top_k, top_p, min_p, repetition_penalty, stop, seed
        )
        if dry_run:
            show_rewind_plan(plan_rewind(source, lm=lm, **what), as_json=as_json)
            return
        done = probe.rewind(source, lm=lm, **what, out=out or "auto", resume=resume, progress=report)
    if as_json:
        show_json(done, "rewind")
    else:
        show_rewind(done, quiet=quiet, explain=explain_answer)


def sampling(
    lm: Any, generation_config: str, temperature: float | None, top_k: int | None, top_p: float | None, min_p: float | None,
    penalty: float | None, stop: list[str] | None, seed: int,
) -> Any:  # fmt: skip
    """The sampling that was asked for, or None for the run's own."""
    from probe.decoding import sampling_for
    from probe.errors import BadOption

    given = any(x is not None for x in (top_k, top_p, min_p, penalty)) or bool(stop)
    if temperature is None and generation_config == "none":
        if given:
            raise BadOption("filters need a temperature", hint="add --temperature 0.6")
        return None
    return sampling_for(
        lm, generation_config=generation_config, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
        repetition_penalty=penalty, stop=tuple(stop or ()), seed=seed,
    )  # fmt: skip


def load(
    source: Any, model: str | None, *, revision: str | None = None, adapter: str | None = None,
    context_length: int | None = None, allow_fetch: bool = False, **loading: Any,
) -> Any:  # fmt: skip
    """The run's own model, or the one that was named."""
    import probe
    from probe.errors import BadOption
    from probe.language_model import model_of

    if model is not None:
        return probe.load(model, revision=revision, adapter=adapter, context_length=context_length, **loading)
    if revision is not None or adapter is not None:
        raise BadOption(
            "a run says which revision and adapter made it", hint="name the model too, with --model, to use another"
        )
    more = {} if context_length is None else {"context_length": context_length}
    return model_of(source, allow_fetch=allow_fetch, **more, **loading)
