"""Choices of the largest few inside a module: what they are made from is changed, and the module's own code goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_PRODUCTS = {nn.functional.linear, torch.matmul, torch.mm, torch.addmm, Tensor.matmul, Tensor.__matmul__, Tensor.mm}
_LARGEST = {torch.topk, Tensor.topk}


class ChangedChoice(NamedTuple):
    """How one module's choice is changed. n_scores: how many there are to choose from.

    logits: takes the module's first product that has a number for each of them (…, n_scores), gives what to go on with.
    scores: takes what the largest are taken of, gives that in another order of size. What was chosen keeps its own score.
    """

    n_scores: int
    logits: Callable[[Tensor], Tensor]
    scores: Callable[[Tensor], Tensor]


@contextmanager
def choosing(model: nn.Module, choices: Mapping[str, ChangedChoice]) -> Iterator[None]:
    """While active, each of these modules (by path) makes its choice as its `ChangedChoice` says."""
    with ExitStack() as undo:
        for path, choice in choices.items():
            module, active = model.get_submodule(path), list[_Choosing]()
            undo.callback(module.register_forward_pre_hook(_beginner(choice, active)).remove)
            undo.callback(module.register_forward_hook(_ender(active), always_call=True).remove)
        yield


def _beginner(choice: ChangedChoice, active: list[_Choosing]) -> Callable[..., None]:
    def begin(*_: Any) -> None:
        active.append(_Choosing(choice))
        active[-1].__enter__()

    return begin


def _ender(active: list[_Choosing]) -> Callable[..., None]:
    def end(*_: Any) -> None:
        if active:
            active.pop().__exit__(None, None, None)

    return end


class _Choosing(TorchFunctionMode):
    """Sees the calls of torch's functions within one call of the module."""

    def __init__(self, choice: ChangedChoice) -> None:
        super().__init__()
        self._choice = choice
        self._shape: torch.Size | None = None  # of the logits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if self._shape is None and func in _PRODUCTS and found.shape[-1] == self._choice.n_scores:
            self._shape = found.shape
            return self._choice.logits(found)
        if func in _LARGEST and self._shape is not None and args[0].shape == self._shape:
            scores, *rest = args
            chosen = func(self._choice.scores(scores), *rest, **(kwargs or {})).indices
            return torch.return_types.topk((scores.gather(-1, chosen), chosen))
        return found
