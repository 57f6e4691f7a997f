"""The few tokens that an anatomy is found and checked with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

N_TOKENS = 12


def probe_tokens(model: nn.Module, *, seed: int = 0) -> Tensor:
    """A few ordinary token ids (1, pos), the same each time, on the model's input device."""
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    n_vocab = getattr(embedding, "num_embeddings", 256)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, max(4, min(n_vocab - 16, 30_000)), (1, N_TOKENS), generator=generator)
    device = next((p.device for p in embedding.parameters()), next(model.parameters()).device)
    return ids.to(device)
