"""The verb `steer`: what a direction does to an answer at many strengths, beside random directions of its size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from probe import store as stores
from probe.decoding import Sampling, branch
from probe.errors import BadEdit, BadOption, NonFinite
from probe.interventions import Add, Direction, applying, cells, check_edits, load_direction
from probe.language_model.following import two_answers
from probe.patterns import Pattern
from probe.steering.effects import strengths_of
from probe.texts import TokenSequence, encode_each, prompt_columns

if TYPE_CHECKING:
    from probe.language_model import LanguageModel
    from probe.sites import Cell

Progress = Callable[[str, int, int], None]
STRENGTHS = (-8.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 8.0)
HELD = 2**25  # logits at once
_MATCHING = "as 'good|great'"


class Push(NamedTuple):
    """One row of a scan: the direction itself (0) or the n-th random one, and how much of it is added."""

    number: int
    strength: float


def steer(
    lm: LanguageModel, direction: str | Path, prompts: Any, *, at: str | None = None, answer: str | None = None,
    against: str | None = None, matching: str | None = None, generate: int = 24, strengths: Iterable[float] = STRENGTHS,
    controls: int = 20, seed: int = 0, out: str | Path | None = None, resume: bool = False,
    progress: Progress | None = None,
) -> stores.Run:  # fmt: skip
    """Add a direction at many strengths and measure what comes of it: h <- h + strength * v (Turner et al. 2023, 2308.10248).

    direction: a file that `make_direction` wrote. at: where it is added (default: all positions of the place it was made
    at). What is measured after each prompt is the log-prob of `answer` (less that of `against`), or, with `matching`,
    whether a greedy continuation of `generate` tokens holds the regular expression. controls: random directions of the
    same norm, isotropic. Every row is compared with strength 0 of its prompt, which is run too.
    Tables: `steering` (a row a prompt, direction and strength), `steering_means` (a row a strength, with a bootstrap interval
    over prompts and the controls' spread). Raises `BadOption`, `BadEdit` (wrong size or model), `BadPrompt`, `NonFinite`.
    """
    made = load_direction(direction, lm=lm)
    cell = _cell(lm, made, at)
    scale = sorted({0.0, *map(float, strengths)})
    _check(answer, against, matching, controls, generate, scale)
    sequences = encode_each(lm, prompts, "prompt")
    # what an answer's first token is, the prompt before it decides
    tokens = [two_answers(lm, answer, against, after=s.ids) for s in sequences] if answer is not None else None
    pushes = [Push(number, strength) for number in range(controls + 1) for strength in scale if strength or not number]
    edits = _edits(cell, _vectors(made.vector, controls, seed), pushes)
    arguments = {
        "direction": str(direction), "at": at, "answer": answer, "against": against, "matching": matching,
        "generate": generate, "strengths": scale, "controls": controls, "model": lm.name, "dtype": str(lm.dtype),
        "prompts": [s.ids for s in sequences], "seed": seed, "vector": made.vector.tolist(),
    }  # fmt: skip
    path = stores.place_for("steer", out, word=Path(direction).stem, resume=resume)
    with stores.create(path, command="steer", arguments=arguments, resume=resume) as writer:
        for done, sequence in enumerate(sequences):
            if not writer.done(f"prompt-{done}"):
                measured = (
                    _read(lm, sequence.ids, edits, *tokens[done][:2]) if tokens is not None
                    else _written(lm, sequence.ids, edits, str(matching), generate)
                )  # fmt: skip
                with writer.unit(f"prompt-{done}"):
                    _keep(writer, sequence, pushes, measured)
            if progress:
                progress("prompts", done + 1, len(sequences))
        means = strengths_of(writer.read("steering").to_pylist(), scale, controls, seed=seed)
        with writer.unit("means", again=True):
            writer.write("steering_means", {name: [row[name] for row in means] for name in means[0]})
        for text in [*(text for one in tokens or [] for text in one[2]), *_elsewhere(made, cell)]:
            writer.warn(text)
        summary = _summary(made, cell, answer, against, matching, len(sequences), controls, means)
        return writer.finish(summary=summary, model=lm.identity, anatomy=lm.anatomy.to_dict(), seed=seed)


def _keep(writer: stores.Writer, sequence: TokenSequence, pushes: list[Push], measured: list[dict[str, Any]]) -> None:
    """The prompt, and a row for each push."""
    rows = [
        {"prompt_id": sequence.prompt.prompt_id, "control": push.number, "strength": push.strength, **found}
        for push, found in zip(pushes, measured, strict=True)
    ]
    writer.write("prompts", prompt_columns([sequence], []))
    writer.write("steering", {name: [row[name] for row in rows] for name in rows[0]})


def _check(
    answer: str | None, against: str | None, matching: str | None, controls: int, generate: int, scale: Sequence[float]
) -> None:
    if (answer is None) == (matching is None) or (against is not None and answer is None):
        raise BadOption("what is to be measured?", hint="give --answer (and --against), or --matching REGEX")
    if controls < 1 or generate < 1:
        raise BadOption("a scan needs at least one control and one token", hint="as --controls 20 --generate 24")
    if len(scale) < 2 or not all(map(math.isfinite, scale)):
        raise BadOption("a scan needs strengths other than 0 that are numbers", hint="as --strengths -4,-2,2,4")
    if matching is not None:
        Pattern(matching, hint=_MATCHING)


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
def _read(
    lm: LanguageModel, ids: Sequence[int], edits: Sequence[Add], answer: int, against: int | None
) -> list[dict[str, Any]]:
    """The answer's log-prob after the text, KL(plain || steered) there, and what a token of the text costs more, in nats."""
    found: list[dict[str, Any]] = []
    plain: tuple[Tensor, float] | None = None
    zero = next(i for i, edit in enumerate(edits) if edit.strength == 0)
    order = [zero, *(i for i in range(len(edits)) if i != zero)]
    size = max(1, HELD // (len(ids) * lm.anatomy.d_vocab))
    for first in range(0, len(order), size):
        some = [replace(edits[i], rows=(row,)) for row, i in enumerate(order[first : first + size])]
        batch = torch.tensor([list(ids)] * len(some), device=lm.device)
        with applying(lm, some, ids=batch):
            logits = lm.model(batch, use_cache=False).logits.float()
        if bool((logits.isnan() | logits.isposinf()).any()):
            raise NonFinite("logits are not finite numbers under the direction", hint="smaller --strengths")
        last = logits[:, -1].double().log_softmax(-1).cpu()
        texts = logits[:, :-1].gather(-1, batch[:, 1:, None])[..., 0] - logits[:, :-1].logsumexp(-1)
        losses = (-texts.double().mean(-1)).tolist() if len(ids) > 1 else [0.0] * len(some)
        plain = plain or (last[0], losses[0])
        values = last[:, answer] - (0.0 if against is None else last[:, against])
        kl = (plain[0].exp() * (plain[0] - last)).masked_fill(plain[0].isneginf(), 0.0).sum(-1).clamp(min=0.0)
        found += [
            {"value": value, "kl": far, "lost": loss - plain[1], "text": ""}
            for value, far, loss in zip(values.tolist(), kl.tolist(), losses, strict=True)
        ]
    return [found[order.index(i)] for i in range(len(edits))]


def _written(
    lm: LanguageModel, ids: Sequence[int], edits: Sequence[Add], matching: str, generate: int
) -> list[dict[str, Any]]:
    """Whether each greedy continuation holds the expression, and the continuation."""
    longest = len(ids) + generate
    with applying(lm, edits, ids=[list(ids)] * len(edits), longest=longest) as applied:
        drawn = branch(lm, [ids] * len(edits), [0], max_new=generate, sampling=Sampling(), edits=applied)
    texts = [lm.pieces(own[0].ids).text for own in drawn]
    pattern = Pattern(matching, hint=_MATCHING)
    return [{"value": float(pattern.search(t) is not None), "kl": None, "lost": None, "text": t} for t in texts]


def _summary(
    made: Direction, cell: Cell, answer: str | None, against: str | None, matching: str | None, n: int, controls: int,
    means: list[dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    return {
        "site": cell.site, "layer": cell.layer, "positions": str(cell.positions), "norm": made.norm, "made": made.made,
        "metric": f"share matching {matching!r}" if matching is not None else "log-prob of the answer, nats"
        if against is None else "log-prob, answer - against, nats",
        "answer": answer, "against": against, "prompts": n, "controls": controls, "strengths": means,
    }  # fmt: skip
