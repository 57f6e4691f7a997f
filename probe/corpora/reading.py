"""One pass over a corpus: part by part, batch by batch, into states that add up; resumed where it was cut short."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, Self, TypeVar

import numpy as np
from torch import Tensor

from probe.capturing import MemorySink, observe
from probe.corpora.windows import MOST, Corpus, CorpusPart, Window, padded_windows
from probe.devices import Readback
from probe.errors import NonFinite, ProbeError
from probe.fitting import halving
from probe.running import Running
from probe.texts import Failed

if TYPE_CHECKING:
    from probe.sites import Cell

HELD = 256 << 20  # bytes that the states of all parts may come to
TABLE = "unfinished"


class BatchSink(MemorySink):
    """What a batch of windows comes to, while the model runs. `counted` (batch, pos): which positions count.

    bad: the windows in which something that counts is not a finite number, once the `readback` is finished.
    """

    def __init__(self, batch: Sequence[Window], counted: Tensor) -> None:
        super().__init__()
        self.batch, self.counted = batch, counted
        self.bad = np.zeros(len(batch), bool)
        self.readback = Readback()

    def check(self, values: Tensor) -> None:
        """Look for what is not finite in values (batch, pos), on the CPU."""
        self.bad |= (~values.isfinite() & self.counted).any(-1).numpy()


class PartState(Protocol):
    """What windows came to, so that those of parts add up to that of all."""

    def sink(self, batch: Sequence[Window], counted: Tensor) -> BatchSink: ...
    def take(self, sink: Any) -> None:
        """Take in a batch in which everything was finite."""

    def merge(self, other: Self) -> None:
        """Take in a later part; `other` keeps what a resume needs of it."""

    def arrays(self) -> dict[str, np.ndarray]: ...
    def restored(self, arrays: dict[str, np.ndarray]) -> Self:
        """What `arrays` was of, as a state like this one."""


S = TypeVar("S", bound=PartState)


class Pass(NamedTuple, Generic[S]):
    """The state of all windows, those that came to numbers that are not finite, (prompt, window), and the windows of parts of
    which nothing came: why."""

    state: S
    broken: list[tuple[int, int]]
    lost: dict[tuple[int, int], str]

    def failed(self, corpus: Corpus) -> list[Failed]:
        """The texts that could not be read, or of which a window had to be left out, in their order."""
        found = {one.prompt.prompt_id: one for one in corpus.seen.failed}
        first = dict(sorted(self.broken, reverse=True))
        for prompt in corpus.prompts if first else ():
            if prompt.prompt_id in first:
                window = first[prompt.prompt_id]
                why = self.lost.get((prompt.prompt_id, window), "its activations are not finite numbers")
                error = NonFinite(
                    f"{why} in window {window}, which is left out",
                    hint="try --dtype float32; if they stay so, the weights are damaged",
                )
                found[prompt.prompt_id] = Failed(prompt._replace(error=error.message), error)
        return [found[number] for number in sorted(found)]


def read_corpus(run: Running, corpus: Corpus, cells: Sequence[Cell], empty: Callable[[], S], *, size: int) -> Pass[S]:
    """Read all windows of a corpus. size: about the bytes of a state; few parts are made where it is large.

    Raises `NonFinite` where every window came to numbers that are not finite.
    """
    total, broken, lost = empty(), list[tuple[int, int]](), dict[tuple[int, int], str]()
    done, most = 0, max(8, min(MOST, HELD // max(size, 1)))
    before: dict[str, dict[str, np.ndarray]] | None = None

    def lose(part: CorpusPart, error: ProbeError) -> None:
        """Of a part nothing came: all of its windows are left out."""
        own = [(corpus.prompts[text].prompt_id, number) for text, number in part.places]
        broken.extend(own)
        lost.update(dict.fromkeys(own, error.message))
        if not run.writer.done(part.name):
            _keep(run, part.name, empty(), own)

    tokens = corpus.seen.counted
    parts = run.share("reading tokens", corpus.parts(most), total=tokens, size=attrgetter("counted"), lost=lose)
    for part in parts:
        if run.writer.done(part.name):
            done += part.counted
            before = before or _before(run)
            arrays = before[part.name]
            broken += map(tuple, arrays.pop("broken").tolist())
            total.merge(total.restored(arrays))
            continue
        state, own = empty(), list[tuple[int, int]]()
        for batch in corpus.batches(corpus.read(part)):
            own += _read(corpus, batch, cells, state)
            done += sum(window.counted for window in batch)
            run.report("reading tokens", done, tokens)
        broken += own
        total.merge(state)
        _keep(run, part.name, state, own)
        run.writer.flush()
    if len(broken) == corpus.seen.windows:
        raise NonFinite("no text comes to finite numbers there", hint="try --dtype float32")
    return Pass(total, broken, lost)


def _keep(run: Running, name: str, state: PartState, broken: list[tuple[int, int]]) -> None:
    """Write what a part came to."""
    with run.writer.unit(name):
        arrays = {**state.arrays(), "broken": np.asarray(broken, np.int64).reshape(-1, 2)}
        run.write(TABLE, {"part": [name], "state": [_packed(arrays)]})


def _read(corpus: Corpus, batch: list[Window], cells: Sequence[Cell], state: PartState) -> list[tuple[int, int]]:
    """One forward, or more if memory does not suffice for one; the windows that came to something that is not finite, without
    which the others are read once more."""

    def observed(some: list[Window]) -> BatchSink:
        ids, lengths, counted = padded_windows(some)
        sink = state.sink(some, counted)
        observe(corpus.lm, ids, lengths, sink=sink, cells=cells)
        sink.readback.finish()
        return sink

    broken: list[tuple[int, int]] = []
    what, hint = f"a window of {max(len(one.ids) for one in batch):,} tokens", "a smaller --window, or --dtype bfloat16"
    for some, sink in halving(batch, observed, what=what, hint=hint):
        if not sink.bad.any():
            state.take(sink)
            continue
        broken += [(one.prompt_id, one.number) for one, bad in zip(some, sink.bad, strict=True) if bad]
        if others := [one for one, bad in zip(some, sink.bad, strict=True) if not bad]:
            broken += _read(corpus, others, cells, state)
    return broken


def _packed(arrays: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _before(run: Running) -> dict[str, dict[str, np.ndarray]]:
    """What the parts that are done came to, by their names."""
    found = {}
    for row in run.writer.read(TABLE).to_pylist():
        with np.load(io.BytesIO(row["state"])) as arrays:
            found[row["part"]] = dict(arrays)
    return found
