"""Edits of weights from their text, `WHERE=OP[:ARG…]`, and the patch that they make. Where things are is `targets`'."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from probe.errors import BadEdit
from probe.language_model.patched_weights import changing
from probe.language_model.spreading import check_whole
from probe.language_model.weights_patch import WeightChange, WeightsPatch, hashed, made_for, parameter_of, save_patch
from probe.registries.weight_operations import WEIGHT_OPERATIONS
from probe.sites.positions import parse_range
from probe.weight_edits.targets import EditedMatrix, input_axis, targets

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

_EDIT = re.compile(r"(?P<where>[^=]+)=(?P<op>[a-z][a-z-]*)(?::(?P<args>.*))?", flags=re.DOTALL)


def edit_weights(lm: LanguageModel, edits: str | Iterable[str], to: str | Path) -> WeightsPatch:
    """Write the patch that edits such as `z@5.3=zero` mean in this model, each on what the ones before it left.

    The model is as it was afterwards. Raises `BadEdit`, `BadPlace` and its kinds, `BadModel`, `StorageFull`.
    """
    return save_patch(to, make_patch(lm, edits))


def make_patch(lm: LanguageModel, edits: str | Iterable[str]) -> WeightsPatch:
    """The same in memory."""
    texts = [edits] if isinstance(edits, str) else list(edits)
    if not texts:
        raise BadEdit("no edits of weights", hint="--edit-weights z@5.3=zero")
    found: list[WeightChange] = []
    notes: list[str] = []
    check_whole(lm, "an edit of weights")
    _ = lm.anatomy
    with changing(lm.model) as undo:
        for i, text in enumerate(texts):
            for change in _made(lm, text):
                undo.apply([change])
                before, after = undo.done[-1][1], parameter_of(lm.model, change.parameter).data
                same = after if change.index is None else after.index_select(change.axis, change.index.to(after.device))
                if torch.equal(before, same.cpu()):
                    raise BadEdit(
                        f"'{text}' changes nothing of '{change.parameter}'",
                        hint="its numbers are so already, or the change is below their rounding (try --dtype float32)",
                    )
                found.append(WeightChange(**{**vars(change), "edit": i}))
                notes += _shared(lm.model, change.parameter)
    return hashed(WeightsPatch(tuple(found), tuple(texts), made_for(lm), tuple(dict.fromkeys(notes))))


def _made(lm: LanguageModel, text: str) -> list[WeightChange]:
    match = _EDIT.fullmatch(text.strip())
    if match is None:
        raise BadEdit(f"'{text}' is no edit of weights", hint="write WHERE=OP, as in z@5.3=zero")
    op, given = match["op"], match["args"]
    if op not in WEIGHT_OPERATIONS:
        near = difflib.get_close_matches(op, WEIGHT_OPERATIONS, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise BadEdit(f"unknown change '{op}' in '{text}'", hint=f"{hint}there are {', '.join(WEIGHT_OPERATIONS)}")
    row = WEIGHT_OPERATIONS[op]
    args = [] if given is None else [given] if row.rest else given.split(":")
    if not row.least <= len(args) <= row.most or "" in args:
        raise BadEdit(f"'{text}' does not say how to {op}", hint=f"write WHERE={row.form}")
    make = resolve_name(row.make)
    return [make(lm, target, *args) for target in targets(lm, match["where"].strip())]


def make_zero(lm: LanguageModel, target: EditedMatrix) -> WeightChange:
    return WeightChange(target.parameter, target.shape, factor=0.0, axis=target.axis, index=target.columns)


def make_scale(lm: LanguageModel, target: EditedMatrix, factor: str) -> WeightChange:
    return WeightChange(
        target.parameter, target.shape, factor=_number(factor, unlike=1.0), axis=target.axis, index=target.columns
    )  # fmt: skip


def make_gain(lm: LanguageModel, target: EditedMatrix, factor: str, channels: str | None = None) -> WeightChange:
    """A norm multiplies by c + w, where c is 0 in most families and 1 in some: c is found by running it."""
    number = _number(factor, unlike=1.0)
    owner, _, own = target.parameter.rpartition(".")
    module = lm.model.get_submodule(owner)
    if len(target.shape) != 1 or own != "weight" or any(True for _ in module.children()):
        raise BadEdit(f"'{target.parameter}' is no gain of a norm", hint="name its weight, as in model.norm.weight")
    index = None
    if channels is not None:
        each = [i for part in channels.split(",") for i in parse_range(part).of(target.shape[0], "channel")]
        index = torch.tensor(sorted(set(each)))
    return WeightChange(
        target.parameter, target.shape, factor=number, shift=(number - 1) * _offset(module, target.parameter), index=index
    )  # fmt: skip


@torch.no_grad()
def _offset(module: nn.Module, name: str) -> float:
    """c of a norm that multiplies by c + w: its outputs at w = 0 and w = 1, less what it adds, are as c and c + 1."""
    weight: Tensor = module.weight.data  # type: ignore[assignment]
    bias = getattr(module, "bias", None)
    x = torch.randn(1, 1, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
    kept = weight.clone()
    try:
        out = []
        for value in (0.0, 1.0):
            weight.fill_(value)
            given = module(x)
            out.append((given if bias is None else given - bias).double())
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise BadEdit(f"'{name}' is no gain of a norm: its module does not run alone", hint="use scale") from error
    finally:
        weight.copy_(kept)
    slope = out[1] - out[0]
    c = float((out[0] * slope).sum() / (slope * slope).sum())
    if not math.isfinite(c) or abs(c - round(c)) > 0.01 or (out[0] - round(c) * slope).abs().max() > 0.05:
        raise BadEdit(f"'{name}' is no gain of a norm", hint="use scale")
    return float(round(c))


def make_rank_one(lm: LanguageModel, target: EditedMatrix, path: str) -> WeightChange:
    """W maps what its layer reads to what it gives: y = W x (+ bias); u and v are of y and x, k and v of x and y."""
    if target.columns is not None:
        raise BadEdit(f"'{target.parameter}' is changed as a whole by rank-one", hint="name the matrix, without its columns")
    axis = input_axis(lm.model, target)
    weight = parameter_of(lm.model, target.parameter).data
    tensors = _vectors(path)
    n_in, n_out = target.shape[axis], target.shape[1 - axis]
    if set(tensors) == {"u", "v"}:
        out, into = tensors["u"], tensors["v"]
        _check_length(path, {"u": (out, n_out), "v": (into, n_in)})
    elif {"k", "v"} <= set(tensors) <= {"k", "v", "C"}:
        key, value = tensors["k"].double(), tensors["v"].double()
        _check_length(path, {"k": (key, n_in), "v": (value, n_out)})
        into = _whitened(path, tensors.get("C"), key)
        matrix = weight.detach().cpu().double()
        gap = value - (matrix @ key if axis == 1 else matrix.T @ key)
        out = gap / float(key @ into)
    else:
        raise BadEdit(f"'{path}' holds {', '.join(sorted(tensors)) or 'nothing'}", hint="u and v; or k, v and optionally C")
    left, right = (out, into) if axis == 1 else (into, out)
    return WeightChange(target.parameter, target.shape, left=left[:, None].clone(), right=right[:, None].clone())


def _whitened(path: str, covariance: Tensor | None, key: Tensor) -> Tensor:
    """C⁻¹ k, float64."""
    if not bool(key.any()):
        raise BadEdit(f"k in '{path}' is zero", hint="a key of length zero selects nothing")
    if covariance is None:
        return key
    if tuple(covariance.shape) != (len(key), len(key)):
        raise BadEdit(f"C in '{path}' has the shape {tuple(covariance.shape)}", hint=f"it should be {(len(key),) * 2}")
    wide = covariance.double()
    root, failed = torch.linalg.cholesky_ex(wide)
    if int(failed) or not torch.allclose(wide, wide.T, rtol=1e-4, atol=1e-6 * float(wide.abs().max())):
        raise BadEdit(f"C in '{path}' is not symmetric and positive definite", hint="add a little to its diagonal")
    return torch.cholesky_solve(key[:, None], root)[:, 0]


def _vectors(path: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(Path(path).expanduser())
    except (OSError, SafetensorError, ValueError) as error:
        raise BadEdit(f"cannot read '{path}': {error}", hint="a safetensors file with u and v, or k and v") from error
    for name, tensor in found.items():
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise BadEdit(f"{name} in '{path}' has values that are not numbers", hint="make it anew")
    return found


def _check_length(path: str, wanted: dict[str, tuple[Tensor, int]]) -> None:
    for name, (vector, n) in wanted.items():
        if tuple(vector.shape) != (n,):
            raise BadEdit(f"{name} in '{path}' has the shape {tuple(vector.shape)}", hint=f"the matrix needs ({n},)")


def _shared(model: nn.Module, name: str) -> list[str]:
    """What is said where a parameter stands in several places."""
    names = dict(model.named_parameters(remove_duplicate=False))
    others = [other for other, p in names.items() if p is names[name] and other != name]
    return [f"'{name}' is also '{other}': the edit changes both" for other in others]


def _number(text: str, *, unlike: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadEdit(f"'{text}' is not a number", hint="as in scale:0.5")
    if value == unlike:
        raise BadEdit(f"a factor of {text} changes nothing", hint="scale:0.5 halves")
    return value
