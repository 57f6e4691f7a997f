"""Two models on one text: every number against two plain forwards and NumPy; nothing differs where nothing was changed."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pyarrow as pa
import pytest
import torch

import probe
from probe import stats
from probe.comparing.aligning import Tokens, segment_columns
from probe.comparing.sides import distances
from probe.errors import BadEdit, BadOption, BadPlace, BadPrompt, NonFinite, RunError
from probe.language_model import LanguageModel
from tests.test_cli_trace import failed

TEXT = "The capital of France is Paris."
PLACES = ["cosine", "cosine_min", "cka", "cka_debiased"]


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def plain(lm: LanguageModel, ids: list[int]) -> np.ndarray:
    """Logits (pos, d_vocab) of a forward that nobody watches, float64."""
    with torch.no_grad():
        return lm.model(torch.tensor([ids])).logits[0].double().numpy()


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(-1)


def check(table, ids: list[int], za: np.ndarray, zb: np.ndarray, *, atol: float = 1e-5) -> None:
    """All columns of `comparison` from the logits of two plain forwards."""
    p, q = softmax(za[:-1]), softmax(zb[:-1])
    m, own = (p + q) / 2, (np.arange(len(ids) - 1), np.asarray(ids[1:]))
    rows = table.iloc[1:]
    expected = {
        "kl_ab": kl(p, q), "kl_ba": kl(q, p), "js": (kl(p, m) + kl(q, m)) / 2, "tv": np.abs(p - q).sum(-1) / 2,
        "accept": np.minimum(p, q).sum(-1), "logprob_a": np.log(p[own]), "logprob_b": np.log(q[own]),
        "difference": np.log(q[own]) - np.log(p[own]), "entropy_a": -(p * np.log(p)).sum(-1),
        "entropy_b": -(q * np.log(q)).sum(-1), "same_top": p.argmax(-1) == q.argmax(-1), "top_a": p.argmax(-1),
        "top_b": q.argmax(-1),
    }  # fmt: skip
    for name, values in expected.items():
        np.testing.assert_allclose(rows[name].to_numpy(dtype=float), values.astype(float), atol=atol, err_msg=name)
    # tokens as probable as this one to rounding may come before it or after
    near = 4 * np.finfo(np.float32).eps * np.abs(zb[:-1]).max(-1, keepdims=True)
    rank, mine = rows["rank_b"].to_numpy(dtype=float), zb[:-1][own][:, None]
    assert (rank >= (zb[:-1] > mine + near).sum(-1)).all() and (rank <= (zb[:-1] >= mine - near).sum(-1)).all()
    assert table.iloc[0][["logprob_a", "kl_ab", "tv", "same_top"]].isna().all()
    assert table["token_id"].tolist() == ids


@pytest.mark.parametrize(
    ("a", "b"), [("llama", "gpt2"), ("gemma2", "llama"), ("gpt_neox", "mixtral"), ("mamba", "llama"), ("cohere", "falcon_h1")]
)
def test_every_column_is_that_of_two_plain_forwards(a: str, b: str) -> None:
    x, y = probe.load(f"tiny:{a}"), probe.load(f"tiny:{b}")
    ids = x.encode(TEXT).ids
    run = probe.compare(x, y, TEXT)
    check(run.comparison, ids, plain(x, ids), plain(y, ids))
    assert run.summary["aligned_by"] == "tokens" and run.summary["scored"] == len(ids) - 1
    for name in ("kl_ab", "js", "accept", "same_top", "difference"):
        column = run.comparison[name].dropna().astype(float)
        found = run.summary["means"][name]
        assert found["mean"] == pytest.approx(column.mean()) and found["low"] <= found["mean"] <= found["high"]


def test_half_precision_is_seen(smollm2) -> None:
    a, b = probe.load("tiny:llama"), probe.load("tiny:llama", dtype="bfloat16")
    ids = a.encode(TEXT).ids
    run = probe.compare(a, b, TEXT)
    check(run.comparison, ids, plain(a, ids), plain(b, ids))
    assert 0 < run.comparison["kl_ab"].max() < 0.05 and run.summary["dtype_b"] == "torch.bfloat16"


@pytest.mark.slow
def test_a_model_and_itself_differ_nowhere_at_all(smollm2) -> None:
    run = probe.compare(smollm2, smollm2, TEXT)
    rows = run.comparison.iloc[1:]
    assert (rows[["kl_ab", "kl_ba", "js", "tv", "difference"]] == 0).all(axis=None)
    assert (rows["accept"] == 1).all() and rows["same_top"].all() and (run.similarity[PLACES] == 1).all(axis=None)
    assert (run.similarity["distance"] == 0).all() and len(run.similarity) == smollm2.anatomy.n_layers + 1
    assert run.summary["largest"] == [] and run.summary["means"]["js"] == {"mean": 0.0, "low": 0.0, "high": 0.0}


@pytest.mark.parametrize("name", ["tiny:llama", "tiny:gemma2", "tiny:gpt2"])
def test_an_edit_that_changes_nothing_is_exactly_nothing(name: str, tmp_path) -> None:
    lm = probe.load(name)
    probe.trace(lm, TEXT, capture=["resid_post@1"], out=tmp_path / "own")
    run = probe.compare(lm, lm, TEXT, edit=f"resid_post@1=patch:{tmp_path / 'own'}")
    assert (run.comparison.iloc[1:][["kl_ab", "kl_ba", "js", "tv", "difference"]] == 0).all(axis=None)
    assert (run.similarity[PLACES] == 1).all(axis=None)


@pytest.mark.slow
def test_an_edit_is_what_a_plain_hook_makes_of_it(smollm2) -> None:
    ids, block = smollm2.encode(TEXT).ids, smollm2.model.model.layers[5]
    before = plain(smollm2, ids)

    def silence(module, args, output):
        changed = output.clone()
        changed[:, 3] = 0
        return changed

    handle = block.register_forward_hook(silence)
    after = plain(smollm2, ids)
    handle.remove()
    run = probe.compare(smollm2, smollm2, TEXT, edit="resid_post@5:3=zero")
    check(run.comparison, ids, before, after, atol=1e-4)
    cosine = run.similarity.set_index(["site", "layer"])["cosine_min"]
    assert (cosine["resid_post"].iloc[:5] == 1).all() and run.summary["edit"] == ["resid_post@5:3=zero"]
    assert (run.comparison["js"].iloc[1:4] == 0).all() and run.comparison["js"].iloc[4] > 0.1


def test_residual_streams_from_plain_hidden_states() -> None:
    """CKA by Kornblith's formula in features, the debiased one by the U-statistic over all four-tuples."""
    a, b, text = probe.load("tiny:llama"), probe.load("tiny:gpt2"), "Hello you"
    ids = torch.tensor([a.encode(text).ids])
    streams = []
    with torch.no_grad():
        for lm in (a, b):
            streams.append([h[0, 1:].double().numpy() for h in lm.model(ids, output_hidden_states=True).hidden_states])
    found = probe.compare(a, b, text).similarity.set_index(["site", "layer"])
    for layer, (x, y) in enumerate(zip(*(s[:-1] for s in streams), strict=True)):
        row = found.loc[("resid_pre", 0) if layer == 0 else ("resid_post", layer - 1)]
        cosine = (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1)
        distance = np.linalg.norm(y - x, axis=-1) / np.linalg.norm(x, axis=-1)
        xc, yc = x - x.mean(0), y - y.mean(0)
        norm = np.linalg.norm
        cka = norm(yc.T @ xc) ** 2 / (norm(xc.T @ xc) * norm(yc.T @ yc))
        k, m = x @ x.T, y @ y.T

        def u(k, m):
            quads = itertools.permutations(range(len(k)), 4)
            return np.mean([k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in quads])

        debiased = u(k, m) / np.sqrt(u(k, k) * u(m, m))
        expected = [cosine.mean(), cosine.min(), distance.mean(), cka, debiased, len(x)]
        own = row[["cosine", "cosine_min", "distance", "cka", "cka_debiased", "n"]].to_numpy(dtype=float)
        np.testing.assert_allclose(own, expected, atol=1e-6)


def test_distances_of_enumerated_distributions() -> None:
    random = np.random.default_rng(0)
    z = random.normal(size=(2, 50, 7)) * 3
    found = distances(*torch.tensor(z))
    p, q = softmax(z)
    m = (p + q) / 2
    for name, expected in (
        ("kl_ab", kl(p, q)), ("kl_ba", kl(q, p)), ("js", (kl(p, m) + kl(q, m)) / 2), ("tv", np.abs(p - q).sum(-1) / 2)
    ):  # fmt: skip
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-9, err_msg=name)
    close = torch.tensor(z[0])
    tiny = distances(close, close + 1e-7 * torch.tensor(z[1]))
    second = ((z[1] - (p * z[1]).sum(-1, keepdims=True)) ** 2 * p).sum(-1) * 1e-14 / 2  # KL is half the variance
    np.testing.assert_allclose(tiny.kl_ab, second, rtol=1e-2)
    np.testing.assert_allclose(tiny.js, second / 4, rtol=1e-2)


def test_distributions_that_rule_tokens_out() -> None:
    a = torch.tensor([[0.0, 0.0, -torch.inf], [0.0, -torch.inf, -torch.inf], [0.0, 0.0, -torch.inf]])
    b = torch.tensor([[0.0, -torch.inf, -torch.inf], [-torch.inf, 0.0, -torch.inf], [0.0, 0.0, -torch.inf]])
    found = distances(a, b)
    assert found.kl_ab.tolist() == [float("inf"), float("inf"), 0.0] and found.tv.tolist() == [0.5, 1.0, 0.0]
    assert found.kl_ba[0].item() == pytest.approx(np.log(2)) and found.js[1].item() == pytest.approx(np.log(2))
    assert found.js[2].item() == 0.0


def test_a_larger_vocabulary_is_compared_over_what_both_have() -> None:
    a, b = probe.load("tiny:llama"), probe.load("tiny:llama")
    with torch.no_grad():
        b.model.resize_token_embeddings(a.anatomy.d_vocab + 16, mean_resizing=False)
    b = LanguageModel(b.model, b.tokenizer, name="wide")
    n, ids = a.anatomy.d_vocab, a.encode(TEXT).ids
    for x, y in ((a, b), (b, a)):
        run = probe.compare(x, y, TEXT)
        p, q = (softmax(plain(lm, ids)[:-1, :n]) for lm in (x, y))
        np.testing.assert_allclose(run.comparison["kl_ab"].iloc[1:], kl(p, q), atol=1e-6)
        whole = softmax(plain(y, ids)[:-1])[np.arange(len(ids) - 1), ids[1:]]
        np.testing.assert_allclose(run.comparison["logprob_b"].iloc[1:], np.log(whole), atol=1e-5)
        (said,) = run.manifest["warnings"]
        beyond = softmax(plain(b, ids)[:-1])[:, n:].sum(-1).max()
        assert f"{beyond:.2g}" in said and "275" in said


def test_other_tokenizers_are_aligned_by_characters(smollm2) -> None:
    text, other = "naïve 日本語 texts, twice texts", probe.load("tiny:llama")
    run = probe.compare(smollm2, other, text)
    rows = run.segments
    assert run.summary["aligned_by"] == "characters" and "similarity" not in run.tables
    assert "".join(rows["text"]) == text[rows["text_start"].iloc[0] :] and (rows["tokens_b"] >= 1).all()
    assert (rows["text_start"].iloc[1:].to_numpy() == rows["text_end"].iloc[:-1].to_numpy()).all()
    for lm, side in ((smollm2, "a"), (other, "b")):
        ids = lm.encode(text).ids
        z = plain(lm, ids)
        own = np.log(softmax(z[:-1]))[np.arange(len(ids) - 1), ids[1:]]
        for row in rows.itertuples():  # of a segment: log-prob of its end less that of its beginning, from decoded prefixes
            before, after = (next(i for i in range(len(ids) + 1) if lm.tokenizer.decode(ids[:i], skip_special_tokens=True)
                                  == text[:end]) for end in (row.text_start, row.text_end))  # fmt: skip
            last = max(after, before + getattr(row, f"tokens_{side}"))
            assert getattr(row, f"logprob_{side}") == pytest.approx(own[before - 1 : last - 1].sum(), abs=1e-4)
    bits = -rows["logprob_b"].sum() / np.log(2) / rows["text"].str.len().sum()
    assert run.summary["bits_per_character_b"] == pytest.approx(bits)


def test_segments_of_tokens_made_by_hand() -> None:
    """Boundaries that tear a character, and what comes before an unscored token's end, are left out."""
    nan = float("nan")
    a = Tokens([(0, 2), (2, 3), (3, 5), (5, 6)], [nan, -1.0, -2.0, -4.0], lambda i: True)
    b = Tokens([(0, 1), (1, 3), (3, 3), (3, 6)], [-8.0, -16.0, -32.0, -64.0], lambda i: True)
    found = segment_columns("abcdef", a, b)
    assert found["text"] == ["def"] and found["logprob_a"] == [-6.0] and found["logprob_b"] == [-64.0]
    assert found["tokens_a"] == [2] and found["tokens_b"] == [1] and found["difference"] == [-58.0]
    scored = a._replace(logprobs=[-0.5, -1.0, -2.0, -4.0])
    found = segment_columns("abcdef", scored, b)
    assert found["text"] == ["abc", "def"] and found["logprob_b"] == [-56.0, -64.0] and found["tokens_b"] == [3, 1]
    torn = b._replace(whole=lambda i: i != 2)
    assert segment_columns("abcdef", scored, torn)["text"] == ["abcdef"]


def test_runs_are_compared_as_far_as_they_say_the_same(tmp_path) -> None:
    a, b = probe.load("tiny:llama"), probe.load("tiny:gpt2")
    x = probe.trace(a, [TEXT, "other"], generate=5, out=tmp_path / "x")
    y = probe.trace(b, ["more", TEXT], generate=5, out=tmp_path / "y")
    run = probe.compare(tmp_path / "x", tmp_path / "y")
    n = len(a.encode(TEXT).ids)
    rows, one, two = run.comparison, x.tokens[x.tokens["prompt_id"] == 0], y.tokens[y.tokens["prompt_id"] == 1]
    (parting,) = run.summary["partings"]
    assert len(rows) == parting["pos"] >= n and parting["token_a"] == one["token"].iloc[parting["pos"]]
    assert one["token_id"].iloc[parting["pos"]] != two["token_id"].iloc[parting["pos"]]
    np.testing.assert_allclose(
        rows["difference"].iloc[1:], (two["logprob"].to_numpy() - one["logprob"].to_numpy())[1 : len(rows)], atol=1e-6
    )
    assert rows["kl_ab"].isna().all() and "similarity" not in run.tables
    same = probe.compare(x, x)
    assert (same.comparison["difference"].dropna() == 0).all() and same.summary["partings"] == []
    with pytest.raises(RunError, match="in common"):
        probe.compare(x, probe.trace(b, "something else"))


def test_runs_of_different_tokenizers(smollm2) -> None:
    other = probe.load("tiny:llama")
    x, y = probe.trace(smollm2, TEXT, generate=2), probe.trace(other, TEXT, generate=2)
    recorded, live = probe.compare(x, y).segments, probe.compare(smollm2, other, TEXT).segments
    n = len(live)
    assert recorded["text"].tolist()[:n] == live["text"].tolist()
    np.testing.assert_allclose(recorded["logprob_b"].iloc[:n], live["logprob_b"], atol=1e-4)


def test_intervals_know_that_neighbours_hang_together() -> None:
    """Blocks cover the mean of a series with memory; single tokens, drawn alone, don't."""
    random, hits, naive = np.random.default_rng(0), 0, 0
    for trial in range(150):
        noise = random.normal(size=600)
        series = np.empty(600)
        series[0] = noise[0]
        for t in range(1, 600):
            series[t] = 0.6 * series[t - 1] + noise[t]
        found = stats.mean_of([series], seed=trial, draws=500)
        alone = stats.bootstrap_mean(series, seed=trial, draws=500)
        hits, naive = hits + (found.low <= 0 <= found.high), naive + (alone.low <= 0 <= alone.high)
    assert hits / 150 > 0.85 and naive / 150 < 0.75
    many = [np.full(5, mean) for mean in random.normal(size=60)]
    wide = stats.mean_of(many, seed=0)
    assert stats.how([5] * 60).by_text and wide.high - wide.low == pytest.approx(2 * 1.96 / np.sqrt(60), rel=0.3)
    assert np.isnan(stats.mean_of([np.array([0.0, np.inf])], seed=0).estimate)


def test_infinite_divergences_are_counted_and_not_averaged() -> None:
    from probe.comparing.summary import _mean

    column = pa.chunked_array([[0.5, float("inf"), None, float("inf")]])
    assert _mean(column, np.zeros(4), 0) == {"mean": None, "low": None, "high": None, "infinite": 2}
    assert "infinite" not in _mean(pa.chunked_array([[0.5, None]]), np.zeros(2), 0)


def test_an_edit_beyond_one_text_of_many_costs_that_text_only() -> None:
    lm = probe.load("tiny:llama")
    run = probe.compare(lm, lm, [TEXT, "Hi"], edit="mlp_out@1:9=zero")
    assert (run.prompts.sort_values("prompt_id")["error"] != "").tolist() == [False, True]
    with pytest.raises(BadPlace):
        probe.compare(lm, lm, "Hi", edit="mlp_out@1:9=zero")


def test_many_texts_and_one_that_cannot_be_read(tmp_path) -> None:
    a, b = probe.load("tiny:llama"), probe.load("tiny:gpt2")
    seen: list[int] = []
    run = probe.compare(a, b, [TEXT, "x" * 10_000, "Hello"], progress=lambda what, done, total: seen.append(done))
    prompts = run.prompts.sort_values("prompt_id")
    assert (prompts["error"] != "").tolist() == [False, True, False] and run.summary["errors"] == 1 and seen == [1, 2]
    assert set(run.comparison["prompt_id"]) == {0, 2}
    ids = a.encode("Hello").ids
    check(run.comparison[run.comparison["prompt_id"] == 2].reset_index(drop=True), ids, plain(a, ids), plain(b, ids))


def test_logits_that_are_not_numbers() -> None:
    a, b = probe.load("tiny:llama"), probe.load("tiny:llama")
    with torch.no_grad():
        b.model.get_input_embeddings().weight[b.encode("z").ids[-1]] = float("nan")
    with pytest.raises(NonFinite):
        probe.compare(a, b, "a z b")
    run = probe.compare(a, b, ["ab", "a z b", "cd"])
    assert (run.prompts.sort_values("prompt_id")["error"] != "").tolist() == [False, True, False]
    assert run.similarity["n"].iloc[0] == 4 and set(run.comparison["prompt_id"]) == {0, 2}


def test_what_cannot_be_compared_is_said(smollm2) -> None:
    lm, run = probe.load("tiny:llama"), probe.trace(probe.load("tiny:llama"), "Hello")
    for error, words in (
        (BadOption, lambda: probe.compare(lm, lm)),
        (BadOption, lambda: probe.compare(lm, run, "x")),
        (BadOption, lambda: probe.compare(run, run, "x")),
        (BadOption, lambda: probe.compare(lm, lm, "x", system="be kind")),
        (BadOption, lambda: probe.compare(lm, smollm2, "x", chat=True)),
        (BadPrompt, lambda: probe.compare(lm, lm, "")),
        (BadPrompt, lambda: probe.compare(smollm2, smollm2, "a")),
        (BadPrompt, lambda: probe.compare(lm, smollm2, "")),
        (BadEdit, lambda: probe.compare(lm, lm, "x", edit="z@0=scale")),
    ):
        with pytest.raises(error):
            words()


def test_layers_that_do_not_match_are_not_compared() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    a = probe.load("tiny:llama")
    config = LlamaConfig(**{**a.model.config.to_dict(), "num_hidden_layers": 2})
    b = LanguageModel(LlamaForCausalLM(config), a.tokenizer, name="shallow")
    run = probe.compare(a, b, TEXT)
    assert "A has 3 layers and B 2" in run.summary["no_similarity"] and "similarity" not in run.tables
    check(run.comparison, a.encode(TEXT).ids, plain(a, a.encode(TEXT).ids), plain(b, a.encode(TEXT).ids))


@pytest.mark.slow
def test_the_command_line(shell, tmp_path) -> None:
    two = ("compare", "tiny:llama", "tiny:llama")
    done = shell(*two, TEXT, "--dtype-b", "bfloat16", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert "B tiny:llama (bfloat16)" in done.stdout and "KL(A || B), nats" in done.stdout and "run: run" in done.stdout
    (tmp_path / "t.txt").write_text(f"{TEXT}\nHello\n")
    said = json.loads(shell(*two, "--file", "t.txt", "--edit", "mlp_out@1=scale:0.5", "--json", "--out", "b").stdout)
    assert said["command"] == "compare" and said["summary"]["prompts"] == 2 and said["run"] == "b"
    assert said["summary"]["edit"] == ["mlp_out@1=scale:0.5"] and said["summary"]["means"]["js"]["mean"] > 0
    for name in ("x", "y"):
        probe.trace(probe.load("tiny:gpt2"), "Hello", out=tmp_path / name)
    done = shell("compare", "x", "y", "--out", "c")
    assert done.returncode == 0 and "no residual streams" in done.stdout, done.stderr
    failed(shell("compare", "x", "tiny:llama", "--out", "d"), 1, "run")
    failed(shell(*two), 2, "prompt")
