"""Laws of one forward: what is read is what a plain forward computes, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probe.anatomy.checking import read_out, sum_error
from probe.anatomy.parts import of_call
from probe.capturing import AttentionSpec, MemorySink, read
from probe.errors import BadModel
from probe.instrument import AttentionCall, attending
from probe.sites import SITES, parse_places, sites_of

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

SHORT = 9  # tokens of a text that is read beside a longer one


@torch.inference_mode()
def plain(lm: LanguageModel, ids: list[int]) -> Tensor:
    """Logits (pos, d_vocab) of an uninstrumented forward."""
    return lm.model(torch.tensor([ids], device=lm.device), return_dict=True).logits[0]


def captured(lm: LanguageModel, ids: Sequence[Sequence[int]], places: Sequence[str], **more: Any) -> tuple[MemorySink, Any]:
    """What one read of some texts, padded on the right, gives: places recorded, nothing else unless `more` asks for it."""
    found = [place for text in places for place in parse_places(text)]
    anatomy, sink = lm.anatomy, MemorySink()
    cells = anatomy.cells(found)
    asked = {"attention": AttentionSpec("none"), "top": 0, "lens": False, **more}
    longest = max(map(len, ids))
    batch = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in ids], device=lm.device)
    return sink, read(lm, batch, list(map(len, ids)), cells=cells, sink=sink, **asked)


def everything(lm: LanguageModel) -> list[str]:
    """The places of all vectors that this model has."""
    return [f"{site}@all" if SITES[site].per_layer else site for site in vectors() if layers_with(lm, site)]


def vectors() -> list[str]:
    """The sites that hold a vector at each position."""
    return [name for name, site in SITES.items() if site.at_positions]


def layers_with(lm: LanguageModel, site: str) -> list[int]:
    """The layers that have a site; -1 for one that belongs to none, where it is there."""
    layers = range(lm.anatomy.n_layers) if SITES[site].per_layer else (-1,)
    return [layer for layer in layers if lm.anatomy.has(site, layer)]


def gap(one: Tensor, other: Tensor) -> float:
    """The largest difference; equal infinities (masked entries) differ by nothing, a NaN by more than anything."""
    apart = (one.double() - other.double()).abs().masked_fill(one == other, 0.0)
    return float(apart.nan_to_num(nan=torch.inf).max()) if apart.numel() else 0.0


def relative_gap(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest finite number."""
    return gap(one, other) / max(1e-30, float(other.masked_fill(~other.isfinite(), 0.0).abs().max()))


def capturing_changes_nothing(lm: LanguageModel, ids: list[int]) -> float:
    """Logits of a forward of which everything is recorded, against those of a plain one."""
    sink, _ = captured(lm, [ids], everything(lm), attention=AttentionSpec("summary"))
    return gap(sink.activations["logits", -1, None][0], plain(lm, ids))


def no_hook_is_left(lm: LanguageModel, ids: list[int]) -> float:
    """Hooks on all modules after a read, but those that were there before."""

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())

    before = hooks()
    captured(lm, [ids], everything(lm), attention=AttentionSpec("heads"))
    return float(abs(hooks() - before))


def scores_are_those_of_the_logits(lm: LanguageModel, ids: list[int]) -> float:
    """Log-probabilities of a text against those of plain logits."""
    _, reading = captured(lm, [ids], [])
    return gap(reading.scores[0].logprob[:-1], _logprobs(lm, ids))


def _logprobs(lm: LanguageModel, ids: list[int]) -> Tensor:
    """(pos - 1,), of each token but the first, from plain logits."""
    rows = plain(lm, ids).double().log_softmax(-1)[:-1]
    return rows.gather(1, torch.tensor(ids[1:], device=rows.device)[:, None])[:, 0].cpu()


def company_changes_no_score(lm: LanguageModel, ids: list[int]) -> float:
    """Log-probabilities of a short text, read alone and beside a longer one."""
    short = ids[:SHORT]
    alone, together = captured(lm, [short], [])[1], captured(lm, [ids, short], [])[1]
    return gap(alone.scores[0].logprob[:-1], together.scores[1].logprob[: len(short) - 1])


def writes_add_up(lm: LanguageModel, ids: list[int]) -> float:
    """resid_post of each layer against the sum that its anatomy states, of sites as they are recorded."""
    sink, _ = captured(lm, [ids], everything(lm))
    return stream_error(lm, sink.activations)


def stream_error(lm: LanguageModel, seen: Mapping[tuple[str, int, int | None], Tensor]) -> float:
    """The largest misfit of a layer's equation on recorded sites. Raises `BadModel` where no layer has one."""
    layers = [(i, layer) for i, layer in enumerate(lm.anatomy.layers) if layer.sum]
    if not layers:
        why = lm.anatomy.layers[0].equation if lm.anatomy.layers else lm.anatomy.reason("blocks")
        raise BadModel(f"no writes are added to a stream: {why}")
    return max(
        sum_error(
            lm.model, layer, pre=seen["resid_pre", i, None], post=seen["resid_post", i, None],
            writes=[seen[site, i, None] for site in layer.write_sites],
        )
        for i, layer in layers
    )  # fmt: skip


def the_end_gives_the_logits(lm: LanguageModel, ids: list[int]) -> float:
    """What norm and head, called alone on the last resid_post, make of it, against the logits."""
    if not lm.anatomy.readout_exact:
        raise BadModel(f"no readout was found: {lm.anatomy.reason('final_norm')}")
    last = lm.anatomy.n_layers - 1
    sink, _ = captured(lm, [ids], ["logits", f"resid_post@{last}"])
    logits = sink.activations["logits", -1, None]
    with torch.no_grad():
        replayed = read_out(lm.model, lm.anatomy, sink.activations["resid_post", last, None])
    return relative_gap(replayed, logits)


def attention_is_that_of_its_call(lm: LanguageModel, ids: list[int]) -> float:
    """q, k, v of each layer, and its patterns times its values, against the attention call that the anatomy names."""
    layers = layers_with(lm, "pattern")
    if not layers:
        raise BadModel(f"no attention call is seen: {lm.anatomy.reason('pattern')}")
    calls: dict[tuple[str, int], tuple[AttentionCall, Tensor]] = {}

    def observe(path: str, call: AttentionCall, output: Tensor) -> None:
        calls[path, call.visit] = call, output

    with attending(lm.model, observe):
        plain(lm, ids)
    called = [site for site in sites_of("call") if SITES[site].field]
    sink, _ = captured(lm, [ids], [f"{site}@all" for site in called], attention=AttentionSpec("full"))
    worst = 0.0
    for layer in layers:
        here = lm.anatomy.layers[layer]
        call, output = calls[str(here.attention), here.visit]
        for site in called:
            heads = range(lm.anatomy.n_heads(site, layer))
            found = torch.stack([sink.activations[site, layer, head][0] for head in heads])
            worst = max(worst, relative_gap(found, of_call(call, site)[0]))
        if (0, layer) in sink.attention_pieces:
            worst = max(worst, _gap_of_result(sink, layer, call, output))
    return worst


def _gap_of_result(sink: MemorySink, layer: int, call: AttentionCall, output: Tensor) -> float:
    """Recorded patterns times the call's values, against what the call gave (batch, query, head, d_value); relative."""
    n_heads, n = call.query.shape[1:3]
    pattern = np.stack([sink.pattern(layer, head, n) for head in range(n_heads)])
    values = call.value[0].double().cpu().repeat_interleave(n_heads // call.value.shape[1], dim=0)
    result = torch.einsum("hqk,hkd->qhd", torch.from_numpy(pattern).double(), values)  # q query, k key, h head
    wanted = output[0].double().cpu().reshape(result.shape)
    return relative_gap(result, wanted)


def lens_ends_at_the_model(lm: LanguageModel, ids: list[int]) -> float:
    """Log-probabilities of a text by the lens at the last layer, against those of plain logits."""
    sink, _ = captured(lm, [ids], [], lens=True, top=1)
    found = torch.as_tensor(sink.guesses[lm.anatomy.n_layers - 1]["target_logprob"])[0, :-1]
    return gap(found, _logprobs(lm, ids))
