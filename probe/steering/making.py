"""The verb `make_direction`: two sets of texts, one place, the difference of their means. Knows the order of things."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probe import store as stores
from probe.capturing import MemorySink, read
from probe.errors import BadOption, NonFinite
from probe.interventions import cells, save_direction
from probe.sites import SITES
from probe.steering.evidence import Evidence, separation
from probe.texts import TokenSequence, batches, encode_each, padded, prompt_columns

if TYPE_CHECKING:
    from probe.language_model import LanguageModel
    from probe.sites import Cell

Progress = Callable[[str, int, int], None]
TOKENS = 4096  # padded, read together


def make_direction(
    lm: LanguageModel, positive: Any, negative: Any, *, at: str, to: str | Path, seed: int = 0,
    out: str | Path | None = None, resume: bool = False, progress: Progress | None = None,
) -> stores.Run:  # fmt: skip
    """mean(positive) - mean(negative) at one place (Turner et al. 2023, 2308.10248; Rimsky et al. 2023, 2312.06681), saved
    at `to` for `--edit PLACE=add:FILE:STRENGTH`.

    positive, negative: texts, or a `Path` to a file of them. at: a place of one layer (of one head where the site has
    heads), its positions `last` unless it names others; a text's positions are averaged, each text counts once. seed: of
    the shuffled labels. Table: `projections`. Raises `BadOption`, `BadPrompt`, `BadPlace`, `BadEdit`, `NonFinite`.
    """
    cell = _cell(lm, at)
    names = ("positive", "negative")
    sets = [encode_each(lm, texts, name) for name, texts in zip(names, (positive, negative), strict=True)]
    sequences = [sequence for own in sets for sequence in own]
    labels = np.asarray([True] * len(sets[0]) + [False] * len(sets[1]))
    arguments = {
        "at": at, "to": str(to), "model": lm.name, "dtype": str(lm.dtype), "seed": seed,
        **{name: [s.ids for s in own] for name, own in zip(names, sets, strict=True)},
    }  # fmt: skip
    path = stores.place_for("steer", out, word=Path(to).stem, resume=resume)
    with stores.create(path, command="steer", arguments=arguments, resume=resume) as writer:
        if writer.whole and Path(to).exists():
            return writer.whole
        x, size = _vectors(lm, sequences, cell, progress)
        vector = x[labels].mean(0) - x[~labels].mean(0)
        norm = float(np.linalg.norm(vector))
        if norm <= 1e-6 * size:
            raise BadOption(
                "the two sets have the same mean there: the direction is zero", hint="other texts, or another place"
            )
        found = separation(x, labels, seed=seed)
        summary = _summary(cell, sets, norm, size, found, str(to))
        head = cell.heads[0] if cell.heads else None
        save_direction(
            to, lm, torch.from_numpy(vector), site=cell.site, layer=cell.layer, head=head, made=_made(summary)
        )
        for number, sequence in enumerate(sequences):
            sequence.prompt = sequence.prompt._replace(prompt_id=number)
        with writer.unit("direction", again=True):
            writer.write("prompts", prompt_columns(sequences, []))
            writer.write("projections", {
                "prompt_id": list(range(len(labels))), "label": ["positive" if own else "negative" for own in labels],
                "projection": x @ vector / norm, "correct": [None] * len(labels) if found is None else found.correct.tolist(),
            })  # fmt: skip
        return writer.finish(summary=summary, model=lm.identity, anatomy=lm.anatomy.to_dict(), seed=seed)


def _cell(lm: LanguageModel, at: str) -> Cell:
    found = cells(lm, at if ":" in at else f"{at}:last")
    if len(found) != 1 or len(found[0].heads or (0,)) != 1 or not SITES[found[0].site].at_positions:
        raise BadOption(f"'{at}' is not one vector", hint="name one layer, as resid_post@12, and one head of z")
    return found[0]


class _Values(MemorySink):
    """Keeps a batch's one site: value (batch, pos, d)."""

    value: Tensor

    def activation(self, site: str, layer: int, head: int | None, values: Tensor) -> None:
        self.value = values


def _vectors(
    lm: LanguageModel, sequences: list[TokenSequence], cell: Cell, progress: Progress | None
) -> tuple[np.ndarray, float]:
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
        if progress:
            progress("reading", len(found), len(sequences))
    x = np.stack(found)
    if not np.isfinite(x).all():
        raise NonFinite("activations there are not finite numbers", hint="try --dtype float32")
    return x, float(np.mean(norms))


def _summary(
    cell: Cell, sets: list[list[TokenSequence]], norm: float, size: float, found: Evidence | None, to: str
) -> dict[str, Any]:
    return {
        "direction": to, "site": cell.site, "layer": cell.layer, "head": cell.heads[0] if cell.heads else None,
        "positions": str(cell.positions), "positive": len(sets[0]), "negative": len(sets[1]), "norm": norm,
        "relative_norm": norm / size, "mean_norm": size, "accuracy": found.accuracy if found else None,
        "shuffled": found.shuffled if found else None, "shuffled_high": found.shuffled_high if found else None,
        "p_value": found.p_value if found else None,
    }  # fmt: skip


def _made(summary: dict[str, Any]) -> str:
    held = (
        ""
        if summary["accuracy"] is None
        else f", left-out accuracy {summary['accuracy']:.3f} (p {summary['p_value']:.3g})"
    )
    return (
        f"difference of means of {summary['positive']} and {summary['negative']} texts at {summary['positions']}, "
        f"norm {summary['relative_norm']:.3f} of the mean there{held}"
    )
