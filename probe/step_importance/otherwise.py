"""Counterfactual importance (METHODS M2): which draws' own step says something else, and what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from probe import store as stores
from probe.rewinding import keeping
from probe.rewinding.policy import own_steps
from probe.step_importance import boundaries, similarity
from probe.step_importance.rows import Row
from probe.texts import Trajectory

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


def counterfactual(
    lm: LanguageModel, writer: stores.Writer, original: Trajectory, *, n: int, split: str, embedder: str | None,
    reference: str, seed: int,
) -> tuple[list[Row], dict[str, Any]]:  # fmt: skip
    """Rows of `boundaries.counterfactual` from the first n draws of every boundary, and how they were told apart."""
    steps, branches = original.steps, writer.read("branches")
    drawn = []
    for i in range(len(steps)):
        own = keeping.drawn_by(writer, branches, boundaries.boundary(i))[:n]
        drawn.append([own_steps(lm, [ids], split)[0] if ids else () for ids in own])
    ids = [original.ids[s.start : s.end] for s in steps]
    texts = [[lm.pieces(d).text if d else "" for d in per] for per in drawn]
    if embedder is None:
        vectors = similarity.embeddings(lm, [*ids, *(d or ids[i] for i, per in enumerate(drawn) for d in per)])
    else:
        vectors = similarity.external(embedder, [*(s.text for s in steps), *(t for per in texts for t in per)])
    rest = vectors[len(steps) :].reshape(len(steps), n, -1)
    different, threshold = similarity.say_otherwise([s.text for s in steps], texts, list(rest), vectors[: len(steps)])
    rows = boundaries.counterfactual(branches, len(steps), reference, different, n=n, seed=seed)
    return rows, {
        "threshold": threshold, "embedder": embedder or f"resid_post@{lm.anatomy.n_layers // 2}, mean-pooled, centred",
        "different": [float(d.mean()) for d in different],
        "overdetermined": [1 - len(set(per)) / len(per) for per in texts],
    }  # fmt: skip
