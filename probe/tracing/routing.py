"""The load of each expert over all texts of a run, from its table `routing` alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from probe.stats import cluster_shares, entropy

if TYPE_CHECKING:
    from probe.anatomy import Anatomy
    from probe.sites import Cell
    from probe.store import Writer

GROUPS = 500  # of texts that a bootstrap draws from; of more texts several are a group, so that memory is bounded
EVEN_DRAWS = 1000


class _Counts(NamedTuple):
    """What was counted of one layer: chosen (group of texts, expert), tokens (group,), weights (expert,)."""

    chosen: np.ndarray
    tokens: np.ndarray
    weights: np.ndarray


def write_loads(anatomy: Anatomy, cells: tuple[Cell, ...], writer: Writer, *, seed: int) -> list[dict[str, Any]]:
    """Write `expert_load` and `expert_balance`; returns the rows of the latter, with the share of the most loaded expert, for
    the summary; [] where no router was recorded.

    share = tokens sent to the expert / tokens, with an interval over texts: tokens of one text are alike. The balance is
    beside that of as many independent tokens whose experts are drawn evenly, for chance alone loads some more than others.
    """
    layers = sorted({cell.layer for cell in cells if cell.site == "router"})
    if not layers:
        return []
    sizes = {layer: _sizes(anatomy, layer) for layer in layers}
    counts, texts = _counted({layer: n for layer, (n, _) in sizes.items()}, writer)
    found = []
    with writer.unit("expert_load", again=True):
        for layer, (n, k) in sizes.items():
            own = counts[layer]
            tokens, rows = own.chosen.sum(axis=0), int(own.tokens.sum())
            shares = cluster_shares(own.chosen, own.tokens, seed=seed)
            writer.write("expert_load", {
                "layer": layer, "expert": np.arange(n, dtype=np.int32), "tokens": tokens.astype(np.int32), "of": rows,
                "share": [one.estimate for one in shares], "low": [_known(one.low) for one in shares],
                "high": [_known(one.high) for one in shares], "uniform": k / n,
                "mean_weight": [w / c if c else None for w, c in zip(own.weights.tolist(), tokens.tolist(), strict=True)],
            })  # fmt: skip
            balance = _balance(tokens, k, rows, seed)
            row = {"layer": layer, "experts": n, "chosen": k, "texts": texts, "tokens": rows, **balance}
            writer.write("expert_balance", {name: [value] for name, value in row.items()})
            most = shares[balance["most"]]
            found.append({**row, "share": most.estimate, "low": _known(most.low), "high": _known(most.high)})
    return found


def _sizes(anatomy: Anatomy, layer: int) -> tuple[int, int]:
    """How many experts there are, and how many a token has."""
    experts = anatomy.layers[layer].experts
    assert experts is not None, "a router was found by its experts"
    return experts.n_experts, experts.n_chosen


def _counted(sizes: dict[int, int], writer: Writer) -> tuple[dict[int, _Counts], int]:
    """The counts of each layer, and how many texts there are; one piece of `routing` is held at a time, for there may be
    more than memory holds."""
    found = {
        layer: _Counts(np.zeros((GROUPS, n), np.int64), np.zeros(GROUPS, np.int64), np.zeros(n)) for layer, n in sizes.items()
    }
    texts: set[int] = set()
    for piece in writer.batches("routing", ("prompt_id", "layer", "experts", "weights")):
        where, prompts = piece["layer"].to_numpy(), piece["prompt_id"].to_numpy()
        texts.update(np.unique(prompts).tolist())
        for layer, (chosen, tokens, weights) in found.items():
            mine = where == layer
            rows, n, groups = piece.filter(mine), sizes[layer], prompts[mine] % GROUPS
            experts, own = (rows[name].combine_chunks() for name in ("experts", "weights"))
            numbers = experts.flatten().to_numpy()
            cells = np.repeat(groups, experts.value_lengths().to_numpy()) * n + numbers
            chosen += np.bincount(cells, minlength=chosen.size).reshape(chosen.shape)
            tokens += np.bincount(groups, minlength=GROUPS)
            weights += np.bincount(numbers, weights=own.flatten().to_numpy(), minlength=n)
    return found, len(texts)


def _balance(tokens: np.ndarray, k: int, rows: int, seed: int) -> dict[str, Any]:
    """How evenly the experts are loaded, and as many tokens with k of n experts each, drawn evenly: the sums of such draws
    as the normal numbers of their mean and covariance."""
    n = len(tokens)
    random = np.random.default_rng(seed)
    each = random.normal(size=(EVEN_DRAWS, n))
    spread = math.sqrt(rows * k / n * (1 - k / n) * n / max(1, n - 1))
    even = (rows * k / n + spread * (each - each.mean(axis=1, keepdims=True))).clip(0, rows)
    found = {"never": int((tokens == 0).sum()), "most": int(tokens.argmax()), "uniform_entropy": math.log(n)}
    for name, counts in (("", tokens[None]), ("even_", even)):
        found[f"{name}entropy"] = float(entropy(counts).mean())
        found[f"{name}max_over_mean"] = float((counts.max(axis=1) / counts.mean(axis=1)).mean())
    return found


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
