"""The verb `top`: in which texts some places are largest and smallest, beside a random few and all values. One pass."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from torch import Tensor

from probe import store as stores
from probe.corpora.extremes import COLUMNS, KINDS, Extremes, RankedWindow
from probe.corpora.measures import Key, ScalarPlace, measured
from probe.corpora.moments import Moments
from probe.corpora.reading import BatchSink, Pass, read_corpus
from probe.corpora.value_counts import ValueCounts
from probe.corpora.windows import Corpus, Window, surveyed
from probe.requests import Top, public
from probe.running import Running, running
from probe.texts import TokenSequence, columns_of, hash_of, prompt_columns

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

QUANTILES = {"q1": 0.01, "q25": 0.25, "q50": 0.5, "q75": 0.75, "q99": 0.99, "q999": 0.999}
BARS = 32  # of a histogram
SHOWN = 64  # places in a summary
STATE_BYTES = 20_000  # of a place, about


def run_top(lm: LanguageModel, request: Top) -> stores.Run:
    """In which texts of a file a place is largest and smallest, with the token at which it is, and how its values are spread.

    A place's number at a token: of one neuron its activation; of a head's z, a stream or any other vector its Euclidean norm;
    with `project`, and for `direction:FILE`, the projection h·v/‖v‖. A text counts once, by its largest token (of the bottom:
    its smallest); a text that is longer than the window counts once a window. Equal values are in the order of the texts.
    `random` are texts that were drawn blindly, shown as the top is: what a text comes to that nobody chose. The files are read
    once, in bounded memory beside their text.

    Tables: `top`, `top_values`, `top_histogram`, `prompts` (the texts that are shown, and those that could not be read).
    Raises `BadPrompt`, `BadPlace`, `SiteAbsent`, `BadEdit`, `BadOption`, `NonFinite`, `RunError`.
    """
    places, cells = measured(lm, request.at, request.project)
    corpus = surveyed(lm, request.texts, request)
    came_to = {"texts": len(corpus.prompts), "texts_sha256": hash_of(corpus.prompts), "directions": _directions(places)}
    with running(request, lm, word=places[0].site, resolved=came_to, found=corpus.seen._replace(failed=[])) as run:
        if run.writer.whole:
            return run.writer.whole
        run.writer.extend("prompts", columns_of(corpus.prompts).types)
        found = read_corpus(
            run, corpus, cells, lambda: Ranking(places, request.top, request.seed), size=STATE_BYTES * len(places)
        )  # fmt: skip
        failed = found.failed(corpus)
        run.warn(*corpus.seen.notes, *corpus.remarks)
        with run.writer.unit("found", again=True):
            rows = _write_texts(run, corpus, found, request.context, failed)
            values = _write_values(run, places, found.state)
        return run.finish(_summary(corpus, places, values, rows, failed), seed=request.seed)


top = public(run_top, Top)


def plan_top(lm: LanguageModel, request: Top) -> dict[str, Any]:
    """What `top` would compute and write. Reads the texts, runs no model."""
    places, _ = measured(lm, request.at, request.project)
    corpus = surveyed(lm, request.texts, request)
    rows = sum(min(request.top, corpus.seen.windows) for _ in KINDS) * len(places)
    return corpus.plan(state=STATE_BYTES * len(places)) | {
        "places": len(places),
        "tables": {
            "top": {"rows": rows, "bytes": rows * (60 + 8 * request.context)},
            "top_values": {"rows": len(places), "bytes": 120 * len(places)},
            "top_histogram": {"rows": BARS * len(places), "bytes": 12 * BARS * len(places)},
        },
    }


def _directions(places: Sequence[ScalarPlace]) -> list[str]:
    """What tells the directions apart: a resume must be asked for the same ones."""
    vectors = [one.vector.numpy().tobytes() for one in places if one.vector is not None]
    return [hashlib.sha256(vector).hexdigest() for vector in dict.fromkeys(vectors)]


class NumberSink(BatchSink):
    """numbers (place, batch, pos) float64 of one batch."""

    def __init__(self, batch: Sequence[Window], counted: Tensor, places: Sequence[ScalarPlace]) -> None:
        super().__init__(batch, counted)
        self.numbers = np.zeros((len(places), *counted.shape))
        self._of: dict[Key, list[tuple[int, ScalarPlace]]] = {}
        for number, one in enumerate(places):
            self._of.setdefault(one.key, []).append((number, one))

    def activation(self, site: str, layer: int, head: int | None, values: Tensor) -> None:
        """Take the numbers of the places that are there."""
        for number, one in self._of[site, layer, head]:
            self.readback.put([one.numbers(values)], partial(self._take, number))

    def _take(self, number: int, found: Tensor) -> None:
        self.check(found)
        self.numbers[number] = found.numpy()


class Ranking:
    """The extremes of each place, and all its values as moments and counts."""

    def __init__(self, places: Sequence[ScalarPlace], most: int, seed: int) -> None:
        self.places, self.most, self.seed = places, most, seed
        self.moments, self.above = Moments.nothing(len(places)), np.zeros(len(places), np.int64)
        self.distribution, self.extremes = ValueCounts.nothing(len(places)), Extremes(most)
        self._candidates: dict[str, np.ndarray] | None = None

    def sink(self, batch: Sequence[Window], counted: Tensor) -> NumberSink:
        return NumberSink(batch, counted, self.places)

    def take(self, sink: NumberSink) -> None:
        counted = sink.counted.numpy()
        values = sink.numbers[:, counted]  # (place, n)
        self.moments.merge(Moments.of(values.T))
        self.above += (values > 0).sum(-1)
        for place, own in enumerate(values):
            self.distribution.add(place, own)
        drawn = np.asarray([_drawn(self.seed, one) for one in sink.batch])
        high, low = np.where(counted, sink.numbers, -np.inf), np.where(counted, sink.numbers, np.inf)
        self._offer(sink.batch, 0, high, high.argmax(-1), None)
        self._offer(sink.batch, 1, low, low.argmin(-1), None)
        self._offer(sink.batch, 2, high, high.argmax(-1), drawn)

    def _offer(
        self, batch: Sequence[Window], kind: int, numbers: np.ndarray, index: np.ndarray, drawn: np.ndarray | None
    ) -> None:  # fmt: skip
        """numbers (place, batch, pos), index (place, batch): each window by its token there; drawn (batch,): its own order."""
        values = np.take_along_axis(numbers, index[..., None], axis=-1)[..., 0]
        orders = np.broadcast_to(drawn, values.shape) if drawn is not None else values if KINDS[kind] == "bottom" else -values
        for place, order in enumerate(orders):
            for row in np.flatnonzero(order <= self.extremes.bar(place, kind)).tolist():
                one, at = batch[row], int(index[place, row])
                value = float(values[place, row])
                self.extremes.offer(place, kind, RankedWindow(float(order[row]), one.prompt_id, one.number, at, value))

    def merge(self, other: Self) -> None:
        self.moments.merge(other.moments)
        self.above = self.above + other.above
        self.distribution.merge(other.distribution)
        other._candidates = self.extremes.merge(other._candidates or other.extremes.arrays())

    def arrays(self) -> dict[str, np.ndarray]:
        """Of the candidates those that no earlier part has ruled out."""
        candidates = self.extremes.arrays() if self._candidates is None else self._candidates
        return {**self.moments.arrays("moments"), "above": self.above, **self.distribution.arrays(), **candidates}

    def restored(self, arrays: dict[str, np.ndarray]) -> Self:
        found = type(self)(self.places, self.most, self.seed)
        found.moments, found.above = Moments.restored(arrays, "moments"), arrays["above"]
        found.distribution = ValueCounts.restored(len(self.places), arrays["place"], arrays["bin"], arrays["count"])
        found._candidates = {name: arrays[name] for name in COLUMNS}
        return found


def _drawn(seed: int, window: Window) -> float:
    """A number in [0, 1) that is this window's own: the sample is the same whatever the batches are."""
    (bits,) = np.random.SeedSequence([seed, window.prompt_id, window.number]).generate_state(1, np.uint64)
    return float(bits) / 2.0**64


class ShownText(NamedTuple):
    """A text of which something is shown, as tokens, with its windows."""

    sequence: TokenSequence
    windows: dict[int, Window]


def _write_texts(
    run: Running, corpus: Corpus, found: Pass[Ranking], context: int, failed: Sequence[Any]
) -> list[dict[str, Any]]:  # fmt: skip
    """Write `top` and `prompts`; the rows of `top`."""
    lists = found.state.extremes.lists
    shown = {one.prompt_id for own in lists.values() for one in own}
    texts: dict[int, ShownText] = {}
    for prompt in corpus.prompts:
        if prompt.prompt_id in shown:
            sequence, windows = corpus.windows_of(prompt)
            texts[prompt.prompt_id] = ShownText(sequence, {one.number: one for one in windows})
    rows = []
    for (place, kind), own in sorted(lists.items()):
        name = found.state.places[place].name
        for rank, one in enumerate(own):
            there = _row(corpus.lm, texts[one.prompt_id], one, context)
            rows.append({"place": name, "kind": KINDS[kind], "rank": rank, "value": one.value, **there})
    run.write("top", {name: [row[name] for row in rows] for name in rows[0]})
    bad = {one.prompt.prompt_id for one in failed}
    kept = [text.sequence for number, text in texts.items() if number not in bad]
    run.write("prompts", prompt_columns(kept, [one.prompt for one in failed]))
    return rows


def _row(lm: LanguageModel, text: ShownText, one: RankedWindow, context: int) -> dict[str, Any]:
    """What a row of `top` says of a candidate's token."""
    window, prompt = text.windows[one.window], text.sequence.prompt
    low, high = max(0, one.at - context), one.at + 1 + context
    ids, at = window.ids[low:high], one.at - low
    pieces = lm.pieces(ids)
    start, end = pieces.offsets[at]
    row_id = prompt.columns.get("id")
    return {
        "prompt_id": prompt.prompt_id, "row_id": None if row_id is None else str(row_id), "window": one.window,
        "pos": window.start + one.at, "token_id": ids[at], "token": lm.label(ids[at], pieces.tokens[at]),
        "before": pieces.text[:start], "after": pieces.text[end:],
    }  # fmt: skip


def _write_values(run: Running, places: Sequence[ScalarPlace], state: Ranking) -> list[dict[str, Any]]:
    """Write `top_values` and `top_histogram`; the rows of the first."""
    rows, moments = [], state.moments
    for number, one in enumerate(places):
        low, high, n = float(moments.minimum[number]), float(moments.maximum[number]), int(moments.n)
        quantiles = state.distribution.quantiles(number, list(QUANTILES.values()), low, high)
        rows.append({
            "place": one.name, "site": one.site, "layer": one.layer, "head": -1 if one.head is None else one.head,
            "unit": -1 if one.unit is None else one.unit, "measure": one.measure, "n": n,
            "mean": float(moments.mean[number]), "sd": float(np.sqrt(moments.variance[number])),
            "minimum": low, "maximum": high, "above_zero": int(state.above[number]) / n,
            **dict(zip(QUANTILES, quantiles, strict=True)),
        })  # fmt: skip
        edges, counts = state.distribution.histogram(number, BARS, low, high)
        run.write("top_histogram", {
            "place": one.name, "bin": np.arange(len(counts), dtype=np.int32), "low": edges[:-1].astype(np.float32),
            "high": edges[1:].astype(np.float32), "count": counts,
        })  # fmt: skip
    run.write("top_values", {name: [row[name] for row in rows] for name in rows[0]})
    return rows


def _summary(
    corpus: Corpus, places: Sequence[ScalarPlace], values: list[dict[str, Any]], rows: list[dict[str, Any]],
    failed: Sequence[Any],
) -> dict[str, Any]:  # fmt: skip
    """Each place with its spread and its first texts, beside what a random text comes to."""
    about = []
    for value in values[:SHOWN]:
        own = [row for row in rows if row["place"] == value["place"]]
        random = [row["value"] for row in own if row["kind"] == "random"]
        first = {kind: next((row for row in own if row["kind"] == kind), None) for kind in KINDS[:2]}
        about.append({**value, "random_mean": float(np.mean(random)), **first})
    return {**corpus.told(len(failed)), "places": len(places), "values": about}
