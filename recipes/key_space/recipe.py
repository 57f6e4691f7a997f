"""Key space: do the keys of a head lie together by part of speech, or by word, or by place?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import probe

TEXTS = Path(__file__).with_name("texts.jsonl")  # the first is the worked example
AMBIGUOUS = ("NOUN", "VERB")  # words that stand in the texts as both
Progress = Callable[[str, int, int], None] | None


def measure(lm: probe.LanguageModel, *, quick: bool, seed: int, out: Path | None, progress: Progress) -> dict[str, Any]:
    """Clusters of each head's keys beside each token's tag, that of the word before it, and position; the same with random
    weights; words that are noun and verb; where the words of the first text fall. seed: what k-means starts from, the shuffles,
    the random weights, and which texts `quick` reads."""
    rows = [json.loads(line) for line in TEXTS.read_text(encoding="utf-8").splitlines()]
    drawn = np.random.default_rng(seed).permutation(np.arange(1, len(rows)))[: 39 if quick else None]
    rows = [rows[i] | {"before": ["START", *rows[i]["tags"].split()[:-1]]} for i in (0, *sorted(drawn))]
    n = len({tag for row in rows for tag in row["tags"].split()})

    def clustered(name: str, of: probe.LanguageModel, clusters: int | None = n, tags: str = "tags") -> probe.Run:
        return probe.heads(
            of, rows, keys=True, tags=tags, clusters=clusters, shuffles=20 if quick else 100, sequences=0, seed=seed,
            out=out and out / name, progress=progress,
        )  # fmt: skip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        untrained = type(lm.model)(lm.model.config).to(device=lm.device, dtype=lm.dtype)
    random = clustered("random", probe.LanguageModel(untrained, lm.tokenizer, name="random weights"))
    own, before = clustered("own", lm), clustered("before", lm, tags="before")
    found = {**agreed(own), **about(own), "example": example(own), "random": {**agreed(random), **about(random)}}
    found["by_word_before"] = over_types(before)[lambda rows: rows.low > over_types(own).high].to_dict("index")
    if not quick:  # in as many clusters as the keys themselves fall into
        found["silhouette"] = agreed(clustered("silhouette", lm, clusters=None))
    return {"texts": len(rows), "tokens": len(tokens_of(own)), "tags": n, **found, "word_before": agreed(before)}


def agreed(run: probe.Run) -> dict[str, Any]:
    """Space -> what is compared -> mean excess over heads, beside the stream's. The interval is the mean of those of the heads,
    which err together: all are of the same texts. Beside the stream it is Student's t over layers."""
    found: dict[str, Any] = {}
    for (space, labels, fixed), heads in run.head_key_agreement.groupby(["space", "labels", "shuffled"], observed=True):
        layer = heads.groupby("layer")[["excess", "resid_excess"]].mean()
        found.setdefault(space, {})[f"{labels}_over_{fixed}"] = {
            **dict(zip(("value", "low", "high"), heads[["excess", "low", "high"]].mean().tolist(), strict=True)),
            "beyond_chance": int((heads.p <= 0.05).sum()), "of": len(heads),
            "stream": mean(layer.resid_excess), "more_than_stream": mean(layer.excess - layer.resid_excess),
        }  # fmt: skip
    return found


def about(run: probe.Run) -> dict[str, Any]:
    """Of tokens, the share whose cluster has their tag most often among its others; and words that are noun and verb."""
    tokens, heads = tokens_of(run), keys_of(run).clusters.map(np.asarray)
    right = pd.Series(np.mean([named(clusters, tokens.tag) for clusters in heads], axis=0))
    by_text, by_word = right.groupby(tokens.prompt_id).mean(), pairs(tokens, heads)
    return {"named": mean(by_text), "pairs": {name: mean(values) for name, values in by_word.items()}}


def tokens_of(run: probe.Run) -> pd.DataFrame:
    return run.head_key_tokens.sort_values(["prompt_id", "pos"], ignore_index=True)


def keys_of(run: probe.Run) -> pd.DataFrame:
    return run.head_keys.query("space == 'before'").sort_values(["layer", "head"], ignore_index=True)


def named(clusters: np.ndarray, tags: pd.Series) -> np.ndarray:
    """(token,) whether no tag is more frequent among the others of a token's cluster than its own."""
    one = pd.get_dummies(tags).to_numpy(int)
    others = pd.DataFrame(one).groupby(clusters).transform("sum").to_numpy() - one
    return (others * one).sum(axis=1) >= np.maximum(others.max(axis=1), 1)


def pairs(tokens: pd.DataFrame, heads: pd.Series) -> dict[str, np.ndarray]:
    """(word,) of each word that is noun and verb: how often it shares a cluster with itself or another word, of its tag or the
    other one, where the words before them have different tags."""
    both = tokens[tokens.tag.isin(AMBIGUOUS)].groupby("token_id").tag.nunique()
    use = (tokens.tag.isin(AMBIGUOUS) & tokens.token_id.isin(both.index[both == 2])).to_numpy()
    before = tokens.groupby("prompt_id").tag.shift().fillna("")
    word, tag, before = (column.to_numpy(object)[use] for column in (tokens.token_id, tokens.tag, before))
    together = np.mean([np.equal.outer(clusters[use], clusters[use]) for clusters in heads], axis=0)
    one_word, one_tag, apart = np.equal.outer(word, word), np.equal.outer(tag, tag), np.not_equal.outer(before, before)
    words, tags = {"same_word": one_word, "other_word": ~one_word}, {"same_tag": one_tag, "other_tag": ~one_tag}
    kinds = {f"{w}_{t}": these & those & apart for w, these in words.items() for t, those in tags.items()}
    each = {name: pd.DataFrame(np.where(kind, together, np.nan)).mean(axis=1) for name, kind in kinds.items()}
    return {name: found.groupby(word, sort=False).mean().to_numpy() for name, found in each.items()}


def over_types(run: probe.Run) -> pd.DataFrame:
    """layer.head -> the excess of tags over token types."""
    rows = run.head_key_agreement.query("space == 'before' and labels == 'tag' and shuffled == 'type'")
    return rows.set_index(rows.layer.astype(str) + "." + rows["head"].astype(str)).sort_index()[["excess", "low", "high"]]


def example(run: probe.Run) -> dict[str, Any]:
    """Of the heads with the most, the median and the least of it: where each word of the first text is, and with what."""
    keys, first, found = keys_of(run), tokens_of(run).query("prompt_id == 0"), {}
    excess = over_types(run).excess.sort_values(ascending=False)
    for name, head in zip(("best", "median", "worst"), excess.index[[0, len(excess) // 2, -1]], strict=True):
        at = "space == 'before' and layer == {} and head == {}".format(*head.split("."))
        told = run.head_key_clusters.query(at).set_index("cluster").loc[keys.query(at).clusters.iloc[0][first.index]]
        shown = told.reset_index()[["cluster", "size", "tags", "tag_shares", "tokens"]].assign(word=first.token.to_numpy())
        found[name] = {"head": head, "excess": excess[head], "words": json.loads(shown.to_json(orient="records"))}
    return found


def mean(values: Any) -> dict[str, float]:
    return probe.student_mean(pd.Series(values).dropna())._asdict()
