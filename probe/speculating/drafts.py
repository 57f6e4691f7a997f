"""What proposes: another model, the target's own first blocks, or the text itself; and the distribution it proposed from."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from probe.decoding import Sampling
from probe.decoding.sampler import distribution
from probe.errors import BadModel, BadOption
from probe.speculating.readers import CachedModel, EarlyExit, check_exit
from probe.speculating.verifying import DRAW, draw

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

KINDS = re.compile(r"(?P<kind>layers|ngram)(?::(?P<n>.*))?")
NGRAM = 3  # as long a match as prompt lookup looks for first (Saxena 2023)


class Address(NamedTuple):
    """Where the noise of a block's first token is."""

    sampling: Sampling
    sample: int
    step: int


class Proposal(NamedTuple):
    """Drafted tokens, the distributions (block, d_vocab) they were drawn from, and the raw logits behind these, if any."""

    tokens: list[int]
    distributions: Tensor
    logits: Tensor | None


class Limit(NamedTuple):
    """How many tokens a draft can propose after a text (None: any number), and why there is an end to it."""

    most: int | None = None
    why: str = ""


class Draft(Protocol):
    """Something that proposes. `warning`: what is to be said after a text, if anything."""

    name: str
    warning: str

    @property
    def identity(self) -> dict[str, Any] | None:
        """The manifest's `draft_model`; None where no other model drafts."""

    def limit(self, text: Sequence[int]) -> Limit:
        """How many tokens it can propose after the text."""

    def begin(self, target: CachedModel, prompt: Sequence[int]) -> None:
        """A new text: what can be read of it before the first block is read now."""

    def propose(self, text: Sequence[int], n: int, at: Address) -> Proposal:
        """From 1 to n tokens to follow the text, which the target has read up to its last token; none if there is no match."""


def history(text: Sequence[int], tokens: Sequence[int], sampling: Sampling) -> Tensor | None:
    """What the penalty of each of the tokens, and of the one after them, looks back on: (block + 1, pos).

    Rows are filled up with the text's own first token, so that none sees what is not there.
    """
    if sampling.repetition_penalty == 1.0:
        return None
    rows = [[*text, *tokens[:i], *[text[0]] * (len(tokens) - i)] for i in range(len(tokens) + 1)]
    return torch.tensor(rows)


def fitted(logits: Tensor, width: int) -> Tensor:
    """Logits (row, d_vocab) over the target's ids: what one model pads its vocabulary with means nothing to the other."""
    if logits.shape[-1] >= width:
        return logits[:, :width]
    return torch.nn.functional.pad(logits, (0, width - logits.shape[-1]), value=-torch.inf)


def stepwise(
    after: Callable[[Sequence[int]], Tensor], text: Sequence[int], n: int, at: Address, *, width: int, ends: set[int]
) -> Proposal:  # fmt: skip
    """Draw token after token from a model: `after(ids)` gives its logits (1, d_vocab); an end token ends the block."""
    tokens: list[int] = []
    distributions: list[Tensor] = []
    rows: list[Tensor] = []
    sampling = at.sampling
    while len(tokens) < n and not (tokens and tokens[-1] in ends):
        where = {"samples": [at.sample], "steps": [at.step + len(tokens)]}
        rows.append(fitted(after([*text, *tokens]), width))
        past = history([*text, *tokens], [], sampling)
        distributions.append(distribution(rows[-1], None if past is None else past.to(rows[-1].device), sampling, **where))
        tokens.append(int(draw(distributions[-1], sampling.seed, DRAW, **where)))
    return Proposal(tokens, torch.cat(distributions), torch.cat(rows))


NOTHING = Proposal([], torch.zeros((0, 0), dtype=torch.float64), None)  # a block of no token


class ModelDraft:
    """Another model with the target's tokenizer, with a cache of its own."""

    def __init__(self, lm: LanguageModel, target: LanguageModel) -> None:
        check_vocabulary(target, lm)
        self.name, self.warning, self.identity = lm.name, "", lm.identity
        self._lm, self._ends = lm, target.eos_ids

    def limit(self, text: Sequence[int]) -> Limit:
        """It reads the text and all proposed tokens but the last, each of which must be an id that it has."""
        lm = self._lm
        if lm.lacks(text) is not None:
            return Limit(0, f"the draft '{lm.name}' has {lm.n_ids} ids, and drafts none after another one")
        if lm.context_length is None:
            return Limit()
        return Limit(
            max(0, lm.context_length - len(text) + 1),
            f"the draft '{lm.name}' reads {lm.context_length} tokens, and drafts none beyond",
        )

    def begin(self, target: CachedModel, prompt: Sequence[int]) -> None:
        self._reader, self._target = CachedModel(self._lm), target
        if self.limit(prompt).most != 0:
            self._reader.logits(prompt, 1)
        self.warning = "" if self._reader.goes_back else slow(self._lm, "draft")

    def propose(self, text: Sequence[int], n: int, at: Address) -> Proposal:
        def after(ids: Sequence[int]) -> Tensor:
            return self._reader.logits(ids, 1)[:, : self._lm.n_ids]

        return stepwise(after, text, n, at, width=self._target.width, ends=self._ends)


class LayersDraft:
    """The target's own first n blocks, then its norm and head, on the target's own cache."""

    warning, identity = "", None

    def __init__(self, lm: LanguageModel, n: int) -> None:
        check_exit(lm, n)
        self.name, self._n, self._ends = f"layers:{n}", n, lm.eos_ids

    def limit(self, text: Sequence[int]) -> Limit:
        return Limit()

    def begin(self, target: CachedModel, prompt: Sequence[int]) -> None:
        self._target, self._exit = target, EarlyExit(target, self._n)

    def propose(self, text: Sequence[int], n: int, at: Address) -> Proposal:
        self._target.go_back(text)
        try:
            return stepwise(self._exit.logits, text, n, at, width=self._target.width, ends=self._ends)
        finally:
            self._exit.give_back()


class NgramDraft:
    """What followed the last few tokens where they stood before (prompt lookup, Saxena 2023): all of it on one token each."""

    warning, identity = "", None

    def __init__(self, longest: int) -> None:
        self.name, self._longest = f"ngram:{longest}", longest

    def limit(self, text: Sequence[int]) -> Limit:
        return Limit()

    def begin(self, target: CachedModel, prompt: Sequence[int]) -> None:
        self._target = target

    def propose(self, text: Sequence[int], n: int, at: Address) -> Proposal:
        tokens = lookup(text, n, self._longest)
        if not tokens:
            return NOTHING
        distributions = torch.zeros((len(tokens), self._target.width), dtype=torch.float64)
        return Proposal(tokens, distributions.scatter_(1, torch.tensor(tokens)[:, None], 1.0), None)


def lookup(text: Sequence[int], n: int, longest: int) -> list[int]:
    """Up to n tokens that followed the last place where the text's last tokens stood before: as many of them as match."""
    ids = np.asarray(text)
    for size in range(min(longest, len(ids) - 1), 0, -1):
        windows = np.lib.stride_tricks.sliding_window_view(ids[:-1], size)
        found = np.flatnonzero((windows == ids[-size:]).all(axis=1))
        if len(found):
            start = int(found[-1]) + size
            return [int(i) for i in ids[start : start + n]]
    return []


def make_draft(lm: LanguageModel, draft: str | LanguageModel) -> Draft:
    """`layers:N`, `ngram`, `ngram:N`, or another model (by name: loaded to where the target is, in its dtype).

    Raises `BadOption` for a draft that doesn't fit the target, `UnknownModel` for a name that nothing goes by, `BadModel` for
    a target that can't check a block in one pass.
    """
    if not lm.anatomy.causal:
        raise BadModel(
            f"what '{lm.name}' gives at a token depends on later tokens, so one pass can't check a block of them",
            hint="speculate with a causal language model",
        )
    if not isinstance(draft, str):
        return ModelDraft(draft, lm)
    found = KINDS.fullmatch(draft)
    if found is None:
        return ModelDraft(_loaded(lm, draft), lm)
    if found["kind"] == "layers":
        hint = f"layers:1 to layers:{max(1, lm.anatomy.n_layers)}"
        return LayersDraft(lm, _number(draft, found["n"], hint=hint))
    return NgramDraft(NGRAM if found["n"] is None else _number(draft, found["n"], hint="ngram, or ngram:1 and up"))


def is_model(draft: str) -> bool:
    """Whether the text names a model."""
    return KINDS.fullmatch(draft) is None


def check_vocabulary(target: LanguageModel, draft: LanguageModel) -> None:
    """Raises `BadOption`, with what differs, where an id means one token to the target and another to the draft.

    Either may have ids that the other lacks: such a one is never proposed, or never accepted.
    """
    ours, theirs = ({i: token for token, i in lm.tokenizer.get_vocab().items()} for lm in (target, draft))
    other = [i for i in sorted(ours.keys() & theirs.keys()) if ours[i] != theirs[i]]
    if not other:
        return
    first = "; ".join(f"{i} is {ours[i]!r} and {theirs[i]!r}" for i in other[:3])
    sizes = f"{len(ours):,} and {len(theirs):,} tokens, " if len(ours) != len(theirs) else ""
    raise BadOption(
        f"the vocabularies of '{target.name}' and '{draft.name}' differ: {sizes}{len(other):,} ids of which {first}",
        hint="a draft needs the target's tokenizer; layers:N and ngram always fit",
    )


def slow(lm: LanguageModel, role: str) -> str:
    """What is said where a text can't be taken back."""
    return f"the {role} '{lm.name}' has a state that can't be taken back: each pass reads the whole text anew, which is slow"


def _number(draft: str, text: str | None, *, hint: str) -> int:
    if text is None or not text.isascii() or not text.isdigit() or int(text) < 1:
        raise BadOption(f"cannot read the draft '{draft}'", hint=hint)
    return int(text)


def _loaded(lm: LanguageModel, name: str) -> LanguageModel:
    from probe.language_model import load

    if name == lm.name:
        return lm
    return load(name, device=str(lm.device), dtype=str(lm.dtype).removeprefix("torch."))
