"""What clusters of keys are compared with: part of speech, position and frequency, and each shuffled with a rival held fixed.
Knows no key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from probe.stats.mutual_information import LabelAgreement, agreement_of, shuffled_over_types, shuffled_within

if TYPE_CHECKING:
    import pandas as pd

INTERVALS = 8  # of positions
FREQUENCIES = 5  # of a token's count
NEAR = 10  # keys, at least, of neighbouring positions that count as one when positions are held fixed


class ShuffledLabels(NamedTuple):
    """One labelling of some keys, and how it comes out by chance.

    name: tag, position or frequency. within: what is held fixed while labels are shuffled: the `text` a key is of, its
    `position`, its `tag`, or `type`: the token that it is of. known (n,): which keys have a label; codes (known,) from 0;
    shuffles (s, known); texts (known,).
    """

    name: str
    within: str
    known: np.ndarray
    codes: np.ndarray
    shuffles: np.ndarray
    texts: np.ndarray

    def agreement(self, clusters: np.ndarray) -> LabelAgreement:
        """With the clusters (n,) of all keys."""
        return agreement_of(clusters[self.known], self.codes, self.shuffles, self.texts)


def shuffled_labels(tokens: pd.DataFrame, frequency: Mapping[int, int], *, shuffles: int, seed: int) -> list[ShuffledLabels]:
    """Every labelling of the keys, with each of its floors. tokens: a row a key, with prompt_id, pos, token_id and tag (null
    for none); frequency: how often a token stands in all texts."""
    texts, pos, ids = (tokens[name].to_numpy() for name in ("prompt_id", "pos", "token_id"))
    counts = np.asarray([frequency[int(i)] for i in ids])
    tags = tag_codes(tokens)
    labels = {
        "tag": tags, "position": intervals(pos, INTERVALS), "frequency": intervals(counts, FREQUENCIES)
    }  # fmt: skip
    fixed = {"text": texts, "position": neighbours(pos), "tag": tags, "type": ids}
    return list(_shuffled(labels, fixed, shuffles, seed))


RIVALS = {"tag": ("text", "position", "type"), "position": ("text", "tag"), "frequency": ("text", "position")}


def _shuffled(
    labels: Mapping[str, np.ndarray], fixed: Mapping[str, np.ndarray], shuffles: int, seed: int
) -> Iterator[ShuffledLabels]:
    for name, codes in labels.items():
        for within in RIVALS[name]:
            known = np.flatnonzero((codes >= 0) & (fixed[within] >= 0))
            if not len(known):
                continue
            own, strata = codes[known], fixed[within][known]
            generator = np.random.default_rng((seed, list(labels).index(name), RIVALS[name].index(within)))
            shuffle = shuffled_over_types if within == "type" else shuffled_within
            yield ShuffledLabels(
                name, within, known, own, shuffle(own, strata, shuffles, generator), fixed["text"][known]
            )  # fmt: skip


def tag_codes(tokens: pd.DataFrame) -> np.ndarray:
    """(n,) the number of each key's tag among all in their order, -1 for none."""
    tags = tokens["tag"].astype(object)
    names = sorted(tags.dropna().unique())
    return tags.map({name: i for i, name in enumerate(names)}).fillna(-1).to_numpy(np.int64)


def intervals(values: np.ndarray, n: int) -> np.ndarray:
    """(n,) in which of at most n intervals each value is, of about equally many; equal values are in the same."""
    edges = np.unique(np.quantile(values, np.arange(1, n) / n, method="inverted_cdf"))
    return np.searchsorted(edges, values, side="left")


def neighbours(pos: np.ndarray) -> np.ndarray:
    """(n,) numbers of intervals of positions, as short as they can be with NEAR keys each: where many texts have a key at a
    position, that position alone."""
    values, counts = np.unique(pos, return_counts=True)
    found, held, number = np.empty(len(values), np.int64), 0, 0
    for i, count in enumerate(counts.tolist()):
        found[i], held = number, held + count
        if held >= NEAR:
            number, held = number + 1, 0
    return found[np.searchsorted(values, pos)]
