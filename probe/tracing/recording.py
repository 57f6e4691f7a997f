"""The verb `trace`: encode, decode, read, write, batch by batch. Knows the order of things, not how each is done."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from probe import store as stores
from probe.decoding import decode, differences
from probe.errors import BadOption, NonFinite, OutOfMemory, ProbeError
from probe.fitting import HALVED, fitting, halves
from probe.interventions import Applied, applying
from probe.requests import Trace, public
from probe.running import found_once, running
from probe.texts import (
    Failed,
    Prompt,
    TokenSequence,
    as_prompts,
    columns_of,
    encode,
    encode_all,
    first_given,
    hash_of,
    prompt_columns,
    survey,
)
from probe.texts.explaining import explained
from probe.tracing.accuracy import answers_summary
from probe.tracing.answers import AnswerScorer
from probe.tracing.memory import unchunked
from probe.tracing.planning import estimate
from probe.tracing.reading import changed_frequencies, read_sequences
from probe.tracing.resolving import Tracing, resolved
from probe.tracing.routing import write_loads
from probe.tracing.summary import summarize

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


def run_trace(lm: LanguageModel, request: Trace) -> stores.Run:
    """Record what `lm` does with one prompt or many, as a run: tables `prompts`, `tokens`, `steps`, and those asked for.

    edit: the changes hold while the model decodes and is read; positions are absolute; then each prompt runs by itself.
    explain: a token's way through the sampler, in the order of `hf` (the one that decides here) and other engines.
    One prompt that cannot be run is an error; of several, it is a row of `prompts` with the reason in `error`.

    Raises `BadPrompt`, `BadPlace`, `BadOption`, `NonFinite`, `RunError`.
    """
    tracing = resolved(lm, request)
    scorer = AnswerScorer(lm, request, tracing.edits)
    inputs = _inputs(request)
    seen = found_once(partial(survey, lm, inputs, request, split=request.split))
    if len(inputs) == 1 and seen.failed:
        raise seen.failed[0].error
    came_to = {"prompts": len(inputs), "prompts_sha256": hash_of(inputs)}
    with running(request, lm, word=_word(inputs[0]), resolved=came_to, found=seen._replace(failed=[])) as run:
        run.writer.extend("prompts", columns_of(inputs).types)
        if seen.failed:
            _record_failed(seen.failed, run.writer)
        run.warn(*seen.notes, *(differences(lm, tracing.sampling) if request.generate else ()))
        why = unchunked(lm, tracing, seen.longest + request.generate)
        if why and request.prefill_chunk_size:
            run.warn(f"long texts are read in one forward, not in chunks: of this model {why}")
        tokens = 1 if tracing.edits or lm.sets_frequencies(seen.longest + request.generate) else request.batch_tokens
        done, total = 0, seen.runnable
        some = seen.batches(generate=request.generate, tokens=tokens)
        for numbers in run.share(
            "tracing", some, total=total, size=len, lost=partial(_lose, run.writer, inputs), together=TOGETHER
        ):  # fmt: skip
            if not run.writer.done(_unit(inputs[numbers[0]], inputs[numbers[-1]])):
                batch = [encode(lm, inputs[number], request) for number in numbers]
                _record(lm, batch, tracing, scorer, run.writer, alone=len(inputs) == 1)
            done += len(numbers)
            run.report("tracing", done, total)
        return run.finish(_summary(lm, run.writer, tracing), seed=tracing.sampling.seed)


trace = public(run_trace, Trace)
HINT = "give a shorter one, ask for less of it, or take --dtype bfloat16"
TOGETHER = 8  # batches that a worker is given at once


def plan_trace(lm: LanguageModel, request: Trace) -> dict[str, Any]:
    """What `trace` would compute and write, without running the model: see `planning.estimate`."""
    tracing = resolved(lm, request)
    inputs = _inputs(request)
    sequences, failed = encode_all(lm, inputs, request)
    if not sequences:
        raise failed[0].error
    return estimate(lm, tracing, sequences)


def _inputs(request: Trace) -> Sequence[Prompt]:
    """The prompts, with what was written after them. Raises `BadOption` where a transcript would have to be gone on with."""
    inputs = as_prompts(request.prompts, request, transcripts=True)
    given = first_given(inputs)
    if request.generate and given is not None:
        raise BadOption(
            f"prompt {given} has its generation already, and --generate continues prompts",
            hint="leave --generate out to read the transcripts; probe rewind continues them from any step",
        )
    return inputs


def _record(
    lm: LanguageModel, batch: list[TokenSequence], tracing: Tracing, scorer: AnswerScorer, writer: stores.Writer, *, alone: bool
) -> None:  # fmt: skip
    """Record one batch, unless the run has it: as one unit, or in parts where that comes to nothing or came before."""
    if writer.done(_unit_of(batch)) or (len(batch) == 1 and writer.done(_failed_unit(batch[0].prompt.prompt_id))):
        return
    begun = _in_parts([one.prompt for one in batch], writer)
    for part in halves(batch) if begun else _record_unit(lm, batch, tracing, scorer, writer, alone=alone):
        _record(lm, part, tracing, scorer, writer, alone=False)


def _record_unit(
    lm: LanguageModel, batch: list[TokenSequence], tracing: Tracing, scorer: AnswerScorer, writer: stores.Writer, *, alone: bool
) -> Sequence[list[TokenSequence]]:  # fmt: skip
    """Decode, read and write one batch as one unit. If a prompt of it makes NaN logits, each is to be run by itself, and if it
    does not fit into memory, each half: these parts."""
    longest = max(len(one.ids) for one in batch) + tracing.request.generate
    try:
        with fitting(f"a text of {longest:,} tokens", hint=HINT), writer.unit(_unit_of(batch)):
            with _edited(lm, batch, tracing) as edits:
                _decode(lm, batch, tracing, edits)
                for note in changed_frequencies(lm, batch):
                    writer.warn(note)
                read_sequences(lm, batch, tracing, writer, scorer.sets)
            writer.write("prompts", prompt_columns(batch, []))
            scorer.write(batch, writer)
        return ()
    except (NonFinite, OutOfMemory) as error:
        if alone:
            raise
        if len(batch) == 1:
            _record_failed([Failed(batch[0].prompt._replace(error=error.message), error)], writer)
            return ()
        for sequence in batch:
            sequence.restart()
        if isinstance(error, NonFinite):
            return [[sequence] for sequence in batch]
        writer.warn(HALVED)
        return halves(batch)


def _in_parts(batch: list[Prompt], writer: stores.Writer) -> bool:
    """Whether parts of a batch are in the run already: then the rest is recorded in parts too, and nothing twice."""
    part = batch
    while len(part) > 1:
        part, _ = halves(part)
        if writer.done(_unit(part[0], part[-1])):
            return True
    return len(batch) > 1 and writer.done(_failed_unit(part[0].prompt_id))


def _edited(lm: LanguageModel, batch: list[TokenSequence], tracing: Tracing) -> AbstractContextManager[Applied | None]:
    """The model with the edits that were asked for at work, if any were."""
    if not tracing.edits:
        return nullcontext()
    (sequence,) = batch
    longest = len(sequence.ids) + tracing.request.generate
    return applying(lm, tracing.edits, ids=sequence.ids, n_prompt=sequence.n_prompt, longest=longest)


def _decode(lm: LanguageModel, batch: list[TokenSequence], tracing: Tracing, edits: Applied | None) -> None:
    """Continue every sequence of the batch, then find its pieces and steps."""
    continuations: list[Any] = [None] * len(batch)
    if tracing.request.generate:
        continuations = decode(
            lm, [s.ids for s in batch], max_new=tracing.request.generate, sampling=tracing.sampling,
            samples=[s.prompt.prompt_id for s in batch], edits=edits,
        )  # fmt: skip
    for sequence, continuation in zip(batch, continuations, strict=True):
        sequence.finish(lm, continuation, tracing.request.split)


def _unit(first: Prompt, last: Prompt) -> str:
    return f"prompts-{first.prompt_id}-{last.prompt_id}"


def _unit_of(batch: list[TokenSequence]) -> str:
    return _unit(batch[0].prompt, batch[-1].prompt)


def _failed_unit(prompt_id: int) -> str:
    return f"failed-{prompt_id}"


def _lose(writer: stores.Writer, inputs: Sequence[Prompt], numbers: Sequence[int], error: ProbeError) -> None:
    """Write that a batch came to nothing, or what of it is not in the run."""
    lost = [inputs[number]._replace(error=error.message) for number in numbers]
    key = _unit(lost[0], lost[-1])
    if writer.done(key) or (len(lost) == 1 and writer.done(_failed_unit(lost[0].prompt_id))):
        return
    if _in_parts(lost, writer):
        for part in halves(list(numbers)):
            _lose(writer, inputs, part, error)
        return
    with writer.unit(key):
        writer.write("prompts", prompt_columns([], lost))


def _record_failed(failed: list[Failed], writer: stores.Writer) -> None:
    key = _failed_unit(failed[0].prompt.prompt_id)
    if not writer.done(key):
        with writer.unit(key):
            writer.write("prompts", prompt_columns([], [f.prompt for f in failed]))


def _summary(lm: LanguageModel, writer: stores.Writer, tracing: Tracing) -> dict[str, Any]:
    found = summarize(writer.batches, expected=lm.token_text, shown=lm.label)
    if loads := write_loads(lm.anatomy, tracing.cells, writer, seed=tracing.sampling.seed):
        found["experts"] = loads
    answers = writer.read("answers")
    if answers.num_rows:
        found["answers"] = answers_summary(answers)
    return found if tracing.explain is None else {**found, "explained": explained(writer.read)}


def _word(prompt: Prompt) -> str:
    """A word of the prompt to name the run by: its longest."""
    words = [word for word in prompt.text.split() if word.isascii() and word.isalpha()]
    return max(words, key=len, default="")
