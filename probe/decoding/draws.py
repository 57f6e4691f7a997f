"""Rows under way, and tokens that are drawn for them one after the other and then looked at together. Knows no cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from probe.decoding.noise import keys
from probe.decoding.prefixes import TokenIds
from probe.decoding.sampler import BEST, check_finite, choice, draw
from probe.errors import BadModel, NonFinite
from probe.requests import Sampling

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

AHEAD = 16  # tokens of each row that an accelerator draws before this process looks at them: to look is to wait


@dataclass
class Continuation:
    """What the model added to one prefix, with what the sampler saw at each token. `noise` is None where greedy.

    What an engine elsewhere does not say is None, token by token. logprob: raw, of an engine that says it; else empty.
    stop_reason: `eos` (an end token, kept), `stop` (a stop string, kept), `context` (no room left) or `length`.
    """

    ids: list[int] = field(default_factory=list)
    stop_reason: str = ""
    sample_logprob: list[float | None] = field(default_factory=list)
    kept: list[int | None] = field(default_factory=list)
    noise: list[float | None] = field(default_factory=list)
    logprob: list[float | None] = field(default_factory=list)

    @property
    def total(self) -> float | None:
        """The sum of `sample_logprob`, nats; None where one is not known."""
        known = [value for value in self.sample_logprob if value is not None]
        return float(np.sum(known, dtype=np.float64)) if len(known) == len(self.sample_logprob) else None


@dataclass
class OpenBranch:
    """One continuation under way: what it continues, the address of its noise (seed, sample), the name that edits know it by,
    how many tokens it may have."""

    prefix: TokenIds
    sample: int
    name: int
    most: int
    seed: int
    found: Continuation = field(default_factory=Continuation)

    @property
    def running(self) -> bool:
        return not self.found.stop_reason

    def over(self, context: int | None) -> str:
        """`length` if it has all tokens that it may have, `context` if the model has no position for another; else empty."""
        if len(self.found.ids) >= self.most:
            return "length"
        return "context" if context is not None and len(self.prefix) + len(self.found.ids) >= context else ""

    def left(self, context: int | None) -> int:
        """How many tokens it may still have."""
        most = self.most if context is None else min(self.most, context - len(self.prefix))
        return most - len(self.found.ids)

    def append(self, lm: LanguageModel, stop: Sequence[str], chosen: tuple[int, float, int, float | None]) -> None:
        """One more token, with what the sampler saw; it may be the last."""
        one, (token, logprob, kept, noise) = self.found, chosen
        one.ids.append(token)
        one.sample_logprob.append(logprob)
        one.kept.append(kept)
        one.noise.append(noise)
        one.stop_reason = ended(lm, one.ids, stop) or self.over(lm.context_length)


def ended(lm: LanguageModel, ids: Sequence[int], stop: Sequence[str]) -> str:
    """`eos` or `stop` if the last of the generated ids ends the text by itself; else empty.

    Raises `BadModel` for an id that the model can choose and not read."""
    if ids[-1] in lm.eos_ids:
        return "eos"
    if lm.lacks(ids[-1:]) is not None:
        raise BadModel(
            f"'{lm.name}' chose token id {ids[-1]:,}, and its embedding has {lm.n_ids:,} rows",
            hint="its head and its embedding are not of one vocabulary",
        )
    if not stop:
        return ""
    tail = 2 * max(map(len, stop)) + 8  # tokens in which a stop string can end
    text = lm.pieces(ids[-tail:]).text
    return "stop" if any(one in text for one in stop) else ""


def draws_ahead(lm: LanguageModel) -> bool:
    """Whether tokens are drawn before the last ones were looked at: on an accelerator, whose model can read all that it can
    choose."""
    return lm.device.type != "cpu" and (lm.n_ids is None or lm.anatomy.d_vocab <= lm.n_ids)


class TokenDraws:
    """The next `steps` tokens of each of some rows. A row that ends on the way is drawn on, and what follows its end is left
    out: it has the tokens that it would have had."""

    def __init__(self, lm: LanguageModel, rows: Sequence[OpenBranch], sampling: Sampling, *, steps: int | None = None) -> None:
        """steps: at most so many; if nothing is said, as many as `AHEAD` on an accelerator, and one on a CPU, where nothing
        waits. No more than the row that may have the fewest may have."""
        self.lm, self.rows, self.sampling = lm, rows, sampling
        asked = steps or (AHEAD if draws_ahead(lm) else 1)
        self.steps = min([asked, *(row.left(lm.context_length) for row in rows if row.running)])
        self._found: list[Tensor] = []
        self._keys: Tensor | None = None
        if sampling.temperature != 0.0:
            every, next_ones = list(rows) * self.steps, [len(row.found.ids) + i for i in range(self.steps) for row in rows]
            seeds, samples = [row.seed for row in every], [row.sample for row in every]
            self._keys = keys(seeds, samples, next_ones, lm.device).unflatten(1, (self.steps, len(rows)))

    def draw(self, logits: Tensor, ids: Tensor | None) -> Tensor:
        """Tokens (row, 1) from logits (row, d_vocab) of the next step; ids as in `sampler.choose`."""
        key = None if self._keys is None else self._keys[:, len(self._found)]
        self._found.append(draw(logits, ids, self.sampling, key))
        return self._found[-1][0, :, None].long()

    def look(self) -> None:
        """Every row that runs takes its tokens, until it ends. Raises `NonFinite` that says which row it was."""
        for found in torch.stack(self._found).cpu():
            chosen = zip(*choice(found, self.sampling), strict=True)
            for place, (row, one, best) in enumerate(zip(self.rows, chosen, found[BEST].tolist(), strict=True)):
                if row.running:
                    self._check(row, best, place)
                    row.append(self.lm, self.sampling.stop, one)
        self._found = []

    def _check(self, row: OpenBranch, best: float, place: int) -> None:
        try:
            check_finite(best, row.sample, len(row.found.ids), place)
        except NonFinite as error:
            end = self.lm.pieces(row.prefix[-12:]).text
            where = f"after a prefix of {len(row.prefix):,} tokens that ends in {end!r}"
            raise NonFinite(f"{error} ({where})", hint=error.hint) from error
