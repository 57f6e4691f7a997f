"""Path patching of pairs of texts: what is sent from where to where, and the rows of it. Knows no hook."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from probe.patching.grid import Slice
from probe.patching.memory import rows_at_once
from probe.patching.metrics import Readout, read_out
from probe.patching.paths import Paths
from probe.patching.preparing import Plan
from probe.patching.routes import End, Send, reaches
from probe.patching.swaps import Swap
from probe.patching.sweep import Measured, Scene

if TYPE_CHECKING:
    from torch import Tensor


class Sender:
    """Sends along the paths of one pair."""

    def __init__(self, view: Scene, plan: Plan) -> None:
        n = len(view.base)
        self._view = view
        self._paths = Paths(view.base, rows_at_once=rows_at_once(view.base.lm, new=n, n=n, budget=plan.memory))

    def measure(self, send: Send, new: Tensor, report: Callable[[int], None]) -> list[tuple[str, Slice, Measured]]:
        """(receiver as text, senders, metrics) for each receiver. new (pos, [head,] d): what senders take.

        A path whose receiver can't see its sender is the base: it is not run.
        """
        lm, last = self._view.base.lm, len(self._view.base) - 1
        run = [i for i, (sender, receiver) in enumerate(send.paths) if reaches(lm, sender, receiver, last=last)]
        columns = [np.repeat(column, len(send.paths)) for column in self._view.start]
        done = len(send.paths) - len(run)
        report(done)
        for numbers, logits in self._paths.send([send.paths[i] for i in run], lambda site, layer: new):
            readout, cells = read_out(logits, self._view.pair.target, self._view.clean), [run[i] for i in numbers]
            for column, values in zip(columns, readout, strict=True):
                column[cells] = values
            done += len(cells)
            report(done)
        by_receiver: dict[End, list[int]] = {}
        for i, (_, receiver) in enumerate(send.paths):
            by_receiver.setdefault(receiver, []).append(i)
        found = []
        for receiver, some in by_receiver.items():
            measured = Measured(Readout(*(column[some] for column in columns)), np.isin(some, run))
            found.append((self._named(receiver), _slice(send, some), measured))
        return found

    def _named(self, receiver: End) -> str:
        """As it would be written; positions only where they are not all."""
        if receiver.site == "logits" or len(receiver.positions) == len(self._view.base):
            return str(receiver)
        return f"{receiver}:{','.join(map(str, receiver.positions))}"


def _slice(send: Send, some: Sequence[int]) -> Slice:
    """The senders of some paths as cells."""
    senders = [send.paths[i][0] for i in some]
    return Slice(
        send.site, send.layer, tuple(Swap(end.positions, end.head) for end in senders),
        tuple(end.positions[0] if len(end.positions) == 1 else -1 for end in senders), (-1,) * len(senders),
    )  # fmt: skip
