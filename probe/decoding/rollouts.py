"""What an engine that continues prefixes is asked and promises, and the one in this process. Knows no arms, no statistics."""

from __future__ import annotations

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from probe.decoding.branching import branch
from probe.decoding.engine import Continuation
from probe.decoding.noise import stream
from probe.decoding.prefixes import TokenIds
from probe.decoding.teacher_forced import Prefix
from probe.requests import Sampling

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

PLACES = 64  # rollouts that run side by side
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
    noise and be compared in pairs. activations, edits: whether they can be read, and changed, while it draws.
    """

    name: str
    addressed_noise: bool
    activations: bool
    edits: bool

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

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm

    def draw(
        self, rollouts: Sequence[Rollout], sampling: Sampling, *, done: Ended, kept: Known | None = None,
        stems: Sequence[Prefix] = (),
    ) -> None:  # fmt: skip
        """As `Engine.draw` says."""
        groups: dict[tuple[TokenIds, int, int], list[int]] = defaultdict(list)
        for place, one in enumerate(rollouts):
            groups[one.prefix, one.max_new, one.seed].append(place)
        for (prefix, most, seed), places in groups.items():
            stem = next((s for s in stems if tuple(s.ids) == prefix[: len(s.ids)]), None)
            of = {rollouts[place].sample: place for place in places}

            def end(_: int, sample: int, found: Continuation, of: dict[int, int] = of) -> None:
                done(of[sample], found)

            def known(_: int, sample: int, of: dict[int, int] = of) -> bool:
                return kept is not None and kept(of[sample])

            branch(
                self.lm, [prefix], list(of), max_new=most, sampling=replace(sampling, seed=seed), batch=PLACES,
                done=end, kept=known, stem=stem,
            )  # fmt: skip


def problem_seed(seed: int, prompt: Sequence[int]) -> int:
    """The seed of the noise of one problem, by the ids of its prompt.

    Problems then are independent of each other, as an interval over problems takes them to be, and the rollouts of one are
    the same alone, beside others and in another order.
    """
    digest = hashlib.sha256(array("q", prompt).tobytes()).digest()
    return stream(seed, int.from_bytes(digest[:8], "little") >> 1 or 1)
