"""Keeps anatomies on disk, by class, config and versions; what it gives has been checked on the model's weights."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from probe.anatomy.checking import verify
from probe.anatomy.finding import find
from probe.anatomy.parts import Anatomy


@torch.inference_mode(False)  # whoever asks first may be in it, and its tensors don't say when they are written into
def cached_find(model: nn.Module, cache_dir: Path | None) -> Anatomy:
    """`find(model)`, or what it found for a model of the same class and config, if that holds here too.

    Only an anatomy that has every block and the readout is kept. A cache that can't be read or written is done without."""
    if cache_dir is None:
        return find(model)
    path = cache_dir / f"{key(model)}.json"
    try:
        anatomy = Anatomy.from_dict(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        anatomy = None
    if anatomy is not None and not verify(model, anatomy):
        return anatomy
    anatomy = find(model)
    if anatomy.readout_exact and all(layer.writes for layer in anatomy.layers):
        # what is absent might only be absent with these weights (zeroed ones), and can't be checked on others
        _write(path, json.dumps(anatomy.to_dict()))
    return anatomy


def key(model: nn.Module) -> str:
    """Class, config (without the names of places it came from), versions of transformers and of this package."""
    import transformers

    config = getattr(model, "config", None)
    plain: dict[str, Any] = config.to_dict() if config is not None else {}
    plain = {k: v for k, v in plain.items() if k not in {"_name_or_path", "transformers_version", "architectures"}}
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    whole = json.dumps([kind, plain, transformers.__version__, _own_version()], sort_keys=True, default=str)
    return f"{type(model).__name__}-{hashlib.sha256(whole.encode()).hexdigest()[:16]}"


def _own_version() -> str:
    """A hash of this package's source: a better search finds more than an older cache holds."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:16]


def _write(path: Path, text: str) -> None:
    """Whole or not at all, also when two processes write."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
