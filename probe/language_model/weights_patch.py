"""Changes of a model's weights in one small file: written, read, held against the model that they were made for.

A change is a low-rank matrix that is added, or a factor (and shift) of a parameter or of slices of it: never a whole matrix.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probe import durable
from probe.errors import BadModel, StorageFull
from probe.language_model.quantization import is_quantised, quantised

if TYPE_CHECKING:
    from probe.language_model.model import LanguageModel

VERSION = 1
_KEY = "probe_weights_patch"
_SAME = ("files", "class", "parameters", "quantize")
_WRITE = "probe weights MODEL --edit-weights … -o FILE writes one"
_NUMBERS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class WeightChange:
    """One change of one parameter W, in the axes in which it is stored.

    Low rank: W + left @ right.T, left (W.shape[0], rank), right (W.shape[1], rank). Else factor * W + shift, at `index` of
    `axis`, or everywhere where that is None. shape: W's. edit: which of the patch's edits it is of.
    """

    parameter: str
    shape: tuple[int, ...]
    edit: int = 0
    left: Tensor | None = None
    right: Tensor | None = None
    factor: float = 1.0
    shift: float = 0.0
    axis: int = 0
    index: Tensor | None = None


@dataclass(frozen=True, eq=False)
class WeightsPatch:
    """Changes in their order; the edits as they were typed; the model that they were made for. path: of the file, empty in
    memory. sha256: of what is in the file, or would be."""

    changes: tuple[WeightChange, ...]
    edits: tuple[str, ...]
    made_for: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    path: str = ""
    sha256: str = ""

    @property
    def identity(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {
            "path": self.path, "sha256": self.sha256, "made_for": self.made_for.get("name"), "edits": list(self.edits),
        }  # fmt: skip


def made_for(lm: LanguageModel) -> dict[str, Any]:
    """The part of a model's identity that says whether a patch is for it."""
    identity = lm.identity
    return {
        **{name: identity.get(name) for name in ("name", *_SAME)},
        "adapter": (identity.get("adapter") or {}).get("files"),
        "weights_patch": [one["sha256"] for one in identity.get("weights_patch", [])],
    }


def save_patch(path: Path | str, patch: WeightsPatch) -> WeightsPatch:
    """Write a patch, replacing a file that is there; gives it with its path and hash. Raises `StorageFull`."""
    data = _written(patch)
    target = Path(path).expanduser().absolute()
    try:
        durable.write_bytes(target, data)
    except StorageFull as error:
        raise StorageFull(error.message, hint="free some space, or name another file, and run it again") from error
    return replace(patch, path=str(target), sha256=hashlib.sha256(data).hexdigest())


def hashed(patch: WeightsPatch) -> WeightsPatch:
    """A patch in memory with the hash that its file would have."""
    return replace(patch, sha256=hashlib.sha256(_written(patch)).hexdigest())


def _written(patch: WeightsPatch) -> bytes:
    """What stands in the file; the same for the same patch: safetensors would write two entries of metadata in any order."""
    from safetensors.torch import save

    tensors, rows = {}, []
    for i, change in enumerate(patch.changes):
        row: dict[str, Any] = {"parameter": change.parameter, "shape": list(change.shape), "edit": change.edit}
        if change.left is None:
            row |= {"factor": change.factor, "shift": change.shift, "axis": change.axis}
        rows.append(row)
        for name in ("left", "right", "index"):
            tensor = getattr(change, name)
            if tensor is not None:
                tensors[f"{i}.{name}"] = tensor.detach().cpu().contiguous()
    about = {
        "version": VERSION, "changes": rows, "edits": list(patch.edits), "made_for": dict(patch.made_for),
        "notes": list(patch.notes),
    }  # fmt: skip
    return save(tensors, metadata={_KEY: json.dumps(about)})


def load_patch(path: Path | str, *, lm: LanguageModel | None = None) -> WeightsPatch:
    """Read a patch, whole and of finite numbers; with `lm`, one that was made for that model.

    Raises `BadModel` for a file that is missing, damaged, of another version or of another model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    target = Path(path).expanduser().absolute()
    try:
        data = target.read_bytes()
        size = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + size]).get("__metadata__", {}).get(_KEY, "null"))
        tensors = load(data)
    except (OSError, SafetensorError, ValueError, AttributeError, TypeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadModel(f"cannot read a weights patch from '{path}': {why}", hint=_WRITE) from error
    if not isinstance(about, dict):
        raise BadModel(f"'{path}' is no weights patch", hint=_WRITE)
    if about.get("version") != VERSION:
        raise BadModel(
            f"'{path}' is a weights patch of version {about.get('version')}, and this is {VERSION}", hint="make it again"
        )
    try:
        changes = tuple(_change(row, i, tensors) for i, row in enumerate(about["changes"]))
        patch = WeightsPatch(
            changes, tuple(map(str, about["edits"])), dict(about["made_for"]), tuple(map(str, about["notes"])), str(target),
            hashlib.sha256(data).hexdigest(),
        )  # fmt: skip
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise BadModel(f"'{path}' is a damaged weights patch: {error}", hint="make it again") from error
    if lm is not None:
        check_patch(patch, lm)
    return patch


def _change(row: Mapping[str, Any], i: int, tensors: Mapping[str, Tensor]) -> WeightChange:
    """One change of a file. Raises `ValueError`, `KeyError` or `TypeError` where it is none."""
    shape = tuple(int(n) for n in row["shape"])
    left, right, index = (tensors.get(f"{i}.{name}") for name in ("left", "right", "index"))
    change = WeightChange(
        str(row["parameter"]), shape, int(row["edit"]), left, right, float(row.get("factor", 1.0)),
        float(row.get("shift", 0.0)), int(row.get("axis", 0)), index,
    )  # fmt: skip
    if left is None and "factor" not in row:
        raise ValueError(f"the change of '{change.parameter}' lacks its numbers")
    _check_change(change)
    return change


def _check_change(change: WeightChange) -> None:
    """Raises `ValueError` where its numbers are none, or do not fit together."""
    shape, left, right, index = change.shape, change.left, change.right, change.index
    if (left is None) != (right is None):
        raise ValueError(f"the change of '{change.parameter}' lacks its numbers")
    if left is not None and right is not None:
        if len(shape) != 2 or left.ndim != 2 or right.ndim != 2 or (len(left), len(right)) != shape:
            raise ValueError(f"the change of '{change.parameter}' has the shape {tuple(left.shape)} x {tuple(right.shape)}")
        if left.shape[1] != right.shape[1]:
            raise ValueError(f"the change of '{change.parameter}' has two ranks")
        if not bool(left.isfinite().all() and right.isfinite().all()):
            raise ValueError(f"the change of '{change.parameter}' has values that are not numbers")
    if not (math.isfinite(change.factor) and math.isfinite(change.shift)):
        raise ValueError(f"the change of '{change.parameter}' has values that are not numbers")
    if index is not None and (
        index.dtype != torch.int64 or index.ndim != 1 or not 0 <= change.axis < len(shape) or not len(index)
        or not 0 <= int(index.min()) <= int(index.max()) < shape[change.axis]
    ):  # fmt: skip
        raise ValueError(f"the change of '{change.parameter}' is at an index that it does not have")


def check_patch(patch: WeightsPatch, lm: LanguageModel) -> None:
    """Raises `BadModel` for changes that are none, and for a model that the patch was not made for."""
    own, name = made_for(lm), Path(patch.path).name or "the patch"
    try:
        for change in patch.changes:
            _check_change(change)
    except ValueError as error:
        raise BadModel(f"'{name}' is damaged: {error}", hint="make it again") from error
    other = [key for key in (*_SAME, "adapter") if patch.made_for.get(key) != own[key]]
    if other:
        raise BadModel(
            f"'{name}' was made for '{patch.made_for.get('name')}', and '{lm.title}' is another model "
            f"({', '.join(other)} differ)", hint=f"make it again: probe weights {lm.name} --edit-weights …",
        )  # fmt: skip
    before = [sha for sha in patch.made_for.get("weights_patch") or [] if sha not in own["weights_patch"]]
    if before:
        raise BadModel(
            f"'{name}' was made on top of another patch (sha256 {before[0][:12]}…)", hint="name that one first, then this"
        )
    for change in patch.changes:
        parameter_of(lm.model, change.parameter, change.shape)


def parameter_of(model: nn.Module, name: str, shape: Sequence[int] | None = None) -> nn.Parameter:
    """A parameter whose numbers can be changed. Raises `BadModel` with the reason where there is none."""
    found = dict(model.named_parameters(remove_duplicate=False)).get(name)
    if found is None:
        raise BadModel(f"the model has no parameter '{name}'", hint="probe weights MODEL lists them")
    if shape is not None and tuple(found.shape) != tuple(shape):
        raise BadModel(
            f"'{name}' has the shape {tuple(found.shape)}, and the patch is for {tuple(shape)}", hint="it is of another model"
        )
    if found.dtype not in _NUMBERS or is_quantised(model, name):
        raise BadModel(
            f"'{name}' is quantised ({quantised(model) or found.dtype}): it has no numbers to change",
            hint="load the model that it was made from, without --quantize",
        )
    if found.is_meta:
        raise BadModel(f"'{name}' is kept elsewhere until it is needed", hint="leave out --device-map")
    return found
