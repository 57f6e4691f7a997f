"""Tensors of which each process of a tensor-parallel model holds a part: which they are, all of one, and a process's own part.

transformers' plan of a model says how each linear layer is split: `colwise` gives a part of its columns, `rowwise` is given
one; what goes into and comes out of layers of other styles is whole (seen in transformers 5.24).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, distributed, nn

Side = Literal["input", "output"]
SIDES: dict[str, Side] = {"colwise": "output", "rowwise": "input"}


class Processes(NamedTuple):
    """The processes that share a tensor: along one axis each has a part of equal size, in their order."""

    group: Any

    def whole(self, own: Tensor, dim: int = -1) -> Tensor:
        """All parts, of which this process has one. Every process has to ask for it."""
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(self.group.size())]
        distributed.all_gather(parts, own.contiguous(), group=self.group)
        return torch.cat(parts, dim=dim)

    def own(self, whole: Tensor, dim: int = -1) -> Tensor:
        """This process's part."""
        return whole.chunk(self.group.size(), dim=dim)[self.group.rank()]

    def reader(self, read: Callable[[Tensor], Tensor | None]) -> Callable[[Tensor], Tensor | None]:
        """What reads the part, of what reads the whole."""

        def of_own(own: Tensor) -> Tensor | None:
            new = read(self.whole(own))
            return None if new is None else self.own(new)

        return of_own


def is_sharded(model: nn.Module) -> bool:
    """Whether each of several processes has a part of the model's weights."""
    size: Any = getattr(model, "tp_size", None)
    return (size or 1) > 1


def shards(model: nn.Module) -> dict[tuple[str, Side], Processes]:
    """(path, side) of the linear layers that are given, or give, a part of a tensor; none where the model is whole."""
    if not is_sharded(model):
        return {}
    found = {}
    for path, module in model.named_modules():
        side = SIDES.get(style(model, path))
        if side is not None and isinstance(module, nn.Linear):
            weight: Any = module.weight
            found[path, side] = Processes(weight.device_mesh.get_group())
    return found


def shared_heads(model: nn.Module) -> dict[str, Processes]:
    """Modules whose own layers give parts: by path, those whose heads are shared, if they have any."""
    return {path.rpartition(".")[0]: shared for (path, side), shared in shards(model).items() if side == "output"}


def own(weight: Tensor) -> Tensor:
    """This process's part of a weight."""
    sharded: Any = weight
    return sharded.to_local() if hasattr(weight, "to_local") else weight


def style(model: nn.Module, path: str) -> str:
    """How the plan splits a module; its rules have `*` for the numbers in a path."""
    plan: Any = model.tp_plan
    return str(plan.get(re.sub(r"\b\d+\b", "*", path), ""))
