"""A sweep's request on one model, and what it would take: everything is checked here, before the model runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from probe.devices import free_bytes
from probe.errors import BadOption, SiteAbsent
from probe.interventions import Edit, parse_all
from probe.patching.cells import LayerCells, LayerNeurons, cells_of, neurons_of
from probe.patching.metrics import continuations_of
from probe.patching.pairs import COLUMNS, LAST, Pair, PairTexts, make_pair, read_pairs
from probe.patching.paths import PathGroup, path_groups
from probe.patching.reading import SiteLayer
from probe.patching.rewind_pairs import PARTING, RewindPair, rewind_pair
from probe.requests import PatchSweep
from probe.requests.groups import parse_memory
from probe.requests.patch import POOLED

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

TOKENS = 256  # of a pass: more make no product faster on a CPU, and begin earlier than some rows need
ON_CPU = 10**9  # bytes of a pass, where nobody says what is free
ROW_BYTES = {"patches": 90, "prompts": 200, "tokens": 14, "patch_means": 60}


@dataclass(frozen=True)
class Patching:
    """A request on one model: its pairs of texts, the cells (or the paths) of each, the bytes a pass may take, the edits.

    neurons: of each pair, the layers among whose neurons some are to be chosen; nothing where none is."""

    request: PatchSweep
    pairs: tuple[Pair, ...]
    parts: tuple[Sequence[LayerCells | PathGroup], ...]
    budget: int
    edits: tuple[Edit, ...]
    measured: RewindPair | None
    neurons: tuple[tuple[LayerNeurons, ...], ...] = ()


def resolved(lm: LanguageModel, request: PatchSweep) -> Patching:
    """Check what is asked against the model, and make the pairs. Raises what `patch` does."""
    measured = None
    if request.rewind is not None:
        place = PARTING if request.measure_at is None else str(request.measure_at)
        measured = rewind_pair(
            lm, request.rewind, answer=request.answer, against=request.against, align=request.align, measure_at=place,
            sets=request,
        )  # fmt: skip
    pairs = _pairs(lm, request) if measured is None else (measured.pair,)
    for pair in pairs:
        if request.metric == "logit-diff" and pair.target.against is None:
            raise BadOption(
                "a logit difference needs two answers", hint="add --against or --against-set, or take --metric logprob"
            )
        if request.ig and len(pair.clean) != len(pair.corrupt):
            raise BadOption("integrated gradients need texts of one length", hint="leave --ig out")
    find = cells_of if request.path is None else path_groups
    parts = tuple(find(lm, pair, request) for pair in pairs)
    neurons = tuple(neurons_of(lm, pair, request) for pair in pairs)
    if any(neurons):
        request.check_slope()
    elif request.of_neurons and request.method == "exact" and (request.top, request.sample, request.ig) != (None, None, 0):
        raise BadOption(
            "every neuron is named, and none is to be chosen",
            hint="leave out --top, --sample and --ig, or name a layer: mlp_post@5",
        )
    return Patching(
        request, pairs, parts, pass_bytes(lm, request.memory), parse_all(lm, request.edit, seed=request.seed), measured,
        neurons if any(neurons) else (),
    )  # fmt: skip


def _pairs(lm: LanguageModel, request: PatchSweep) -> tuple[Pair, ...]:
    unanswered = (request.answer, request.answer_set) == (None, None)
    given = (
        read_pairs(request.pairs, answered=unanswered)
        if isinstance(request.pairs, Path)
        else [_texts(one) for one in request.pairs]
    )
    if not given:
        named = ("clean", "corrupt", *(("answer",) if unanswered else ()))
        missing = [f"--{name}" for name in named if getattr(request, name) is None]
        if missing:
            raise BadOption(
                f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing",
                hint="give --clean TEXT --corrupt TEXT --answer ' Mary' --against ' John', or --file PAIRS.jsonl",
            )
        given = [PairTexts(request.clean, request.corrupt)]
    given = [one.completed(request) for one in given]
    for one in given:
        one.sets.check_answer(one.answer, one.against)
    where, whole = LAST if request.measure_at is None else str(request.measure_at), request.whole_answer
    return tuple(make_pair(lm, one, align=request.align, chat=request, whole=whole, measure_at=where) for one in given)


def _texts(one: Any) -> PairTexts:
    """A pair given in Python: a mapping, or a sequence of its texts."""
    found: list[Any] = [one.get(name) for name in COLUMNS] if isinstance(one, dict) else list(one)
    return PairTexts(*found[: len(COLUMNS)])


def rows_at_once(lm: LanguageModel, *, new: int, n: int, budget: int, reads: int = 1) -> int:
    """Rows of a pass over the last `new` positions of n, at least one. reads: logits that are kept of a row."""
    rows = budget // row_bytes(lm, new=new, n=n, reads=reads)
    return max(1, min(TOKENS // new, rows) if lm.device.type == "cpu" else rows)


def pass_bytes(lm: LanguageModel, memory: str | int) -> int:
    """Bytes that a pass may take: those that are asked for, or half of what the model's device has free."""
    if memory != "auto":
        return parse_memory(memory)
    free = free_bytes(lm.device)
    return ON_CPU if free is None else free // 2


def row_bytes(lm: LanguageModel, *, new: int, n: int, reads: int = 1) -> int:
    """About what one row of such a pass holds at its fullest: stream, MLP, keys and values of one layer, and its logits."""
    anatomy, size = lm.anatomy, lm.dtype.itemsize
    heads = max((max(layer.n_heads, 1) * layer.d_head for layer in anatomy.layers), default=0) or anatomy.d_model
    stream = new * (8 * anatomy.d_model + 3 * _hidden(lm) + 3 * heads)
    eager = getattr(lm.model.config, "_attn_implementation", "") != "sdpa"
    scores = 3 * new * n * max((layer.n_heads for layer in anatomy.layers), default=1) if eager else new * n
    return size * (stream + 4 * n * heads + scores) + 4 * 6 * reads * anatomy.d_vocab


def _hidden(lm: LanguageModel) -> int:
    """Width of the widest MLP; four times the stream's where it is not found."""
    try:
        return max(lm.width("mlp_post", i) for i in range(lm.anatomy.n_layers) if lm.anatomy.has("mlp_post", i))
    except (ValueError, SiteAbsent):
        return 4 * lm.anatomy.d_model


class Cost(NamedTuple):
    """Of one pair: cells, forwards (and backwards), bytes of the largest of them."""

    cells: int
    passes: int
    peak: int


def plan_patch(lm: LanguageModel, request: PatchSweep) -> dict[str, Any]:
    """What `patch` would do. Runs nothing, writes nothing. Cells before the first difference need no pass; a model that cannot
    be entered in the middle takes more."""
    patching = resolved(lm, request)
    cost = _attribution_cost if request.method == "attribution" else _path_cost if request.path else _exact_cost
    costs = [cost(lm, pair, parts, patching) for pair, parts in zip(patching.pairs, patching.parts, strict=True)]
    chosen = [_chosen_cost(lm, pair, own, patching) for pair, own in zip(patching.pairs, patching.neurons, strict=False)]
    cells = sum(one.cells for one in (*costs, *chosen))
    tokens = sum(len(pair.clean) + len(pair.corrupt) for pair in patching.pairs)
    counts = {"patches": cells, "prompts": 2 * len(patching.pairs), "tokens": tokens}
    return {
        "model": lm.name, "pairs": len(patching.pairs), "direction": request.towards, "metric": request.metric, "cells": cells,
        "passes": sum(one.passes for one in (*costs, *chosen)) + (0 if chosen else request.sampled),
        "pass_memory_bytes": max(one.peak for one in (*costs, *chosen)),
        "tables": {name: {"rows": rows, "bytes": rows * ROW_BYTES[name]} for name, rows in counts.items()},
    }  # fmt: skip


def _exact_cost(lm: LanguageModel, pair: Pair, parts: Sequence[Any], patching: Patching) -> Cost:
    """Batches of cells, site by site and layer by layer, for each continuation."""
    request, n, reads = patching.request, pair.longest(patching.request.towards), sum(pair.target.reads)
    cells = forwards = peak = 0
    same = pair.reached(request.towards) if request.source == "clean" and lm.anatomy.causal else 0
    for part in parts:
        cells += len(part.locations)
        at, needed = 0, sorted(max(one.positions[0], same) for one in part.locations if one.positions[-1] >= same)
        while at < len(needed):
            new = n - needed[at]
            size = rows_at_once(lm, new=new, n=n, budget=patching.budget, reads=reads)
            peak = max(peak, min(size, len(needed) - at) * row_bytes(lm, new=new, n=n, reads=reads))
            at, forwards = at + size, forwards + len(pair.target.reads)
    return Cost(cells, forwards, peak)


def _attribution_cost(lm: LanguageModel, pair: Pair, parts: Sequence[Any], patching: Patching) -> Cost:
    """Two forwards and a backward, which keeps what every layer computed; for integrated gradients four forwards more, and
    both for each step. For each continuation; the metric's graph is of those that it depends on."""
    request, n, target = patching.request, pair.longest(patching.request.towards), pair.target
    read = continuations_of(request.metric, target)
    passes = 2 * len(target.tails) + len(read) * (1 + (4 + 2 * request.ig if request.ig else 0))
    peak = lm.anatomy.n_layers * row_bytes(lm, new=n, n=n, reads=max(target.reads)) * len(read)
    return Cost(sum(len(part.locations) for part in parts), passes, peak)


def _chosen_cost(lm: LanguageModel, pair: Pair, neurons: Sequence[LayerNeurons], patching: Patching) -> Cost:
    """Gradients to choose by, and once more those of what was chosen; and the exact passes, at most one for each cell or,
    where a layer has several, one for a batch of them."""
    request, n, reads = patching.request, pair.longest(patching.request.towards), pair.target.reads
    of_all = _attribution_cost(lm, pair, (), patching)
    cells = min(sum(map(len, neurons)), request.chosen + request.sampled)
    run = cells if request.method == "exact" else min(cells, request.sampled)
    size = rows_at_once(lm, new=n, n=n, budget=patching.budget, reads=sum(reads))
    passes = min(run, len(neurons) * -(-run // (len(neurons) * size))) * len(reads) if neurons else 0
    shares = len(portions(patching, [(one.site, one.layer) for one in neurons]))
    peak = min(size, run) * row_bytes(lm, new=n, n=n, reads=sum(reads))
    return Cost(cells, 2 * shares * of_all.passes + passes, max(of_all.peak, peak))


def portions(patching: Patching, wheres: Sequence[SiteLayer]) -> list[list[SiteLayer]]:
    """Sites of layers of whose neurons some are chosen, in portions whose activations, slopes and scores fit the memory."""
    kept = 2 * len(patching.pairs) if patching.request.source in POOLED else 0  # texts whose values are pooled
    longest = max(max(len(pair.clean), len(pair.corrupt)) for pair in patching.pairs)
    widest = max((one.n_units for own in patching.neurons for one in own), default=1)
    size = max(1, patching.budget // (4 * (6 + kept) * longest * widest))
    named = list(dict.fromkeys(wheres))
    return [named[first : first + size] for first in range(0, len(named), size)]


def _path_cost(lm: LanguageModel, pair: Pair, parts: Sequence[Any], patching: Patching) -> Cost:
    """A batch of senders, and then a batch for each of their receivers; for each continuation."""
    n, reads = pair.longest(patching.request.towards), pair.target.reads
    size = rows_at_once(lm, new=n, n=n, budget=patching.budget, reads=sum(reads))
    paths = forwards = rows = 0
    for group in parts:
        paths += len(group.paths)
        senders = list(dict.fromkeys(sender for sender, _ in group.paths))
        for first in range(0, len(senders), size):
            some = set(senders[first : first + size])
            rows = max(rows, len(some))
            receivers = {receiver for sender, receiver in group.paths if sender in some and receiver.site != "logits"}
            forwards += len(reads) * (1 + len(receivers))
    return Cost(paths, forwards, rows * row_bytes(lm, new=n, n=n, reads=sum(reads)))
