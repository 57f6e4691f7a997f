"""Every call of every module with one token, and which norm makes what one of them is given. Knows no heads and no neurons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from probe.anatomy import Tap
from probe.anatomy.inside import is_leaf
from probe.anatomy.parts import Write
from probe.attributing.linear import Frozen, freeze, identity
from probe.instrument import element, recording

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

Calls = dict[tuple[str, int], "RecordedCall"]
"""By the module's path, and which of its calls in one forward."""


class RecordedCall(NamedTuple):
    """What a module was given, and what it gave."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    def at(self, tap: Tap) -> Tensor:
        """The tensor that a tap of this module sees."""
        found: Tensor
        if tap.side == "output":
            found = element(self.output, tap.key)
        else:
            found = self.args[tap.key] if isinstance(tap.key, int) else self.kwargs[tap.key]
        return found

    @property
    def given(self) -> Tensor:
        """The stream's vector (1, 1, d), or (1, d) as some models cut it, that it was given."""
        found: Tensor = next(value for value in (*self.args, *self.kwargs.values()) if _is_vector(value))
        return found

    def with_rows(self, rows: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Its arguments with rows (n, 1, d) in place of the one vector that it had."""
        own = self.given
        args = tuple(rows if a is own else a for a in self.args)
        return args, {key: rows if v is own else v for key, v in self.kwargs.items()}


def _is_vector(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() in (2, 3) and set(value.shape[:-1]) == {1}


def recorded_calls(model: nn.Module, ids: Tensor, position: int = 0) -> Calls:
    """Every call of every module, with the one token of ids (1, 1) at that position."""
    found: Calls = {}
    visits: Counter[str] = Counter()

    def record(path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        found[path, visits[path]] = RecordedCall(module, args, kwargs, output)
        visits[path] += 1

    where = {"position_ids": torch.full_like(ids, position)} if position else {}
    with torch.no_grad(), recording(model, record):
        model(input_ids=ids, use_cache=False, **where)
    return found


class StreamNorm(NamedTuple):
    """What makes a module's input of the stream; path: of its module, None where the stream is read as it is."""

    norm: Frozen
    path: str | None


def norm_of(
    lm: LanguageModel, calls: Calls, given: Tensor, taps: Sequence[Tap], streams: Sequence[Tensor]
) -> StreamNorm | None:
    """The leaf that makes `given` of the stream at one of the taps; None where none does. streams: values (n, d) of the
    taps in a text, at which the norm's scale is held."""
    for tap, values in zip(taps, streams, strict=True):
        stream = calls[tap.path, tap.call or 0].at(tap)
        if torch.equal(given.flatten(), stream.flatten()):
            return StreamNorm(identity(1, lm.anatomy.d_model), None)
        for (path, _), one in calls.items():
            if is_leaf(one.module) and isinstance(one.output, Tensor) and one.output.numel() == given.numel():
                took = [value for value in (*one.args, *one.kwargs.values()) if isinstance(value, Tensor)]
                if len(took) == 1 and torch.equal(one.output.flatten(), given.flatten()) and torch.equal(
                    took[0].flatten(), stream.flatten()
                ):  # fmt: skip
                    norm = freeze(one.module, values.double().cpu(), lm.dtype)
                    return None if norm is None else StreamNorm(norm, path)
    return None


def to_stream(model: nn.Module, write: Write, after: Frozen, images: Tensor) -> Tensor:
    """What rows (n, d) of a projection's output add to the stream: with what stands behind it, at a scale of 1 of a norm."""
    scale = after.scale[0] if bool((after.scale == after.scale[0]).all()) else torch.ones(1).double()
    images = scale * after.gain * (images - after.centre * images.mean(-1, keepdim=True))
    unit = write.unit(model)
    return images * (unit.double().cpu() if isinstance(unit, Tensor) else unit)
