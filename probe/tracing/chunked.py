"""A long text read in chunks of positions, with the model's own cache of what came before: one forward each, and what each saw
goes to the sink before the next. Knows no file and no table."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from probe.anatomy.sums import apart, loudest
from probe.anatomy.tape import probe_tokens
from probe.capturing.reading import NOTHING, OneForward, Reading, Seen, TextChunk, read_out
from probe.capturing.sinks import AttentionSpec, Sink
from probe.decoding.caches import grows, held, make_room, slot
from probe.errors import NonFinite
from probe.language_model.stepping import FAILURES, cache_support, positions
from probe.scoring import Scores

if TYPE_CHECKING:
    from probe.language_model import LanguageModel
    from probe.sites import Cell

_reasons: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


class ChunkSink(Sink, Protocol):
    """A sink of one text that takes what is found in pieces: of positions, queries and rows from the one told on."""

    def at(self, first: int) -> None:
        """What comes next begins at this position."""


def why_not_chunked(lm: LanguageModel, n: int, *, patterns: bool) -> str:
    """Why a text of n tokens cannot be read in chunks; empty if it can. patterns: whether anything of them is asked for.

    Tried on a few tokens, once a model: the first time it is to be asked while no edit is at work.
    """
    if patterns and not lm.anatomy.calls:
        return "its patterns are the weights that it returns, of a whole forward"
    if lm.sets_frequencies(n):
        return "its rotary frequencies change with the length of what is read"
    if lm.model not in _reasons:
        with torch.inference_mode(False), torch.no_grad():
            _reasons[lm.model] = _tried(lm)
    return _reasons[lm.model]


def _tried(lm: LanguageModel) -> str:
    support, ids = cache_support(lm), probe_tokens(lm.model)
    if not support.cached or slot(lm.model) is None:
        return "its forward does not go on from a cache"
    middle = ids.shape[1] // 2
    whole = lm.model(ids, use_cache=False).logits.float()
    try:
        first = lm.model(ids[:, :middle], **_given(lm, ids, 0, middle, None))
        if not grows(held(first)):
            return "its cache is not keys and values alone"
        second = lm.model(ids[:, middle:], **_given(lm, ids, middle, ids.shape[1], held(first)))
    except FAILURES as error:
        return f"several tokens after a cache are an error of its own ({type(error).__name__})"
    gap = apart(torch.cat([first.logits, second.logits], dim=1).float(), whole).max()
    most = max(1e-3, 8 * torch.finfo(lm.dtype).eps) * loudest(whole)
    return "" if bool(gap <= most) else "several tokens after its cache get other numbers than in one forward"


def _given(lm: LanguageModel, ids: Tensor, start: int, end: int, cache: Any) -> dict[str, Any]:
    """What a forward of positions [start, end) of ids (1, pos) is given beside them."""
    support, name = cache_support(lm), slot(lm.model)
    assert name is not None, "a model that takes no cache is not read in chunks"
    given = {"use_cache": True} | ({} if cache is None else {name: cache})
    return given | ({"position_ids": positions(ids, support.origin)[:, start:end]} if support.needs_positions else {})


def read_chunked(
    lm: LanguageModel, ids: Tensor, *, chunk: int, sink: ChunkSink, cells: Sequence[Cell] = (),
    attention: AttentionSpec = NOTHING, top: int = 5, lens: bool = False, readout: bool = False,
    sets: Sequence[Mapping[str, Sequence[int]]] = (),
) -> Reading:  # fmt: skip
    """As `reading.read`, of one text ids (1, pos), `chunk` positions a forward: equal to it within fp32 rounding.

    At a time are held the model's cache, what one forward makes, and the scores. readout: hold what `Reading.logits` reads out,
    too; without it that cannot be asked for. Raises likewise.
    """
    ids, sums = ids.to(lm.device), dict[tuple[int, int], Any]()
    n, found, told = ids.shape[1], list[_Chunk](), dict[str, None]()
    cache, whole = None, False
    with torch.inference_mode(False), torch.no_grad():
        for start in range(0, n, chunk):
            end = min(start + chunk, n)
            following = int(ids[0, end]) if end < n else -1
            part = TextChunk(ids[:, :end], start, following, _given(lm, ids, start, end, cache), sums, end == n)
            sink.at(start)
            one = OneForward(lm.model, lm.anatomy, ids[:, start:end], [end - start], sink, cells, attention, part=part)
            try:
                seen = one.run(top, lens=lens, whole=whole, sets=sets)
            except NonFinite as error:
                message = f"of the forward over positions {start}..{end - 1}, {error.message}"
                raise NonFinite(message, hint=error.hint) from error
            if cache is None:
                make_room(held(seen.output))  # or every chunk would copy all keys and values
            cache, whole = held(seen.output), whole or seen.unembed is None
            told |= dict.fromkeys(one.attention.messages())
            found.append(_Chunk(start, seen.scores[0], seen._replace(output=None) if readout else None))
            del one, seen  # the next forward would find their logits still there
    scores = Scores(*(torch.cat(columns) for columns in zip(*(one.scores for one in found), strict=True)))
    return Reading([scores], tuple(told), partial(_read_out, found))


class _Chunk(NamedTuple):
    """What a chunk left."""

    first: int
    scores: Scores
    seen: Seen | None


def _read_out(chunks: Sequence[_Chunk], prompt: int, rows: Any) -> Tensor:
    """Logits after some positions, of whichever chunks they are in."""
    n = len(chunks[-1].scores.logprob) + chunks[-1].first
    wanted = torch.arange(n)[rows]
    parts = []
    for one in chunks:
        own = wanted[(wanted >= one.first) & (wanted < one.first + len(one.scores.logprob))]
        if len(own):
            assert one.seen is not None, "a read without readout= holds nothing to be read out"
            parts.append(read_out(one.seen.states, one.seen.unembed, prompt, own - one.first).clone())
    return torch.cat(parts)
