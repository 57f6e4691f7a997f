"""The verb `speculate`: encode, speculate, decode plainly beside it, read, write. Knows the order of things."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from probe import store as stores
from probe.decoding import decode, differences
from probe.errors import NonFinite
from probe.requests import Speculate, Trace, public
from probe.running import running
from probe.speculating import proposals
from probe.speculating.drafts import Draft, make_draft
from probe.speculating.rounds import Blocks, Clock, Speculation, speculate_ids
from probe.speculating.summary import Plain, summarize
from probe.texts import Failed, TokenSequence, as_prompts, columns_of, encode_all, hash_of, prompt_columns
from probe.tracing.planning import ROW_BYTES
from probe.tracing.reading import read_sequences
from probe.tracing.resolving import Tracing, resolved

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

PROPOSAL_BYTES = 110  # of a row on disk; measured on SmolLM2 runs


@dataclass
class Work:
    """What is asked, the draft that helps, how the finished texts are read, and what the clocks say so far."""

    lm: LanguageModel
    request: Speculate
    draft: Draft
    tracing: Tracing
    clocks: list[Clock] = field(default_factory=list)
    plains: list[Plain] = field(default_factory=list)
    prompts: tuple[int, int] = (1, 0)  # how many there are, and how many are done

    @property
    def blocks(self) -> Blocks:
        return Blocks.parse(self.request.block)

    def report(self, what: str, tokens: int) -> None:
        """Tell how far the work is, in tokens of all prompts at their longest."""
        (total, done), longest = self.prompts, self.request.generate
        if self.request.progress:
            self.request.progress(what, done * longest + tokens, total * longest)


def run_speculate(lm: LanguageModel, request: Speculate) -> stores.Run:
    """Continue prompts by speculative decoding and keep every proposal: p, q, what decided it, how far p and q are apart.

    draft: `layers:N` (the target's own first N blocks, then its norm and head), `ngram` (what followed the last tokens where
    they stood before; `ngram:N` looks for N of them first), or another model with the same tokenizer, loaded or by its name.

    Tables: `proposals`, and `prompts`, `tokens`, `steps` as of a trace, so that the run can be viewed and rewound.
    Raises `BadPrompt`, `BadOption`, `NonFinite`, `RunError`, and `UnknownModel` for a draft that is none.
    """
    work = _work(lm, request)
    inputs = as_prompts(request.prompts, request)
    sequences, failed = encode_all(lm, inputs, work.tracing.request)
    if len(inputs) == 1 and failed:
        raise failed[0].error
    came_to = {"drafted_by": work.draft.name, "prompts": len(inputs), "prompts_sha256": hash_of(inputs)}
    with running(request, lm, word=work.draft.name, resolved=came_to) as run:
        run.writer.extend("prompts", columns_of(inputs).types)
        _record_failed(failed, run.writer, "failed")
        run.warn(*dict.fromkeys(note for sequence in sequences for note in sequence.notes))
        run.warn(*differences(lm, work.tracing.sampling))
        for i, sequence in enumerate(sequences):
            work.prompts = (len(sequences), i)
            _record(work, sequence, run.writer, alone=len(inputs) == 1)
        seed = work.tracing.sampling.seed
        return run.finish(_summary(work, run.writer), seed=seed, draft_model=work.draft.identity)


speculate = public(run_speculate, Speculate)


def plan_speculate(lm: LanguageModel, request: Speculate) -> dict[str, Any]:
    """What `speculate` would compute and write at most, without running the model."""
    work = _work(lm, request)
    inputs = as_prompts(request.prompts, request)
    sequences, failed = encode_all(lm, inputs, work.tracing.request)
    if not sequences:
        raise failed[0].error
    n, new = len(sequences), request.generate
    lengths = [len(s.ids) + new for s in sequences]
    block = work.blocks.first
    most = new * n * block  # each pass keeps at least one token
    rows = {
        "prompts": (n, ROW_BYTES["prompts"]), "tokens": (sum(lengths), ROW_BYTES["tokens"]),
        "proposals": (most + n, PROPOSAL_BYTES),
    }  # fmt: skip
    return {
        "model": lm.name, "draft": work.draft.name, "prompts": n, "tokens": sum(lengths),
        "target_passes_at_least": -(-new // (block + 1)) * n, "target_passes_at_most": new * n,
        "plain_steps": new * n if request.plain else 0, "read_passes": n,
        "tables": {name: {"rows": count, "bytes": count * each} for name, (count, each) in rows.items()},
    }  # fmt: skip


def _work(lm: LanguageModel, request: Speculate) -> Work:
    """Everything checked before anything runs."""
    finished = Trace(
        "", generate=request.generate, sampling=request.sampling, attention="none", top=request.top, split=request.split,
        chat=request.chat, system=request.system, template_options=request.template_options,
        allow_template_loss=request.allow_template_loss,
    )  # fmt: skip
    return Work(lm, request, make_draft(lm, request.draft), resolved(lm, finished))


def _record_failed(failed: list[Failed], writer: stores.Writer, key: str) -> None:
    if failed and not writer.done(key):
        with writer.unit(key):
            writer.write("prompts", prompt_columns([], [f.prompt for f in failed]))


def _record(work: Work, sequence: TokenSequence, writer: stores.Writer, *, alone: bool) -> None:
    """Speculate on one prompt and write it as one unit; NaN logits are an error, or of several prompts a row that says so."""
    key = f"prompt-{sequence.prompt.prompt_id}"
    if writer.done(key):
        return
    prompt = list(sequence.ids)
    rows: list[proposals.Row] = []
    try:
        with writer.unit(key):
            found = _speculate(work, sequence, rows)
            sequence.finish(work.lm, found.found, work.request.split)
            if rows:
                writer.write("proposals", proposals.columns(sequence.prompt.prompt_id, rows))
            read_sequences(work.lm, [sequence], work.tracing, writer)
            writer.write("prompts", prompt_columns([sequence], []))
    except NonFinite as error:
        if alone:
            raise
        _record_failed([Failed(sequence.prompt._replace(error=error.message), error)], writer, key)
        return
    for text in found.warnings:
        writer.warn(text)
    work.clocks.append(found.clock)
    if work.request.plain and found.found.ids:
        work.plains.append(_plainly(work, prompt, sequence.prompt.prompt_id, found.found.ids))


def _speculate(work: Work, sequence: TokenSequence, rows: list[proposals.Row]) -> Speculation:
    return speculate_ids(
        work.lm, work.draft, sequence.ids, max_new=work.request.generate, sampling=work.tracing.sampling,
        sample=sequence.prompt.prompt_id, blocks=work.blocks, seen=lambda one: rows.extend(proposals.rows_of(work.lm, one)),
        progress=lambda n: work.report("speculating", n),
    )  # fmt: skip


def _plainly(work: Work, prompt: list[int], sample: int, ids: list[int]) -> Plain:
    """Plain decoding of as many tokens, timed from the first on: the prompt is read by then, as it is when a clock starts."""
    moments: list[float] = []

    def tick(what: str, done: int, total: int) -> None:
        moments.append(time.perf_counter())
        work.report("plain decoding", done)

    (one,) = decode(work.lm, [prompt], max_new=len(ids), sampling=work.tracing.sampling, samples=[sample], progress=tick)
    return Plain(len(moments) - 1, moments[-1] - moments[0], one.ids == ids)


def _summary(work: Work, writer: stores.Writer) -> dict[str, Any]:
    prompts, tokens = writer.read("prompts"), writer.read("tokens")
    segments = tokens["segment"].to_pylist()
    reasons = Counter(reason for reason in prompts["stop_reason"].to_pylist() if reason)
    greedy = work.tracing.sampling.temperature == 0.0
    return {
        "draft": work.draft.name, "block": "adaptive" if work.blocks.adaptive else work.blocks.first,
        "prompts": prompts.num_rows, "errors": sum(bool(error) for error in prompts["error"].to_pylist()),
        "tokens": len(segments), "generated": segments.count("completion"), "stop_reasons": dict(sorted(reasons.items())),
        **summarize(
            writer.read("proposals").to_pandas(), work.clocks, work.plains, seed=work.tracing.sampling.seed, greedy=greedy
        ),
    }  # fmt: skip
