"""The verb `steer`: what a direction does to an answer at many strengths, beside random directions of its size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probe import store as stores
from probe.decoding import Sampling, branch
from probe.decoding.teacher_forced import check_beginnings
from probe.errors import BadEdit, BadOption, NonFinite
from probe.interventions import Add, Direction, applying, cells, check_edits, load_direction
from probe.patterns import Pattern
from probe.requests import Steer, public
from probe.requests.steer import MATCHING
from probe.running import Running, running
from probe.scoring import kl
from probe.stats import bootstrap_mean
from probe.targets import Contrast, contrast_after
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


HELD = 2**25  # logits at once


class Push(NamedTuple):
    """One row of a scan: the direction itself (0) or the n-th random one, and how much of it is added."""

    number: int
    strength: float


def run_steer(lm: LanguageModel, request: Steer) -> stores.Run:
    """Add a direction at many strengths and measure what comes of it: h <- h + strength * v (Turner et al. 2023, 2308.10248).

    It is added at all positions of the place it was made at, if no other is named. What is measured after each prompt is the
    log-prob of `answer` (less that of `against`), or, with `matching`, whether a greedy continuation of `generate` tokens
    holds the regular expression. The random directions are isotropic. Every row is compared with strength 0 of its prompt,
    which is run too.
    Tables: `steering` (a row a prompt, direction and strength), `steering_means` (a row a strength, with a bootstrap interval
    over prompts and the controls' spread). Raises `BadOption`, `BadEdit` (wrong size or model), `BadPrompt`, `NonFinite`.
    """
    made = load_direction(request.direction, lm=lm)
    cell = _cell(lm, made, request.at)
    inputs = as_prompts(request.prompts, request)
    sequences = encode_each(lm, inputs, "prompt")
    # what an answer's first token is, the prompt before it decides
    targets = [
        contrast_after(lm, request, request.answer, request.against, after=s.ids, whole=request.whole_answer) for s in sequences
    ]
    scale, controls = request.scale, request.controls
    pushes = [Push(number, strength) for number in range(controls + 1) for strength in scale if strength or not number]
    edits = _edits(cell, _vectors(made.vector, controls, request.seed), pushes)
    came_to = {"prompt_ids": [s.ids for s in sequences], "vector": made.vector.tolist()}
    with running(request, lm, word=Path(request.direction).stem, resolved=came_to) as run:
        run.writer.extend("prompts", columns_of(inputs).types)
        units = ((f"prompt-{i}", i) for i in range(len(sequences)))
        for unit, i in run.missing("prompts", units, total=len(sequences)):
            ids = sequences[i].ids
            measured = (
                _read(lm, ids, edits, target) if (target := targets[i][0]) is not None
                else _written(lm, ids, edits, str(request.matching), request.generate)
            )  # fmt: skip
            with unit:
                _keep(run, sequences[i], pushes, measured)
        means = strengths_of(run.writer.read("steering").to_pylist(), scale, controls, seed=request.seed)
        with run.writer.unit("means", again=True):
            run.write("steering_means", {name: [row[name] for row in means] for name in means[0]})
        run.warn(*(text for one in targets for text in one[1]), *_elsewhere(made, cell))
        return run.finish(_summary(made, cell, request, len(sequences), means), seed=request.seed)


steer = public(run_steer, Steer)


def _keep(run: Running, sequence: TokenSequence, pushes: list[Push], measured: list[dict[str, Any]]) -> None:
    """The prompt, and a row for each push."""
    rows = [
        {"prompt_id": sequence.prompt.prompt_id, "control": push.number, "strength": push.strength, **found}
        for push, found in zip(pushes, measured, strict=True)
    ]
    run.write("prompts", prompt_columns([sequence], []))
    run.write("steering", {name: [row[name] for row in rows] for name in rows[0]})


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


@torch.no_grad()
def _read(lm: LanguageModel, ids: Sequence[int], edits: Sequence[Add], target: Contrast) -> list[dict[str, Any]]:
    """The answer's log-prob after the text, KL(plain || steered) there, and what a token of the text costs more, in nats."""
    found: list[dict[str, Any]] = []
    plain: tuple[Tensor, float] | None = None
    zero = next(i for i, edit in enumerate(edits) if edit.strength == 0)
    order = [zero, *(i for i in range(len(edits)) if i != zero)]
    tails, (own, other), n = target.tails, target.rows, len(ids)
    if any(tails):
        check_beginnings(lm)
    size = max(1, HELD // ((n + max(map(len, tails))) * lm.anatomy.d_vocab))
    for first in range(0, len(order), size):
        some = [replace(edits[i], rows=(row,)) for row, i in enumerate(order[first : first + size])]
        logits = [_steered(lm, ids, tail, some) for tail in tails]
        scores = [one[:, n - 1 :].double().log_softmax(-1).cpu() for one in logits]
        before = torch.tensor([list(ids)] * len(some), device=lm.device)[:, 1:, None]
        texts = logits[0][:, : n - 1].gather(-1, before)[..., 0] - logits[0][:, : n - 1].logsumexp(-1)
        losses = (-texts.double().mean(-1)).tolist() if n > 1 else [0.0] * len(some)
        plain = plain or (scores[0][0, 0], losses[0])
        values = target.answer.of(scores[own]) - (0.0 if target.against is None else target.against.of(scores[other]))
        found += [
            {"value": value, "kl": far, "lost": loss - plain[1], "text": ""}
            for value, far, loss in zip(values.tolist(), kl(plain[0], scores[0][:, 0]).tolist(), losses, strict=True)
        ]
    return [found[order.index(i)] for i in range(len(edits))]


def _steered(lm: LanguageModel, ids: Sequence[int], tail: Sequence[int], edits: Sequence[Add]) -> Tensor:
    """Logits (row, pos, d_vocab) of a text and what is given after it, a row for each edit. Positions are the text's."""
    batch = torch.tensor([[*ids, *tail]] * len(edits), device=lm.device)
    with applying(lm, edits, ids=batch[:, : len(ids)], longest=batch.shape[1]):
        logits: Tensor = lm.model(batch, use_cache=False).logits.float()
    if bool((logits.isnan() | logits.isposinf()).any()):
        raise NonFinite("logits are not finite numbers under the direction", hint="smaller --strengths")
    return logits


def _written(lm: LanguageModel, ids: Sequence[int], edits: Sequence[Add], matching: str, generate: int) -> list[dict[str, Any]]:
    """Whether each greedy continuation holds the expression, and the continuation."""
    longest = len(ids) + generate
    with applying(lm, edits, ids=[list(ids)] * len(edits), longest=longest) as applied:
        drawn = branch(lm, [ids] * len(edits), [0], max_new=generate, sampling=Sampling(), edits=applied)
    texts = [lm.pieces(own[0].ids).text for own in drawn]
    pattern = Pattern(matching, hint=MATCHING)
    return [{"value": float(pattern.search(t) is not None), "kl": None, "lost": None, "text": t} for t in texts]


def _summary(made: Direction, cell: Cell, request: Steer, prompts: int, means: list[dict[str, Any]]) -> dict[str, Any]:
    alone = (request.against, request.against_set) == (None, None)
    whole = "the whole " if request.whole_answer else "the "
    metric = f"log-prob of {whole}answer, nats" if alone else f"log-prob, {whole.removeprefix('the ')}answer - against, nats"
    return {
        "site": cell.site, "layer": cell.layer, "positions": str(cell.positions), "norm": made.norm, "made": made.made,
        "metric": metric if request.matching is None else f"share matching {request.matching!r}",
        "answer": request.answer_set or request.answer, "against": request.against_set or request.against,
        "prompts": prompts, "controls": request.controls,
        "strengths": means,
    }  # fmt: skip
