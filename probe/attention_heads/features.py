"""Feature maps φ of queries and keys, in which a kernel is a product φ(q)·φ(k); knows no memory and no model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from probe.registries.head_features import Features, parse_features


@dataclass(frozen=True)
class FeatureMap:
    """One map with its size: `elu`, `dpfp:N` or `favor:M`; all its features are at least 0.

    elu: elu(x) + 1, as wide as x (Katharopoulos et al. 2020, eq. 7). dpfp: with r = relu([x, -x]), the products of each entry
    of r with those that stand 1 to N places before it, 2dN features (DPFP: Schlag et al. 2021). favor: M random features
    exp(wᵀx - |x|²/2)/√M of orthogonal Gaussian w (Choromanski et al. 2021), whose products have the mean exp(xᵀy).
    """

    features: Features
    seed: int = 0
    _drawn: dict[int, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def parse(cls, text: str, *, seed: int = 0) -> FeatureMap:
        """`elu`, `dpfp:N` or `favor:M`; raises `BadOption`."""
        return cls(parse_features(text), seed)

    def width(self, d: int) -> int:
        """How many features vectors of d entries have."""
        kind, size = self.features
        return {"elu": d, "dpfp": 2 * d * size, "favor": size}[kind]

    def queries(self, x: Tensor, *, scaling: float) -> Tensor:
        """φ of x (…, pos, d) -> (…, pos, feature), each row by a positive factor of its own, which a ratio or a unit length
        takes away. scaling: what the head multiplies q·k with; the random features are those of exp(scaling · q·k), the
        other maps take x as it is, as their papers do."""
        if self.features.kind != "favor":
            return self._plain(x)
        logs = self._logs(x, scaling)
        return (logs - logs.amax(dim=-1, keepdim=True)).exp()

    def keys(self, x: Tensor, *, scaling: float) -> Tensor:
        """φ of x (…, pos, d) -> (…, pos, feature), by one positive factor a head, which a ratio takes away."""
        if self.features.kind != "favor":
            return self._plain(x)
        logs = self._logs(x, scaling)
        return (logs - logs.amax(dim=(-2, -1), keepdim=True)).exp()

    def _plain(self, x: Tensor) -> Tensor:
        if self.features.kind == "elu":
            return functional.elu(x) + 1
        r = torch.cat([x.relu(), (-x).relu()], dim=-1)
        return torch.cat([r * r.roll(shift, dims=-1) for shift in range(1, self.features.size + 1)], dim=-1)

    def _logs(self, x: Tensor, scaling: float) -> Tensor:
        """Logarithms of the random features, without the constant 1/√M."""
        x = x * scaling**0.5
        return x @ self._directions(x.shape[-1]).to(x).T - x.square().sum(dim=-1, keepdim=True) / 2

    def _directions(self, d: int) -> Tensor:
        """w (feature, d): in blocks of d orthogonal directions, each with the length of a Gaussian vector of its own."""
        if d not in self._drawn:
            generator = torch.Generator().manual_seed(self.seed)
            blocks = []
            for _ in range(math.ceil(self.features.size / d)):
                q, r = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
                blocks.append((q * r.diagonal().sign()).T)  # uniform over the rotations: a plain QR is not
            lengths = torch.randn(self.features.size, d, generator=generator, dtype=torch.float64).norm(dim=-1, keepdim=True)
            self._drawn[d] = torch.cat(blocks)[: self.features.size] * lengths
        return self._drawn[d]
