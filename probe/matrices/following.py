"""Single tokens seen through the heads of a layer: what each attends to in the whole vocabulary, and what that writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from probe.attributing.linear import call
from probe.matrices.heads import HeadMaps
from probe.matrices.vocabulary import Best, Vocabulary, strongest

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


class Followed(NamedTuple):
    """A token in a head's circuits; ids and numbers are the strongest first, none where the circuit is not there."""

    attends: tuple[list[int], list[float]]
    own_score: float
    raises: tuple[list[int], list[float]]
    lowers: tuple[list[int], list[float]]
    own_logit: float


def follow(lm: LanguageModel, words: Vocabulary, maps: HeadMaps, tokens: list[int], top: int) -> list[list[Followed]]:
    """For each head and token: keys of the whole vocabulary that it attends to, and the tokens that attending to it raises and
    lowers. The stream of a token is its embedding; the input norm is the model's own, with its real scale there.

    Holds heads x tokens x a block of the vocabulary."""
    norm = None if maps.norm_path is None else lm.model.get_submodule(maps.norm_path)

    def read(e: Tensor) -> Tensor:
        return e if norm is None else call(norm, e)

    x = read(words.embedded(tokens))
    query = torch.einsum("nd,hed->hne", x, maps.query) + maps.query_bias[:, None]
    key, bias = maps.per_head("key"), maps.per_head("key_bias")
    looked = torch.einsum("hne,hed->hnd", query, key)
    constant = torch.einsum("hne,he->hn", query, bias)
    value = torch.einsum("nd,hed->hne", x, maps.per_head("value")) + maps.per_head("value_bias")[:, None]
    wrote = torch.einsum("hne,hde->hnd", value, maps.out)
    attends, raises, lowers = (Best.none(looked.shape[:2]) for _ in range(3))
    own_score, own_logit = (torch.full(looked.shape[:2], torch.nan) for _ in range(2))
    ids = torch.tensor(tokens)
    for rows in words.blocks():
        score = maps.scaling * (torch.einsum("hnd,vd->hnv", looked, read(words.embedded(rows))) + constant[..., None])
        score = (score if maps.softcap is None else maps.softcap * torch.tanh(score / maps.softcap)).float()
        logit = torch.einsum("hnd,vd->hnv", wrote, words.unembedded(rows)).float()
        attends = strongest(attends, score, rows.start, top, largest=True)
        raises = strongest(raises, logit, rows.start, top, largest=True)
        lowers = strongest(lowers, logit, rows.start, top, largest=False)
        for n in ((ids >= rows.start) & (ids < rows.stop)).nonzero().flatten().tolist():
            own_score[:, n], own_logit[:, n] = score[:, n, tokens[n] - rows.start], logit[:, n, tokens[n] - rows.start]
    if "QK" in maps.absent:
        own_score.fill_(torch.nan)
    if "OV" in maps.absent:
        own_logit.fill_(torch.nan)

    def of(best: Best, own: Tensor, h: int, n: int) -> tuple[list[int], list[float]]:
        return ([], []) if bool(own[h, n].isnan()) else (best.ids[h, n].tolist(), best.values[h, n].tolist())

    return [
        [
            Followed(
                of(attends, own_score, h, n), float(own_score[h, n]), of(raises, own_logit, h, n),
                of(lowers, own_logit, h, n), float(own_logit[h, n]),
            )
            for n in range(len(tokens))
        ]
        for h in range(len(looked))
    ]  # fmt: skip
