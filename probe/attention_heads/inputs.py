"""What `heads` reads: the user's texts, or a run's sequence, and repeated random tokens. Runs no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from probe.attention_heads.repeated import repeated_tokens
from probe.attention_heads.tagging import column_tags
from probe.errors import BadOption, BadPrompt
from probe.requests import AttentionHeads
from probe.store import run_of
from probe.texts import Failed, Prompt, TokenSequence, as_prompts, columns_of, encoded, hash_of, read_source, survey

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

COPIES = 2  # of the random tokens


class Inputs(NamedTuple):
    """Texts on their way in: how many can be read, how long the longest is, and what has to be said of them.

    came_to: what a resume must come to again.
    """

    lm: LanguageModel
    request: AttentionHeads
    prompts: Sequence[Prompt]
    one: TokenSequence | None  # of a run
    readable: int
    longest: int
    failed: list[Failed]
    notes: list[str]
    unfit: frozenset[int] = frozenset()  # numbers of prompts that are left out for another reason than their tokens

    @property
    def came_to(self) -> dict[str, Any]:
        if self.one is not None and self.one.run is not None:
            return {"source_run": self.one.run.run_id, "ids": self.one.ids}
        return {"prompts": len(self.prompts), "prompts_sha256": hash_of(self.prompts)}

    @property
    def extra(self) -> Any:
        """Columns of the file beside the prompts."""
        return columns_of(self.prompts).types

    def texts(self) -> Iterator[TokenSequence]:
        """Every text that can be read."""
        if self.one is not None:
            yield self.one
        for found in encoded(self.lm, self.prompts, self.request):
            if isinstance(found, TokenSequence) and found.prompt.prompt_id not in self.unfit:
                found.finish(self.lm, None, self.request.split)
                yield found

    def repeated(self) -> list[TokenSequence]:
        """Sequences of random tokens, twice over, numbered after the prompts."""
        asked = self.request
        if not asked.sequences:
            return []
        last = self.one.prompt.prompt_id if self.one is not None else max((p.prompt_id for p in self.prompts), default=-1)
        found = []
        ids = repeated_tokens(self.lm, asked.length, COPIES, asked.sequences, asked.seed)
        for i, own in enumerate(ids.tolist(), start=last + 1):
            text = self.lm.pieces(own).text
            sequence = TokenSequence(Prompt(i, text), text, own, len(own))
            sequence.finish(self.lm, None, "line")
            found.append(sequence)
        return found


def inputs_of(lm: LanguageModel | None, request: AttentionHeads) -> Inputs:
    """What there is to read, looked through once. Raises `BadPrompt`, `BadOption`, `RunError`, and for the only prompt that
    there is what is wrong with it."""
    if run_of(request.source) is not None:
        if request.tags is not None:
            raise BadOption("--tags names a column of a file, and a run has none", hint="--tagger en")
        lm, one = read_source(lm, request.source, request)
        return Inputs(lm, request, [], one, 1, len(one.ids), [], list(one.notes))
    if lm is None:
        raise BadOption("which model is to be looked at?", hint="give a model, or a run")
    if request.prompt_id is not None or request.branch:
        raise BadOption("a prompt has no other prompts or branches", hint="--prompt and --branch are for runs")
    given = request.source if request.file is None else Path(request.file)
    prompts = [] if given is None else as_prompts(given, request)
    seen = survey(lm, prompts, request, split=request.split)
    if len(prompts) == 1 and seen.failed:
        raise seen.failed[0].error
    found = Inputs(lm, request, prompts, None, seen.runnable, seen.longest, seen.failed, seen.notes)
    return found if request.tags is None else _with_fitting_tags(found, request.tags)


def _with_fitting_tags(inputs: Inputs, column: str) -> Inputs:
    """The texts whose tags fit their words or tokens; the others are among those that failed.

    Raises `BadOption` where no row has the column, and what is wrong with the tags where no text has any that fit.
    """
    there = columns_of(inputs.prompts).names
    if column not in there:
        listed = ", ".join(there) or "none beside the prompt"
        raise BadOption(f"there is no column '{column}' with tags", hint=f"columns: {listed}")
    unfit: list[Failed] = []
    for one in inputs.texts():
        try:
            column_tags(one, there[column])
        except BadPrompt as error:
            unfit.append(Failed(one.prompt._replace(error=error.message), error.with_traceback(None)))
    if unfit and len(unfit) == inputs.readable:
        raise unfit[0].error
    numbers = frozenset(one.prompt.prompt_id for one in unfit)
    failed = sorted([*inputs.failed, *unfit], key=lambda one: one.prompt.prompt_id)
    return inputs._replace(failed=failed, readable=inputs.readable - len(unfit), unfit=numbers)
