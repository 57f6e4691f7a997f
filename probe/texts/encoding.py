"""Prompts into ids and batches: what is too long or empty is said here, before anything runs."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor

from probe.errors import BadOption, BadPrompt, ProbeError
from probe.requests import ChatOptions
from probe.texts.given import PromptIds, with_given
from probe.texts.rows import Prompt
from probe.texts.sequences import TokenSequence

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

T = TypeVar("T")
UNFIT = -1  # tokens of a prompt that cannot be run


class Failed(NamedTuple):
    """A prompt that cannot be run, and the error that says why."""

    prompt: Prompt
    error: ProbeError


def encode(lm: LanguageModel, prompt: Prompt, options: ChatOptions) -> TokenSequence:
    """One prompt as ids: by the tokenizer's own rules for a text, by the chat template (rendered once) for messages.

    Raises `BadPrompt` if there is no token or more than the context holds, or if the template leaves out what a message says;
    `BadOption` for a chat without a template, and for template options where there is no chat.
    """
    sequence = encode_whole(lm, prompt, options)
    n = len(sequence.ids)
    if lm.context_length is not None and n > lm.context_length:
        raise BadPrompt(
            f"the prompt has {n:,} tokens, and the context of {lm.name} holds {lm.context_length:,}",
            hint="shorten the prompt, or use a model with a longer context",
        )
    return sequence


def encode_whole(lm: LanguageModel, prompt: Prompt, options: ChatOptions) -> TokenSequence:
    """A prompt as ids, however long it is. Raises as `encode` for all else."""
    if prompt.error:
        raise BadPrompt(prompt.error, hint="one prompt a row: a text in 'prompt', or chat messages in 'messages'")
    given = prompt.given
    before = None if given is not None and given.prompt_ids is not None and not prompt.content else _before(lm, prompt, options)
    if before is not None and not before.ids:
        raise BadPrompt(
            "the prompt is empty, and this model has no BOS token to start from", hint="give at least one token of text"
        )
    if given is not None:
        return with_given(lm, prompt, options, before)
    assert before is not None, "a prompt without a generation is a text or messages"
    return TokenSequence(prompt, before.text, before.ids, len(before.ids), before.message_spans, notes=before.notes)


def _before(lm: LanguageModel, prompt: Prompt, options: ChatOptions) -> PromptIds | None:
    """The prompt as ids, without the turn that was written after it; None for messages whose ids are given and that the
    template cannot write."""
    content, given = prompt.content, prompt.given
    if isinstance(content, str) and not options.chat:
        if options.template_options:
            raise BadOption("template options need the chat template", hint="add --chat")
        ids, text = lm.encode(content)
        return PromptIds(list(ids), text, None, [])
    awaited = isinstance(content, str) or content[-1]["role"] != "assistant"
    if given is not None and given.turn:
        content, awaited = content[:-1], True
    try:
        rendered = lm.render(content, options, add_generation_prompt=awaited, beside=prompt.beside)
    except ProbeError:
        if given is None or given.prompt_ids is None:
            raise
        return None
    return PromptIds(rendered.ids, rendered.text, rendered.spans, rendered.notes)


def encoded(lm: LanguageModel, prompts: Iterable[Prompt], options: ChatOptions) -> Iterator[TokenSequence | Failed]:
    """Every prompt as it can be run, or with the reason why it can't, one after the other."""
    for prompt in prompts:
        try:
            yield encode(lm, prompt, options)
        except BadPrompt as error:  # without the frames that its traceback would keep
            yield Failed(prompt._replace(error=error.message), error.with_traceback(None))


def encode_all(lm: LanguageModel, prompts: Iterable[Prompt], options: ChatOptions) -> tuple[list[TokenSequence], list[Failed]]:
    """Every prompt that can be run, and every one that can't with its reason."""
    found = list(encoded(lm, prompts, options))
    return [one for one in found if isinstance(one, TokenSequence)], [one for one in found if isinstance(one, Failed)]


def encode_each(lm: LanguageModel, prompts: Iterable[Prompt], name: str) -> list[TokenSequence]:
    """Every prompt, finished; `name` is what an error calls one.

    Raises `BadPrompt` and `BadOption`, also where only one of them cannot be run.
    """
    sequences, failed = encode_all(lm, prompts, ChatOptions())
    if failed:
        raise BadOption(f"a {name} text cannot be run: {failed[0].error.message}", hint=failed[0].error.hint)
    for sequence in sequences:
        sequence.finish(lm, None, "sentence")
    return sequences


class Survey(NamedTuple):
    """What a look through all prompts finds before any is run: the tokens of each, `UNFIT` of those that cannot be."""

    lengths: array[int]
    failed: list[Failed]
    notes: list[str]

    @property
    def runnable(self) -> int:
        """How many prompts can be run."""
        return len(self.lengths) - self.lengths.count(UNFIT)

    @property
    def longest(self) -> int:
        """Tokens of the longest."""
        return max(0, max(self.lengths, default=0))

    @property
    def fit(self) -> Iterator[int]:
        """Which of the prompts can be run."""
        return (number for number, length in enumerate(self.lengths) if length != UNFIT)

    def batches(self, *, generate: int, tokens: int) -> Iterator[list[int]]:
        """Which of the prompts are run together: see `batches`."""
        return _together(((self.lengths[number], number) for number in self.fit), generate=generate, tokens=tokens)


def survey(lm: LanguageModel, prompts: Iterable[Prompt], options: ChatOptions, *, split: str) -> Survey:
    """Encode every prompt and keep none: there may be a million, and they are encoded again when their turn comes.

    Raises as `encode`, but for what is wrong with single prompts; `BadOption` if spans of a file do not fit a text.
    """
    lengths, failed, notes = array("i"), [], dict[str, None]()
    for one in encoded(lm, prompts, options):
        if isinstance(one, Failed):
            lengths.append(UNFIT)
            failed.append(one)
            continue
        if split.startswith("spans:"):
            one.finish(lm, None, split)
        lengths.append(len(one.ids))
        notes |= dict.fromkeys(one.notes)
    return Survey(lengths, failed, list(notes))


def batches(sequences: Iterable[TokenSequence], *, generate: int, tokens: int) -> Iterator[list[TokenSequence]]:
    """Neighbouring prompts together while the padded batch, with what will be generated, stays within `tokens`."""
    return _together(((len(one.ids), one) for one in sequences), generate=generate, tokens=tokens)


def _together(sized: Iterable[tuple[int, T]], *, generate: int, tokens: int) -> Iterator[list[T]]:
    batch: list[T] = []
    longest = 0
    for length, one in sized:
        wider = max(longest, length + generate)
        if batch and wider * (len(batch) + 1) > tokens:
            yield batch
            batch, wider = [], length + generate
        batch.append(one)
        longest = wider
    if batch:
        yield batch


def padded(batch: list[TokenSequence]) -> tuple[Tensor, list[int]]:
    """ids (batch, pos), 0 behind a shorter text's end, and how many of them are each text's own."""
    lengths = [len(s.ids) for s in batch]
    ids = torch.zeros(len(batch), max(lengths), dtype=torch.long)
    for own_ids, sequence in zip(ids, batch, strict=True):
        own_ids[: len(sequence.ids)] = torch.tensor(sequence.ids)
    return ids, lengths
