"""Many continuations of prefixes that have much in common: what they share is computed once, then they run side by side."""

from __future__ import annotations

import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import chain, groupby, zip_longest
from typing import TYPE_CHECKING

import torch

from probe.decoding.caches import expected, grows, joins, pads, selects, slot
from probe.decoding.continuous import ContinuousBatch, PrefixReader
from probe.decoding.draws import Continuation, OpenBranch
from probe.decoding.engine import Batch, Progress, by_length, check, takes_padding
from probe.decoding.prefixes import Edits, Known, TokenIds, compute, extended
from probe.decoding.rooms import Room
from probe.decoding.shared_prefixes import SharedRoom, shares, sharing
from probe.decoding.teacher_forced import Prefix
from probe.errors import OutOfMemory
from probe.fitting import HALVED, fitting
from probe.language_model.rotary import start_over
from probe.language_model.stepping import cache_support
from probe.requests import Sampling

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

Key = tuple[TokenIds, int]
"""A prefix, and its name if edits make it another one than the same tokens under another name."""

Done = Callable[[int, int, Continuation], None]
BATCH = 64
OF_ONE = 2  # rollouts of a prefix, on average, for which it is shared
STRETCH = 4  # batches that are one stretch of the list: it is run as a whole, or not at all
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
    most = [max_new] * len(prefixes) if isinstance(max_new, int) else list(max_new)
    rows = [
        [OpenBranch(tuple(prefix), sample, i, n, sampling.seed) for sample in samples]
        for i, (prefix, n) in enumerate(zip(prefixes, most, strict=True))
    ]
    total, ended = sum(map(len, rows)), 0

    def end(row: OpenBranch) -> None:
        nonlocal ended
        ended += 1
        if done:
            done(row.name, row.sample, row.found)
        if progress:
            progress("branches", ended, total)

    draw_rows(
        lm, list(chain.from_iterable(rows)), sampling, places=batch, end=end, edits=edits,
        known=None if kept is None else lambda row: kept(row.name, row.sample), stems=() if stem is None else (stem,),
    )  # fmt: skip
    return [[row.found for row in group] for group in rows]


def draw_rows(
    lm: LanguageModel, rows: Sequence[OpenBranch], sampling: Sampling, *, places: int, tokens: int | None = None,
    end: Callable[[OpenBranch], None], known: Callable[[OpenBranch], bool] | None = None, edits: Edits | None = None,
    stems: Sequence[Prefix] = (), share: bool = False,
) -> None:  # fmt: skip
    """Draw rows, up to `places` side by side; those that are one branch are drawn once. As `branch` says, for rows each with
    a seed of its own.

    tokens: the most that a batch may hold (rows times the longest), where rows come and go. share: rows may share prefixes.
    end(row) is called as each ends. known(row): it has ended before. If memory does not suffice, half as many run side by side,
    and those that had not ended begin anew. Raises `OutOfMemory` for one that does not fit alone.
    """
    check(lm)
    twins: dict[tuple[Key, int, int, int], list[OpenBranch]] = defaultdict(list)  # rows that are one branch
    for row in rows:
        twins[_branch_of(row, edits)].append(row)

    def ends(row: OpenBranch) -> None:
        for twin in twins[_branch_of(row, edits)]:
            twin.found = row.found
            end(twin)

    def is_known(row: OpenBranch) -> bool:
        return known is not None and all(known(twin) for twin in twins[_branch_of(row, edits)])

    waiting = [members[0] for members in twins.values()]
    for row in waiting:
        row.found.stop_reason = row.over(lm.context_length)
        if not row.running:
            ends(row)
    waiting = sorted((row for row in waiting if row.running), key=lambda row: (row.prefix, row.name))
    before = None if edits is None else (edits.rows, edits.start)
    longest = max((len(row.prefix) + row.most for row in waiting), default=0)
    try:
        while True:
            try:
                with fitting(f"a continuation to {longest:,} tokens", hint="a smaller --max-new, or --dtype bfloat16"):
                    if edits is None and refills(lm):
                        _refilled(lm, waiting, sampling, places, tokens, ends, is_known, stems, share)
                    else:
                        _run(lm, waiting, sampling, places, ends, edits, is_known)
                break
            except OutOfMemory:
                if places == 1:
                    raise
                warnings.warn(HALVED, stacklevel=2)
                places, tokens = places // 2, None if tokens is None else max(1, tokens // 2)
                waiting = [row for row in waiting if row.running]
                for row in waiting:  # from its prefix on: its noise has an address, so it draws the same again
                    row.found = Continuation()
    finally:
        if edits is not None and before is not None:
            edits.rows, edits.start = before


def refills(lm: LanguageModel) -> bool:
    """Whether rows of a batch may come and go: padding is out of sight, and all that is cached is keys and values."""
    return takes_padding(lm) and cache_support(lm).cached and bool(slot(lm.model)) and pads(expected(lm.model.config))


@torch.inference_mode()
def _refilled(
    lm: LanguageModel, waiting: Sequence[OpenBranch], sampling: Sampling, places: int, tokens: int | None,
    end: Callable[[OpenBranch], None], known: Callable[[OpenBranch], bool], stems: Sequence[Prefix], share: bool,
) -> None:  # fmt: skip
    """Rows stretch by stretch, each a batch that is refilled; a stretch of which all is known is left out."""
    start_over(lm.model)
    stretches = [waiting[start : start + STRETCH * places] for start in range(0, len(waiting), STRETCH * places)]
    to_run = [some for some in stretches if not all(map(known, some))]
    if not to_run:
        return
    prefixes, wanted = sorted({row.prefix for row in waiting}), {row.prefix for some in to_run for row in some}
    reader = PrefixReader(lm, _computed(lm, prefixes, wanted, stems))
    share = share and len(waiting) >= OF_ONE * len(prefixes) and shares(lm)
    for some, following in zip_longest(to_run, to_run[1:]):
        room = (SharedRoom if share else Room)(min(places, len(some)), tokens or sys.maxsize)
        with sharing(lm, room) if isinstance(room, SharedRoom) else nullcontext():
            batch = ContinuousBatch(lm, reader, sampling, room, end=end)
            batch.run(some, later=following[0].prefix if following else None)


def _computed(
    lm: LanguageModel, prefixes: Sequence[TokenIds], wanted: Collection[TokenIds], stems: Sequence[Prefix]
) -> Iterator[tuple[TokenIds, Known]]:
    """Prefixes (sorted) in turn, those that begin with a stem from where it ends."""
    known = {tuple(stem.ids): stem.known for stem in stems}

    def stem_of(prefix: TokenIds) -> TokenIds:
        return max((ids for ids in known if prefix[: len(ids)] == ids), key=len, default=())

    for ids, group in groupby(prefixes, key=stem_of):
        given = known.get(ids)
        yield from compute(lm, list(group), None if given is None else (ids, given), wanted)


@torch.inference_mode()
def _run(
    lm: LanguageModel, waiting: list[OpenBranch], sampling: Sampling, batch: int, end: Callable[[OpenBranch], None],
    edits: Edits | None, known: Callable[[OpenBranch], bool],
) -> None:  # fmt: skip
    """Rows in batches that stay as they are until all have ended."""
    max_new, shares = max((row.most for row in waiting), default=0), edits is None and grows(expected(lm.model.config))
    batches = [waiting[start : start + batch] for start in range(0, len(waiting), batch)]
    if edits is None and not shares:
        # edits at work that aren't told where a forward begins take a recurrent state to go on where the last one ended
        batches = [own for some in batches for own in by_length(lm, some)]
    for some in batches:
        if all(map(known, some)):
            continue
        prefixes = _shared(lm, some, shares) if edits is None else _edited(lm, some, edits)
        for bunch in _bunches(lm, some, prefixes):
            together = Batch(lm, bunch, sampling, edits=edits, done=end)
            repeats = Counter(_key(row, prefixes) for row in bunch)
            if all(key in prefixes and selects(prefixes[key].cache) for key in repeats):
                together.start_from([prefixes.pop(key) for key in repeats], list(repeats.values()))
            together.run(max_new)


def _shared(lm: LanguageModel, rows: Sequence[OpenBranch], shares: bool) -> dict[Key, Known]:
    """What the model knows after every prefix; only the first one where its cache can't be repeated and so is of no use."""
    found: dict[Key, Known] = {}
    prefixes = sorted({row.prefix for row in rows})
    each = compute(lm, prefixes) if shares else ((own, extended(lm, None, own, 0)) for own in prefixes)
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


def _branch_of(row: OpenBranch, edits: Edits | None) -> tuple[Key, int, int, int]:
    """What makes a branch another one: its prefix, the address of its noise, the tokens it may have, and its name where
    edits are for single rows."""
    return (row.prefix, SAME if edits is None else row.name), row.seed, row.sample, row.most


def _key(row: OpenBranch, known: Mapping[Key, Known]) -> Key:
    return (row.prefix, row.name) if (row.prefix, row.name) in known else (row.prefix, SAME)


def _bunches(lm: LanguageModel, rows: Sequence[OpenBranch], known: Mapping[Key, Known]) -> list[list[OpenBranch]]:
    """Rows (sorted by prefix) that can run side by side."""
    cache = next(iter(known.values())).cache
    if takes_padding(lm) and pads(cache):
        return [list(rows)]
    if joins(cache) or not selects(cache):
        return by_length(lm, rows)
    return [list(group) for _, group in groupby(rows, key=lambda row: _key(row, known))]
