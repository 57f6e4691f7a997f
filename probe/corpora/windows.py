"""A file of texts as windows of tokens that are read apart, in parts and batches. Runs no model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from probe.errors import BadOption, BadPrompt, ProbeError
from probe.instrument import held_bytes
from probe.requests import CorpusOptions
from probe.requests.corpora import LARGEST
from probe.texts import Failed, Packed, Prompt, TokenSequence, as_prompts, encode_whole
from probe.tracing.planning import PROCESS_BYTES

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

LEAST = 16_384  # tokens of a part
HELD = 16  # activations of a token that a forward holds at once, in floats of the stream's width; measured on SmolLM2
MOST = 128  # parts: what each came to is kept until the run is whole


class Window(NamedTuple):
    """Tokens of a text that are read together. The first `lead` do not count; `start + i` is the text's position of the
    i-th of those that do."""

    prompt_id: int
    number: int
    ids: list[int]
    lead: int
    start: int

    @property
    def counted(self) -> int:
        return max(0, len(self.ids) - self.lead)


def cut(prompt_id: int, ids: list[int], *, size: int, skip: int, bos: int | None) -> Iterator[Window]:
    """A text's windows. Every token after its first `skip` counts in exactly one of them.

    A later window begins with the token that begins texts, if the text has one, and with as many tokens of context as are
    skipped: no token is read as if it began a text.
    """
    yield Window(prompt_id, 0, ids[:size], skip, 0)
    head = ids[:1] if bos is not None and ids[:1] == [bos] else []
    lead = max(skip, len(head))
    at, number = size, 1
    while at < len(ids):
        end = at + size - lead
        before = ids[at - (lead - len(head)) : at]
        yield Window(prompt_id, number, [*head, *before, *ids[at:end]], lead, at - lead)
        at, number = end, number + 1


def together(given: Any, options: CorpusOptions) -> Sequence[Prompt]:
    """The texts of a file, of several, or those that are given. Of several sources the rows are numbered through, and have the
    columns `source` and `source_row`."""
    sources = list(given) if isinstance(given, (list, tuple)) else [given]
    if not any(isinstance(one, (Path, Packed)) for one in sources):
        return as_prompts(given, options)
    if len(sources) == 1:
        return sources[0] if isinstance(sources[0], Packed) else as_prompts(sources[0], options)
    return Packed(_numbered(sources, options))


def _numbered(sources: Iterable[Any], options: CorpusOptions) -> Iterator[Prompt]:
    number = 0
    for source in sources:
        name = str(source) if isinstance(source, Path) else "given" if isinstance(source, str) else "standard input"
        for prompt in source if isinstance(source, Packed) else as_prompts(source, options):
            columns = {**prompt.columns, "source": name, "source_row": prompt.prompt_id}
            yield prompt._replace(prompt_id=number, columns=columns)
            number += 1


@dataclass(frozen=True)
class Corpus:
    """Texts as one model reads them: `size` tokens a window at most, and what a look through all of them found.

    failed: texts that cannot be read. short: texts in which no token counts. cut: those longer than a window. longest: how many
    tokens the longest window has.
    """

    lm: LanguageModel
    prompts: Sequence[Prompt]
    options: CorpusOptions
    size: int
    failed: tuple[Failed, ...] = ()
    windows: int = 0
    tokens: int = 0
    counted: int = 0
    short: int = 0
    cut: int = 0
    longest: int = 0
    notes: tuple[str, ...] = ()

    def windows_of(self, prompt: Prompt) -> tuple[TokenSequence, list[Window]]:
        """A text, and the windows in which a token counts. Raises `BadPrompt`."""
        sequence = encode_whole(self.lm, prompt, self.options)
        found = cut(prompt.prompt_id, sequence.ids, size=self.size, skip=self.options.skip, bos=self.lm.bos_id)
        return sequence, [window for window in found if window.counted]

    @property
    def remarks(self) -> list[str]:
        """What a reader of the run must know of how the texts were read."""
        found = []
        if self.cut:
            found.append(f"longer than {self.size:,} tokens, and cut into windows that are read apart: {_texts(self.cut)}")
        if self.short:
            found.append(f"without a token after the first {self.options.skip}, and counting for nothing: {_texts(self.short)}")
        return found

    def told(self, errors: int) -> dict[str, Any]:
        """What a summary says of the texts."""
        return {
            "prompts": len(self.prompts), "errors": errors, "windows": self.windows, "tokens": self.tokens,
            "counted": self.counted, "window": self.size, "skip": self.options.skip,
        }  # fmt: skip

    def plan(self, *, state: int) -> dict[str, Any]:
        """What would be read. state: bytes that are kept of all that was read so far."""
        held = 4 * HELD * self.options.batch_tokens * self.lm.anatomy.d_model
        passes = sum(1 for _, part in self.parts() for _ in self.batches(part))
        return {
            "model": self.lm.name, "texts": len(self.prompts), "cannot_be_read": len(self.failed), "windows": self.windows,
            "tokens": self.tokens, "counted": self.counted, "read_passes": passes,
            "peak_memory_bytes": PROCESS_BYTES + held_bytes(self.lm.model) + held + 2 * state,
        }  # fmt: skip

    def parts(self, most: int = MOST) -> Iterator[tuple[str, list[Window]]]:
        """Windows that are read and kept together, with the name of each part: at most `most` of them, whatever the file."""
        least = max(LEAST, -(-self.tokens // most))
        part: list[Window] = []
        number = tokens = 0
        for window in self._all():
            part.append(window)
            tokens += len(window.ids)
            if tokens >= least:
                yield f"part-{number:05d}", part
                part, number, tokens = [], number + 1, 0
        if part:
            yield f"part-{number:05d}", part

    def _all(self) -> Iterator[Window]:
        failed = {one.prompt.prompt_id for one in self.failed}
        for prompt in self.prompts:
            if prompt.prompt_id not in failed:
                yield from self.windows_of(prompt)[1]

    def batches(self, part: list[Window]) -> Iterator[list[Window]]:
        """A part's windows, those of like length together, each padded batch within the budget of tokens."""
        budget = 1 if self.lm.sets_frequencies(self.longest) else self.options.batch_tokens
        batch: list[Window] = []
        for window in sorted(part, key=lambda one: -len(one.ids)):  # sorted() keeps the order of equals
            if batch and len(batch[0].ids) * (len(batch) + 1) > budget:
                yield batch
                batch = []
            batch.append(window)
        yield batch


def surveyed(lm: LanguageModel, given: Any, options: CorpusOptions) -> Corpus:
    """A look through all texts, of which none is kept: they may be many, and are encoded again when their turn comes.

    Raises `BadPrompt` where no text can be read, `BadOption` for a window that is longer than the model's context, or where
    no token counts.
    """
    context = lm.context_length
    if options.window is not None and context is not None and options.window > context:
        raise BadOption(
            f"a window has {options.window:,} tokens, and the context of {lm.name} holds {context:,}",
            hint=f"--window {context} at most",
        )
    size = options.window or min(LARGEST, context or LARGEST)
    if size <= max(options.skip, 1):
        raise BadOption(f"a window of {size} has no token after {options.skip}", hint="a smaller --skip, or a larger --window")
    corpus = Corpus(lm, together(given, options), options, size)
    failed: list[Failed] = []
    n = tokens = counted = short = longer = longest = 0
    notes = dict[str, None]()
    for prompt in corpus.prompts:
        try:
            sequence, windows = corpus.windows_of(prompt)
        except BadPrompt as error:
            failed.append(Failed(prompt._replace(error=error.message), error.with_traceback(None)))
            continue
        n, short, longer = n + len(windows), short + (not windows), longer + (len(sequence.ids) > size)
        tokens, counted = tokens + sum(len(w.ids) for w in windows), counted + sum(w.counted for w in windows)
        longest = max([longest, *(len(w.ids) for w in windows)])
        notes |= dict.fromkeys(sequence.notes)
    if len(failed) == len(corpus.prompts):
        raise _nothing(failed[0].error, len(failed))
    if not counted:
        raise BadOption(f"no text has a token after the first {options.skip}", hint="--skip 0 counts all; position 0 is a sink")
    return Corpus(
        lm, corpus.prompts, options, size, tuple(failed), n, tokens, counted, short, longer, longest, tuple(notes)
    )  # fmt: skip


def _texts(n: int) -> str:
    return f"{n:,} text{'s' if n > 1 else ''}"


def _nothing(error: ProbeError, n: int) -> ProbeError:
    return error if n == 1 else BadPrompt(f"none of {n:,} texts can be read; the first: {error.message}", hint=error.hint)


def padded_windows(batch: list[Window]) -> tuple[Tensor, list[int], Tensor]:
    """ids (batch, pos), 0 behind a window's end; the windows' lengths; and which positions count (batch, pos), bool."""
    lengths = [len(window.ids) for window in batch]
    ids = torch.zeros(len(batch), max(lengths), dtype=torch.long)
    counted = torch.zeros_like(ids, dtype=torch.bool)
    for row, window in enumerate(batch):
        ids[row, : len(window.ids)] = torch.tensor(window.ids)
        counted[row, window.lead : len(window.ids)] = True
    return ids, lengths, counted
