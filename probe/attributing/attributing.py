"""The verb `attribute`: one forward, and the answer's logit as a sum of what was written. Knows the order of things."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from probe import store as stores
from probe.attributing.decomposition import Component, Decomposition, decompose
from probe.attributing.linear import call, unembedded, weighted_unembedding
from probe.attributing.recording import Recording, record
from probe.attributing.sources import HeadSources, head_sources
from probe.requests import Attribute, public
from probe.running import running
from probe.sites import parse_where
from probe.targets import AnswerTarget, Contrast, contrast_after, token_target
from probe.texts import TokenSequence, read_source

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

SHOWN = 8


class Logit(NamedTuple):
    """Of the answer, or of answer - against, (pos,): as the model gave it, and before the cap (the same without one). Of a set:
    the log-sum-exp of its logits."""

    given: Tensor
    before_cap: Tensor


def run_attribute(lm: LanguageModel | None, request: Attribute) -> stores.Run:
    """Direct logit attribution: what each head, MLP, bias and the embedding wrote towards the answer's logit, or towards
    its difference to that of `against`, with the final norm's scale frozen at its real value (METHODS B5; Elhage et al.
    2021). The parts sum to the logit before any cap, to rounding; the residual is in the summary. Of a set of tokens the
    log-sum-exp is taken apart, with the tokens' shares w of it frozen: logsumexp(z) = sum(w z) + H(w), and the entropy H is
    the part `set_entropy`.

    by neuron: the parts of an MLP's write are h_i (W_outᵀ u)_i, u the direction there; the `top` of each layer by size, the sum
    of the others is `mlp_others`, that of the last matrix's bias `mlp_bias`.

    source: as in `lens`. Without an answer the top token at the last chosen position is meant.

    Tables: `attribution`, `attribution_sources`. Raises `SiteAbsent` where head or final norm are not linear once the scale
    is frozen, `BadPrompt`, `BadPlace`, `BadOption`, `RunError`, `NonFinite`.
    """
    lm, sequence, positions, target, notes = _resolved(lm, request)
    passes = 2 if request.by_source else 1
    source = sequence.run.run_id if sequence.run else None
    with running(request, lm, word=(request.answer or "").strip(), resolved={"source_run": source, "ids": sequence.ids}) as run:
        if run.writer.whole:
            return run.writer.whole
        run.report("reading", 0, passes)
        seen = record(lm, sequence.ids, positions, hidden=request.neurons > 0)
        target = target or Contrast(token_target(lm, int(seen.logits[-1].argmax())))
        logit, parts = _parts(lm, seen, target, request.neurons)
        run.report("reading", 1, passes)
        found: list[HeadSources] = []
        if request.by_source:
            found, more = head_sources(lm, sequence.ids, positions, parts)
            parts.notes += more
        run.warn(*sequence.notes, *notes, *_grouped(parts.notes))
        with run.writer.unit("attribution", again=True):
            _keep(run.writer, sequence, positions, parts, found)
        return run.finish(_summary(lm, sequence, positions, target, logit, parts), parent=sequence.parent)


attribute = public(run_attribute, Attribute)


def plan_attribute(lm: LanguageModel | None, request: Attribute) -> dict[str, Any]:
    """What `attribute` would compute and write. Runs nothing."""
    lm, sequence, positions, _, _ = _resolved(lm, request)
    n, anatomy = len(positions), lm.anatomy
    heads = sum(layer.n_heads for layer in anatomy.layers)
    rows = n * (heads + (2 + request.neurons) * anatomy.n_layers + 2)
    tables = {"attribution": {"rows": rows, "bytes": 20 * rows}}
    if request.by_source:
        rows = n * heads * len(sequence.ids)
        tables["attribution_sources"] = {"rows": rows, "bytes": 10 * rows}
    return {
        "model": lm.name, "tokens": len(sequence.ids), "positions": n, "read_passes": 1 + request.by_source,
        "tables": tables,
    }  # fmt: skip


def _resolved(
    lm: LanguageModel | None, request: Attribute
) -> tuple[LanguageModel, TokenSequence, list[int], Contrast | None, list[str]]:
    """The model, the text, the positions, what is followed (None for the model's own answer), and notes on them."""
    lm, sequence = read_source(lm, request.source, request)
    positions = sequence.positions(parse_where(request.position))
    after = sequence.ids[: positions[-1] + 1]
    return lm, sequence, positions, *contrast_after(lm, request, request.answer, request.against, after=after)


def _parts(lm: LanguageModel, seen: Recording, target: Contrast, neurons: int) -> tuple[Logit, Decomposition]:
    """The logit as the model has it, and its parts."""
    anatomy = lm.anatomy
    last = seen.values[anatomy.layers[-1].taps["resid_post"]]
    hidden = seen.values[anatomy.final_norm] if anatomy.final_norm is not None else last
    given = raw = seen.logits.reshape(len(last), -1)
    if anatomy.readout.cap is not None:
        raw = anatomy.readout.scale * call(lm.model.get_submodule(anatomy.head or ""), hidden)
    sets = [one for one in target if one is not None and not one.is_token]
    if sets:
        weights, entropy = _shares(raw, target)
        row = weighted_unembedding(lm.model, anatomy, hidden, weights)
        parts = decompose(lm.model, anatomy, seen, row, lm.dtype, neurons=neurons)
        parts.components.append(Component("set_entropy", -1, -1, entropy))
    else:
        ids = target.answer.token, None if target.against is None else target.against.token
        parts = decompose(lm.model, anatomy, seen, unembedded(lm.model, anatomy, hidden, ids), lm.dtype, neurons=neurons)
    return Logit(_followed(given, target), _followed(raw, target)), parts


def _followed(logits: Tensor, target: Contrast) -> Tensor:
    """logits (pos, d_vocab) -> (pos,): of the answer, less that of the other."""
    return target.difference([logits[:, None]], []) if target.against is not None else target.answer.of(logits[:, None])


def _shares(logits: Tensor, target: Contrast) -> tuple[Tensor, Tensor]:
    """How much of its set's log-sum-exp each token is, answer's less the other's, (pos, d_vocab); and likewise the entropies
    (pos,) of these shares, in nats. logits (pos, d_vocab) float64."""
    weights, entropy = torch.zeros_like(logits), logits.new_zeros(len(logits))
    for sign, one in zip((1.0, -1.0), target, strict=True):
        if isinstance(one, AnswerTarget):
            ids = list(one.steps[0])
            logs = logits[:, ids].log_softmax(-1)
            weights[:, ids] += sign * logs.exp()
            entropy += sign * torch.special.entr(logs.exp()).sum(-1)
    return weights, entropy


def _grouped(notes: list[str]) -> list[str]:
    """Notes that say the same of several layers as one."""
    layers: dict[str, list[str]] = {}
    for note in reversed(notes):
        head, colon, rest = note.partition(": ")
        layers.setdefault(rest if colon and head.startswith("layer ") else note, []).append(head.removeprefix("layer "))
    return [
        text if text in notes else f"layer{'s' if len(own) > 1 else ''} {', '.join(own)}: {text}"
        for text, own in layers.items()
    ]  # fmt: skip


def _keep(
    writer: stores.Writer, sequence: TokenSequence, positions: list[int], parts: Decomposition, found: list[HeadSources]
) -> None:
    prompt, total = sequence.prompt.prompt_id, parts.total().numpy()
    writer.write("prompts", {
        "prompt_id": [prompt], "text": [sequence.prompt.text], "rendered": [sequence.rendered],
        "n_tokens": [sequence.n_prompt], "error": [""],
    })  # fmt: skip
    n = len(parts.components)
    for i, position in enumerate(positions):
        values = np.asarray([float(part.value[i]) for part in parts.components])
        share = pa.array([None] * n, pa.float64()) if total[i] == 0 else values / total[i]
        writer.write("attribution", {
            "prompt_id": [prompt] * n, "pos": [position] * n, "component": [part.component for part in parts.components],
            "layer": [part.layer for part in parts.components], "head": [part.head for part in parts.components],
            "neuron": [part.neuron for part in parts.components],
            "contribution": values, "share": share,
        })  # fmt: skip
        for one in found:
            heads, keys = one.value.shape[1], position + 1
            writer.write("attribution_sources", {
                "prompt_id": [prompt] * heads * keys, "pos": [position] * heads * keys, "layer": [one.layer] * heads * keys,
                "head": np.repeat(np.arange(heads), keys), "source": np.tile(np.arange(keys), heads),
                "contribution": one.value[i, :, :keys].flatten().numpy(),
            })  # fmt: skip


def _summary(
    lm: LanguageModel, sequence: TokenSequence, positions: list[int], target: Contrast, logit: Logit, parts: Decomposition
) -> dict[str, Any]:
    """The sum at each position, and the strongest parts at the last one."""
    total = parts.total()
    at = [
        {
            "pos": position, "token": lm.label(sequence.ids[position], sequence.tokens[position]),
            "logit": float(logit.given[i]),
            "before_cap": float(logit.before_cap[i]), "sum": float(total[i]), "residual": float(logit.before_cap[i] - total[i]),
        }
        for i, position in enumerate(positions)
    ]  # fmt: skip
    order = sorted(parts.components, key=lambda part: -float(part.value[-1]))
    strongest = {
        "up": [_shown(part) for part in order[:SHOWN] if float(part.value[-1]) > 0],
        "down": [_shown(part) for part in order[::-1][:SHOWN] if float(part.value[-1]) < 0],
    }
    return {
        "tokens": len(sequence.ids), "answer": target.names[0], "against": target.names[1], "cap": lm.anatomy.readout.cap,
        "components": len(parts.components), "positions": at, **strongest,
    }  # fmt: skip


def _shown(part: Any) -> dict[str, Any]:
    return {
        "component": part.component, "layer": part.layer, "head": part.head, "neuron": part.neuron,
        "contribution": float(part.value[-1]),
    }  # fmt: skip
