"""A forward without the blocks above the last one that is read; only where what lies below comes out as the same numbers."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probe.instrument import bypassing, element, emptied, filled, recording, wrapped
from probe.sites import SITES

if TYPE_CHECKING:
    from probe.anatomy import Anatomy
    from probe.sites import Cell

SHORT = 8  # tokens on which a model is tried

_forms: weakref.WeakKeyDictionary[nn.Module, dict[int, dict[str, Any]]] = weakref.WeakKeyDictionary()


def stopping(
    model: nn.Module, anatomy: Anatomy, cells: Iterable[Cell], ids: Tensor, **inputs: Any
) -> AbstractContextManager[None]:  # fmt: skip
    """While active, the blocks above the last that the cells need do nothing in a forward over `ids` with `inputs`.

    They return zeros, so that the model's logits mean nothing. May at once run two short forwards, once a model and block.
    Nothing is left out where a block is visited several times, is wrapped by others, or returns more than the stream.
    """
    cells = list(cells)
    last = max((cell.layer for cell in cells), default=-1)
    if any(SITES[cell.site].after_blocks for cell in cells) or last + 1 >= anatomy.n_layers or model._forward_hooks:
        return nullcontext()
    known = _forms.setdefault(model, {})
    if last not in known:
        short = {name: value[:1, :SHORT] if isinstance(value, Tensor) else value for name, value in inputs.items()}
        known[last] = _tried(model, anatomy, last, ids[:1, :SHORT], short)
    if not known[last]:
        return nullcontext()
    return _without(model, anatomy, known[last], ids)


def _without(model: nn.Module, anatomy: Anatomy, forms: dict[str, Any], ids: Tensor) -> AbstractContextManager[None]:
    dtype: torch.dtype = model.dtype  # type: ignore[assignment]
    nothing = torch.zeros((*ids.shape, anatomy.d_model), dtype=dtype, device=ids.device)
    return bypassing(model, {path: filled(form, nothing) for path, form in forms.items()})


def _tried(model: nn.Module, anatomy: Anatomy, last: int, ids: Tensor, inputs: dict[str, Any]) -> dict[str, Any]:
    """What each block above returns beside the stream; nothing where a forward cannot be ended there."""
    paths = [layer.block for layer in anatomy.layers]
    if len(set(paths)) < len(paths) or any(wrapped(model.get_submodule(path)) for path in paths):
        return {}
    if not all(anatomy.has("resid_post", i) and anatomy.tap("resid_post", i).path == path for i, path in enumerate(paths)):
        return {}
    keys = {path: anatomy.tap("resid_post", i).key for i, path in enumerate(paths)}
    whole, outputs = _run(model, keys, ids, inputs)
    forms = {path: emptied(outputs[path], keys[path]) for path in paths[last + 1 :]}
    if any(whole[path].shape != (*ids.shape, anatomy.d_model) for path in paths):
        return {}
    with _without(model, anatomy, forms, ids):
        part, _ = _run(model, keys, ids, inputs)
    return forms if all(torch.equal(part[path], whole[path]) for path in paths[: last + 1]) else {}


def _run(
    model: nn.Module, keys: dict[str, int | str], ids: Tensor, inputs: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:  # fmt: skip
    """What each block gave to the stream, and all that it returned."""
    streams: dict[str, Tensor] = {}
    outputs: dict[str, Any] = {}

    def record(path: str, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if path in keys:
            streams[path], outputs[path] = element(output, keys[path]).clone(), output

    with recording(model, record):
        model(ids, **inputs)
    return streams, outputs
