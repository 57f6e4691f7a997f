"""The verb `attribute`: one forward, and the answer's logit as a sum of what was written. Knows the order of things."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from probe import store as stores
from probe.attributing.contributions import Contributions, of_logits, of_whole_answer
from probe.decoding.teacher_forced import check_beginnings
from probe.errors import BadOption
from probe.language_model.spreading import check_whole
from probe.requests import Attribute, public
from probe.running import running
from probe.sites import parse_where
from probe.targets import Contrast, contrast_after
from probe.texts import TokenSequence, read_source

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

SHOWN = 8


def run_attribute(lm: LanguageModel | None, request: Attribute) -> stores.Run:
    """Direct logit attribution: what each head, MLP, bias and the embedding wrote towards the answer's logit, or towards
    its difference to that of `against`, with the final norm's scale frozen at its real value (METHODS B5; Elhage et al.
    2021). The parts sum to the logit before any cap, to rounding; the residual is in the summary. Of a set of tokens the
    log-sum-exp is taken apart, with the tokens' shares w of it frozen: logsumexp(z) = sum(w z) + H(w), and the entropy H is
    the part `set_entropy`.

    by neuron: the parts of an MLP's write are h_i (W_outᵀ u)_i, u the direction there; the `top` of each layer by size, the sum
    of the others is `mlp_others`, that of the last matrix's bias `mlp_bias`.

    Of a whole answer its log-prob is taken apart, the sum over its tokens of logit - logsumexp(all logits), each at the
    position before the token, teacher-forced: a part is the sum of what it wrote towards each token's logit at that token's
    position. The normalizer is not linear in what was written: it is a part by itself, `log_normalizer`, so that the parts
    sum to the log-prob (before any cap), or to the difference of two. Where both answers are read at one place, it cancels.

    source: as in `lens`. Without an answer the top token at the last chosen position is meant.

    Tables: `attribution`, `attribution_sources`. Raises `SiteAbsent` where head or final norm are not linear once the scale
    is frozen, `BadPrompt`, `BadPlace`, `BadOption`, `RunError`, `NonFinite`.
    """
    lm, sequence, positions, target, notes = _resolved(lm, request)
    check_whole(lm, "attribution")
    passes = _passes(request, target)
    source = sequence.run.run_id if sequence.run else None
    with running(request, lm, word=(request.answer or "").strip(), resolved={"source_run": source, "ids": sequence.ids}) as run:
        if run.writer.whole:
            return run.writer.whole
        run.report("reading", 0, passes)
        if request.whole_answer and target is not None:
            found = of_whole_answer(
                lm, sequence.ids[: positions[0] + 1], target, by_source=request.by_source, neurons=request.neurons
            )
        else:
            found = of_logits(lm, sequence.ids, positions, target, by_source=request.by_source, neurons=request.neurons)
        run.report("reading", passes, passes)
        run.warn(*sequence.notes, *notes, *_grouped(found.parts.notes))
        with run.writer.unit("attribution", again=True):
            _keep(run.writer, sequence, positions, found)
        return run.finish(_summary(lm, sequence, positions, found, whole=request.whole_answer), parent=sequence.parent)


attribute = public(run_attribute, Attribute)


def plan_attribute(lm: LanguageModel | None, request: Attribute) -> dict[str, Any]:
    """What `attribute` would compute and write. Runs nothing."""
    lm, sequence, positions, target, _ = _resolved(lm, request)
    n, anatomy = len(positions), lm.anatomy
    heads = sum(layer.n_heads for layer in anatomy.layers)
    rows = n * (heads + (2 + request.neurons) * anatomy.n_layers + 2)
    tables = {"attribution": {"rows": rows, "bytes": 20 * rows}}
    if request.by_source:
        rows = n * heads * len(sequence.ids)
        tables["attribution_sources"] = {"rows": rows, "bytes": 10 * rows}
    return {
        "model": lm.name, "tokens": len(sequence.ids), "positions": n, "read_passes": _passes(request, target),
        "tables": tables,
    }  # fmt: skip


def _passes(request: Attribute, target: Contrast | None) -> int:
    """Forwards: of each continuation one, and one more for sources."""
    return (1 + request.by_source) * (1 if target is None else len(target.tails))


def _resolved(
    lm: LanguageModel | None, request: Attribute
) -> tuple[LanguageModel, TokenSequence, list[int], Contrast | None, list[str]]:
    """The model, the text, the positions, what is followed (None for the model's own answer), and notes on them."""
    lm, sequence = read_source(lm, request.source, request)
    positions = sequence.positions(parse_where(request.position))
    if request.whole_answer and len(positions) > 1:
        raise BadOption(f"a whole answer follows one position, not {len(positions)}", hint="as --position last")
    after = sequence.ids[: positions[-1] + 1]
    target, notes = contrast_after(
        lm, request, request.answer, request.against, after=after, whole=request.whole_answer
    )  # fmt: skip
    if target is not None and any(target.tails):
        check_beginnings(lm)
        if request.neurons and len(target.tails) > 1:
            raise BadOption("neurons are chosen in one continuation, and these answers need two", hint="leave --against out")
    return lm, sequence, positions, target, notes


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


def _keep(writer: stores.Writer, sequence: TokenSequence, positions: list[int], found: Contributions) -> None:
    parts = found.parts
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
        for one in found.sources:
            heads, keys = one.value.shape[1], found.ends[i]
            writer.write("attribution_sources", {
                "prompt_id": [prompt] * heads * keys, "pos": [position] * heads * keys, "layer": [one.layer] * heads * keys,
                "head": np.repeat(np.arange(heads), keys), "source": np.tile(np.arange(keys), heads),
                "contribution": one.value[i, :, :keys].flatten().numpy(),
            })  # fmt: skip


def _summary(
    lm: LanguageModel, sequence: TokenSequence, positions: list[int], found: Contributions, *, whole: bool
) -> dict[str, Any]:
    """The sum at each position, and the strongest parts at the last one."""
    target, logit, parts = found.target, found.value, found.parts
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
        "components": len(parts.components), "positions": at, "of": "log-prob" if whole else "logit", **strongest,
    }  # fmt: skip


def _shown(part: Any) -> dict[str, Any]:
    return {
        "component": part.component, "layer": part.layer, "head": part.head, "neuron": part.neuron,
        "contribution": float(part.value[-1]),
    }  # fmt: skip
