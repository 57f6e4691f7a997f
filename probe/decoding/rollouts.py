"""What an engine that continues prefixes is asked and promises, and the one in this process. Knows no arms, no statistics."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from probe.decoding.branching import draw_rows
from probe.decoding.draws import Continuation, OpenBranch
from probe.decoding.noise import stream
from probe.decoding.prefixes import TokenIds
from probe.decoding.teacher_forced import Prefix
from probe.devices import free_bytes
from probe.requests import Sampling

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

PLACES = 64  # the most rollouts that run side by side
FULL = 14  # of the longest rollouts there is always memory for so many
Ended = Callable[[int, Continuation], None]
Known = Callable[[int], bool]


class Rollout(NamedTuple):
    """One continuation to be drawn: of which ids, how far, and the address of its noise (seed, sample)."""

    prefix: TokenIds
    sample: int
    max_new: int
    seed: int  # `problem_seed` of the request's seed


class Engine(Protocol):
    """What draws continuations.

    name: as it is asked for. addressed_noise: a rollout is a function of (prefix, seed, sample) alone, so that arms may share
    noise and be compared in pairs. activations, edits: whether they can be read, and changed, while it draws. identity: what
    a run's manifest says of it, which is to be the same when the run is resumed.
    """

    name: str
    addressed_noise: bool
    activations: bool
    edits: bool

    @property
    def identity(self) -> Mapping[str, Any]: ...

    def draw(
        self, rollouts: Sequence[Rollout], sampling: Sampling, *, done: Ended, kept: Known | None = None,
        stems: Sequence[Prefix] = (),
    ) -> None:  # fmt: skip
        """Draw every rollout; done(place in `rollouts`, continuation) is called as each ends, in no promised order.

        `sampling.seed` has no part in it. kept(place): the run has it from before; which rollouts share a batch is decided by
        the list alone, so that the others have the numbers, to the last digit, that they would have had. A stretch of which
        all is kept is not run. Equal rollouts are one, drawn once. stems: beginnings of some prefixes that the model has read.
        Raises `NonFinite`, and `BadModel` for a model that cannot generate.
        """


class LocalEngine:
    """The model in this process."""

    name, addressed_noise, activations, edits = "local", True, True, True

    def __init__(self, lm: LanguageModel, *, tokens: int | None = None) -> None:
        """tokens: the most that a batch may hold of keys and values, rows times the longest; if not given, as many as
        `FULL` of the longest rollouts come to, or more where half of what an accelerator has free holds them."""
        self.lm, self.tokens = lm, tokens
        self.identity = {"kind": "local"}

    def draw(
        self, rollouts: Sequence[Rollout], sampling: Sampling, *, done: Ended, kept: Known | None = None,
        stems: Sequence[Prefix] = (),
    ) -> None:  # fmt: skip
        """As `Engine.draw` says. Rollouts of any prefixes run side by side, and the place of one that has ended is refilled,
        where rows of the model's cache can come and go."""
        rows = [OpenBranch(one.prefix, one.sample, place, one.max_new, one.seed) for place, one in enumerate(rollouts)]
        longest = max((len(one.prefix) + one.max_new for one in rollouts), default=1)
        draw_rows(
            self.lm, rows, sampling, places=PLACES, tokens=self.tokens or self._tokens(longest), stems=stems, share=True,
            end=lambda row: done(row.name, row.found), known=None if kept is None else lambda row: kept(row.name),
        )  # fmt: skip

    def _tokens(self, longest: int) -> int:
        """How many a batch may hold of rollouts of which none is longer."""
        free = free_bytes(self.lm.device)
        if free is None:
            return FULL * longest
        values = sum(2 * layer.n_kv_heads * layer.d_head for layer in self.lm.anatomy.layers)  # of a token
        return max(FULL * longest, min(PLACES * longest, free // 2 // max(1, values * self.lm.dtype.itemsize)))


def problem_seed(seed: int, prompt: Sequence[int]) -> int:
    """The seed of the noise of one problem, by the ids of its prompt.

    Problems then are independent of each other, as an interval over problems takes them to be, and the rollouts of one are
    the same alone, beside others and in another order.
    """
    digest = hashlib.sha256(array("q", prompt).tobytes()).digest()
    return stream(seed, int.from_bytes(digest[:8], "little") >> 1 or 1)
