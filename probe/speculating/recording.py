"""The verb `speculate`: encode, speculate, decode plainly beside it, read, write. Knows the order of things."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe import store as stores
from probe.decoding import Sampling, decode, differences
from probe.errors import BadOption, NonFinite
from probe.requests import Trace
from probe.speculating import proposals
from probe.speculating.drafts import Draft, make_draft
from probe.speculating.rounds import FIRST, Blocks, Clock, Speculation, speculate_ids
from probe.speculating.summary import Plain, summarize
from probe.texts import Failed, TokenSequence, as_prompts, encode_all, prompt_columns
from probe.tracing.planning import ROW_BYTES
from probe.tracing.reading import read_sequences
from probe.tracing.resolving import Tracing, resolved

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

Progress = Callable[[str, int, int], None]
MAX_NEW = 64
PROPOSAL_BYTES = 110  # of a row on disk; measured on SmolLM2 runs


@dataclass
class Work:
    """What is asked, and what the clocks say so far. `prompts`: how many there are, and how many are done."""

    lm: LanguageModel
    draft: Draft
    blocks: Blocks
    plain: bool
    asked: Tracing
    progress: Progress | None
    clocks: list[Clock] = field(default_factory=list)
    plains: list[Plain] = field(default_factory=list)
    prompts: tuple[int, int] = (1, 0)

    def report(self, what: str, tokens: int) -> None:
        """Tell how far the work is, in tokens of all prompts at their longest."""
        total, done = self.prompts
        if self.progress:
            self.progress(what, done * self.asked.request.generate + tokens, total * self.asked.request.generate)


def speculate(
    lm: LanguageModel, prompts: Any, *, draft: str | LanguageModel, out: str | Path | None = None, resume: bool = False,
    progress: Progress | None = None, **what: Any,
) -> stores.Run:  # fmt: skip
    """Continue prompts by speculative decoding and keep every proposal: p, q, what decided it, how far p and q are apart.

    draft: `layers:N` (the target's own first N blocks, then its norm and head), `ngram` (what followed the last tokens where
    they stood before; `ngram:N` looks for N of them first), or another model with the same tokenizer, loaded or by its name.
    generate: at most so many tokens (64). block: tokens drafted at once, a number (4) or `adaptive`. sampling: of both sides
    alike; default greedy. plain: time plain decoding of the target in the same process too. top, split, chat,
    system, template_options, allow_template_loss: as in `trace`, which can also be given a file or a list of prompts. out,
    resume: as in `trace`.

    Tables: `proposals`, and `prompts`, `tokens`, `steps` as of a trace, so that the run can be viewed and rewound.
    Raises `BadPrompt`, `BadOption`, `NonFinite`, `RunError`, and `UnknownModel` for a draft that is none.
    """
    if resume and (out is None or out == "auto"):
        raise BadOption("which run is to be resumed?", hint="name it with --out")
    work = _work(lm, draft, progress, **what)
    inputs = as_prompts(prompts)
    asked = work.asked
    sequences, failed = encode_all(lm, inputs, asked.chat)
    if len(inputs) == 1 and failed:
        raise failed[0].error
    path = stores.fresh_path("speculate", word=work.draft.name) if out == "auto" else Path(out) if out else None
    texts = hashlib.sha256("\x1e".join(p.text for p in inputs).encode("utf-8", "surrogatepass")).hexdigest()
    arguments = {**_arguments(work), "prompts": len(inputs), "prompts_sha256": texts}
    with stores.create(path, command="speculate", arguments=arguments, resume=resume) as writer:
        _record_failed(failed, writer, "failed")
        for note in dict.fromkeys(note for sequence in sequences for note in sequence.notes):
            writer.warn(note)
        for note in differences(work.lm, work.asked.sampling):
            writer.warn(note)
        for i, sequence in enumerate(sequences):
            work.prompts = (len(sequences), i)
            _record(work, sequence, writer, alone=len(inputs) == 1)
        return writer.finish(
            summary=_summary(work, writer), model=lm.identity, anatomy=lm.anatomy.to_dict(), seed=asked.sampling.seed,
            draft_model=work.draft.identity,
        )  # fmt: skip


def plan_speculate(lm: LanguageModel, prompts: Any, *, draft: str | LanguageModel, **what: Any) -> dict[str, Any]:
    """What `speculate` would compute and write at most, without running the model."""
    work = _work(lm, draft, None, **what)
    sequences, failed = encode_all(lm, as_prompts(prompts), work.asked.chat)
    if not sequences:
        raise failed[0].error
    n, new = len(sequences), work.asked.request.generate
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
        "plain_steps": new * n if work.plain else 0, "read_passes": n,
        "tables": {name: {"rows": count, "bytes": count * each} for name, (count, each) in rows.items()},
    }  # fmt: skip


def _work(
    lm: LanguageModel, draft: str | LanguageModel, progress: Progress | None, *, generate: int = MAX_NEW,
    block: str | int = FIRST, sampling: Sampling | None = None, plain: bool = True, top: int = 5,
    split: str = "sentence", chat: bool = False, system: str | None = None,
    template_options: Mapping[str, Any] | None = None, allow_template_loss: bool = False,
) -> Work:  # fmt: skip
    """Everything checked before anything runs; keywords as in `speculate`."""
    if generate < 1:
        raise BadOption(f"generate is {generate}", hint="it is at least 1")
    blocks = Blocks.parse(block)
    asked = Trace(
        "", generate=generate, sampling=sampling, attention="none", top=top, split=split, chat=chat, system=system,
        template_options=template_options, allow_template_loss=allow_template_loss,
    )  # fmt: skip
    return Work(lm, make_draft(lm, draft), blocks, plain, resolved(lm, asked), progress)


def _arguments(work: Work) -> dict[str, Any]:
    """What decides the numbers, as JSON can hold it; what a rewind needs goes by the names that a trace gives it."""
    asked = work.asked
    return {
        "draft": work.draft.name, "block": "adaptive" if work.blocks.adaptive else work.blocks.first, "plain": work.plain,
        "generate": asked.request.generate, "sampling": {**asdict(asked.sampling), "stop": list(asked.sampling.stop)},
        "top": asked.request.top, "split": asked.request.split, **asked.chat.arguments(),
        "model": work.lm.name, "dtype": str(work.lm.dtype),
    }  # fmt: skip


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
            sequence.finish(work.lm, found.found, work.asked.request.split)
            if rows:
                writer.write("proposals", proposals.columns(sequence.prompt.prompt_id, rows))
            read_sequences(work.lm, [sequence], work.asked, writer)
            writer.write("prompts", prompt_columns([sequence], []))
    except NonFinite as error:
        if alone:
            raise
        _record_failed([Failed(sequence.prompt._replace(error=error.message), error)], writer, key)
        return
    for text in found.warnings:
        writer.warn(text)
    work.clocks.append(found.clock)
    if work.plain and found.found.ids:
        work.plains.append(_plainly(work, prompt, sequence.prompt.prompt_id, found.found.ids))


def _speculate(work: Work, sequence: TokenSequence, rows: list[proposals.Row]) -> Speculation:
    asked = work.asked
    return speculate_ids(
        work.lm, work.draft, sequence.ids, max_new=asked.request.generate, sampling=asked.sampling,
        sample=sequence.prompt.prompt_id, blocks=work.blocks, seen=lambda one: rows.extend(proposals.rows_of(work.lm, one)),
        progress=lambda n: work.report("speculating", n),
    )  # fmt: skip


def _plainly(work: Work, prompt: list[int], sample: int, ids: list[int]) -> Plain:
    """Plain decoding of as many tokens, timed from the first on: the prompt is read by then, as it is when a clock starts."""
    moments: list[float] = []

    def tick(what: str, done: int, total: int) -> None:
        moments.append(time.perf_counter())
        work.report("plain decoding", done)

    (one,) = decode(work.lm, [prompt], max_new=len(ids), sampling=work.asked.sampling, samples=[sample], progress=tick)
    return Plain(len(moments) - 1, moments[-1] - moments[0], one.ids == ids)


def _summary(work: Work, writer: stores.Writer) -> dict[str, Any]:
    prompts, tokens = writer.read("prompts"), writer.read("tokens")
    segments = tokens["segment"].to_pylist()
    reasons = Counter(reason for reason in prompts["stop_reason"].to_pylist() if reason)
    greedy = work.asked.sampling.temperature == 0.0
    return {
        "draft": work.draft.name, "block": "adaptive" if work.blocks.adaptive else work.blocks.first,
        "prompts": prompts.num_rows, "errors": sum(bool(error) for error in prompts["error"].to_pylist()),
        "tokens": len(segments), "generated": segments.count("completion"), "stop_reasons": dict(sorted(reasons.items())),
        **summarize(
            writer.read("proposals").to_pandas(), work.clocks, work.plains, seed=work.asked.sampling.seed, greedy=greedy
        ),
    }  # fmt: skip
