"""A TopK sparse autoencoder (Gao et al. 2024, 2406.04093) of one layer's stream in plain torch, and what it keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

import probe

BATCH, RATE, WARMING = 512, 2e-3, 50  # tokens of a step; Adam's, rising over so many steps, falling to 0 over the last half
Change = Callable[[Tensor], Tensor]


class Autoencoder(nn.Module):
    """x (n, d_model) -> centre + scale * (the k largest features, (n, feature)) @ rows of length 1, (feature, d_model)."""

    def __init__(self, x: Tensor, draw: torch.Generator) -> None:
        super().__init__()
        self.k = max(1, x.shape[1] // 18)
        self.centre = x.mean(dim=0)
        self.scale = (x - self.centre).square().sum(dim=1).mean().sqrt()
        rows = normalize(torch.randn(32 * self.k, x.shape[1], generator=draw))
        self.rows, self.encoder = nn.Parameter(rows), nn.Parameter(rows.T.clone())
        self.bias = nn.Parameter(torch.zeros(len(rows)))

    def features(self, x: Tensor) -> Tensor:
        """(n, feature), in the unit of x; at most k of a token are not 0."""
        kept = ((x - self.centre) / self.scale @ self.encoder + self.bias).relu().topk(self.k)
        return self.scale * torch.zeros(len(x), len(self.bias)).scatter(1, kept.indices, kept.values)

    def forward(self, x: Tensor) -> Tensor:
        return self.centre + self.features(x) @ normalize(self.rows)


def fitted(x: Tensor, steps: int, draw: torch.Generator) -> Autoencoder:
    """An autoencoder of x (n, d_model), by Adam on the squared error alone."""
    made = Autoencoder(x, draw)
    optimiser = torch.optim.Adam(made.parameters(), RATE)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = RATE * min((step + 1) / WARMING, 1, 2 - 2 * step / steps)
        batch = x[torch.randint(len(x), (BATCH,), generator=draw)]
        optimiser.zero_grad()
        ((made(batch) - batch) / made.scale).square().sum(dim=1).mean().backward()
        optimiser.step()
    return made.requires_grad_(False)


def components(x: Tensor) -> Tensor:
    """(d_model, d_model) the principal components of x (n, d_model) as columns, the largest first."""
    centred = x - x.mean(dim=0)
    return torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)


def shuffled(x: Tensor, draw: torch.Generator) -> Tensor:
    """x (n, d_model) with each entry's values in an order of their own: as they are spread, but not together."""
    return torch.stack([entry[torch.randperm(len(x), generator=draw)] for entry in x.T], dim=1)


def explained(x: Tensor, rebuilt: Tensor, centre: Tensor, text: Sequence[int]) -> np.ndarray:
    """(text,) the share of the variance about the centre that is rebuilt; text (n,) says of which text a row of x is."""
    off, all_of_it = (np.bincount(text, (x - other).square().sum(dim=1).numpy()) for other in (rebuilt, centre))
    return 1 - off / all_of_it


def loss_with(lm: probe.LanguageModel, layer: int, ids: Tensor, most: float, change: Change) -> float:
    """Nats a token of ids (pos,) where the stream after a layer is changed, not at position 0 nor at norms above `most`."""

    def splice(_block: nn.Module, _given: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        stream = output if isinstance(output, Tensor) else output[0]
        new, used = stream.clone(), stream.norm(dim=-1) < most
        used[:, 0] = False
        new[used] = change(stream[used].float().cpu()).to(stream)
        return new if isinstance(output, Tensor) else (new, *output[1:])

    hook = lm.model.get_submodule(lm.anatomy.layers[layer].block).register_forward_hook(splice)
    try:
        with torch.no_grad():
            logits = lm.model(ids[None].to(lm.device)).logits[0, :-1]
    finally:
        hook.remove()
    return float(cross_entropy(logits.float().cpu(), ids[1:]))
