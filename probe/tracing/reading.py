"""One instrumented forward over a batch, and what it saw as rows of a run. Knows columns and padding, not attention."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from probe.capturing import MemorySink, Ragged, read
from probe.decoding import Sampling
from probe.sites import Cell
from probe.store import Writer
from probe.texts import TokenSequence, padded, scored_columns, scored_step_columns
from probe.texts.explaining import ExplainedTokens, explain_sequence

if TYPE_CHECKING:
    from probe.language_model import LanguageModel
    from probe.tracing.planning import Tracing


def read_sequences(lm: LanguageModel, batch: list[TokenSequence], tracing: Tracing, writer: Writer) -> None:
    """Read a batch of finished sequences in one forward; write everything that was asked for, and their tokens and steps."""
    ids, lengths = padded(batch)
    sink = RunSink(batch, tracing, writer)
    reading = read(
        lm, ids.to(lm.device), lengths, cells=tracing.cells, attention=tracing.attention, top=tracing.request.top,
        lens=tracing.request.lens, sink=sink,
    )  # fmt: skip
    for warning in reading.warnings:
        writer.warn(warning)
    for row, (sequence, own) in enumerate(zip(batch, reading.scores, strict=True)):
        columns = scored_columns(sequence, own)
        writer.write("tokens", columns)
        logprob, entropy, rank = (
            columns[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in ("logprob", "entropy", "rank")
        )
        sequence.sum_up(logprob, entropy, rank)
        writer.write("steps", scored_step_columns(sequence.prompt.prompt_id, sequence.steps, logprob, entropy))
        if tracing.explain:
            explain_sequence(lm, sequence, tracing.explain, tracing.sampling, partial(reading.logits, row), writer)


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
    """Puts what a read finds into the tables of a run, while the model runs: nothing waits in memory."""

    def __init__(self, batch: list[TokenSequence], tracing: Tracing, writer: Writer) -> None:
        self._batch, self._tracing, self._writer = batch, tracing, writer
        self._positions: dict[tuple[str, int, int | None], list[list[np.ndarray]]] = defaultdict(list)
        for cell in tracing.cells:
            chosen = [_positions(cell, sequence) for sequence in batch]
            for head in cell.heads or (None,):
                self._positions[cell.site, cell.layer, head].append(chosen)

    def activation(self, site: str, layer: int, head: int | None, values: Tensor) -> None:
        for chosen in self._positions[site, layer, head]:
            for sequence, positions, own in zip(self._batch, chosen, values, strict=True):
                n = len(sequence.ids)
                vectors = own[:n] if len(positions) == n else own[torch.from_numpy(positions).to(own.device)]
                vectors = vectors.float().cpu().contiguous()
                columns = {
                    "site": site, "head": -1 if head is None else head, "pos": positions.astype(np.int32),
                    "vector": vectors.numpy(), "norm": torch.linalg.vector_norm(vectors, dim=-1).numpy(),
                }  # fmt: skip
                self._write("activations", sequence, layer, columns, store=self._tracing.request.store)

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
        whole = [x.cpu().numpy() for x in (experts.int(), weights, entropy.float())]
        for chosen in self._positions["router", layer, None]:
            for row, (sequence, positions) in enumerate(zip(self._batch, chosen, strict=True)):
                own = [x[row, positions] for x in whole]
                columns = {"pos": positions.astype(np.int32), "experts": own[0], "weights": own[1], "entropy": own[2]}
                self._write("routing", sequence, layer, columns)

    def lens(self, layer: int, columns: dict[str, Any]) -> None:
        for row, sequence in enumerate(self._batch):
            n = len(sequence.ids)
            own = {name: np.asarray(values)[row, :n] for name, values in columns.items()}
            self._write("lens", sequence, layer, {"pos": np.arange(n, dtype=np.int32), **own})

    def _write(self, table: str, sequence: TokenSequence, layer: int, columns: dict[str, Any], *, store: str = "exact") -> None:
        keys = {"prompt_id": sequence.prompt.prompt_id, "branch": 0, "layer": layer}
        self._writer.write(table, {**keys, **{name: _arrow(v) for name, v in columns.items() if v is not None}}, store=store)


def _arrow(values: Any) -> Any:
    """Lists of different lengths as Arrow has them; all else as it is."""
    if isinstance(values, Ragged):
        return pa.ListArray.from_arrays(pa.array(values.offsets), pa.array(values.values))
    return values


def _positions(cell: Cell, sequence: TokenSequence) -> np.ndarray:
    """Positions of a cell in one sequence; raises `OutOfRange` or `BadPlace` before anything runs."""
    return np.asarray(sequence.positions(cell.positions), dtype=np.int64)
