"""A live model with the changes of patches on its weights, and without them again, to the bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from probe.errors import BadModel
from probe.language_model.weights_patch import WeightChange, WeightsPatch, check_patch, load_patch, parameter_of

if TYPE_CHECKING:
    from probe.language_model.model import LanguageModel

_ROWS = 1 << 22  # values that are computed with at once, in float64


@torch.no_grad()
def apply_change(model: nn.Module, change: WeightChange) -> Tensor:
    """Change the live parameter in place; gives what stood there (on the CPU), for `take_back`.

    Computed in float64, rounded once. Raises `BadModel` where the result has values that are no numbers.
    """
    weight = parameter_of(model, change.parameter, change.shape).data
    before = _part(weight, change).to("cpu", copy=True)
    try:
        _write(weight, change)
        after = _part(weight, change)
        if not bool(after.isfinite().all()) and bool(before.isfinite().all()):
            kind = str(weight.dtype).removeprefix("torch.")
            raise BadModel(f"the change of '{change.parameter}' does not fit into {kind}", hint="try --dtype float32")
    except BaseException:
        take_back(model, change, before)
        raise
    return before


@torch.no_grad()
def take_back(model: nn.Module, change: WeightChange, before: Tensor) -> None:
    """Put back, to the bit, what `apply_change` gave."""
    weight = parameter_of(model, change.parameter).data
    if change.index is None:
        weight.copy_(before)
    else:
        weight.index_copy_(change.axis, change.index.to(weight.device), before.to(weight.device))


def _part(weight: Tensor, change: WeightChange) -> Tensor:
    return weight if change.index is None else weight.index_select(change.axis, change.index.to(weight.device))


def _write(weight: Tensor, change: WeightChange) -> None:
    wide = torch.float64 if weight.device.type == "cpu" or weight.is_cuda else torch.float32  # mps has no float64
    if change.left is not None and change.right is not None:
        right = change.right.to(weight.device, wide)
        step = max(1, _ROWS // max(1, weight.shape[1]))
        for at in range(0, len(weight), step):
            rows = weight[at : at + step]
            rows.copy_(rows.to(wide) + change.left[at : at + step].to(weight.device, wide) @ right.T)
        return
    part = _part(weight, change)
    new = torch.full_like(part, change.shift) if change.factor == 0 else (part.to(wide) * change.factor + change.shift)
    if change.index is None:
        weight.copy_(new)
    else:
        weight.index_copy_(change.axis, change.index.to(weight.device), new.to(weight.dtype))


@dataclass
class _Undo:
    """What was changed so far, and what stood there."""

    model: nn.Module
    done: list[tuple[WeightChange, Tensor]] = field(default_factory=list)

    def apply(self, changes: Sequence[WeightChange]) -> None:
        for change in changes:
            self.done.append((change, apply_change(self.model, change)))

    def back(self) -> None:
        while self.done:
            take_back(self.model, *self.done[-1])
            self.done.pop()


@contextmanager
def changing(model: nn.Module) -> Iterator[_Undo]:
    """Changes that are made with `.apply` are undone, last first, when the context is left, in the middle of an error too."""
    undo = _Undo(model)
    try:
        yield undo
    finally:
        undo.back()


@contextmanager
def patched(lm: LanguageModel, *files: Path | str | WeightsPatch) -> Iterator[tuple[WeightsPatch, ...]]:
    """While active, the live weights are those of the model with these patches, one after the other; then, to the bit, what
    they were. The model's identity and title say so meanwhile. Raises as `load_patch`, before anything is changed."""
    known = lm.anatomy  # found on the whole model: a part that is zeroed could not be found
    before = lm.patches
    with changing(lm.model) as undo:
        try:
            loaded = []
            for file in files:
                patch = file if isinstance(file, WeightsPatch) else load_patch(file)
                check_patch(patch, lm)
                undo.apply(patch.changes)
                lm.patches = (*lm.patches, patch.identity)
                loaded.append(patch)
            yield tuple(loaded)
        finally:
            lm.patches = before
            assert lm.anatomy is known, "a patch moves nothing"


def put_on(lm: LanguageModel, files: Sequence[Path | str]) -> None:
    """Put patches on a model that was just loaded, for good. Raises as `load_patch`."""
    _ = lm.anatomy
    for file in files:
        patch = load_patch(file, lm=lm)
        for change in patch.changes:
            apply_change(lm.model, change)
        lm.patches = (*lm.patches, patch.identity)
