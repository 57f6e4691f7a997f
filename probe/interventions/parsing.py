"""Edits from their text, `PLACE=OP[:ARG…]`, with the runs and files that they name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probe.errors import BadEdit
from probe.interventions.checking import check_cell, check_edits
from probe.interventions.directions import is_same_model, load_direction
from probe.interventions.edits import Add, Cut, Edit, Mean, Noise, Patch, Project, Resample, Scale, Zero
from probe.interventions.experts import AblateExperts, ForceExperts, WeighExperts
from probe.language_model.model import title_of
from probe.registries.edit_operations import OPERATIONS
from probe.sites import SITES, Cell, Positions, parse_place, split_edit
from probe.store import Run, open_run
from probe.store.activations import vectors

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


def parse_edits(
    lm: LanguageModel, texts: Iterable[str], *, runs: Mapping[str, Run] | None = None, seed: int = 0
) -> tuple[Edit, ...]:
    """The edits that texts such as `z@5.3=zero` mean in this model, in their order; one for each layer of a place.

    runs: runs by the name that stands in the text; others are opened from that path. seed: of noise and resampling that
    name none. Raises `BadEdit`, `BadPlace` and its kinds, `RunError`.
    """
    opened = Opened(lm, dict(runs or {}), seed)
    found: list[Edit] = []
    for text in texts:
        place, op, args = split_edit(text)
        if op not in OPERATIONS:
            near = difflib.get_close_matches(op, OPERATIONS, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise BadEdit(f"unknown change '{op}' in '{text}'", hint=f"{hint}there are {', '.join(OPERATIONS)}")
        operation = OPERATIONS[op]
        if not operation.least <= len(args) <= operation.most or "" in args:
            few = len(args) < operation.least
            raise BadEdit(
                f"'{text}' does not say what to {op}" if few else f"'{text}' says too much", hint=f"write {operation.whole}"
            )
        make = resolve_name(operation.make)
        anatomy = lm.anatomy
        for cell in anatomy.cells([place]):
            check_cell(lm, cell, op)  # before a file is opened
            found.append(make(opened, cell, args))
    check_edits(lm, found)
    return tuple(found)


def parse_all(lm: LanguageModel, given: str | Iterable[str | Edit], *, seed: int = 0) -> tuple[Edit, ...]:
    """Edits given as texts, as edits, or mixed; one text alone too."""
    found: list[Edit] = []
    for one in [given] if isinstance(given, str) else given:
        found += parse_edits(lm, [one], seed=seed) if isinstance(one, str) else [one]
    check_edits(lm, found)
    return tuple(found)


def edit_texts(given: str | Iterable[str | Edit]) -> list[str]:
    """Edits as they were written, with all that they say; those made in Python by their place and kind."""
    return [given] if isinstance(given, str) else [str(edit) for edit in given]


@dataclass
class Opened:
    """What edits of one command share: the model, the runs that were opened, the seed."""

    lm: LanguageModel
    runs: dict[str, Run]
    seed: int

    def run(self, name: str) -> Run:
        if name not in self.runs:
            self.runs[name] = open_run(name)
        check_run(self.lm, self.runs[name], name)
        return self.runs[name]

    def vector(self, path: str) -> Tensor:
        return load_direction(path, lm=self.lm).vector


def make_zero(opened: Opened, cell: Cell, args: tuple[str, ...]) -> Edit:
    return Zero(cell)


def make_scale(opened: Opened, cell: Cell, args: tuple[str, ...]) -> Edit:
    factor = _number(args[0], f"scale:{args[0]}")
    if factor == 1.0:
        raise BadEdit("scale:1 changes nothing", hint="scale:0.5 halves, scale:-1 turns around")
    return Scale(cell, factor)


def make_mean(opened: Opened, cell: Cell, args: tuple[str, ...]) -> Edit:
    run = opened.run(args[0])
    if "means" in run.tables:
        return Mean(cell, corpus_mean(run, cell, name=args[0]))
    return Mean(cell, every_value(run, cell).double().mean(0).float())


def make_patch(opened: Opened, cell: Cell, args: tuple[str, ...]) -> Edit:
    run = opened.run(args[0])
    prompts = prompts_of(run)
    if len(args) == 1 and len(prompts) > 1:
        raise BadEdit(f"'{args[0]}' has {len(prompts)} prompts", hint=f"say which: patch:{args[0]}:{prompts[0]}")
    prompt = int(_number(args[1], f"prompt {args[1]}")) if len(args) > 1 else prompts[0]
    if prompt not in prompts:
        raise BadEdit(f"'{args[0]}' has no prompt {prompt}", hint=f"it has {', '.join(map(str, prompts[:9]))}")
    return Patch(cell, values_at(run, cell, prompt=prompt, name=args[0]))


def make_resample(opened: Opened, cell: Cell, args: tuple[str, ...]) -> Edit:
    seed = int(_number(args[1], f"seed {args[1]}")) if len(args) > 1 else opened.seed
    return Resample(cell, every_value(opened.run(args[0]), cell), seed)


def make_add(opened: Opened, cell: Cell, args: tuple[str, ...]) -> Edit:
    strength = _number(args[1], f"strength {args[1]}") if len(args) > 1 else 1.0
    return Add(cell, _vector(opened, cell, args[0]), strength)


def make_project(opened: Opened, cell: Cell, args: tuple[str, ...]) -> Edit:
    return Project(cell, _vector(opened, cell, args[0]))


def _vector(opened: Opened, cell: Cell, path: str) -> Tensor:
    """A file's direction; where the cell names units and the file has all of them, its entries there."""
    vector = opened.vector(path)
    whole = cell.units is not None and vector.shape[-1] == opened.lm.anatomy.n_units(cell.site, cell.layer)
    return vector[..., list(cell.units)] if cell.units is not None and whole else vector


def make_noise(opened: Opened, cell: Cell, args: tuple[str, ...]) -> Edit:
    sigma = _number(args[0], f"noise:{args[0]}")
    if sigma < 0:
        raise BadEdit(f"noise:{args[0]} has a negative size", hint="it is a standard deviation: noise:3.0")
    return Noise(cell, sigma, int(_number(args[1], f"seed {args[1]}")) if len(args) > 1 else opened.seed)


def make_cut(opened: Opened, cell: Cell, args: tuple[str, ...]) -> Edit:
    return Cut(cell, parse_place(f"pattern:{':'.join(args)}").positions)


def make_ablate(opened: Opened, cell: Cell, args: tuple[str, ...]) -> Edit:
    return AblateExperts(cell)


def make_force(opened: Opened, cell: Cell, args: tuple[str, ...]) -> Edit:
    return ForceExperts(cell)


def make_weigh(opened: Opened, cell: Cell, args: tuple[str, ...]) -> Edit:
    factor = _number(args[0], f"weigh:{args[0]}")
    if factor == 1.0:
        raise BadEdit("weigh:1 changes nothing", hint="weigh:0 takes an expert out of the sum, weigh:2 doubles it")
    return WeighExperts(cell, factor)


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadEdit(f"'{what}' is not a number", hint="as in scale:0.5")
    return value


def check_run(lm: LanguageModel, run: Run, name: str) -> None:
    """Raises `BadEdit` for a run of another model."""
    model = run.manifest.get("model") or {}
    if not is_same_model(model, lm.identity):
        raise BadEdit(f"'{name}' is a run of another model, '{title_of(model)}'", hint=f"make one with '{lm.title}'")


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
        raise BadEdit(f"'{name}' holds no {cell.site}@{cell.layer} at position {missing[0]} of prompt {prompt}", hint=hint)
    number = {position: i for i, position in enumerate(kept)}
    return values[[number[position] for position in wanted]]


def every_value(run: Run, cell: Cell) -> Tensor:
    """(n, [head,] d) at all positions that the run kept, of all its prompts."""
    return torch.cat([activation(run, cell, prompt)[1] for prompt in prompts_of(run)])


def corpus_mean(run: Run, cell: Cell, *, name: str) -> Tensor:
    """([head,] d): the mean that a run of `means` has of a place, of the cell's neurons where it names some. Raises `BadEdit`
    where the run has none."""
    rows = run.scan("means", columns=["head", "units", "mean"], site=cell.site, layer=cell.layer).to_pylist()
    by_head, found = {row["head"]: row for row in rows}, []
    for head in [-1] if cell.heads is None else cell.heads:
        row = by_head.get(head, {"units": [], "mean": []})
        held = list(range(len(row["mean"]))) if row["units"] is None else row["units"]
        wanted = held if cell.units is None and row["units"] is None else list(cell.units or ())
        if not wanted or not set(wanted) <= set(held):
            missing = next((unit for unit in wanted if unit not in held), None)
            member = f".{head}" if head >= 0 else "" if missing is None else f".{SITES[cell.site].unit[0]}{missing}"
            place = f"{cell.site}@{cell.layer}{member}"
            raise BadEdit(f"'{name}' holds no mean of {place}", hint=f"take it there: probe means FILE --at {place}")
        mean = torch.tensor(row["mean"], dtype=torch.float32)
        found.append(mean[[held.index(unit) for unit in wanted]])
    return found[0] if cell.heads is None else torch.stack(found)


def activation(run: Run, cell: Cell, prompt: int) -> tuple[list[int], Tensor]:
    """The positions that the run kept of one prompt, ascending, and the values there, (pos, [head,] d)."""
    heads = [None] if cell.heads is None else list(cell.heads)
    each = [vectors(run, cell.site, cell.layer, head=head, units=cell.units, prompt_id=prompt) for head in heads]
    found = [torch.from_numpy(values.copy()) for _, values in each]
    return each[0][0].tolist(), found[0] if heads == [None] else torch.stack(found, dim=1)


def _positions(run: Run, positions: Positions, prompt: int) -> list[int]:
    """What the words mean in the run's own text."""
    tokens = run.scan("tokens", columns=["token", "segment"], prompt_id=prompt, branch=0)
    n_prompt = sum(segment == "prompt" for segment in tokens["segment"].to_pylist())
    steps: list[tuple[int, int]] = []
    if "steps" in run.tables:
        rows = run.scan("steps", columns=["step", "start", "end"], prompt_id=prompt, branch=0).to_pylist()
        steps = [(row["start"], row["end"]) for row in sorted(rows, key=lambda row: row["step"])]
    return positions.indices(tokens.num_rows, n_prompt, steps=steps, tokens=tokens["token"].to_pylist())
