"""One instrumented forward over a batch, and what it saw as rows of a run. Knows columns and padding, not attention."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from probe.capturing import MemorySink, Ragged, Reading, read
from probe.decoding import Sampling
from probe.devices import Readback, uploaded
from probe.sites import Cell, units_read
from probe.store import Writer
from probe.texts import TokenSequence, padded, scored_columns, scored_step_columns
from probe.texts.explaining import ExplainedTokens, explain_sequence
from probe.tracing.chunked import read_chunked
from probe.tracing.memory import chunk_of
from probe.tracing.sets import SetScorer

if TYPE_CHECKING:
    from probe.language_model import LanguageModel
    from probe.tracing.resolving import Tracing


def read_sequences(
    lm: LanguageModel, batch: list[TokenSequence], tracing: Tracing, writer: Writer, answers: SetScorer | None = None
) -> None:
    """Read a batch of finished sequences in one forward, or a long text in chunks; write everything that was asked for, and
    their tokens and steps."""
    sink = RunSink(batch, tracing, writer, lm.anatomy.n_units)
    sets = [answers.tokens(sequence) for sequence in batch] if answers else []
    reading = _read(lm, batch, tracing, sink, [own for own, _ in sets])
    sink.finish()
    for warning in (*reading.warnings, *(note for _, notes in sets for note in notes)):
        writer.warn(warning)
    for row, (sequence, own) in enumerate(zip(batch, reading.scores, strict=True)):
        columns = scored_columns(sequence, own)
        if answers is not None:
            columns |= answers.read(sequence, partial(reading.logits, row))
        writer.write("tokens", columns)
        logprob, entropy, rank = (
            columns[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in ("logprob", "entropy", "rank")
        )
        sequence.sum_up(logprob, entropy, rank)
        writer.write("steps", scored_step_columns(sequence.prompt.prompt_id, sequence.steps, logprob, entropy))
        if tracing.explain:
            explain_sequence(lm, sequence, tracing.explain, tracing.sampling, partial(reading.logits, row), writer)


def _read(
    lm: LanguageModel, batch: list[TokenSequence], tracing: Tracing, sink: RunSink, sets: list[Mapping[str, Sequence[int]]]
) -> Reading:
    ids, lengths = padded(batch)
    chunk = chunk_of(lm, tracing, ids.shape[1]) if len(batch) == 1 else None
    if chunk is None:
        return read(
            lm, ids.to(lm.device), lengths, cells=tracing.cells, attention=tracing.attention, top=tracing.request.top,
            lens=tracing.request.lens, sets=sets, sink=sink,
        )  # fmt: skip
    return read_chunked(
        lm, ids, chunk=chunk, cells=tracing.cells, attention=tracing.attention, top=tracing.request.top,
        lens=tracing.request.lens, sets=sets, sink=sink, readout=bool(tracing.explain or any(sets)),
    )  # fmt: skip


def changed_frequencies(lm: LanguageModel, batch: list[TokenSequence]) -> list[str]:
    """What is to be said of texts that grew beyond the length at which the model's rotary frequencies change."""
    change = lm.frequencies_change
    if change is None:
        return []
    grown = [s for s in batch if len(s.ids) > max(change.length, s.n_prompt)]
    grown = [s for s in grown if not change.once or s.n_prompt <= change.length]
    return [
        f"a text of {lm.name} grew beyond {change.length:,} tokens, where its rotary frequencies change with the length: "
        "it is read with those of its whole length, and was drawn with those of shorter ones; sample_logprob is the sampler's"
        for _ in grown[:1]
    ]  # fmt: skip


def explain_ids(
    lm: LanguageModel, sequence: TokenSequence, explain: ExplainedTokens, sampling: Sampling, writer: Writer
) -> None:
    """Read one finished sequence for nothing else than to explain tokens of it."""
    ids = torch.tensor([sequence.ids], device=lm.device)
    reading = read(lm, ids, [len(sequence.ids)], sink=MemorySink(), top=1)
    explain_sequence(lm, sequence, explain, sampling, partial(reading.logits, 0), writer)


class RunSink:
    """Puts what a read finds into the tables of a run, while the model runs: nothing waits in memory. A `ChunkSink`, too."""

    def __init__(
        self, batch: list[TokenSequence], tracing: Tracing, writer: Writer, n_units: Callable[[str, int], int]
    ) -> None:
        """n_units(site, layer): how many the model has there."""
        self._batch, self._tracing, self._writer = batch, tracing, writer
        self._units = units_read(tracing.cells)
        self._wanted: dict[tuple[str, int, int | None], list[list[_Rows]]] = {}
        self._readback, self._indices = Readback(), dict[tuple[int, torch.device], Tensor]()
        self._first, self._inside = 0, dict[tuple[int, int], np.ndarray]()
        cells = defaultdict(list)
        for cell in tracing.cells:
            for head in cell.heads or (None,):
                cells[cell.site, cell.layer, head].append(cell)
        for where, own in cells.items():
            self._wanted[where] = [_rows(own, sequence, n_units(*where[:2])) for sequence in batch]

    def at(self, first: int) -> None:
        """See `ChunkSink`."""
        self.finish()
        self._first, self._indices, self._inside = first, {}, {}

    def activation(self, site: str, layer: int, head: int | None, values: Tensor) -> None:
        for sequence, wanted, own in zip(self._batch, self._wanted[site, layer, head], values, strict=True):
            n = min(len(sequence.ids) - self._first, len(own))
            for every, units in wanted:
                positions = self._among(every, len(own))
                if len(every) and not len(positions):
                    continue
                vectors = own[:n] if len(positions) == n else own[self._index(positions, own.device)]
                vectors = self._of_units(vectors, (site, layer), units).float()
                about = {
                    "site": site, "head": -1 if head is None else head, "pos": positions.astype(np.int32),
                    "units": None if units is None else np.tile(np.asarray(units, np.int32), (len(positions), 1)),
                }  # fmt: skip
                self._readback.put([vectors], partial(self._write_vectors, sequence, layer, about))

    def finish(self) -> None:
        """Write what is still on its way from the device."""
        self._readback.finish()

    def _write_vectors(self, sequence: TokenSequence, layer: int, about: dict[str, Any], vectors: Tensor) -> None:
        vectors = vectors.contiguous()
        columns = {**about, "vector": vectors.numpy(), "norm": torch.linalg.vector_norm(vectors, dim=-1).numpy()}
        self._write("activations", sequence, layer, columns, store=self._tracing.request.store)

    def _among(self, positions: np.ndarray, n: int) -> np.ndarray:
        """Those among the n that a forward has; the same array at each call."""
        where = id(positions), n
        if where not in self._inside:
            inside = (positions >= self._first) & (positions < self._first + n)
            self._inside[where] = positions if inside.all() else positions[inside]
        return self._inside[where]

    def _index(self, positions: np.ndarray, device: torch.device) -> Tensor:
        """Positions where the activations are: all layers that are asked for the same share them."""
        where = id(positions), device
        if where not in self._indices:
            self._indices[where] = uploaded(positions - self._first, device)
        return self._indices[where]

    def _of_units(self, vectors: Tensor, where: tuple[str, int], units: tuple[int, ...] | None) -> Tensor:
        """The columns of some units, of vectors (pos, width) that hold those that are read there."""
        read = self._units[where]
        if read is None or units is None or units == read:
            return vectors
        return vectors[:, np.searchsorted(read, units)]

    def heads(self, layer: int, columns: dict[str, Any]) -> None:
        n_heads = np.asarray(next(iter(columns.values()))).shape[1]
        for row, sequence in enumerate(self._batch):
            own = {name: np.asarray(values)[row] for name, values in columns.items()}
            self._write("heads", sequence, layer, {"head": np.arange(n_heads, dtype=np.int16), **own})

    def rows(self, prompt: int, layer: int, columns: dict[str, Any]) -> None:
        self._write("attention_rows", self._batch[prompt], layer, columns)

    def attention(self, prompt: int, layer: int, columns: dict[str, Any]) -> None:
        self._write("attention", self._batch[prompt], layer, columns)

    def scores(self, prompt: int, layer: int, columns: dict[str, Any]) -> None:
        self._write("scores", self._batch[prompt], layer, columns)

    def routing(self, layer: int, experts: Tensor, weights: Tensor, entropy: Tensor) -> None:
        self._readback.put([experts.int(), weights, entropy.float()], partial(self._write_routing, layer))

    def _write_routing(self, layer: int, *found: Tensor) -> None:
        whole = [x.numpy() for x in found]
        for row, (sequence, wanted) in enumerate(zip(self._batch, self._wanted["router", layer, None], strict=True)):
            for every, _ in wanted:
                positions = self._among(every, whole[0].shape[1])
                own = [x[row, positions - self._first] for x in whole]
                columns = {"pos": positions.astype(np.int32), "experts": own[0], "weights": own[1], "entropy": own[2]}
                self._write("routing", sequence, layer, columns)

    def lens(self, layer: int, columns: dict[str, Any]) -> None:
        for row, sequence in enumerate(self._batch):
            end = min(len(sequence.ids), self._first + np.asarray(columns["top_ids"]).shape[1])
            own = {name: np.asarray(values)[row, : end - self._first] for name, values in columns.items()}
            self._write("lens", sequence, layer, {"pos": np.arange(self._first, end, dtype=np.int32), **own})

    def _write(self, table: str, sequence: TokenSequence, layer: int, columns: dict[str, Any], *, store: str = "exact") -> None:
        keys = {"prompt_id": sequence.prompt.prompt_id, "branch": 0, "layer": layer}
        self._writer.write(table, {**keys, **{name: _arrow(v) for name, v in columns.items() if v is not None}}, store=store)


def _arrow(values: Any) -> Any:
    """Lists of different lengths as Arrow has them; all else as it is."""
    if isinstance(values, Ragged):
        return pa.ListArray.from_arrays(pa.array(values.offsets), pa.array(values.values))
    return values


_Rows = tuple[np.ndarray, tuple[int, ...] | None]


def _rows(cells: Sequence[Cell], sequence: TokenSequence, n_units: int) -> list[_Rows]:
    """Positions of one sequence at which cells of one site want something, and which units there (None: all); a position
    once. Raises `OutOfRange` or `BadPlace` before anything runs."""
    if len(cells) == 1:
        return [(np.asarray(sequence.positions(cells[0].positions), dtype=np.int64), cells[0].units)]
    asking: dict[int, tuple[int, ...]] = defaultdict(tuple)
    for number, cell in enumerate(cells):
        for position in sequence.positions(cell.positions):
            asking[position] += (number,)
    grouped: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for position in sorted(asking):
        grouped[asking[position]].append(position)
    found: list[_Rows] = []
    for numbers, positions in grouped.items():
        units = tuple(sorted(unit for number in numbers for unit in cells[number].units or ()))
        found.append((np.asarray(positions, dtype=np.int64), None if len(units) == n_units else units))
    return found
