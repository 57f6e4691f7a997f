"""Continuous batching: rollouts of any prefixes side by side, and the place of one that has ended is refilled at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probe.decoding.draws import OpenBranch, TokenDraws
from probe.decoding.prefixes import Known, TokenIds, extended
from probe.decoding.rooms import Room, next_logits
from probe.decoding.shared_prefixes import SharedRoom
from probe.devices import uploaded
from probe.requests import Sampling

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


class PrefixReader:
    """Prefixes in their order, each with what the model knows after it, read when it is asked for; only one is held."""

    def __init__(self, lm: LanguageModel, computed: Iterator[tuple[TokenIds, Known]]) -> None:
        self.lm, self._computed = lm, computed
        self._prefix: TokenIds | None = None
        self._known: Known | None = None

    def read(self, row: OpenBranch) -> Known:
        """What the model knows after the prefix of a row, and after what has been drawn if it has been in the way before."""
        if row.found.ids:
            return extended(self.lm, None, (*row.prefix, *row.found.ids), 0)
        while self._prefix != row.prefix:
            self._known = None
            self._prefix, self._known = next(self._computed)
        assert self._known is not None
        return self._known

    def forget(self, prefix: TokenIds) -> None:
        """All rollouts of this prefix have their places: nothing of it is needed any more."""
        if self._prefix == prefix:
            self._known = None


class ContinuousBatch:
    """Rollouts that run (one a row of the room), and those that wait for a place."""

    def __init__(
        self, lm: LanguageModel, prefixes: PrefixReader, sampling: Sampling, room: Room | SharedRoom, *,
        end: Callable[[OpenBranch], None],
    ) -> None:  # fmt: skip
        self.lm, self.prefixes, self.sampling, self.end = lm, prefixes, sampling, end
        self.room = room
        self.rows: list[OpenBranch] = []  # in the order of the room's rows
        self.came: list[int] = []  # when each came
        self._arrivals = self._ended = self._drawn = 0  # rows that came and that ended, and tokens
        self._slot = ""

    @torch.inference_mode()
    def run(self, waiting: Sequence[OpenBranch], later: TokenIds | None = None) -> None:
        """Decode until every row has ended; rows wait in the order of their prefixes. later: a prefix that is needed again."""
        queue = deque(waiting)
        while True:
            self._fill(queue, later)
            if not self.rows:
                return
            while self.room.full:
                self._send_back(queue)
            self._leave(self._advance())

    def _fill(self, queue: deque[OpenBranch], later: TokenIds | None) -> None:
        """Rows that wait get places, as long as there may be more."""
        while queue:
            some = self._next_ones(queue, len(self.rows))
            if not some:
                break
            for _ in some:
                queue.popleft()
            known = self.prefixes.read(some[0])
            draws = TokenDraws(self.lm, some, self.sampling, steps=1)
            draws.draw(known.logits.expand(len(some), -1), self._texts(some))
            self._look(draws)
            running = [row for row in some if row.running]
            if running:
                self._place(running, known)
            del known
            fresh = next((row.prefix for row in queue if not row.found.ids), later)
            if fresh != some[0].prefix:
                self.prefixes.forget(some[0].prefix)

    def _next_ones(self, queue: deque[OpenBranch], n: int) -> list[OpenBranch]:
        """The first that wait, of one prefix, as many as there is room for beside n others."""
        first, drawn = queue[0], self._expected(queue[0])
        length = len(first.prefix) + len(first.found.ids)
        if first.found.ids:
            return [first] if self.room.fits(n + 1, length, drawn) else []
        alike = takewhile(lambda row: row.prefix == first.prefix and not row.found.ids, queue)
        return [row for i, row in enumerate(alike, n + 1) if self.room.fits(i, length, drawn)]

    def _expected(self, row: OpenBranch) -> int:
        """How many tokens a row will draw, as far as the others tell: all that were drawn over those that have ended."""
        return min(row.most, self._drawn // self._ended) if self._ended else row.most

    def _place(self, rows: Sequence[OpenBranch], known: Known) -> None:
        self._slot = known.slot
        places = range(len(self.rows), len(self.rows) + len(rows))
        self.room.place(places, known.cache, len(rows[0].prefix) + len(rows[0].found.ids) - 1)
        self.rows += rows
        self.came += range(self._arrivals, self._arrivals + len(rows))
        self._arrivals += len(rows)

    def _leave(self, places: Sequence[int]) -> None:
        if places:
            kept = self.room.drop(places)
            self.rows, self.came = [self.rows[i] for i in kept], [self.came[i] for i in kept]

    def _send_back(self, queue: deque[OpenBranch]) -> None:
        """The row that came last gives up its place and waits: what it has drawn will be read again with its prefix."""
        place = max(range(len(self.rows)), key=lambda i: self.came[i])
        queue.appendleft(self.rows[place])
        self._leave([place])

    def _advance(self) -> list[int]:
        """Some tokens of every row, as many as are looked at together; the places of those that have ended."""
        draws, texts = TokenDraws(self.lm, self.rows, self.sampling), self._texts(self.rows)
        last, lengths = uploaded([[row.found.ids[-1] for row in self.rows], self.room.lengths], self.lm.device)[..., None]
        for i in range(draws.steps):
            if i and self.room.full:
                break
            last = draws.draw(next_logits(self.lm, self.room, self._slot, last, lengths + i), texts)
            texts = None if texts is None else torch.cat([texts, last], dim=1)
        self._look(draws)
        return [i for i, row in enumerate(self.rows) if not row.running]

    def _look(self, draws: TokenDraws) -> None:
        """The rows take their tokens; those that end by them are told of."""
        before = sum(len(row.found.ids) for row in draws.rows)
        draws.look()
        self._drawn += sum(len(row.found.ids) for row in draws.rows) - before
        for row in draws.rows:
            if not row.running:
                self._ended += 1
                self.end(row)

    def _texts(self, rows: Sequence[OpenBranch]) -> Tensor | None:
        """Ids (row, pos) that the repetition penalty looks at, padded with a row's own first token: it sees nothing else."""
        if self.sampling.repetition_penalty == 1.0:
            return None
        texts = [(*row.prefix, *row.found.ids) for row in rows]
        longest = max(map(len, texts))
        return torch.tensor([(text[:1] * (longest - len(text))) + text for text in texts], device=self.lm.device)
