"""The verb `trace`: encode, decode, read, write, batch by batch. Knows the order of things, not how each is done."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe import store as stores
from probe.capturing import AttentionSpec
from probe.decoding import Sampling, decode, differences
from probe.errors import BadOption, NonFinite
from probe.interventions import Edit, applying, edit_texts, parse_all
from probe.language_model.chat import Chat
from probe.sites import Cell, parse_places, resolve
from probe.spans import check_split
from probe.texts import (
    Failed,
    Prompt,
    TokenSequence,
    as_prompts,
    batches,
    encode_all,
    encoded,
    prompt_columns,
    survey,
)  # fmt: skip
from probe.texts.explaining import Explain, explained, explanation
from probe.tracing.planning import estimate
from probe.tracing.reading import changed_frequencies, read_sequences
from probe.tracing.summary import summarize

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

Progress = Callable[[str, int, int], None]
_ELSEWHERE = (
    "cells",
    "attention",
    "edits",
    "explain",
    "chat",
)  # parts of a request that its arguments say in their own words


@dataclass(frozen=True)
class Request:
    """Everything that decides the numbers of a trace; see `request` for the meaning of each."""

    generate: int
    sampling: Sampling
    cells: tuple[Cell, ...]
    attention: AttentionSpec
    lens: bool
    top: int
    split: str
    chat: Chat
    batch_tokens: int
    store: str
    edits: tuple[Edit, ...] = ()
    explain: Explain | None = None


def request(
    lm: LanguageModel,
    *,
    generate: int = 0,
    sampling: Sampling | None = None,
    capture: str | Iterable[str] = (),
    attention: str = "heads",
    lens: bool = False,
    top: int = 5,
    split: str = "sentence",
    chat: bool = False,
    system: str | None = None,
    template_options: Mapping[str, Any] | None = None,
    allow_template_loss: bool = False,
    batch_tokens: int = 4096,
    store: str = "exact",
    edit: str | Iterable[str | Edit] = (),
    explain: str | int | None = None,
    order: str | None = None,
) -> Request:
    """Check what is asked of a trace against the model; raises `BadOption` or `BadPlace` before anything runs.

    generate: tokens to continue by. sampling: default greedy. capture: places (`resid_post@all`). attention: `none`, `heads`,
    `summary`, `topk:K`, `full`. lens: every layer's guess. top: alternatives a position. split: how steps are cut.
    chat, system: apply the chat template. template_options: variables that it reads (`enable_thinking`). allow_template_loss:
    go on where it leaves out what a message says. batch_tokens: padded tokens run together. store: `exact` or `bf16` vectors.
    edit: changes of activations (`z@5.3=zero`, or `interventions.Edit`) that hold while the model decodes and is read;
    positions are absolute. Then each prompt runs by itself.
    explain: positions (`7`, `last`, `completion`) of tokens whose way through the sampler is told, and in the order of
    which other engine: `hf` (the one that decides here), `vllm`, `llamacpp` or `all`.
    """
    for name, value, least in (("generate", generate, 0), ("top", top, 0), ("batch_tokens", batch_tokens, 1)):
        if value < least:
            raise BadOption(f"{name} is {value}", hint=f"it is at least {least}")
    if store not in ("exact", "bf16"):
        raise BadOption(f"unknown storage '{store}'", hint="exact or bf16")
    how = Chat(chat, system, template_options or {}, allow_template_loss)
    how.check()
    check_split(split)
    if generate and split.startswith("spans:"):
        raise BadOption(
            "spans of a text that is not written yet", hint="generate first, then probe steps RUN --split spans:FILE"
        )
    anatomy = lm.anatomy
    texts = [capture] if isinstance(capture, str) else list(capture)
    places = tuple(place for text in texts for place in parse_places(text))
    cells = resolve(places, n_layers=anatomy.n_layers, n_heads=anatomy.n_heads, has=anatomy.has)
    return Request(
        generate, sampling or Sampling(), cells, AttentionSpec.parse(attention), lens, top, split, how,
        batch_tokens, store, parse_all(lm, edit, seed=sampling.seed if sampling else 0),
        explanation(explain, order, sampling or Sampling()),
    )  # fmt: skip


def trace(
    lm: LanguageModel, prompts: Any, *, out: str | Path | None = None, resume: bool = False,
    progress: Progress | None = None, **what: Any,
) -> stores.Run:  # fmt: skip
    """Record what `lm` does with one prompt or many, as a run; keywords as in `request`.

    `prompts` is a text, chat messages, a `Path` to a file of prompts, or a sequence of texts and message lists. `out` is the
    run directory, "auto" for a new one under `runs/`, None to keep the run in memory.
    One prompt that cannot be run is an error; of several, it is a row of `prompts` with the reason in `error`.

    Raises `BadPrompt`, `BadPlace`, `BadOption`, `NonFinite`, `RunError`.
    """
    asked = request(lm, **what)
    inputs = as_prompts(prompts)
    seen = survey(lm, inputs, asked.chat, split=asked.split)
    if len(inputs) == 1 and seen.failed:
        raise seen.failed[0].error
    if resume and (out is None or out == "auto"):
        raise BadOption("which run is to be resumed?", hint="name it with --out")
    path = stores.fresh_path("trace", word=_word(inputs[0])) if out == "auto" else Path(out) if out else None
    with stores.create(path, command="trace", arguments=_arguments(lm, asked, what, inputs), resume=resume) as writer:
        if seen.failed:
            _record_failed(seen.failed, writer)
        for note in [*seen.notes, *(differences(lm, asked.sampling) if asked.generate else ())]:
            writer.warn(note)
        done = 0
        tokens = 1 if asked.edits or _crosses(lm, seen.longest + asked.generate) else asked.batch_tokens
        sequences = (one for one in encoded(lm, inputs, asked.chat) if isinstance(one, TokenSequence))
        for batch in batches(sequences, generate=asked.generate, tokens=tokens):
            _record(lm, batch, asked, writer, alone=len(inputs) == 1)
            done += len(batch)
            if progress:
                progress("tracing", done, seen.runnable)
        return writer.finish(
            summary=_summary(lm, writer, asked),
            model=lm.identity,
            anatomy=lm.anatomy.to_dict(),
            seed=asked.sampling.seed,
        )


def plan_trace(lm: LanguageModel, prompts: Any, **what: Any) -> dict[str, Any]:
    """What `trace` would compute and write, without running the model: see `planning.estimate`."""
    asked = request(lm, **what)
    sequences, failed = encode_all(lm, as_prompts(prompts), asked.chat)
    if not sequences:
        raise failed[0].error
    return estimate(lm, asked, sequences)


def _record(
    lm: LanguageModel, batch: list[TokenSequence], asked: Request, writer: stores.Writer, *, alone: bool
) -> None:
    """Decode, read and write one batch as one unit. If a prompt of it makes NaN logits, each is run by itself."""
    key = f"prompts-{batch[0].prompt.prompt_id}-{batch[-1].prompt.prompt_id}"
    if writer.done(key):
        return
    try:
        with writer.unit(key), _edited(lm, batch, asked):
            _decode(lm, batch, asked)
            for note in changed_frequencies(lm, batch):
                writer.warn(note)
            read_sequences(lm, batch, asked, writer)
            writer.write("prompts", prompt_columns(batch, []))
    except NonFinite as error:
        if alone:
            raise
        if len(batch) == 1:
            _record_failed([Failed(batch[0].prompt._replace(error=error.message), error)], writer)
            return
        for sequence in batch:
            sequence.restart()
            _record(lm, [sequence], asked, writer, alone=False)


def _crosses(lm: LanguageModel, longest: int) -> bool:
    """Whether the longest text of a batch could set the rotary frequencies of the others."""
    change = lm.frequencies_change
    return change is not None and longest > change.length


def _edited(lm: LanguageModel, batch: list[TokenSequence], asked: Request) -> AbstractContextManager[Any]:
    """The model with the edits that were asked for at work, if any were."""
    if not asked.edits:
        return nullcontext()
    (sequence,) = batch
    longest = sequence.n_prompt + asked.generate
    return applying(lm, asked.edits, ids=sequence.ids[: sequence.n_prompt], n_prompt=sequence.n_prompt, longest=longest)


def _decode(lm: LanguageModel, batch: list[TokenSequence], asked: Request) -> None:
    """Continue every sequence of the batch, then find its pieces and steps."""
    continuations: list[Any] = [None] * len(batch)
    if asked.generate:
        continuations = decode(
            lm, [s.ids for s in batch], max_new=asked.generate, sampling=asked.sampling,
            samples=[s.prompt.prompt_id for s in batch],
        )  # fmt: skip
    for sequence, continuation in zip(batch, continuations, strict=True):
        sequence.finish(lm, continuation, asked.split)


def _record_failed(failed: list[Failed], writer: stores.Writer) -> None:
    key = f"failed-{failed[0].prompt.prompt_id}"
    if not writer.done(key):
        with writer.unit(key):
            writer.write("prompts", prompt_columns([], [f.prompt for f in failed]))


def _summary(lm: LanguageModel, writer: stores.Writer, asked: Request) -> dict[str, Any]:
    found = summarize(writer.batches, expected=lm.token_text, shown=lm.label)
    return found if asked.explain is None else {**found, "explained": explained(writer.read)}


def _arguments(lm: LanguageModel, asked: Request, what: dict[str, Any], inputs: Collection[Prompt]) -> dict[str, Any]:
    """What decides the numbers, as JSON can hold it: a resume must be asked for with the same."""
    import hashlib

    texts = hashlib.sha256()
    for i, prompt in enumerate(inputs):
        texts.update(("\x1e" * bool(i) + prompt.text).encode("utf-8", "surrogatepass"))
    capture = what.get("capture", ())
    return {
        **{f.name: getattr(asked, f.name) for f in fields(asked) if f.name not in _ELSEWHERE},
        **asked.chat.arguments(), "edit": edit_texts(what.get("edit", ())),
        "sampling": {**asdict(asked.sampling), "stop": list(asked.sampling.stop)},
        "explain": str(asked.explain.positions) if asked.explain else None,
        "order": list(asked.explain.orders) if asked.explain else None,
        "capture": [capture] if isinstance(capture, str) else list(capture), "attention": what.get("attention", "heads"),
        "model": lm.name, "dtype": str(lm.dtype), "prompts": len(inputs), "prompts_sha256": texts.hexdigest(),
    }  # fmt: skip


def _word(prompt: Prompt) -> str:
    """A word of the prompt to name the run by: its longest."""
    words = [word for word in prompt.text.split() if word.isascii() and word.isalpha()]
    return max(words, key=len, default="")
