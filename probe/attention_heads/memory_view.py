"""The view `--memory`: each head beside its linearised memory, and what comes back when its keys are read. Writes no rule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from probe.attention_heads.features import FeatureMap
from probe.attention_heads.memory import (
    ReadAgreement,
    Retrieval,
    Visible,
    agreement,
    checkpoints,
    delta_rule,
    effective_rank,
    retrieve_delta,
    retrieve_softmax,
    retrieve_sum,
    sum_rule,
)  # fmt: skip
from probe.attention_heads.views import LayerAttention, Rows

ELEMENTS = 2**24  # features held at once, or those of one key's heads if they are more
ROWS = 256  # queries whose visible keys are counted at once


class _Part(NamedTuple):
    """Some kv heads, with the heads that share them, in one layer of one text."""

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor  # (head, pos, d_value)
    visible: Visible | None  # None: all up to the query
    pairs: Tensor  # (head or 1, pos)


class MemoryView:
    """The tables `head_memory` and `head_retrieval`. Queries and keys are taken after rotation."""

    def __init__(self, features: FeatureMap) -> None:
        self._features = features
        self._notes: set[str] = set()

    def read(self, attention: LayerAttention) -> Iterator[Rows]:
        """See `HeadView`."""
        self._notes |= set(_unlike(attention))
        width = self._features.width(attention.key.shape[-1])
        size = max(1, ELEMENTS // (attention.n * width * (1 + attention.groups)))
        read: list[dict[str, ReadAgreement]] = []
        kept: list[dict[str, list[Retrieval]]] = []
        for part in _parts(attention, size):
            agreed, retrieved = self._of(part, attention.scaling, causal=attention.mask.causal)
            read.append(agreed)
            kept.append(retrieved)
        yield "head_memory", _read_columns(read)
        yield "head_retrieval", {
            **_kept_columns(kept, attention), "features": [str(self._features.features)] * _rows(kept, attention)
        }  # fmt: skip

    def finished(self) -> Iterable[Rows]:
        """See `HeadView`."""
        return ()

    def notes(self) -> list[str]:
        """What of the heads that were read no such memory has."""
        return sorted(self._notes)

    def _of(self, part: _Part, scaling: float, *, causal: bool) -> tuple[dict[str, ReadAgreement], dict[str, list[Retrieval]]]:
        """Rule -> how well its reads are the head's output; rule -> what comes back, for each number of pairs."""
        phi, key, value = self._features, part.key, part.value
        ends = checkpoints(key.shape[1])
        features = phi.keys(key, scaling=scaling)
        query, asked = (phi.queries(x, scaling=scaling) for x in (part.query, key))
        agreed = {"sum": agreement(sum_rule(query, features, value, part.visible), part.output, part.pairs)}
        retrieved = {"sum": [retrieve_sum(asked, features, value, n) for n in ends]}
        units = normalize(asked, dim=-1)
        written = delta_rule(normalize(query, dim=-1), units, value)
        if causal:
            agreed["delta"] = agreement(written.reads, part.output, part.pairs)
        retrieved["delta"] = [retrieve_delta(units, written.updates, value, n) for n in ends]
        retrieved["softmax"] = [retrieve_softmax(key, value, n, scaling=scaling) for n in ends]
        return agreed, retrieved


def _parts(attention: LayerAttention, size: int) -> Iterator[_Part]:
    """At most `size` kv heads each."""
    n, groups, mask = attention.n, attention.groups, attention.mask
    plain = mask.view(0, n).kind == "causal"
    if plain:
        pairs = torch.arange(1, n + 1, device=attention.key.device)[None]
    else:
        rows = torch.arange(n, device=attention.key.device).split(ROWS)
        pairs = torch.cat([attention.seen(some).sum(dim=-1) for some in rows], dim=-1)
    output = attention.output.transpose(0, 1)
    for start in range(0, len(attention.key), size):
        kv = slice(start, start + size)
        own = slice(start * groups, min(attention.n_heads, (start + size) * groups))
        yield _Part(
            attention.query[own], attention.key[kv], attention.value[kv], output[own],
            None if plain else partial(_seen, attention, own), _some(pairs, own),
        )  # fmt: skip


def _seen(attention: LayerAttention, heads: slice, rows: Tensor) -> Tensor:
    return _some(attention.seen(rows), heads)


def _some(per_head: Tensor, heads: slice) -> Tensor:
    """(head or 1, …) of some heads."""
    return per_head[heads] if len(per_head) > 1 else per_head


def _read_columns(parts: list[dict[str, ReadAgreement]]) -> dict[str, Any]:
    """`head_memory` from `head` on: by head, rule and number of pairs; steps without a query are left out."""
    found: list[dict[str, np.ndarray]] = []
    first = 0
    for part in parts:
        rules = np.asarray(list(part))
        rows, error, cosine = (
            torch.stack([getattr(one, name) for one in part.values()], 1).cpu().numpy() for name in ("rows", "error", "cosine")
        )  # (head, rule, step)
        head, rule, step = at = np.nonzero(rows)
        pairs = next(iter(part.values())).pairs.cpu().numpy()
        found.append({
            "head": first + head, "rule": rules[rule], "pairs": pairs[step],
            "rows": rows[at], "error": error[at], "cosine": cosine[at],
        })  # fmt: skip
        first += len(rows)
    return _typed({name: np.concatenate([one[name] for one in found]) for name in found[0]})


def _kept_columns(parts: list[dict[str, list[Retrieval]]], attention: LayerAttention) -> dict[str, Any]:
    """`head_retrieval` from `head` on: by kv head, rule and number of pairs."""
    ends, rules = checkpoints(attention.n), list(parts[0])
    n_kv = len(attention.key)
    ranks = torch.stack([effective_rank(attention.key[:, :n]) for n in ends], dim=-1)  # (kv head, step)
    stacked = {
        name: torch.cat(
            [torch.stack([torch.stack([getattr(one, name) for one in part[rule]], -1) for rule in rules], 1) for part in parts]
        ).flatten()
        for name in Retrieval._fields
    }  # fmt: skip
    heads = np.arange(n_kv, dtype=np.int16) * attention.groups
    return _typed({
        "head": heads.repeat(len(rules) * len(ends)),
        "rule": [rule for _ in range(n_kv) for rule in rules for _ in ends],
        "pairs": ends * (n_kv * len(rules)),
        **{name: values.cpu().numpy() for name, values in stacked.items()},
        "effective_rank": ranks[:, None].expand(-1, len(rules), -1).flatten().cpu().numpy(),
        "d_head": [attention.key.shape[-1]] * (n_kv * len(rules) * len(ends)),
    })  # fmt: skip


def _rows(parts: list[dict[str, list[Retrieval]]], attention: LayerAttention) -> int:
    return len(attention.key) * sum(len(found) for found in parts[0].values())


def _typed(columns: dict[str, Any]) -> dict[str, Any]:
    kinds = {"head": np.int16, "pairs": np.int32, "rows": np.int32, "d_head": np.int32}
    return {
        name: list(values) if name == "rule" else np.asarray(values, kinds.get(name, np.float32))
        for name, values in columns.items()
    }


def _unlike(attention: LayerAttention) -> Iterator[str]:
    """What this head's visibility and scores have, and a linear memory of its keys has not."""
    if attention.mask.view(0, attention.n).kind != "causal":
        yield (
            "memory: where a head sees only a window or the like, the sum rule adds the pairs that are seen; "
            "the delta rule and the retrieval have all pairs"
        )
    if not attention.mask.causal:
        yield "memory: heads that see what comes later have no delta rule, which writes in order"
    if attention.softcap:
        yield "memory: a cap of scores is no part of a memory's kernel"
    if attention.bias:
        yield "memory: biases by position are no part of a memory's kernel"
    if attention.sinks is not None:
        yield "memory: sinks that take weight without a value are no part of a memory, so its reads are larger than outputs"
