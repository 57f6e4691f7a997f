"""What a survey of weights writes of neurons: the directions that each reads and writes, and the tokens that lie along them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cosine_similarity

from probe.errors import SiteAbsent
from probe.matrices.head_rows import grouped
from probe.matrices.memory import neurons_at_once
from probe.matrices.neurons import NeuronDirections, NeuronReader, chance_of_cosine
from probe.matrices.planning import ResolvedSurvey
from probe.matrices.vocabulary import Vocabulary, rank_tokens
from probe.running import Running

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


def write_neurons(run: Running, survey: ResolvedSurvey) -> None:
    """Layer by layer, as many neurons at once as memory has room for. Raises `SiteAbsent` where no neuron can be read."""
    words, reader = Vocabulary(run.lm), NeuronReader(run.lm)
    step = neurons_at_once(run.lm, survey.memory)
    units = [(f"neurons {layer}.{own[i]}..{own[min(i + step, len(own)) - 1]}", (layer, own[i : i + step]))
             for layer, own in survey.neurons.items() for i in range(0, len(own), step)]  # fmt: skip
    reasons = {layer: [run.lm.anatomy.reason("mlp_post", layer)] for layer, own in survey.neurons.items() if not own}
    for unit, (layer, own) in run.missing("neurons", iter(units), total=len(units)):
        found = reader.layer(layer, own)
        if isinstance(found, str):
            reasons[layer] = [found]
            continue
        with unit:
            run.write("neuron_weights", _rows(run.lm, words, found, layer, own, survey.top))
    said = grouped("neurons", dict(sorted(reasons.items())))
    if not any(run.writer.done(name) for name, _ in units):
        raise SiteAbsent(f"no neuron can be read: {'; '.join(said)}", hint="--what matrices shows those of each expert")
    run.warn(*said)


def _rows(
    lm: LanguageModel, words: Vocabulary, found: NeuronDirections, layer: int, neurons: list[int], top: int
) -> dict[str, Any]:
    """Three rows a neuron of a gated MLP, two of another: gate, in, out."""
    names = [name for name in ("gate", "in") if name in found.read]
    reads, n = torch.cat([found.folded(name) for name in names]), len(neurons)
    read = rank_tokens(reads, (words.reading(rows, found.norm) for rows in words.blocks()), top)
    wrote = rank_tokens(found.out, (words.writing(rows) for rows in words.blocks()), top)
    dimensions = [lm.anatomy.d_model - int(found.norm.norm.centre), lm.anatomy.d_model - int(words.centre)]
    chances = [chance_of_cosine(one.cosine, d, len(words)) for one, d in zip((read, wrote), dimensions, strict=True)]
    added = torch.cat([*(found.constant(name) for name in names), torch.zeros(n)]).float()[:, None]
    up, down = (torch.cat([getattr(one, f"{end}_ids") for one in (read, wrote)]) for end in ("up", "down"))
    return {
        "layer": [layer] * len(up), "neuron": neurons * (len(names) + 1),
        "direction": [name for name in (*names, "out") for _ in neurons],
        "norm": torch.cat([reads, found.out]).norm(dim=-1).tolist(),
        "with_out": [*cosine_similarity(reads, found.out.repeat(len(names), 1)).tolist(), *[None] * n],
        "cosine": torch.cat([read.cosine, wrote.cosine]).double().tolist(), "p_value": torch.cat(chances).tolist(),
        "up_ids": up.tolist(), "up": (torch.cat([read.up, wrote.up]) + added).tolist(),
        "down_ids": down.tolist(), "down": (torch.cat([read.down, wrote.down]) + added).tolist(),
        "up_token": [lm.token_text(i) for i in up[:, 0].tolist()],
        "down_token": [lm.token_text(i) for i in down[:, 0].tolist()],
    }  # fmt: skip
