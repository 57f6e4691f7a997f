"""Many continuations of prefixes that have much in common: what they share is computed once, then they run side by side."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, groupby
from typing import TYPE_CHECKING

import torch

from probe.decoding.caches import expected, grows, joins, pads, selects
from probe.decoding.engine import Batch, Continuation, OpenBranch, Progress, by_length, check, takes_padding
from probe.decoding.prefixes import Edits, Known, TokenIds, common, compute, extended
from probe.decoding.teacher_forced import Prefix
from probe.requests import Sampling

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

Key = tuple[TokenIds, int]
"""A prefix, and its name if edits make it another one than the same tokens under another name."""

Done = Callable[[int, int, Continuation], None]
Base = tuple[TokenIds, Known]
BATCH = 64
SAME = -1  # in place of a name


def branch(
    lm: LanguageModel, prefixes: Sequence[Sequence[int]], samples: Sequence[int], *,
    max_new: int | Sequence[int], sampling: Sampling,
    batch: int = BATCH, progress: Progress | None = None, done: Done | None = None, edits: Edits | None = None,
    kept: Callable[[int, int], bool] | None = None, stem: Prefix | None = None,
) -> list[list[Continuation]]:  # fmt: skip
    """Continue every prefix (token ids) once for every sample by at most `max_new` tokens (one number, or each prefix's own):
    result[prefix][sample's place].

    Noise is keyed by (seed, sample, steps since the prefix, token id): branches of two prefixes with one sample share it, and
    a branch is the same alone, in a batch of any size and in any order (in fp32).
    Equal prefixes with one sample are one branch, drawn once: they differ nowhere, on any processor and in any precision.
    What prefixes have in common is run once and each prefix once, alone; its branches share its keys and values until their
    first token. Up to `batch` branches run side by side: of any lengths where all that is cached is keys and values and
    a mask can hide padding, else of one length, or of one prefix; if a cache can't be repeated, prefixes are run anew for each.
    done(prefix's place, sample, continuation) is called as each ends, so that it can be kept: in no promised order.
    kept(prefix's place, sample): which branches are known from before. A batch of only such is not run; else it is run as a
    whole, so that the others have the numbers, to the last digit, that they would have had.
    edits: what `applying` gave, if its edits are for single rows (named by the place of their prefix): then nothing is
    shared between prefixes. Edits of all rows need not be given.
    stem: a beginning of all prefixes that the model has read already: it is not read again, and stays as it is.
    Raises `NonFinite`, and `BadModel` for a model that cannot generate.
    """
    check(lm)
    ragged = takes_padding(lm)
    most = [max_new] * len(prefixes) if isinstance(max_new, int) else list(max_new)
    rows = [[OpenBranch(tuple(p), s, i, m) for s in samples] for i, (p, m) in enumerate(zip(prefixes, most, strict=True))]
    total, ended = sum(map(len, rows)), 0
    twins: dict[tuple[Key, int, int], list[OpenBranch]] = defaultdict(list)  # rows that are one branch
    for row in chain.from_iterable(rows):
        twins[_branch_of(row, edits)].append(row)

    def end(row: OpenBranch) -> None:
        nonlocal ended
        for twin in twins[_branch_of(row, edits)]:
            twin.found = row.found
            ended += 1
            if done:
                done(twin.name, twin.sample, twin.found)
            if progress:
                progress("branches", ended, total)

    def known(row: OpenBranch) -> bool:
        return kept is not None and all(kept(twin.name, twin.sample) for twin in twins[_branch_of(row, edits)])

    room = lm.context_length
    waiting = [members[0] for members in twins.values()]
    for row in waiting:
        if row.most < 1 or (room is not None and len(row.prefix) >= room):
            row.found.stop_reason = "context" if row.most >= 1 else "length"
            end(row)
    waiting = sorted((row for row in waiting if row.running), key=lambda row: (row.prefix, row.name))
    before = None if edits is None else (edits.rows, edits.start)
    try:
        _run(lm, waiting, max(most, default=0), sampling, batch, end, edits, ragged, known, stem)
    finally:
        if edits is not None and before is not None:
            edits.rows, edits.start = before
    return [[row.found for row in group] for group in rows]


@torch.inference_mode()
def _run(
    lm: LanguageModel, waiting: list[OpenBranch], max_new: int, sampling: Sampling, batch: int,
    end: Callable[[OpenBranch], None], edits: Edits | None, ragged: bool, known: Callable[[OpenBranch], bool],
    stem: Prefix | None,
) -> None:  # fmt: skip
    """Rows in batches; a beginning that all have in common is kept from one to the next."""
    if all(map(known, waiting)):
        return
    shares = edits is None and grows(expected(lm.model.config))
    base = _given(waiting, stem) if shares and stem is not None else None
    if base is None and shares and len(waiting) > batch:
        base = _base(lm, waiting)
    batches = [waiting[start : start + batch] for start in range(0, len(waiting), batch)]
    if edits is None and not shares:
        # edits at work that aren't told where a forward begins take a recurrent state to go on where the last one ended
        batches = [own for some in batches for own in by_length(lm, some)]
    for some in batches:
        if all(map(known, some)):
            continue
        prefixes = _shared(lm, some, base, shares) if edits is None else _edited(lm, some, edits)
        for bunch in _bunches(lm, some, prefixes, ragged):
            together = Batch(lm, bunch, sampling, edits=edits, done=end)
            repeats = Counter(_key(row, prefixes) for row in bunch)
            if all(key in prefixes and selects(prefixes[key].cache) for key in repeats):
                together.start_from([prefixes.pop(key) for key in repeats], list(repeats.values()))
            together.run(max_new)


def _given(waiting: Sequence[OpenBranch], stem: Prefix) -> Base | None:
    """What the model knows after the stem, if all go on from there."""
    ids = tuple(stem.ids)
    if stem.known is None or any(row.prefix[: len(ids)] != ids for row in waiting):
        return None
    return ids, stem.known


def _base(lm: LanguageModel, waiting: Sequence[OpenBranch]) -> Base | None:
    """What the model knows after the beginning that all have in common, if it can go on from there."""
    stem = common([row.prefix for row in waiting])
    known = extended(lm, None, stem, 0) if stem else None
    return (stem, known) if known is not None and grows(known.cache) else None


def _shared(lm: LanguageModel, rows: Sequence[OpenBranch], base: Base | None, shares: bool) -> dict[Key, Known]:
    """What the model knows after every prefix; only the first one where its cache can't be repeated and so is of no use."""
    found: dict[Key, Known] = {}
    prefixes = sorted({row.prefix for row in rows})
    each = compute(lm, prefixes, base) if shares else ((own, extended(lm, None, own, 0)) for own in prefixes)
    for prefix, known in each:
        found[prefix, SAME] = known
        if not selects(known.cache):
            break
    return found


def _edited(lm: LanguageModel, rows: Sequence[OpenBranch], edits: Edits) -> dict[Key, Known]:
    """The same for each prefix by itself, with the edits that are for it."""
    found: dict[Key, Known] = {}
    for key in dict.fromkeys((row.prefix, row.name) for row in rows):
        edits.rows, edits.start = [key[1]], 0
        found[key] = extended(lm, None, key[0], 0)
    return found


def _branch_of(row: OpenBranch, edits: Edits | None) -> tuple[Key, int, int]:
    """What makes a branch another one: its prefix, the address of its noise, the tokens it may have, and its name where
    edits are for single rows."""
    return (row.prefix, SAME if edits is None else row.name), row.sample, row.most


def _key(row: OpenBranch, known: Mapping[Key, Known]) -> Key:
    return (row.prefix, row.name) if (row.prefix, row.name) in known else (row.prefix, SAME)


def _bunches(lm: LanguageModel, rows: Sequence[OpenBranch], known: Mapping[Key, Known], ragged: bool) -> list[list[OpenBranch]]:
    """Rows (sorted by prefix) that can run side by side."""
    cache = next(iter(known.values())).cache
    if ragged and pads(cache):
        return [list(rows)]
    if joins(cache) or not selects(cache):
        return by_length(lm, rows)
    return [list(group) for _, group in groupby(rows, key=lambda row: _key(row, known))]
