"""The laws of the instrument on one model: each is a number that should be zero, and how large it may be. Prints nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch

from probe.errors import ProbeError
from probe.laws import continuing, editing, reading

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

__all__ = ["Law", "laws"]

TEXT = "The quick brown fox jumps over the lazy dog. Then it rests in the shade, and the dog wakes up at last."


class Law(NamedTuple):
    """A law and what it came to. `value` is the largest deviation and `unit` what it counts; it holds up to `tolerance`.

    `skipped` says why the law does not apply to this model; then there is no value. `failed` says what went wrong in trying.
    """

    name: str
    value: float | None
    tolerance: float
    unit: str
    skipped: str = ""
    failed: str = ""

    @property
    def holds(self) -> bool:
        """Whether it applies and the value is a number within the tolerance."""
        return self.value is not None and self.value <= self.tolerance


def laws(lm: LanguageModel, progress: Callable[[str, int, int], None] | None = None) -> Iterator[Law]:
    """Try every law on a short text, one after the other; a law that a model cannot be put to is yielded as skipped.

    Tolerances are for float32 and scale with the model's own dtype; a value of 0 says that it holds bit for bit
    here. An unforeseen error breaks the law, not the others.
    """
    ids = list(lm.encode(TEXT).ids)
    loose = max(1.0, float(torch.finfo(lm.dtype).eps / torch.finfo(torch.float32).eps)) ** 0.5
    for i, (name, law, tolerance, unit) in enumerate(_LAWS):
        room = tolerance * loose
        try:
            yield Law(name, law(lm, ids), room, unit)
        except ProbeError as error:
            yield Law(name, None, room, unit, skipped=error.message)
        except Exception as error:  # whatever the model's own code raises: this is where it is to be found out
            why = f"{type(error).__name__}: {error}".partition("\n")[0]
            yield Law(name, math.inf, room, unit, failed=why)
        if progress:
            progress("laws", i + 1, len(_LAWS))


_LAWS: tuple[tuple[str, Callable[[LanguageModel, list[int]], float], float, str], ...] = (
    ("capturing changes nothing", reading.capturing_changes_nothing, 1e-4, "logits"),
    ("no hook is left behind", reading.no_hook_is_left, 0.0, "hooks"),
    ("scores are those of the logits", reading.scores_are_those_of_the_logits, 1e-4, "nats"),
    ("a text is the same alone and in a batch", reading.company_changes_no_score, 1e-3, "nats"),
    ("what is written adds up to the stream", reading.writes_add_up, 1e-4, "relative"),
    ("the end of the stream gives the logits", reading.the_end_gives_the_logits, 1e-4, "relative"),
    ("recorded attention is the call that the anatomy names", reading.attention_is_that_of_its_call, 1e-4, "relative"),
    ("the last layer's guess is the model's", reading.lens_ends_at_the_model, 1e-4, "nats"),
    ("a patch of a run with itself changes nothing, at any site", editing.own_patches_change_nothing, 1e-5, "relative"),
    ("what is added to a write is added to the stream", editing.writes_can_be_added_to, 1e-3, "relative"),
    ("greedy decoding is what reading says", continuing.decoding_is_reading, 1e-3, "logits"),
    ("greedy speculation is what reading says", continuing.speculating_is_reading, 1e-3, "logits"),
    ("a rollout is the same alone, in a batch, in another order", continuing.company_changes_no_rollout, 0.0, "rollouts"),
    ("a shared prefix is the whole text's", continuing.a_prefix_is_computed_once, 1e-4, "nats"),
    ("suppressing a span is deleting it with its positions kept", continuing.suppression_is_deletion, 1e-4, "logits"),
)  # fmt: skip
