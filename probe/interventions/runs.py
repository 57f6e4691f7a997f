"""Activations out of a recorded run, at the positions that a cell means in the run's own text. Knows tables, runs no model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probe.errors import BadEdit
from probe.interventions.directions import is_same_model
from probe.sites import Cell, Positions
from probe.store import Run

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


def check_run(lm: LanguageModel, run: Run, name: str) -> None:
    """Raises `BadEdit` for a run of another model."""
    model = run.manifest.get("model") or {}
    if not is_same_model(model, lm.identity):
        raise BadEdit(f"'{name}' is a run of another model, '{model.get('name')}'", hint=f"make one with '{lm.name}'")


def prompts_of(run: Run) -> list[int]:
    """The prompts that have activations."""
    if "activations" not in run.tables:
        return sorted(set(run.scan("prompts", columns=["prompt_id"])["prompt_id"].to_pylist()))
    return sorted(set(run.scan("activations", columns=["prompt_id"])["prompt_id"].to_pylist()))


def values_at(run: Run, cell: Cell, *, prompt: int, name: str) -> Tensor:
    """(pos, [head,] d) of one prompt at the cell's positions, in their order. BadEdit if the run did not keep some of them."""
    kept, values = activation(run, cell, prompt)
    wanted = _positions(run, cell.positions, prompt)
    missing = sorted(set(wanted) - set(kept))
    if missing:
        hint = "record them, or name positions that it has"
        raise BadEdit(
            f"'{name}' holds no {cell.site}@{cell.layer} at position {missing[0]} of prompt {prompt}", hint=hint
        )
    number = {position: i for i, position in enumerate(kept)}
    return values[[number[position] for position in wanted]]


def every_value(run: Run, cell: Cell) -> Tensor:
    """(n, [head,] d) at all positions that the run kept, of all its prompts."""
    return torch.cat([activation(run, cell, prompt)[1] for prompt in prompts_of(run)])


def activation(run: Run, cell: Cell, prompt: int) -> tuple[list[int], Tensor]:
    """The positions that the run kept of one prompt, ascending, and the values there, (pos, [head,] d)."""
    heads = [None] if cell.heads is None else list(cell.heads)
    found = [torch.from_numpy(run.activation(cell.site, cell.layer, head=h, prompt_id=prompt).copy()) for h in heads]
    where = {"prompt_id": prompt, "branch": 0, "site": cell.site, "layer": cell.layer}
    rows = run.scan("activations", columns=["pos"], head=-1 if heads[0] is None else heads[0], **where)
    return sorted(rows["pos"].to_pylist()), found[0] if heads == [None] else torch.stack(found, dim=1)


def _positions(run: Run, positions: Positions, prompt: int) -> list[int]:
    """What the words mean in the run's own text."""
    tokens = run.scan("tokens", columns=["token", "segment"], prompt_id=prompt, branch=0)
    n_prompt = sum(segment == "prompt" for segment in tokens["segment"].to_pylist())
    steps: list[tuple[int, int]] = []
    if "steps" in run.tables:
        rows = run.scan("steps", columns=["step", "start", "end"], prompt_id=prompt, branch=0).to_pylist()
        steps = [(row["start"], row["end"]) for row in sorted(rows, key=lambda row: row["step"])]
    return positions.indices(tokens.num_rows, n_prompt, steps=steps, tokens=tokens["token"].to_pylist())
