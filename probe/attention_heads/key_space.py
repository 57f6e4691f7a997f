"""The view `--keys`: which tokens' keys are drawn, how they are kept while texts are read, and the clusters that they make.

The keys of the first token of a text are left out: most heads rest on it, and its key lies by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from torch import Tensor

from probe.attention_heads.clustering import CANDIDATES, VectorClusters, clustered, units
from probe.attention_heads.inputs import Inputs
from probe.attention_heads.key_labels import RIVALS, ShuffledLabels, shuffled_labels
from probe.attention_heads.tagging import Tags, column_tags, tagger_of, tagger_tags
from probe.errors import BadOption
from probe.running import Running
from probe.sites import Cell, Positions
from probe.stats.mutual_information import LabelAgreement
from probe.tables import FLOATS, INTS
from probe.texts import TokenSequence, columns_of

if TYPE_CHECKING:
    import pandas as pd

    from probe.language_model import LanguageModel
    from probe.requests import AttentionHeads

HELD = 1 << 29  # bytes of keys that are held at once, of all layers
FEWEST = 20  # keys
BEFORE, AFTER, STREAM = "k_pre", "k", "resid_pre"
SPACES = {"before": BEFORE, "after": AFTER}  # rotation
LISTED = 8  # tokens and tags of a cluster


class KeyDraw(NamedTuple):
    """Which tokens' keys are kept, of those that there are (`total`): positions of each text, ascending. frequency: how often
    each token stands in the texts."""

    positions: dict[int, np.ndarray]
    frequency: Counter[int]
    total: int

    @property
    def kept(self) -> int:
        return sum(map(len, self.positions.values()))


def draw_keys(inputs: Inputs, cells: Sequence[Cell]) -> KeyDraw:
    """Tokens of all texts, each with the same chance, as many as are asked for and can be held. Raises `BadOption` where there
    are too few."""
    texts, ends, frequency = [], [0], Counter[int]()
    for one in inputs.texts():
        texts.append(one.prompt.prompt_id)
        ends.append(ends[-1] + len(one.ids) - 1)
        frequency.update(one.ids)
    total = ends[-1]
    if total < FEWEST:
        raise BadOption(f"{total} tokens after the first are too few to cluster their keys", hint=f"give at least {FEWEST}")
    n = min(inputs.request.key_tokens, total, max(FEWEST, HELD // bytes_of(inputs.lm, cells)))
    chosen = np.sort(np.random.default_rng(inputs.request.seed).choice(total, n, replace=False, shuffle=False))
    which = np.searchsorted(ends, chosen, side="right") - 1
    positions = {texts[i]: 1 + chosen[which == i] - ends[i] for i in np.unique(which).tolist()}
    return KeyDraw(positions, frequency, total)


def key_cells(lm: LanguageModel) -> tuple[Cell, ...]:
    """Keys before and after rotation, and what goes into the layer, wherever heads have keys."""
    anatomy = lm.anatomy
    layers = [layer for layer in range(anatomy.n_layers) if anatomy.n_heads("k", layer)]
    return tuple(
        Cell(site, layer, None, Positions()) for layer in layers for site in (BEFORE, AFTER, STREAM) if anatomy.has(site, layer)
    )


def bytes_of(lm: LanguageModel, cells: Sequence[Cell]) -> int:
    """What the cells of one token take."""
    return sum(4 * lm.width(site, layer) * max(1, lm.anatomy.n_heads(site, layer)) for site, layer, *_ in cells)


def planned_rows(lm: LanguageModel, n: int, request: AttentionHeads) -> dict[str, int]:
    """Rows of the tables, for n tokens: at most, where the number of clusters is not known."""
    spaces = sum(lm.anatomy.n_heads(cell.site, cell.layer) for cell in key_cells(lm) if cell.site in (BEFORE, AFTER))
    tagged = request.tags is not None or request.tagger is not None
    compared = sum(len(within) for name, within in RIVALS.items() if tagged or name != "tag") - (not tagged)
    return {
        "head_keys": spaces, "head_key_agreement": spaces * compared,
        "head_key_clusters": spaces * (request.clusters or CANDIDATES[-1]), "head_key_tokens": n,
    }  # fmt: skip


class KeyRecorder:
    """Takes the keys of the tokens that are drawn out of a read, and writes them with what they are keys of."""

    def __init__(self, inputs: Inputs) -> None:
        """Raises `BadOption` as `draw_keys`, and without the tagger that is asked for."""
        if inputs.request.tagger is not None:
            tagger_of(inputs.request.tagger)
        self.cells = key_cells(inputs.lm)
        self.draw = draw_keys(inputs, self.cells)
        self._request, self._special = inputs.request, set(inputs.lm.tokenizer.all_special_ids)
        self._column = columns_of(inputs.prompts).names.get(inputs.request.tags or "", "")

    def notes(self, lm: LanguageModel) -> Iterator[str]:
        """What a reader of the clusters must know."""
        if self.draw.kept < min(self._request.key_tokens, self.draw.total):
            yield f"keys of {self.draw.kept:,} tokens are kept, not of {self._request.key_tokens:,}: they take {HELD >> 20} MB"
        without = [cell.layer for cell in self.cells if cell.site == AFTER and not lm.anatomy.has(BEFORE, cell.layer)]
        if without:
            yield f"keys before rotation are not to be had in layer {without[0]}: {lm.anatomy.reason(BEFORE, without[0])}"

    def activation(self, run: Running, batch: Sequence[TokenSequence], site: str, layer: int, values: Tensor) -> None:
        """Write what is drawn of values (batch, pos, width)."""
        for row, sequence in enumerate(batch):
            at = self.draw.positions.get(number := sequence.prompt.prompt_id)
            if at is not None:
                own = values[row, at].float().cpu().numpy()
                run.write("kept_keys", {"site": [site], "layer": [layer], "prompt_id": [number], "values": [own.tobytes()]})

    def tokens(self, run: Running, sequence: TokenSequence) -> None:
        """Write the tokens that are drawn of a text, and their tags."""
        at = self.draw.positions.get(sequence.prompt.prompt_id)
        if at is not None:
            tags, n = self._tags(sequence), len(at)
            run.write("head_key_tokens", {
                "prompt_id": [sequence.prompt.prompt_id] * n, "branch": [sequence.branch] * n, "pos": at.astype(np.int32),
                "token_id": np.asarray([sequence.ids[i] for i in at], np.int32), "token": [sequence.tokens[i] for i in at],
                "tag": [None if sequence.ids[i] in self._special else tags[i] for i in at],
            })  # fmt: skip

    def _tags(self, sequence: TokenSequence) -> Tags:
        if self._request.tags is not None:
            return column_tags(sequence, self._column)
        if self._request.tagger is not None:
            return tagger_tags(sequence, self._request.tagger)
        return [None] * len(sequence.ids)


def cluster_keys(run: Running, recorder: KeyRecorder, request: AttentionHeads) -> None:
    """The tables of all clusters, a layer a unit, from the keys that were kept."""
    layers = sorted({cell.layer for cell in recorder.cells})
    names = [f"keys-{layer}" for layer in layers]
    if all(map(run.writer.done, names)):
        return
    tokens = run.frame("head_key_tokens").sort_values(["prompt_id", "pos"], ignore_index=True)
    kept = _kept(run, tokens["prompt_id"].unique().tolist())
    compared = shuffled_labels(tokens, recorder.draw.frequency, shuffles=request.shuffles, seed=request.seed)
    for unit, layer in run.missing("clustering keys", zip(names, layers, strict=True), total=len(layers)):
        with unit:
            own = {site: values for (site, at), values in kept.items() if at == layer}
            for table, columns in LayerKeys(run.lm, layer, own, tokens, request).tables(compared):
                run.write(table, columns)


def _kept(run: Running, prompts: Sequence[int]) -> dict[tuple[str, int], np.ndarray]:
    """(site, layer) -> (token, width) in the order of the tokens."""
    found: dict[tuple[str, int], dict[int, bytes]] = {}
    for piece in run.writer.batches("kept_keys", ["site", "layer", "prompt_id", "values"]):
        for site, layer, prompt, values in zip(*(piece[name].to_pylist() for name in piece.column_names), strict=True):
            found.setdefault((site, layer), {})[prompt] = values
    n = len(run.frame("head_key_tokens"))
    return {
        where: np.frombuffer(b"".join(parts[prompt] for prompt in prompts), np.float32).reshape(n, -1)
        for where, parts in found.items()
    }


class LayerKeys:
    """The keys of one layer: their clusters, and the rows that say what they agree with. values: site -> (token, width)."""

    def __init__(
        self, lm: LanguageModel, layer: int, values: Mapping[str, np.ndarray], tokens: pd.DataFrame, request: AttentionHeads
    ) -> None:
        self._layer, self._values, self._tokens, self._request = layer, values, tokens, request
        self._heads = lm.anatomy.n_heads(AFTER, layer)
        self._shared = lm.anatomy.n_heads("pattern", layer) // self._heads
        self._streams: dict[int, list[LabelAgreement]] = {}

    def tables(self, compared: Sequence[ShuffledLabels]) -> Iterator[tuple[str, dict[str, Any]]]:
        """`head_keys`, `head_key_agreement` and `head_key_clusters`."""
        for space, site in SPACES.items():
            if site not in self._values or (space == "after" and self._unrotated()):
                continue
            own = self._values[site].reshape(len(self._tokens), self._heads, -1)
            for number in range(self._heads):
                found = clustered(units(own[:, number]), self._request.clusters, seed=self._request.seed)
                where = {"space": space, "layer": self._layer, "head": number * self._shared}
                yield "head_keys", _rows(where, self._about(found), 1)
                yield "head_key_agreement", _rows(where, self._agreement(found, compared), len(compared))
                yield "head_key_clusters", _rows(where, self._clusters(found), found.k)

    def _unrotated(self) -> bool:
        """Whether nothing is rotated here, so that both spaces are one."""
        return BEFORE in self._values and np.array_equal(self._values[BEFORE], self._values[AFTER])

    def _about(self, found: VectorClusters) -> dict[str, Any]:
        return {
            "heads": [self._shared], "n": [len(found.labels)], "k": [found.k], "silhouette": _known([found.silhouette]),
            "stability": _known([found.stability]), "clusters": pa.array([found.labels.tolist()], INTS),
        }  # fmt: skip

    def _agreement(self, found: VectorClusters, compared: Sequence[ShuffledLabels]) -> dict[str, Any]:
        rows = [one.agreement(found.labels) for one in compared]
        stream = self._of_stream(found.k, compared) if STREAM in self._values else []
        nothing = [np.nan] * len(rows)
        return {
            "labels": [one.name for one in compared], "shuffled": [one.within for one in compared],
            "n": [len(one.known) for one in compared],
            **{name: _known([getattr(one, name) for one in rows]) for name in ("nmi", "floor", "floor_sd", "excess")},
            **{name: _known([getattr(one, name) for one in rows]) for name in ("low", "high", "p")},
            "resid_nmi": _known([one.nmi for one in stream] or nothing),
            "resid_excess": _known([one.excess for one in stream] or nothing),
        }  # fmt: skip

    def _of_stream(self, k: int, compared: Sequence[ShuffledLabels]) -> list[LabelAgreement]:
        """The agreement of as many clusters of what goes into the layer."""
        if k not in self._streams:
            found = clustered(units(self._values[STREAM]), k, seed=self._request.seed)
            self._streams[k] = [one.agreement(found.labels) for one in compared]
        return self._streams[k]

    def _clusters(self, found: VectorClusters) -> dict[str, Any]:
        members = [np.flatnonzero(found.labels == i) for i in range(found.k)]
        pos = self._tokens["pos"].to_numpy()
        quantiles = np.asarray([np.quantile(pos[own], (0, 0.5, 1)) for own in members])
        return {
            "cluster": np.arange(found.k, dtype=np.int32), "size": [len(own) for own in members],
            **self._most("token", members), **self._most("tag", members),
            "pos_first": quantiles[:, 0].astype(np.int32), "pos_median": quantiles[:, 1].astype(np.float32),
            "pos_last": quantiles[:, 2].astype(np.int32),
        }  # fmt: skip

    def _most(self, name: str, members: Sequence[np.ndarray]) -> dict[str, Any]:
        """The most frequent of each cluster, and their shares of it; nulls are none."""
        values = self._tokens[name].to_numpy(object)
        most = [Counter(x for x in values[own] if isinstance(x, str)).most_common(LISTED) for own in members]
        shares = [[count / len(own) for _, count in found] for found, own in zip(most, members, strict=True)]
        return {f"{name}s": [[one for one, _ in found] for found in most], f"{name}_shares": pa.array(shares, FLOATS)}


def _rows(where: Mapping[str, Any], columns: dict[str, Any], n: int) -> dict[str, Any]:
    return {**{name: [value] * n for name, value in where.items()}, **columns}


def _known(values: Iterable[float]) -> pa.Array:
    """NaN is null."""
    return pa.array(np.asarray(list(values), np.float32), from_pandas=True)
