"""The laws of the instrument on one model: each is a number that should be zero, and how large it may be. Prints nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from probe.capturing import AttentionSpec, MemorySink, read
from probe.decoding import Sampling, decode
from probe.decoding.forced import Prefix, forced
from probe.errors import BadModel, ProbeError
from probe.sites import parse_places, resolve
from probe.speculating.drafts import make_draft
from probe.speculating.rounds import speculate_ids

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

TEXT = "The quick brown fox jumps over the lazy dog. Then it rests in the shade, and the dog wakes up at last."
SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out")
NEW, ROLLOUTS, SEED = 12, 6, 3


class Law(NamedTuple):
    """A law and what it came to. `value` is the largest deviation and `unit` what it counts; it holds up to `tolerance`.

    `skipped` says why the law does not apply to this model; then there is no value.
    """

    name: str
    value: float | None
    tolerance: float
    unit: str
    skipped: str = ""

    @property
    def holds(self) -> bool:
        """Whether it applies and the value is a number within the tolerance."""
        return self.value is not None and self.value <= self.tolerance


def laws(lm: LanguageModel, progress: Callable[[str, int, int], None] | None = None) -> Iterator[Law]:
    """Try every law on a short text, one after the other; a law that a model cannot be put to is yielded as skipped.

    Tolerances are for float32 and scale with the model's own dtype.
    """
    ids = list(lm.encode(TEXT).ids)
    loose = max(1.0, float(torch.finfo(lm.dtype).eps / torch.finfo(torch.float32).eps)) ** 0.5
    for i, (name, law, tolerance, unit) in enumerate(_LAWS):
        try:
            yield Law(name, law(lm, ids), tolerance * loose, unit)
        except ProbeError as error:
            yield Law(name, None, tolerance * loose, unit, error.message)
        if progress:
            progress("laws", i + 1, len(_LAWS))


@torch.inference_mode()
def _plain(lm: LanguageModel, ids: list[int]) -> Tensor:
    """Logits (pos, d_vocab) of an uninstrumented forward."""
    return lm.model(torch.tensor([ids], device=lm.device), return_dict=True).logits[0]


def _captured(lm: LanguageModel, ids: list[int], places: list[str], **more: Any) -> tuple[MemorySink, Any]:
    found = [place for text in places for place in parse_places(text)]
    anatomy, sink = lm.anatomy, MemorySink()
    cells = resolve(found, n_layers=anatomy.n_layers, n_heads=anatomy.n_heads, has=anatomy.has)
    asked = {"attention": AttentionSpec("none"), "top": 0, "lens": False, **more}
    return sink, read(lm, torch.tensor([ids], device=lm.device), [len(ids)], cells=cells, sink=sink, **asked)


def _capture_changes_nothing(lm: LanguageModel, ids: list[int]) -> float:
    there = [site for site in SITES if any(lm.anatomy.has(site, layer) for layer in range(lm.anatomy.n_layers))]
    sink, _ = _captured(lm, ids, ["logits", *(f"{site}@all" for site in there)], attention=AttentionSpec("summary"))
    return float((sink.activations["logits", -1, None][0].float() - _plain(lm, ids).float()).abs().max())


def _scores_are_those_of_the_logits(lm: LanguageModel, ids: list[int]) -> float:
    _, reading = _captured(lm, ids, [])
    rows = _plain(lm, ids).double().log_softmax(-1)[:-1]
    expected = rows.gather(1, torch.tensor(ids[1:], device=rows.device)[:, None])[:, 0].cpu()
    return float((reading.scores[0].logprob[:-1].double() - expected).abs().max())


def _stream_is_a_sum(lm: LanguageModel, ids: list[int]) -> float:
    if not lm.anatomy.n_layers:
        raise BadModel(f"no blocks were found: {lm.anatomy.reason('blocks')}")
    return max(lm.anatomy.residual_error, lm.anatomy.readout_error)


def _lens_ends_at_the_model(lm: LanguageModel, ids: list[int]) -> float:
    sink, _ = _captured(lm, ids, [], lens=True, top=1)
    return float(np.abs(sink.guesses[lm.anatomy.n_layers - 1]["kl_to_final"]).max())


def _decoding_is_reading(lm: LanguageModel, ids: list[int]) -> float:
    (one,) = decode(lm, [ids], max_new=NEW, sampling=Sampling())
    return _short_of_the_largest(lm, ids, one.ids)


def _speculating_is_reading(lm: LanguageModel, ids: list[int]) -> float:
    draft = make_draft(lm, f"layers:{max(1, lm.anatomy.n_layers // 2)}")
    return _short_of_the_largest(lm, ids, speculate_ids(lm, draft, ids, max_new=NEW, sampling=Sampling()).found.ids)


def _short_of_the_largest(lm: LanguageModel, ids: list[int], chosen: list[int]) -> float:
    """By how much the logits of chosen tokens, in one plain forward, fall short of the largest ones."""
    logits = _plain(lm, [*ids, *chosen])[len(ids) - 1 : -1].float()
    own = logits.gather(1, torch.tensor(chosen, device=logits.device)[:, None])[:, 0]
    return float((logits.max(-1).values - own).max())


def _rollouts(lm: LanguageModel, ids: list[int], samples: list[int]) -> list[list[int]]:
    warm = Sampling(temperature=1.0, seed=SEED)
    return [one.ids for one in decode(lm, [ids] * len(samples), max_new=NEW, sampling=warm, samples=samples)]


def _company_changes_nothing(lm: LanguageModel, ids: list[int]) -> float:
    together = _rollouts(lm, ids, list(range(ROLLOUTS)))
    backwards = _rollouts(lm, ids, list(range(ROLLOUTS))[::-1])[::-1]
    alone = [_rollouts(lm, ids, [sample])[0] for sample in range(ROLLOUTS)]
    return float(sum(a != b or a != c for a, b, c in zip(together, backwards, alone, strict=True)))


def _a_prefix_is_computed_once(lm: LanguageModel, ids: list[int]) -> float:
    half = len(ids) // 2
    own = forced(lm, ids[:half], [ids[half:], ids[half : half + 3]])
    rows = _plain(lm, ids).double().log_softmax(-1)[half - 1 : -1]
    expected = rows.gather(1, torch.tensor(ids[half:], device=rows.device)[:, None])[:, 0].cpu().numpy()
    return float(max(np.abs(own[0] - expected).max(), np.abs(own[1] - expected[:3]).max()))


def _suppression_is_deletion(lm: LanguageModel, ids: list[int]) -> float:
    start, end = len(ids) // 3, len(ids) // 2
    found = Prefix(lm, ids[:start]).leap(ids[end:], end - start)
    positions = torch.tensor([[*range(start), *range(end, len(ids))]], device=lm.device)
    with torch.inference_mode():
        gone = lm.model(torch.tensor([ids[:start] + ids[end:]], device=lm.device), position_ids=positions).logits[
            0, start:
        ]
    return float((found.float() - gone.float()).abs().max())


def _a_patch_with_itself(lm: LanguageModel, ids: list[int]) -> float:
    from probe.interventions import Patch, applying, cells

    place = f"resid_post@{lm.anatomy.n_layers // 2}"
    (cell,) = cells(lm, place)
    sink, _ = _captured(lm, ids, [place])
    own = Patch(cell, sink.activations["resid_post", cell.layer, None][0].clone())
    with torch.inference_mode(), applying(lm, [own], ids=ids):
        same = lm.model(torch.tensor([ids], device=lm.device)).logits[0]
    return float((same.float() - _plain(lm, ids).float()).abs().max())


def _no_hook_is_left(lm: LanguageModel, ids: list[int]) -> float:
    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())

    before = copy.copy(hooks())
    _captured(lm, ids, ["resid_post@all"] if lm.anatomy.n_layers else [], attention=AttentionSpec("heads"))
    return float(abs(hooks() - before))


_LAWS: tuple[tuple[str, Callable[[LanguageModel, list[int]], float], float, str], ...] = (
    ("capturing changes nothing", _capture_changes_nothing, 0.0, "logits"),
    ("no hook is left behind", _no_hook_is_left, 0.0, "hooks"),
    ("scores are those of the logits", _scores_are_those_of_the_logits, 1e-4, "nats"),
    ("the stream is a sum, and its end gives the logits", _stream_is_a_sum, 1e-4, "relative"),
    ("the last layer's guess is the model's", _lens_ends_at_the_model, 1e-5, "nats"),
    ("greedy decoding is what reading says", _decoding_is_reading, 1e-3, "logits"),
    ("greedy speculation is what reading says", _speculating_is_reading, 1e-3, "logits"),
    ("a rollout is the same alone, in a batch, in another order", _company_changes_nothing, 0.0, "rollouts"),
    ("a shared prefix is the whole text's", _a_prefix_is_computed_once, 1e-4, "nats"),
    ("suppressing a span is deleting it with its positions kept", _suppression_is_deletion, 1e-4, "logits"),
    ("a patch of a run with itself changes nothing", _a_patch_with_itself, 0.0, "logits"),
)
