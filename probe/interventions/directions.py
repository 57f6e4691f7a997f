"""A direction in activation space as a safetensors file that says which model and site it was made at, and how."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probe import durable
from probe.errors import BadEdit
from probe.language_model.model import title_of

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

NAME = "direction"
_KEY = "probe_direction"
# what two identities must share to be one model; the name, dtype and device need not
_SAME = ("files", "class", "parameters", "quantize")
_PUT_ON = ("adapter", "weights_patch")  # and what was put on its weights


@dataclass(frozen=True, eq=False)
class Direction:
    """vector (d,), fp32, of one site (of one head). `model`: identity of the model it was made with; empty if a foreign file
    does not tell. `made`: how."""

    vector: Tensor
    model: Mapping[str, Any]
    site: str = ""
    layer: int = -1
    head: int | None = None
    made: str = ""

    @property
    def norm(self) -> float:
        """Its Euclidean length."""
        return float(self.vector.double().norm())


def save_direction(
    path: Path | str, lm: LanguageModel, vector: Tensor, *, site: str, layer: int = -1, head: int | None = None,
    made: str = "",
) -> Direction:  # fmt: skip
    """Write vector (d,) of a site of this model, replacing a file that is there.

    Raises `BadEdit` if it is not as wide as the site or not finite, `SiteAbsent` where the model does not have the site.
    """
    from safetensors.torch import save

    direction = Direction(vector.detach().float().cpu().contiguous(), same_model(lm.identity), site, layer, head, made)
    _check(direction, lm.width(site, layer), f"{site}@{layer}")
    about = {
        "model": direction.model, "site": site, "layer": layer, "head": head, "made": made, "norm": direction.norm,
    }  # fmt: skip
    data = save({NAME: direction.vector}, metadata={_KEY: json.dumps(about), "format": "pt"})
    durable.write_bytes(Path(path), data, shared=True)  # the processes of one command may share a model
    return direction


def load_direction(path: Path | str, *, lm: LanguageModel | None = None) -> Direction:
    """Read a direction; a file of another program may hold one vector, whatever its name.

    Raises `BadEdit` where there is no such file or no vector in it, or where it was made with another model than `lm`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            found = {name: file.get_tensor(name) for name in list(file.keys())}
    except (OSError, SafetensorError, ValueError) as error:
        raise BadEdit(f"cannot read a direction from '{path}': {error}", hint="probe steer --make writes one") from error
    if not _readable(about):
        raise BadEdit(f"'{path}' says about itself what no direction says", hint="probe steer --make writes one")
    vectors = [tensor for tensor in found.values() if tensor.numel() == max(tensor.shape, default=0)]
    if len(found) != 1 or len(vectors) != 1:
        raise BadEdit(f"'{path}' holds {len(found)} tensors, not one vector", hint="probe steer --make writes one")
    vector = vectors[0].flatten().to(torch.float32)
    made_at = (about.get("site", ""), about.get("layer", -1), about.get("head"))
    direction = Direction(vector, about.get("model", {}), *made_at, about.get("made", ""))
    _check(direction, len(vector), str(path))
    if lm is not None and direction.model and not is_same_model(direction.model, lm.identity):
        raise BadEdit(f"'{path}' was made with another model, '{title_of(direction.model)}'", hint=f"make it with '{lm.title}'")
    return direction


def _readable(about: Any) -> bool:
    """Whether a file's words about itself are of the kinds that `save_direction` writes."""
    kinds = {"model": dict, "site": str, "layer": int, "head": int | None, "made": str}
    if not isinstance(about, dict) or not all(isinstance(about[key], kind) for key, kind in kinds.items() if key in about):
        return False
    model = about.get("model", {})
    patches = model.get("weights_patch") or []
    return isinstance(model.get("adapter") or {}, dict) and all(isinstance(one, dict) and "sha256" in one for one in patches)


def same_model(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an identity that says which model it is, and its name."""
    return {name: identity[name] for name in ("name", *_SAME, *_PUT_ON) if name in identity}


def is_same_model(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two identities are of the same weights: by their hashes, or, where there are none, by class and size; with the
    same adapter and the same patches, wherever their files lie."""
    return all(one.get(name) == other.get(name) for name in _SAME) and _put_on(one) == _put_on(other)


def _put_on(identity: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """What the adapter's files hold, and the patches."""
    patches = [str(patch["sha256"]) for patch in identity.get("weights_patch") or []]
    return (identity.get("adapter") or {}).get("files"), patches


def _check(direction: Direction, width: int, place: str) -> None:
    vector = direction.vector
    if vector.ndim != 1 or len(vector) != width:
        raise BadEdit(f"a direction has the shape {tuple(vector.shape)}, and {place} has {width} values", hint="one vector")
    if not bool(vector.isfinite().all()):
        raise BadEdit(f"the direction for {place} has values that are not numbers", hint="make it anew")
