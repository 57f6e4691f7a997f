"""One forward, and what it wrote at the chosen positions: every write, z, the stream's two ends. Knows taps, no arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probe.anatomy import Tap
from probe.anatomy.parts import LOGITS
from probe.anatomy.sums import shortest_sum
from probe.devices import Readback, uploaded
from probe.errors import NonFinite, SiteAbsent
from probe.instrument import recording, tapping

if TYPE_CHECKING:
    from probe.anatomy import Anatomy
    from probe.language_model import LanguageModel

READ = ("z", "routed_out", "resid_pre", "resid_post")


@dataclass
class Recording:
    """values[tap] (pos, width) at the chosen positions, float64, on the CPU; embeddings {name: (pos, d_model)} that sum to
    the embedding, one if it is not known to be a sum."""

    values: dict[Tap, Tensor] = field(default_factory=dict)
    embeddings: dict[str, Tensor] = field(default_factory=dict)

    @property
    def logits(self) -> Tensor:
        """What the model gave, (pos, d_vocab)."""
        return self.values[LOGITS]


def record(lm: LanguageModel, ids: Sequence[int], positions: Sequence[int], *, hidden: bool = False) -> Recording:
    """hidden: the MLPs' hidden layers too.

    Raises `SiteAbsent` where the stream's ends are not known, `NonFinite` for logits that are not numbers."""
    anatomy = lm.anatomy
    if not anatomy.layers or anatomy.head is None or not anatomy.readout_exact or anatomy.embed is None:
        why = anatomy.absent.get("blocks") or anatomy.absent.get("head") or anatomy.reason("final_norm")
        raise SiteAbsent(f"no logit can be taken apart: {why}", hint="see probe models check MODEL")
    seen, index, n = Recording(), torch.tensor(list(positions)), len(ids)
    outer = _Outer(lm.model, anatomy, n)
    whole, readback = list[Tensor](), Readback()

    def reader(tap: Tap) -> Callable[[Tensor], None]:
        def read(value: Tensor) -> None:
            rows = value.reshape(n, -1)
            readback.put([rows[uploaded(index, rows.device)]], lambda own: seen.values.update({tap: own.double()}))
            if tap == anatomy.embed:
                whole.append(rows.clone())

        return read

    taps = {tap: reader(tap) for tap in _taps(anatomy, (*READ, "mlp_post") if hidden else READ)}
    with torch.inference_mode(False), torch.no_grad(), tapping(lm.model, taps), recording(lm.model, outer.record):
        lm.model(torch.tensor([list(ids)], device=lm.device), use_cache=False)
    readback.finish()
    if bool((seen.logits.isnan() | seen.logits.isposinf()).any()):
        raise NonFinite("the logits are not finite numbers", hint="try --dtype float32")
    seen.embeddings = outer.parts(whole[-1], index)
    return seen


def _taps(anatomy: Anatomy, sites: Sequence[str]) -> set[Tap]:
    found = {LOGITS, anatomy.embed, anatomy.final_norm, anatomy.layers[-1].taps.get("resid_post")}
    for layer in anatomy.layers:
        found |= {write.tap for write in layer.writes}
        found |= {layer.taps[site] for site in sites if site in layer.taps}
    return {tap for tap in found if tap is not None}


class _Outer:
    """Outputs of modules outside the blocks, before the first of them, that have the stream's width."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, n: int) -> None:
        self._token: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
        self._blocks = tuple({f"{layer.block}." for layer in anatomy.layers})
        self._n, self._width = n, anatomy.d_model
        self._began = False
        self._found: list[tuple[str, nn.Module, Tensor]] = []

    def record(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """A module was called."""
        self._began = self._began or f"{path}.".startswith(self._blocks)
        plain = isinstance(output, Tensor) and output.numel() == self._n * self._width
        if plain and not self._began and not any(True for _ in module.children()):
            self._found.append((path, module, output.reshape(self._n, self._width).clone()))

    def parts(self, embed: Tensor, index: Tensor) -> dict[str, Tensor]:
        """Token and positional embeddings at positions `index`, if the stream's beginning (pos, d_model) is their sum."""
        tokens = [value for _, module, value in self._found if module is self._token]
        rest = [(path, value) for path, module, value in self._found if module is not self._token]
        rest = [(path, value) for path, value in rest if not torch.equal(value, embed.to(value.device))]
        found = None
        if tokens and rest and not torch.equal(tokens[0], embed.to(tokens[0].device)):
            base = tokens[0]
            found = shortest_sum(embed.to(base.device), base, [value.to(base.device) for _, value in rest])
        if found is None:
            return {"embed": embed[index.to(embed.device)].double().cpu()}
        parts = {"embed": found.carry * tokens[0].double()}
        for i, number in zip(found.terms, found.coefficients, strict=True):
            name = "pos_embed" if len(found.terms) == 1 else f"embed.{rest[i][0].rpartition('.')[2]}"
            parts[name] = number * rest[i][1].double()
        return {name: value[index.to(value.device)].cpu() for name, value in parts.items()}
