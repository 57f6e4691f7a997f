"""The verb `make_direction`: two sets of texts, one place, the difference of their means, and how well it tells them apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probe import store as stores
from probe.capturing import MemorySink, read
from probe.errors import BadOption, NonFinite
from probe.interventions import cells, save_direction
from probe.requests import MakeDirection, public
from probe.running import Running, running
from probe.sites import SITES
from probe.texts import TokenSequence, as_prompts, batches, encode_each, padded, prompt_columns

if TYPE_CHECKING:
    from probe.language_model import LanguageModel
    from probe.sites import Cell


SHUFFLES = 500


class Evidence(NamedTuple):
    """`correct` (n,): whether each text lies on its side of the direction that the others make. `accuracy` is its mean,
    `shuffled` and `shuffled_high` mean and 95 % quantile of it for shuffled labels, `p_value` add-one."""

    correct: np.ndarray
    accuracy: float
    shuffled: float
    shuffled_high: float
    p_value: float


def leave_one_out(x: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """x (n, d), positive (n,) bool -> (n,) bool: is each text on its own side of the plane half-way between the means of the
    others, across their difference? Each set needs two."""
    means = []
    for own in (positive, ~positive):
        total, count = x[own].sum(0), own.sum()
        means.append(np.where(own[:, None], (total - x) / (count - 1), total / count))
    plus, minus = means
    side = ((x - (plus + minus) / 2) * (plus - minus)).sum(-1)
    return np.where(positive, side > 0, side < 0)


def separation(x: np.ndarray, positive: np.ndarray, *, seed: int, shuffles: int = SHUFFLES) -> Evidence | None:
    """x (n, d) float64, positive (n,) bool. None where a set has one text: then nothing can be left out."""
    if min(positive.sum(), (~positive).sum()) < 2:
        return None
    correct, random = leave_one_out(x, positive), np.random.default_rng(seed)
    null = np.asarray([leave_one_out(x, random.permutation(positive)).mean() for _ in range(shuffles)])
    accuracy = float(correct.mean())
    p = float((1 + (null >= accuracy).sum()) / (shuffles + 1))
    return Evidence(correct, accuracy, float(null.mean()), float(np.quantile(null, 0.95)), p)


TOKENS = 4096  # padded, read together


def run_make_direction(lm: LanguageModel, request: MakeDirection) -> stores.Run:
    """mean(positive) - mean(negative) at one place (Turner et al. 2023, 2308.10248; Rimsky et al. 2023, 2312.06681), saved
    for `--edit PLACE=add:FILE:STRENGTH`.

    The place's positions are `last` unless it names others; a text's positions are averaged, each text counts once. The
    seed is that of the shuffled labels. Table: `projections`. Raises `BadOption`, `BadPrompt`, `BadPlace`, `BadEdit`,
    `NonFinite`.
    """
    cell, to = _cell(lm, request.at), Path(request.to)
    sets = {name: encode_each(lm, as_prompts(getattr(request, name)), name) for name in ("positive", "negative")}
    sequences = [sequence for own in sets.values() for sequence in own]
    labels = np.asarray([name == "positive" for name, own in sets.items() for _ in own])
    ids = {f"{name}_ids": [s.ids for s in own] for name, own in sets.items()}
    with running(request, lm, word=to.stem, resolved=ids) as run:
        if run.writer.whole and to.exists():
            return run.writer.whole
        x, size = _vectors(lm, run, sequences, cell)
        vector = x[labels].mean(0) - x[~labels].mean(0)
        norm = float(np.linalg.norm(vector))
        if norm <= 1e-6 * size:
            raise BadOption(
                "the two sets have the same mean there: the direction is zero", hint="other texts, or another place"
            )
        evidence = separation(x, labels, seed=request.seed)
        summary = _summary(cell, labels, norm, size, evidence, str(request.to))
        head = cell.heads[0] if cell.heads else None
        save_direction(to, lm, torch.from_numpy(vector), site=cell.site, layer=cell.layer, head=head, made=_made(summary))
        for number, sequence in enumerate(sequences):
            sequence.prompt = sequence.prompt._replace(prompt_id=number)
        with run.writer.unit("direction", again=True):
            run.write("prompts", prompt_columns(sequences, []))
            run.write("projections", {
                "prompt_id": list(range(len(labels))), "label": ["positive" if own else "negative" for own in labels],
                "projection": x @ vector / norm,
                "correct": [None] * len(labels) if evidence is None else evidence.correct.tolist(),
            })  # fmt: skip
        return run.finish(summary, seed=request.seed)


make_direction = public(run_make_direction, MakeDirection)


def _cell(lm: LanguageModel, at: str) -> Cell:
    found = cells(lm, at if ":" in at else f"{at}:last")
    if (
        len(found) != 1
        or len(found[0].heads or (0,)) != 1
        or found[0].units is not None
        or not SITES[found[0].site].at_positions
    ):
        raise BadOption(f"'{at}' is not one vector", hint="name one layer, as resid_post@12, and one head of z")
    return found[0]


class _Values(MemorySink):
    """Keeps a batch's one site: value (batch, pos, d)."""

    value: Tensor

    def activation(self, site: str, layer: int, head: int | None, values: Tensor) -> None:
        self.value = values


def _vectors(lm: LanguageModel, run: Running, sequences: list[TokenSequence], cell: Cell) -> tuple[np.ndarray, float]:
    """One vector a text, (n, d) float64, the mean over its positions; and the mean norm of an activation there."""
    found, norms = [], []
    for batch in batches(sequences, generate=0, tokens=TOKENS):
        (ids, lengths), sink = padded(batch), _Values()
        read(lm, ids, lengths, sink=sink, cells=(cell,))
        for sequence, value in zip(batch, sink.value, strict=True):
            where = sequence.positions(cell.positions)
            own = value[torch.tensor(where, device=value.device)].double().cpu().numpy()
            found.append(own.mean(0))
            norms.append(np.linalg.norm(own, axis=-1).mean())
        run.report("reading", len(found), len(sequences))
    x = np.stack(found)
    if not np.isfinite(x).all():
        raise NonFinite("activations there are not finite numbers", hint="try --dtype float32")
    return x, float(np.mean(norms))


def _summary(cell: Cell, positive: np.ndarray, norm: float, size: float, evidence: Evidence | None, to: str) -> dict[str, Any]:
    return {
        "direction": to, "site": cell.site, "layer": cell.layer, "head": cell.heads[0] if cell.heads else None,
        "positions": str(cell.positions), "positive": int(positive.sum()), "negative": int((~positive).sum()), "norm": norm,
        "relative_norm": norm / size, "mean_norm": size, "accuracy": evidence.accuracy if evidence else None,
        "shuffled": evidence.shuffled if evidence else None, "shuffled_high": evidence.shuffled_high if evidence else None,
        "p_value": evidence.p_value if evidence else None,
    }  # fmt: skip


def _made(summary: dict[str, Any]) -> str:
    held = "" if summary["accuracy"] is None else f", left-out accuracy {summary['accuracy']:.3f} (p {summary['p_value']:.3g})"
    return (
        f"difference of means of {summary['positive']} and {summary['negative']} texts at {summary['positions']}, "
        f"norm {summary['relative_norm']:.3f} of the mean there{held}"
    )
