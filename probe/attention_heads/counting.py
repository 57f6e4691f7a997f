"""How many heads each layer of a model has, whether or not its attention calls can be seen. Computes no statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from probe.capturing import AttentionSpec, MemorySink, read
from probe.errors import SiteAbsent

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

TEXT = "one two three"


def head_counts(lm: LanguageModel, *, views: bool) -> list[int]:
    """By layer. A model whose calls can't be seen may still return its weights: then a short text is read to count them.

    views: whether more is asked of each head than its weights: the queries, keys and values of its call.
    Raises `SiteAbsent` for a model without heads that can be read, or whose calls can't be seen where `views` needs them.
    """
    anatomy = lm.anatomy
    found = [anatomy.n_heads("pattern", layer) for layer in range(anatomy.n_layers)]
    if any(found):
        return found
    why = anatomy.reason("pattern", 0) if anatomy.n_layers else anatomy.reason("blocks")
    hint = "probe models sites MODEL says what it has"
    returned = _returned(lm)
    if not any(returned):
        raise SiteAbsent(f"{lm.name} has no attention heads to read: {why}", hint=hint)
    if views:
        raise SiteAbsent(
            f"{lm.name} returns the weights of its heads, but their queries, keys and values can't be seen: {why}",
            hint="leave out --kernel, --memory and --keys",
        )
    return returned


def _returned(lm: LanguageModel) -> list[int]:
    """Heads of the weights that the model itself returns, by layer."""
    sink = _HeadCounts([0] * lm.anatomy.n_layers)
    ids = lm.encode(TEXT).ids
    read(lm, torch.tensor([ids]), [len(ids)], sink=sink, attention=AttentionSpec("heads"), top=1)
    return sink.counts


class _HeadCounts(MemorySink):
    def __init__(self, counts: list[int]) -> None:
        super().__init__()
        self.counts = counts

    def heads(self, layer: int, columns: dict[str, Any]) -> None:
        self.counts[layer] = columns["rows"].shape[1]
