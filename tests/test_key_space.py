"""`probe heads --keys`: planted clusters are found with what they stand for and nothing else; each floor holds its rival."""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from probe.cli.main import app
from scipy.stats import binom
from scipy.stats import t as student
from typer.testing import CliRunner

import probe
from probe.attention_heads.clustering import clustered, silhouette, units
from probe.attention_heads.key_labels import intervals, neighbours, shuffled_labels
from probe.attention_heads.tagging import column_tags, tagger_tags
from probe.errors import BadOption, BadPrompt
from probe.language_model import LanguageModel
from probe.registries.tagger_languages import LANGUAGES, part_of_speech
from probe.replaying import replay
from probe.requests import ChatOptions
from probe.stats.mutual_information import LabelAgreement, agreement_of, normalised, shuffled_over_types, shuffled_within
from probe.texts import Prompt, TokenSequence, encode
from tests.test_requests import same_rows

TAGS = np.array(["DET", "NOUN", "VERB", "ADP"])
ROWS = [
    {"prompt": "the cat sat on the mat and the dog ran", "pos": "DET NOUN VERB ADP DET NOUN CONJ DET NOUN VERB"},
    {"prompt": "one more row of text", "pos": "DET NOUN"},
    {"prompt": "a man saw the boy with a red hat", "pos": ["DET", "NOUN", "VERB", "DET", "NOUN", "ADP", "DET", "ADJ", "NOUN"]},
]


def tokens(generator: np.random.Generator, texts: int = 20, n: int = 30) -> pd.DataFrame:
    """Tokens of texts: 80 types, some of them frequent, each always of one tag."""
    share = 1 / np.arange(3, 83)
    ids = generator.choice(80, texts * n, p=share / share.sum())
    about = {"prompt_id": np.repeat(np.arange(texts), n), "pos": np.tile(np.arange(1, n + 1), texts), "token_id": ids}
    return pd.DataFrame(about | {"tag": TAGS[ids % 4]})


def agreements(frame: pd.DataFrame, clusters: np.ndarray, shuffles: int = 99) -> dict[tuple[str, str], LabelAgreement]:
    compared = shuffled_labels(frame, Counter(frame["token_id"].tolist()), shuffles=shuffles, seed=1)
    return {(one.name, one.within): one.agreement(clusters) for one in compared}


def test_mutual_information_is_that_of_the_formula() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 3, 50), generator.integers(0, 4, 50)
    b = np.where(generator.random(50) < 0.5, a, b)
    joint = Counter(zip(a.tolist(), b.tolist(), strict=True))

    def entropy(counts: Counter[Any]) -> float:
        return -sum(n / 50 * math.log(n / 50) for n in counts.values())

    each = entropy(Counter(a.tolist())), entropy(Counter(b.tolist()))
    expected = 2 * (sum(each) - entropy(joint)) / sum(each)
    table = np.histogram2d(a, b, bins=(range(4), range(5)))[0]
    assert normalised(table) == pytest.approx(expected, abs=1e-12)
    assert normalised(np.diag([3, 5, 2])) == pytest.approx(1) and normalised(np.outer([1, 2], [2, 4])) == pytest.approx(0)
    assert np.isnan(normalised(np.array([[7]]))) and normalised(np.array([[3, 4]])) == 0
    # the floor and the interval, by leaving texts out one after the other
    texts = np.repeat(np.arange(10), 5)
    shuffles = shuffled_within(b, texts, 30, generator)
    found = agreement_of(a, b, shuffles, texts)
    tables = lambda keep, labels: np.histogram2d(a[keep], labels[keep], bins=(range(4), range(5)))[0]  # noqa: E731
    excess = [
        normalised(tables(keep, b)) - np.mean([normalised(tables(keep, one)) for one in shuffles])
        for keep in (np.ones(50, bool), *(texts != text for text in range(10)))
    ]
    half = student.ppf(0.975, 9) * math.sqrt(9 / 10 * np.square(excess[1:] - np.mean(excess[1:])).sum())
    floor = [normalised(tables(texts >= 0, one)) for one in shuffles]
    expected_row = (expected, np.mean(floor), np.std(floor, ddof=1), excess[0], excess[0] - half, excess[0] + half)
    np.testing.assert_allclose(found[:6], expected_row, rtol=1e-9)
    assert found.p == (1 + sum(one >= expected for one in floor)) / 31


def test_what_is_held_fixed_stays_while_labels_are_shuffled() -> None:
    generator = np.random.default_rng(3)
    labels, strata = generator.integers(0, 5, 200), generator.integers(0, 8, 200)
    for row in shuffled_within(labels, strata, 5, generator):
        assert (row != labels).mean() > 0.5
        assert all(Counter(row[strata == s].tolist()) == Counter(labels[strata == s].tolist()) for s in range(8))
    types = generator.integers(0, 40, 200)
    of = types % 5  # each type has one label
    for row in shuffled_over_types(of, types, 5, generator):
        assert all(len(set(row[types == one].tolist())) == 1 for one in set(types.tolist())) and (row != of).mean() > 0.4
    pos = np.array([1] * 12 + [2] * 3 + [3] * 8 + [4] * 15)
    assert [sorted(set(neighbours(pos)[pos == p].tolist())) for p in (1, 2, 3, 4)] == [[0], [1], [1], [2]]
    assert Counter(intervals(np.arange(80), 8).tolist()) == dict.fromkeys(range(8), 10)


def test_the_silhouette_is_that_of_all_pairs() -> None:
    generator = np.random.default_rng(2)
    x = units(generator.standard_normal((60, 5)).astype(np.float32))
    labels = np.append(generator.integers(0, 3, 59), 3)  # the last is alone
    distance, own = 1 - x.astype(float) @ x.T, []
    for i in range(60):
        mine = labels == labels[i]
        mine[i] = False
        near = min(distance[i, labels == other].mean() for other in set(labels.tolist()) - {int(labels[i])})
        own.append((near - distance[i, mine].mean()) / max(near, distance[i, mine].mean()) if mine.any() else 0.0)
    assert silhouette(x, labels) == pytest.approx(np.mean(own), abs=1e-6)


def test_planted_parts_of_speech_are_found_and_nothing_else() -> None:
    generator = np.random.default_rng(4)
    frame = tokens(generator)
    centres = generator.standard_normal((4, 16))
    keys = centres[frame["token_id"] % 4] + 0.1 * generator.standard_normal((len(frame), 16))
    keys *= generator.uniform(0.5, 2, (len(frame), 1))  # lengths do not count
    clusters = clustered(units(keys), None, seed=0)
    assert clusters.k == 4 and clusters.stability > 0.5
    found = agreements(frame, clusters.labels)
    for within in ("text", "position", "type"):
        one = found["tag", within]
        assert one.nmi == pytest.approx(1) and one.p == 0.01 and one.low > 0.8
    # frequency goes with the tag only as far as few types are frequent: no word of it where types are what is shuffled
    assert found["position", "text"].p > 0.05 and found["position", "tag"].p > 0.05
    assert abs(found["position", "text"].excess) < 0.02


def test_keys_that_hold_the_position_alone_are_not_taken_for_parts_of_speech() -> None:
    """Tags go with positions here, so that a floor which does not hold positions would find them."""
    generator = np.random.default_rng(5)
    frame = tokens(generator, texts=40)
    late = generator.random(len(frame)) < frame["pos"] / 31
    frame["tag"] = np.where(late, generator.choice(TAGS[:2], len(frame)), generator.choice(TAGS[2:], len(frame)))
    angle = frame["pos"].to_numpy()[:, None] / 31 * np.pi
    keys = np.concatenate([np.cos(angle), np.sin(angle)], 1) + 0.02 * generator.standard_normal((len(frame), 2))
    found = agreements(frame, clustered(units(keys), None, seed=0).labels)
    assert found["tag", "text"].p == 0.01  # fooled
    assert found["tag", "position"].p > 0.05 and found["tag", "position"].low < 0 < found["tag", "position"].high + 0.01
    assert found["position", "tag"].p == 0.01 and found["position", "tag"].excess > 3 * found["tag", "text"].excess


def test_clusters_of_tokens_are_not_taken_for_parts_of_speech() -> None:
    """Every type has a place of its own among the clusters, whatever its tag, as in a model of random weights."""
    generator = np.random.default_rng(6)
    frame = tokens(generator)
    clusters = generator.integers(0, 5, 80)[frame["token_id"]]
    found = agreements(frame, clusters)
    assert found["tag", "text"].p == 0.01 and found["tag", "position"].p == 0.01  # fooled
    assert found["tag", "type"].p > 0.05 and found["tag", "type"].excess < 0.5 * found["tag", "text"].excess


def test_random_keys_exceed_their_floors_as_often_as_chance_has_it() -> None:
    """At 19 shuffles the labels come first in 1 of 20 heads: counted over 100 heads."""
    generator = np.random.default_rng(7)
    frame = tokens(generator, texts=10, n=15)
    compared = shuffled_labels(frame, Counter(frame["token_id"].tolist()), shuffles=19, seed=2)
    hits: Counter[tuple[str, str]] = Counter()
    for _ in range(100):
        clusters = generator.integers(0, 4, len(frame))
        hits.update((one.name, one.within) for one in compared if one.agreement(clusters).p <= 0.05)
    assert len(compared) == 7
    assert all(hits[one.name, one.within] <= binom.ppf(0.9999, 100, 0.05) for one in compared)
    assert binom.ppf(0.001, 700, 0.05) <= sum(hits.values())


def test_grouped_keys_are_one_space_and_those_of_the_model(tmp_path: Path) -> None:
    """The keys before rotation of tiny:mistral, four heads on two keys, are its projection's."""
    lm = probe.load("tiny:mistral")
    seen: list[torch.Tensor] = []
    hook = lm.model.model.layers[1].self_attn.k_proj.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        lm.model(torch.tensor([lm.encode(ROWS[0]["prompt"]).ids]))
    hook.remove()
    run = probe.heads(lm, ROWS[0]["prompt"], keys=True, clusters=3, shuffles=20, sequences=0, out=tmp_path / "r")
    about = run.table("head_keys").query("space == 'before' and layer == 1").sort_values("head")
    assert about["head"].tolist() == [0, 2] and set(about["heads"]) == {2}
    pos = run.table("head_key_tokens")["pos"].tolist()
    assert 0 not in pos and len(pos) == len(lm.encode(ROWS[0]["prompt"]).ids) - 1
    keys = seen[0].detach()[0, pos].reshape(len(pos), 2, -1).numpy()
    for number, labels in enumerate(about["clusters"]):
        own = clustered(units(keys[:, number]), 3, seed=0).labels
        assert normalised(np.histogram2d(own, labels, bins=(range(4), range(4)))[0]) > 0.8  # rounding may move a key
    assert run.table("head_key_agreement")["low"].isna().all()  # one text: no interval
    assert set(run.table("head_keys")["space"]) == {"before", "after"} and "kept_keys" not in run.tables
    same_rows(replay(lm, run), run)
    assert set(
        probe.heads(probe.load("tiny:gpt2"), ROWS[0]["prompt"], keys=True, clusters=2, shuffles=20).head_keys["space"]
    ) == {"before"}


def encoded(lm: LanguageModel, row: dict[str, Any]) -> TokenSequence:
    sequence = encode(lm, Prompt(0, row["prompt"], columns={"pos": row["pos"]}), ChatOptions())
    sequence.finish(lm, None, "sentence")
    return sequence


def test_a_words_tag_goes_to_all_its_tokens() -> None:
    lm = probe.load("tiny:llama")  # one token a character
    sequence = encoded(lm, ROWS[0])
    tags = column_tags(sequence, "pos")
    at = 0
    for word, tag in zip(ROWS[0]["prompt"].split(), str(ROWS[0]["pos"]).split(), strict=True):
        begin = sequence.pieces.text.index(word, at)  # type: ignore[union-attr]
        at = begin + len(word)
        own = [tag for (low, _), tag in zip(sequence.pieces.offsets, tags, strict=True) if begin <= low < at]  # type: ignore[union-attr]
        assert own == [tag] * len(word)
    spaces = [tag for token, tag in zip(sequence.tokens, tags, strict=True) if token == " "]
    assert spaces and set(spaces) == {None}
    one_each = encoded(lm, {"prompt": "ab cd", "pos": ["1", "2", "", None, "5"]})
    assert column_tags(one_each, "pos")[-5:] == ["1", "2", None, None, "5"]
    for wrong, words in ((["A"], "1 tags, 2 words and 5 tokens"), (None, "no tags"), ([1, 2], "not texts")):
        with pytest.raises(BadPrompt, match=words):
            column_tags(encoded(lm, {"prompt": "ab cd", "pos": wrong}), "pos")


def test_a_tagger_tags_words(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("HanTa")
    lm = probe.load("tiny:llama")

    def words(text: str, language: str) -> list[str | None]:
        """The tag of each word's first character."""
        sequence = encoded(lm, {"prompt": text, "pos": None})
        tags = dict(zip((low for low, _ in sequence.pieces.offsets), tagger_tags(sequence, language), strict=True))  # type: ignore[union-attr]
        begin = sequence.pieces.text.index(text)  # type: ignore[union-attr]
        return [tags[begin + at] for at in range(len(text)) if not text[at].isspace() and (at == 0 or text[at - 1].isspace())]

    english, german = "DET ADJ NOUN VERB VERB NUM ADJ NOUN PUNCT", "DET ADJ NOUN VERB PRT PUNCT"
    assert " ".join(map(str, words("The old dog didn't see 12 small cats .", "en"))) == english
    assert " ".join(map(str, words("Der alte Hund schläft nicht .", "de"))) == german
    dutch = ("LID(bep,stan,rest)", "N(soort,ev,basis,zijd,stan)", "WW(pv,tgw,met-t)", "SPEC(deeleigen)", "LET()")
    assert [part_of_speech(tag, LANGUAGES["nl"]) for tag in dutch] == ["DET", "NOUN", "VERB", "NOUN", "PUNCT"]
    from probe.attention_heads.tagging import tagger_of

    tagger_of.cache_clear()
    monkeypatch.setitem(sys.modules, "HanTa.HanoverTagger", None)
    with pytest.raises(BadOption, match="needs the package HanTa"):
        probe.heads(lm, ROWS[0]["prompt"], keys=True, tagger="en")


def test_a_run_that_was_stopped_goes_on_with_all_views(tmp_path: Path) -> None:
    """Stopped among the texts, then among the layers: the tables are those of a run without a stop; a broken row is told."""
    lm, file = probe.load("tiny:mistral"), tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    asked: dict[str, Any] = {
        "file": file, "keys": True, "tags": "pos", "clusters": 2, "shuffles": 20, "key_tokens": 40, "kernel": True,
        "memory": "elu", "sequences": 1, "length": 8, "batch_tokens": 1,
    }  # fmt: skip
    whole = probe.heads(lm, **asked, out=tmp_path / "whole")
    assert whole.summary["errors"] == 1 and "2 tags, 5 words" in whole.table("prompts").set_index("prompt_id").loc[1, "error"]
    assert whole.summary["keys"]["n"] == 40 and whole.summary["keys"]["tagged"] > 20
    for stop in (("reading texts", 1), ("clustering keys", 2)):

        def interrupt(what: str, done: int, total: int, stop: tuple[str, int] = stop) -> None:
            if (what, done) == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            probe.heads(lm, **asked, out=tmp_path / "cut", resume=stop[0] != "reading texts", progress=interrupt)
    same_rows(probe.heads(lm, **asked, out=tmp_path / "cut", resume=True), whole)


def test_what_cannot_be_asked_of_keys_is_said(tmp_path: Path) -> None:
    lm = probe.load("tiny:llama")
    for bad, words in (
        ({"tags": "pos"}, "clusters of keys"), ({"keys": True, "tags": "pos", "tagger": "en"}, "a column of tags and a tagger"),
        ({"keys": True, "tagger": "tlh"}, "no tagger"), ({"keys": True, "clusters": 1}, "clusters is 1"),
        ({"keys": True, "tags": "pos"}, "column of a file"), ({"keys": True}, "too few"),
    ):  # fmt: skip
        with pytest.raises(BadOption, match=words):
            probe.heads(lm, "ab", **bad)
    with pytest.raises(BadOption, match="no column 'tag'"):
        probe.heads(lm, ROWS, keys=True, tags="tag")
    with pytest.raises(BadPrompt, match="2 tags, 5 words"):
        probe.heads(lm, ROWS[1:2], keys=True, tags="pos")


def test_the_command_tells_plans_and_shows_a_page(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = ["heads", "--file", str(file), "--keys", "--tags", "pos", "--clusters", "3", "--shuffles", "20", "--sequences", "0"]
    words += ["--model", "tiny:llama", "--no-progress"]
    shown = CliRunner().invoke(app, [*words, "--memory", "elu", "-o", str(tmp_path / "r")])
    assert shown.exit_code == 3 and "clusters of keys" in shown.stdout  # a row could not be read
    assert "by the least excess of tag, before rotation" in shown.stdout and "as memories" in shown.stdout
    piped = CliRunner().invoke(app, ["heads", "-f", "-", *words[3:], "-o", str(tmp_path / "piped")], input=file.read_text())
    assert piped.exit_code == 3
    for table in ("heads", "head_key_tokens", "head_keys"):
        pd.testing.assert_frame_equal(
            *(probe.open_run(tmp_path / name).table(table).drop(columns="run_id") for name in ("r", "piped"))
        )
    planned = json.loads(CliRunner().invoke(app, [*words, "--dry-run", "--json"]).stdout)
    rows = {name: len(probe.open_run(tmp_path / "r").table(name)) for name in planned["tables"] if name.startswith("head_key")}
    assert {name: planned["tables"][name]["rows"] for name in rows} == rows and len(rows) == 4
    CliRunner().invoke(app, ["view", str(tmp_path / "r"), "-o", str(tmp_path / "page.html")])
    assert "Keys before rotation and parts of speech" in (tmp_path / "page.html").read_text()


@pytest.mark.slow
def test_keys_of_smollm2_go_with_parts_of_speech_before_rotation_and_with_positions_after_it(tmp_path: Path) -> None:
    pytest.importorskip("HanTa")
    lines = (Path(__file__).parent / "texts" / "steps.txt").read_text().splitlines()[1:61]
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(re.sub("[¦⏎]", "", line.partition(": ")[2]) for line in lines))
    run = probe.heads(
        probe.load("smollm2"), file=file, keys=True, tagger="en", clusters=12, key_tokens=400, shuffles=20, sequences=0
    )
    table = run.table("head_key_agreement")
    found = table.set_index(["space", "labels", "shuffled", "layer", "head"]).sort_index()
    assert found.loc[("before", "tag", "type", 1, 3), "low"] > 0.15
    means = table.groupby(["space", "labels", "shuffled"], observed=True)["excess"].mean()
    assert means["before", "tag", "type"] > 0.15 and means["before", "position", "tag"] < 0.06, means
    assert means["after", "tag", "type"] < means["before", "tag", "type"], means
    assert means["after", "position", "tag"] > 2 * means["before", "position", "tag"], means
