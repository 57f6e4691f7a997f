"""A file of texts as windows of tokens that are read apart, in parts and batches. Runs no model."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from probe.errors import BadOption, BadPrompt, ProbeError
from probe.instrument import held_bytes
from probe.requests import CorpusOptions
from probe.requests.corpora import LARGEST
from probe.running import found_once
from probe.texts import UNFIT, Failed, Packed, Prompt, TokenSequence, as_prompts, encode_whole
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


class Extent(NamedTuple):
    """Where a window lies in its text: the tokens from `start` to `end`, of which the first `lead` do not count."""

    number: int
    start: int
    end: int
    lead: int

    @property
    def counted(self) -> int:
        return max(0, self.end - self.start - self.lead)


def extents(n: int, *, size: int, skip: int, head: int) -> Iterator[Extent]:
    """The windows of a text of n tokens. head: how many of its first ones stand at the beginning of each of its windows."""
    yield Extent(0, 0, min(n, size), skip)
    lead = max(skip, head)
    at, number = size, 1
    while at < n:
        end = min(n, at + size - lead)
        yield Extent(number, at - lead, end, lead)
        at, number = end, number + 1


def cut(prompt_id: int, ids: list[int], *, size: int, skip: int, bos: int | None) -> Iterator[Window]:
    """A text's windows. Every token after its first `skip` counts in exactly one of them.

    A later window begins with the token that begins texts, if the text has one, and with as many tokens of context as are
    skipped: no token is read as if it began a text.
    """
    head = _head(ids, bos)
    for number, start, end, lead in extents(len(ids), size=size, skip=skip, head=head):
        yield Window(prompt_id, number, [*ids[:head], *ids[start + head : end]], lead, start)


def _head(ids: list[int], bos: int | None) -> int:
    return int(bos is not None and ids[:1] == [bos])


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


class CorpusSurvey(NamedTuple):
    """What a look through all texts finds. None is kept: they may be many, and are encoded again when their turn comes.

    lengths: tokens of each, `UNFIT` of those that cannot be read. heads: of each, see `extents`. windows: in which a token
    counts. short: texts in which none does. cut: texts longer than a window. longest: tokens of the longest window.
    """

    lengths: array[int]
    heads: bytearray
    failed: list[Failed]
    notes: list[str]
    windows: int = 0
    tokens: int = 0
    counted: int = 0
    short: int = 0
    cut: int = 0
    longest: int = 0


class CorpusPart(NamedTuple):
    """Windows that are read and kept together: the place of each one's text among all, and its number there.

    counted: tokens.
    """

    name: str
    places: list[tuple[int, int]]
    counted: int


@dataclass(frozen=True)
class Corpus:
    """Texts as one model reads them: `size` tokens a window at most, and what a look through all of them found."""

    lm: LanguageModel
    prompts: Sequence[Prompt]
    options: CorpusOptions
    size: int
    seen: CorpusSurvey

    def windows_of(self, prompt: Prompt) -> tuple[TokenSequence, list[Window]]:
        """A text, and the windows in which a token counts. Raises `BadPrompt`."""
        sequence = encode_whole(self.lm, prompt, self.options)
        found = cut(prompt.prompt_id, sequence.ids, size=self.size, skip=self.options.skip, bos=self.lm.bos_id)
        return sequence, [window for window in found if window.counted]

    @property
    def remarks(self) -> list[str]:
        """What a reader of the run must know of how the texts were read."""
        found, cut, short = [], self.seen.cut, self.seen.short
        if cut:
            found.append(f"longer than {self.size:,} tokens, and cut into windows that are read apart: {_texts(cut)}")
        if short:
            found.append(f"without a token after the first {self.options.skip}, and counting for nothing: {_texts(short)}")
        return found

    def told(self, errors: int) -> dict[str, Any]:
        """What a summary says of the texts."""
        return {
            "prompts": len(self.prompts), "errors": errors, "windows": self.seen.windows, "tokens": self.seen.tokens,
            "counted": self.seen.counted, "window": self.size, "skip": self.options.skip,
        }  # fmt: skip

    def plan(self, *, state: int) -> dict[str, Any]:
        """What would be read. state: bytes that are kept of all that was read so far."""
        held = 4 * HELD * self.options.batch_tokens * self.lm.anatomy.d_model
        passes = sum(1 for part in self.parts() for _ in self.batches(self.read(part)))
        return {
            "model": self.lm.name, "texts": len(self.prompts), "cannot_be_read": len(self.seen.failed),
            "windows": self.seen.windows, "tokens": self.seen.tokens, "counted": self.seen.counted, "read_passes": passes,
            "peak_memory_bytes": PROCESS_BYTES + held_bytes(self.lm.model) + held + 2 * state,
        }  # fmt: skip

    def parts(self, most: int = MOST) -> Iterator[CorpusPart]:
        """Windows that are read and kept together: at most so many parts, whatever the file. Encodes nothing."""
        least = max(LEAST, -(-self.seen.tokens // most))
        places: list[tuple[int, int]] = []
        number = tokens = counted = 0
        for text, one in self._extents():
            places.append((text, one.number))
            tokens, counted = tokens + one.end - one.start, counted + one.counted
            if tokens >= least:
                yield CorpusPart(f"part-{number:05d}", places, counted)
                places, number, tokens, counted = [], number + 1, 0, 0
        if places:
            yield CorpusPart(f"part-{number:05d}", places, counted)

    def _extents(self) -> Iterator[tuple[int, Extent]]:
        """The windows in which a token counts, each with the place of its text among all."""
        for text, (n, head) in enumerate(zip(self.seen.lengths, self.seen.heads, strict=True)):
            if n != UNFIT:
                for one in extents(n, size=self.size, skip=self.options.skip, head=head):
                    if one.counted:
                        yield text, one

    def read(self, part: CorpusPart) -> list[Window]:
        """The windows of a part, encoded."""
        found = []
        for text, places in groupby(part.places, key=lambda place: place[0]):
            numbers = {number for _, number in places}
            found += [window for window in self._windows(text) if window.number in numbers]
        return found

    @cached_property
    def _windows(self) -> Callable[[int], list[Window]]:
        """Those of a text; of a long one, which is in several parts, they are made once."""
        return lru_cache(maxsize=1)(lambda text: self.windows_of(self.prompts[text])[1])

    def batches(self, part: list[Window]) -> Iterator[list[Window]]:
        """A part's windows, those of like length together, each padded batch within the budget of tokens."""
        budget = 1 if self.lm.sets_frequencies(self.seen.longest) else self.options.batch_tokens
        batch: list[Window] = []
        for window in sorted(part, key=lambda one: -len(one.ids)):  # sorted() keeps the order of equals
            if batch and len(batch[0].ids) * (len(batch) + 1) > budget:
                yield batch
                batch = []
            batch.append(window)
        yield batch


def surveyed(lm: LanguageModel, given: Any, options: CorpusOptions) -> Corpus:
    """Texts after a look through all of them, which the process that makes the run takes, and no worker.

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
    prompts = together(given, options)
    return Corpus(lm, prompts, options, size, found_once(partial(_survey, lm, prompts, options, size)))


def _survey(lm: LanguageModel, prompts: Sequence[Prompt], options: CorpusOptions, size: int) -> CorpusSurvey:
    lengths, heads = array("i"), bytearray()
    failed, notes = list[Failed](), dict[str, None]()
    n = tokens = counted = short = longer = longest = 0
    for prompt in prompts:
        try:
            sequence = encode_whole(lm, prompt, options)
        except BadPrompt as error:
            failed.append(Failed(prompt._replace(error=error.message), error.with_traceback(None)))
            lengths.append(UNFIT)
            heads.append(0)
            continue
        lengths.append(len(sequence.ids))
        heads.append(_head(sequence.ids, lm.bos_id))
        found = [one for one in extents(lengths[-1], size=size, skip=options.skip, head=heads[-1]) if one.counted]
        sizes = [one.end - one.start for one in found]
        n, short, longer = n + len(found), short + (not found), longer + (lengths[-1] > size)
        tokens, counted = tokens + sum(sizes), counted + sum(one.counted for one in found)
        longest = max([longest, *sizes])
        notes |= dict.fromkeys(sequence.notes)
    if len(failed) == len(prompts):
        raise _nothing(failed[0].error, len(failed))
    if not counted:
        raise BadOption(f"no text has a token after the first {options.skip}", hint="--skip 0 counts all; position 0 is a sink")
    return CorpusSurvey(lengths, heads, failed, list(notes), n, tokens, counted, short, longer, longest)


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
