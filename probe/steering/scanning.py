"""The verb `steer`: what a direction does to an answer at many strengths, beside random directions of its size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probe import store as stores
from probe.errors import BadEdit, BadOption, BadPlace
from probe.interventions import Add, Direction, cells, check_edits, load_direction
from probe.requests import Steer, public
from probe.running import Running, running
from probe.sites import parse_where
from probe.stats import bootstrap_mean
from probe.steering.measuring import Row, read_steered, steered_text, write_steered
from probe.targets import contrast_after
from probe.texts import TokenSequence, as_prompts, columns_of, encode_each, prompt_columns

if TYPE_CHECKING:
    from probe.language_model import LanguageModel
    from probe.sites import Cell


def strengths_of(rows: Sequence[dict[str, Any]], scale: Sequence[float], controls: int, *, seed: int) -> list[dict[str, Any]]:
    """One row a strength. `effect` is the mean over prompts of value - value at 0, with a bootstrap interval over prompts (none
    for a single one); `control_*` are mean, least and greatest of the same over random directions; `p_value` is the share
    of directions, the one in question among them, whose effect is at least as large either way (add-one).
    """
    prompts = sorted({row["prompt_id"] for row in rows})
    at = {(row["prompt_id"], row["control"], row["strength"]): row for row in rows}
    found = []
    for strength in scale:
        effects = np.zeros((controls + 1, len(prompts)))
        for number in range(controls + 1):
            for i, prompt in enumerate(prompts):
                start = at[prompt, 0, 0.0]["value"]
                effects[number, i] = at[prompt, number if strength else 0, strength]["value"] - start
        means = effects.mean(axis=1)
        interval = bootstrap_mean(effects[0], seed=seed) if len(prompts) > 1 else None
        own = [at[prompt, 0, strength] for prompt in prompts]
        found.append({
            "strength": strength, "value": float(np.mean([row["value"] for row in own])), "effect": float(means[0]),
            "ci_low": interval.low if interval else None, "ci_high": interval.high if interval else None,
            "control_mean": float(means[1:].mean()), "control_low": float(means[1:].min()),
            "control_high": float(means[1:].max()),
            "p_value": float((1 + (np.abs(means[1:]) >= abs(means[0])).sum()) / (controls + 1)),
            "kl": _mean([row["kl"] for row in own]), "lost": _mean([row["lost"] for row in own]), "n": len(prompts),
        })  # fmt: skip
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


class Push(NamedTuple):
    """One row of a scan: the direction itself (0) or the n-th random one, and how much of it is added."""

    number: int
    strength: float


def run_steer(lm: LanguageModel, request: Steer) -> stores.Run:
    """Add a direction at many strengths and measure what comes of it: h <- h + strength * v (Turner et al. 2023, 2308.10248).

    It is added at all positions of the place it was made at, if no other is named. What is measured after each prompt (or
    after its token `measure_at`) is the log-prob of `answer` (less that of `against`), or, with `matching`, whether a greedy
    continuation of `generate` tokens holds the regular expression; of an answer with `generate`, its log-prob in the place of
    each token that is written. What is written is read by the model without the direction too: what it costs there.
    The random directions are isotropic. Every row is compared with strength 0 of its prompt, which is run too.
    Tables: `steering` (a row a prompt, direction and strength), `steering_means` (a row a strength, with a bootstrap interval
    over prompts and the controls' spread), `steering_tokens` (a row a token that was written). Raises `BadOption`, `BadEdit`
    (wrong size or model), `BadPrompt`, `BadPlace`, `NonFinite`.
    """
    made = load_direction(request.direction, lm=lm)
    cell = _cell(lm, made, request.at)
    inputs = as_prompts(request.prompts, request)
    sequences = encode_each(lm, inputs, "prompt")
    places = [_measured(sequence, request, several=len(sequences) > 1) for sequence in sequences]
    # what an answer's first token is, the prompt before it decides
    targets = [
        contrast_after(lm, request, request.answer, request.against, after=s.ids[: at + 1], whole=request.whole_answer)
        for s, at in zip(sequences, places, strict=True)
    ]
    scale, controls = request.scale, request.controls
    pushes = [Push(number, strength) for number in range(controls + 1) for strength in scale if strength or not number]
    edits = _edits(cell, _vectors(made.vector, controls, request.seed), pushes)
    texts = [
        steered_text(lm, s, at, edits, more=request.written or max(map(len, target.tails if target else ((),))))
        for s, at, (target, _) in zip(sequences, places, targets, strict=True)
    ]
    came_to = {"prompt_ids": [s.ids for s in sequences], "vector": made.vector.tolist()}
    with running(request, lm, word=Path(request.direction).stem, resolved=came_to) as run:
        run.writer.extend("prompts", columns_of(inputs).types)
        units = ((f"prompt-{i}", i) for i in range(len(sequences)))
        for unit, i in run.missing("prompts", units, total=len(sequences)):
            with_each, target = texts[i], targets[i][0]
            if request.written:
                rows, tokens = write_steered(with_each, request.written, target, request.matching)
            else:
                assert target is not None, "an answer, or an expression"
                rows, tokens = read_steered(with_each, target), []
            with unit:
                _keep(run, sequences[i], pushes, rows, tokens)
        means = strengths_of(run.writer.read("steering").to_pylist(), scale, controls, seed=request.seed)
        with run.writer.unit("means", again=True):
            run.write("steering_means", {name: [row[name] for row in means] for name in means[0]})
        run.warn(*(text for one in targets for text in one[1]), *_elsewhere(made, cell))
        return run.finish(_summary(made, cell, request, len(sequences), means), seed=request.seed)


steer = public(run_steer, Steer)


def _keep(
    run: Running, sequence: TokenSequence, pushes: list[Push], measured: list[Row], written: list[dict[str, list[Any]]]
) -> None:
    """The prompt, a row for each push, and the tokens that each wrote, if they wrote."""
    keys = [{"prompt_id": sequence.prompt.prompt_id, "control": push.number, "strength": push.strength} for push in pushes]
    rows = [{**key, **found} for key, found in zip(keys, measured, strict=True)]
    run.write("prompts", prompt_columns([sequence], []))
    run.write("steering", {name: [row[name] for row in rows] for name in rows[0]})
    for key, tokens in zip(keys, written, strict=False):
        run.write("steering_tokens", {**key, **tokens})


def _measured(sequence: TokenSequence, request: Steer, *, several: bool) -> int:
    """After which token of the prompt something is measured."""
    try:
        return sequence.position(parse_where(str(request.measure_at or "last")))
    except BadPlace as error:
        if not several:
            raise
        raise BadOption(f"prompt {sequence.prompt.prompt_id}: {error.message}", hint=error.hint) from error


def _cell(lm: LanguageModel, made: Direction, at: str | None) -> Cell:
    if at is None:
        if not made.site:
            raise BadEdit("the file does not say where its direction was made", hint="say --at, as resid_post@12")
        place = made.site if made.layer < 0 else f"{made.site}@{made.layer}"
        at = place if made.head is None else f"{place}.{made.head}"
    found = cells(lm, at)
    if len(found) != 1:
        raise BadOption(f"'{at}' means {len(found)} places", hint="name one layer, as resid_post@12")
    check_edits(lm, [Add(found[0], made.vector)])
    return found[0]


def _elsewhere(made: Direction, cell: Cell) -> list[str]:
    """What a reader of the numbers has to know where a direction is added elsewhere than it was made."""
    if not made.site or (made.site, made.layer) == (cell.site, cell.layer):
        return []
    return [f"the direction was made at {made.site}@{made.layer} and is added at {cell.site}@{cell.layer}"]


def _vectors(vector: Tensor, controls: int, seed: int) -> list[Tensor]:
    """The direction and random ones of its norm, each (d,)."""
    random = torch.randn(controls, len(vector), generator=torch.Generator().manual_seed(seed))
    return [vector, *(random * (vector.norm() / random.norm(dim=-1, keepdim=True)))]


def _edits(cell: Cell, vectors: Sequence[Tensor], pushes: Sequence[Push]) -> list[Add]:
    """The change of each row by itself; a push of 0 is there too, and changes nothing."""
    return [Add(cell, vectors[push.number], push.strength, rows=(row,)) for row, push in enumerate(pushes)]


def _summary(made: Direction, cell: Cell, request: Steer, prompts: int, means: list[dict[str, Any]]) -> dict[str, Any]:
    alone = (request.against, request.against_set) == (None, None)
    whole = "the whole " if request.whole_answer else "the "
    metric = f"log-prob of {whole}answer, nats" if alone else f"log-prob, {whole.removeprefix('the ')}answer - against, nats"
    if request.written:
        metric = metric.replace(", nats", f" in the place of each of {request.written} written tokens, mean, nats")
    return {
        "site": cell.site, "layer": cell.layer, "positions": str(cell.positions), "norm": made.norm, "made": made.made,
        "metric": metric if request.matching is None else f"share matching {request.matching!r}",
        "answer": request.answer_set or request.answer, "against": request.against_set or request.against,
        "prompts": prompts, "controls": request.controls, "measure_at": str(request.measure_at or "last"),
        "written": request.written, "strengths": means,
    }  # fmt: skip
