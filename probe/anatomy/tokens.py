"""The few tokens that an anatomy is found and checked with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

N_TOKENS = (13, 11, 17, 19, 23, 29)


def n_tokens(model: nn.Module) -> int:
    """How many: a prime that is no size of this model, so that no other axis can be taken for that of positions."""
    config = getattr(model, "config", None)
    sizes = {n for p in model.parameters() for n in p.shape} | set(_numbers(config.to_dict() if config else {}))
    return next((n for n in N_TOKENS if n not in sizes), N_TOKENS[0])


def _numbers(value: Any) -> Iterator[int]:
    """Every whole number of a config."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _numbers(inner)


def probe_tokens(model: nn.Module, *, seed: int = 0) -> Tensor:
    """A few ordinary token ids (1, pos), the same each time, on the model's input device."""
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    n_vocab = getattr(embedding, "num_embeddings", 256)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, max(4, min(n_vocab - 16, 30_000)), (1, n_tokens(model)), generator=generator)
    device = next((p.device for p in embedding.parameters()), next(model.parameters()).device)
    return ids.to(device)
