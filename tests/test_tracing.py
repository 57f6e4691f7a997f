"""`probe.trace` against a plain `model(ids)`: log-probs, activations, batches, generation, and what becomes of bad prompts."""

from __future__ import annotations

import copy
import functools
import math

import duckdb
import numpy as np
import pytest
import torch

import probe
from probe import store
from probe.anatomy import find
from probe.decoding import Sampling
from probe.errors import BadOption, BadPrompt, NonFinite, RunError, SiteAbsent
from probe.language_model import LanguageModel
from probe.tiny import tiny
from probe.tracing.summary import ExactSum

RAGGED = ["The capital of France is", "Hi", "One, two, three, four, five, six, seven", "When Mary and John went to the store,"]


@pytest.fixture(scope="module")
def llama():
    return probe.load("tiny:llama")


def plain(lm, ids: list[int], **what):
    with torch.no_grad():
        return lm.model(torch.tensor([ids]), **what)


def test_log_probs_are_those_of_the_plain_model_in_float64(smollm2) -> None:
    run = probe.trace(smollm2, RAGGED[0] + " Paris, and the capital of Spain is Madrid.", top=3)
    ids = run.tokens["token_id"].tolist()
    exact = plain(smollm2, ids).logits[0].double().log_softmax(-1)
    target = torch.tensor(ids[1:])
    expected = exact[:-1].gather(1, target[:, None])[:, 0]
    found = run.tokens["logprob"].to_numpy()
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1:], expected, atol=1e-5)
    np.testing.assert_allclose(run.tokens["entropy"][1:], -(exact.exp() * exact).sum(-1)[:-1], atol=1e-5)
    ranks = (exact[:-1] > expected[:, None]).sum(-1)
    assert run.tokens["rank"][1:].tolist() == ranks.tolist()
    assert [list(x) for x in run.tokens["top_ids"][1:]] == exact.topk(3).indices[:-1].tolist()
    assert run.summary["logprob"] == pytest.approx(float(expected.sum()), abs=1e-4)
    assert run.summary["perplexity"] == pytest.approx(float((-expected.mean()).exp()), rel=1e-5)


def test_activations_are_those_that_transformers_returns(smollm2) -> None:
    run = probe.trace(smollm2, RAGGED[0], capture=["resid_pre@all", "resid_post@0..28", "final_norm", "logits", "embed"])
    out = plain(smollm2, run.tokens["token_id"].tolist(), output_hidden_states=True)
    n_layers = smollm2.anatomy.n_layers
    for layer in range(n_layers):
        assert np.array_equal(run.activation("resid_pre", layer), out.hidden_states[layer][0].numpy())
    for layer in range(n_layers - 1):
        assert np.array_equal(run.activation("resid_post", layer), out.hidden_states[layer + 1][0].numpy())
    assert np.array_equal(run.activation("final_norm"), out.hidden_states[-1][0].numpy())
    assert np.array_equal(run.activation("embed"), out.hidden_states[0][0].numpy())
    assert np.array_equal(run.activation("logits"), out.logits[0].numpy())


def test_the_stream_is_a_sum(llama) -> None:
    run = probe.trace(llama, "a text of some length", capture=["resid_pre@1,resid_mid@1,resid_post@1,attn_out@1,mlp_out@1"])
    site = {name: run.activation(name, 1) for name in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")}
    np.testing.assert_allclose(site["resid_pre"] + site["attn_out"], site["resid_mid"], atol=1e-6)
    np.testing.assert_allclose(site["resid_mid"] + site["mlp_out"], site["resid_post"], atol=1e-6)


def test_positions_choose_the_rows(llama) -> None:
    run = probe.trace(llama, "abcdef", generate=3, capture=["resid_post@1:last", "z@2.1:completion"])
    n = len(run.tokens)
    kept = run.activations.groupby("site", observed=True)["pos"].apply(list)
    assert kept["resid_post"] == [n - 1] and kept["z"] == [n - 3, n - 2, n - 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "tiny:gpt2", "tiny:gemma2", "tiny:falcon_h1", "tiny:qwen3_next"])
def test_a_batch_of_ragged_prompts_is_each_alone(name: str) -> None:
    lm = probe.load(name)
    together = probe.trace(lm, RAGGED, capture=["resid_post@1"], attention="heads")
    for i, text in enumerate(RAGGED):
        alone = probe.trace(lm, text, capture=["resid_post@1"], attention="heads")
        own = together.tokens[together.tokens["prompt_id"] == i]
        assert own["token_id"].tolist() == alone.tokens["token_id"].tolist()
        np.testing.assert_allclose(own["logprob"], alone.tokens["logprob"], atol=2e-5)
        np.testing.assert_allclose(
            together.activation("resid_post", 1, prompt_id=i), alone.activation("resid_post", 1), rtol=1e-4, atol=1e-3
        )
        cards = together.heads[together.heads["prompt_id"] == i] if "heads" in together.tables else None
        if cards is not None:
            np.testing.assert_allclose(cards["entropy"], alone.heads["entropy"], atol=1e-4)


@pytest.mark.slow
def test_greedy_continuation_is_that_of_generate(smollm2) -> None:
    run = probe.trace(smollm2, RAGGED[0], generate=12)
    ids = torch.tensor([smollm2.encode(RAGGED[0]).ids])
    expected = smollm2.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    assert run.tokens["token_id"].tolist() == expected[0].tolist()
    assert run.tokens["segment"].value_counts()["completion"] == expected.shape[1] - ids.shape[1]


@pytest.mark.slow
def test_what_the_sampler_saw(smollm2) -> None:
    sampling = Sampling(temperature=0.7, top_k=20, seed=3)
    run = probe.trace(smollm2, RAGGED[0], generate=10, sampling=sampling)
    again = probe.trace(smollm2, RAGGED[0], generate=10, sampling=sampling)
    assert run.tokens["token_id"].tolist() == again.tokens["token_id"].tolist()
    made = run.tokens[run.tokens["segment"] == "completion"]
    logits = plain(smollm2, run.tokens["token_id"].tolist()).logits[0].double()
    for row in made.itertuples():
        warped = logits[row.pos - 1] / 0.7
        kept = warped.topk(20)
        assert row.kept == 20 and row.token_id in kept.indices.tolist()
        expected = (warped[row.token_id] - kept.values.logsumexp(-1)).item()
        assert row.sample_logprob == pytest.approx(expected, abs=1e-3)
        assert row.noise > 0
    assert run.tokens["kept"].isna().sum() == len(run.tokens) - len(made)


@pytest.mark.slow
def test_steps_tile_the_completion(smollm2) -> None:
    run = probe.trace(smollm2, "Alice has 3 apples. She buys 4 more.", generate=40)
    steps, n = run.steps, len(run.tokens)
    first = (run.tokens["segment"] == "completion").to_numpy().argmax()
    assert steps["start"].tolist() == [first, *steps["end"].tolist()[:-1]] and steps["end"].iloc[-1] == n
    for step in steps.itertuples():
        rows = run.tokens.iloc[step.start : step.end]
        assert (rows["step"] == step.step).all()
        assert step.logprob == pytest.approx(rows["logprob"].sum(), abs=1e-4)
        assert step.text == "".join(rows["token"])


def test_lens_at_the_last_layer_is_the_model(smollm2) -> None:
    run = probe.trace(smollm2, RAGGED[0], lens=True)
    last = run.lens[run.lens["layer"] == smollm2.anatomy.n_layers - 1]
    np.testing.assert_allclose(last["kl_to_final"], 0, atol=1e-5)
    np.testing.assert_allclose(last["target_logprob"].to_numpy()[:-1], run.tokens["logprob"].to_numpy()[1:], atol=1e-4)


def test_whole_rows_of_attention_on_disk_are_the_weights_that_transformers_returns(llama, tmp_path) -> None:
    """Long enough for row groups of their own; also with the largest few beside them, which are stored another way."""
    text = "The quick brown fox jumps over the lazy dog. " * 8
    ids = torch.tensor([llama.encode(text).ids])
    slow = copy.deepcopy(llama.model).double()
    slow.set_attn_implementation("eager")
    with torch.no_grad():
        returned = torch.stack(slow(ids, output_attentions=True).attentions)[:, 0].float().numpy()
    probe.trace(llama, text, attention="full", out=tmp_path / "full")
    probe.trace(llama, text, attention="topk:2", capture=["pattern@1.1"], out=tmp_path / "mixed")
    for name, heads in (("full", list(np.ndindex(returned.shape[:2]))), ("mixed", [(1, 1)])):
        run = probe.open_run(tmp_path / name)
        for layer, head in heads:
            found = run.activation("pattern", layer, head=head)
            np.testing.assert_allclose(found, returned[layer, head], atol=5e-6)
        parts = duckdb.sql(f"from '{tmp_path}/{name}/attention/*.parquet'")
        whole = parts.filter("keys is null").aggregate("layer, head, count(*), sum(len(weights))", "layer, head").fetchall()
        n = ids.shape[1]
        assert sorted(whole) == [(layer, head, n, n * (n + 1) // 2) for layer, head in heads]
        assert not store.check(tmp_path / name)


def test_one_bad_prompt_of_many_is_a_row(llama, tmp_path) -> None:
    run = probe.trace(llama, ["fine", "x" * 10_000, "also fine"], out=tmp_path / "run")
    assert run.summary["errors"] == 1 and (run.prompts["error"] != "").tolist() == [False, True, False]
    assert set(run.tokens["prompt_id"]) == {0, 2}
    with pytest.raises(BadPrompt, match="context"):
        probe.trace(llama, "x" * 10_000)


def test_a_token_that_was_added_and_has_no_row_is_said_and_costs_only_its_prompt() -> None:
    """A tokenizer that was given a token, and a model that was not resized: the id is none of the embedding's."""
    model, tokenizer = tiny("llama", layers=2)
    tokenizer.add_tokens(["<more>"])
    lm, n = LanguageModel(model, tokenizer, name="grown"), len(tokenizer) - 1
    told = f"the embedding of 'grown' has {n} rows, and none for '<more>', id {n}"
    run = probe.trace(lm, ["fine", "a <more>", "fine too"], generate=2)
    assert run.prompts["error"].tolist() == ["", told, ""] and sorted(set(run.tokens["prompt_id"])) == [0, 2]
    short = probe.trace(lm, "fine. And then.", generate=3)
    for refused in (
        lambda: probe.trace(lm, "a <more>"),
        lambda: probe.speculate(lm, "a <more>", draft="ngram"),
        lambda: probe.patch(lm, clean="a b", corrupt="a <more>", answer="c"),
        lambda: probe.attribute(lm, "a b", answer="<more>"),
        lambda: probe.rewind(short, lm=lm, to=str(len(short.tokens) - 1), replace="<more>", samples=2),
    ):
        with pytest.raises(BadPrompt, match="has 259 rows, and none for '<more>'"):
            refused()
    apart = probe.compare(probe.load("tiny:llama"), lm, "a <more>")
    assert "B's tokenizer would cut the text otherwise; both read the tokens of A" in apart.manifest["warnings"]


@pytest.mark.parametrize("kind", ["in the head", "after the head"])
def test_ids_that_a_model_rules_out_have_probability_0_and_spoil_nothing(kind: str, monkeypatch) -> None:
    """Padding of a vocabulary at -inf: by a bias of the head, or written over its output."""
    model, tokenizer = tiny("llama", tie_word_embeddings=False)
    if kind == "in the head":
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(259), requires_grad=False)
        model.lm_head.bias[240:256] = -torch.inf
    else:
        forward = model.forward

        def masked(*args, **kwargs):
            output = forward(*args, **kwargs)
            output.logits[..., 240:256] = -torch.inf
            return output

        monkeypatch.setattr(model, "forward", functools.wraps(forward)(masked))
    lm = LanguageModel(model, tokenizer, name="padded")
    assert lm.anatomy.causal and lm.anatomy.readout_exact and lm.anatomy.residual_error < 1e-4
    assert find(model).masked == (() if kind == "in the head" else ((240, 256),))
    run = probe.trace(lm, "One, two, three", generate=6, lens=True, top=3)
    ids = run.tokens["token_id"].tolist()
    exact = plain(lm, ids).logits[0].double().log_softmax(-1)
    np.testing.assert_allclose(run.tokens["logprob"][1:], exact[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0], atol=1e-5)
    own = exact[:-1].exp()
    np.testing.assert_allclose(run.tokens["entropy"][1:], -torch.special.xlogy(own, own).sum(-1), atol=1e-5)
    guesses = run.table("lens")
    last = guesses[guesses["layer"] == 2]
    np.testing.assert_allclose(last["kl_to_final"], 0.0, atol=1e-6)
    assert np.isfinite(guesses["kl_to_final"]).all() and (guesses["kl_to_final"][guesses["layer"] == 0] > 0.01).all()
    spoken = probe.speculate(lm, "One, two, three", draft="layers:2", generate=6)
    assert spoken.tokens["token_id"].tolist() == ids and not spoken.manifest["warnings"]
    swept = probe.patch(lm, clean="a b", corrupt="a c", answer="d", metric="kl", sites="resid_pre")
    assert "blocks" not in " ".join(swept.manifest["warnings"])
    beside = probe.compare(lm, lm, "One, two, three", edit="resid_post@0:1..=zero").table("comparison")
    assert np.isfinite(beside[["kl_ab", "kl_ba", "js", "tv"]].iloc[1:].to_numpy()).all()
    shares = probe.attribute(lm, "One, two, three", answer="d").summary["positions"][0]
    assert abs(shares["residual"]) < 1e-4


def test_nan_logits_are_said_and_cost_only_their_prompt() -> None:
    lm = probe.load("tiny:llama")
    poison = lm.encode("z").ids[-1]
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[poison] = float("nan")
    with pytest.raises(NonFinite):
        probe.trace(lm, "a z b")
    run = probe.trace(lm, ["ab", "a z b", "cd"])
    assert (run.prompts.sort_values("prompt_id")["error"] != "").tolist() == [False, True, False]
    assert set(run.tokens["prompt_id"]) == {0, 2}


def test_a_resumed_trace_is_the_undisturbed_one(llama, tmp_path, monkeypatch) -> None:
    from probe.tracing import recording

    what = {"generate": 2, "batch_tokens": 16, "capture": ["resid_post@1"]}
    whole = probe.trace(llama, RAGGED, out=tmp_path / "whole", **what)
    real, calls = recording.read_sequences, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(recording, "read_sequences", interrupted)
    with pytest.raises(KeyboardInterrupt):
        probe.trace(llama, RAGGED, out=tmp_path / "run", **what)
    monkeypatch.setattr(recording, "read_sequences", real)
    with pytest.raises(RunError, match="not finished"):
        probe.trace(llama, RAGGED, out=tmp_path / "run", **what)
    with pytest.raises(RunError, match="generate"):
        probe.trace(llama, RAGGED, out=tmp_path / "run", resume=True, **{**what, "generate": 3})
    resumed = probe.trace(llama, RAGGED, out=tmp_path / "run", resume=True, **what)
    for table in whole.tables:
        a, b = whole.table(table).drop(columns="run_id"), resumed.table(table).drop(columns="run_id")
        assert a.to_json() == b.to_json(), table


def test_bad_requests_are_refused_before_anything_runs(llama) -> None:
    for what in ({"generate": -1}, {"top": -1}, {"store": "zip"}, {"system": "x"}, {"split": "regex:("}, {"attention": "all"}):
        with pytest.raises(BadOption):
            probe.trace(llama, "x", **what)
    with pytest.raises(SiteAbsent):
        probe.trace(probe.load("tiny:mamba"), "x", capture=["z@0"])


@pytest.mark.slow
def test_a_chat_is_rendered_once(smollm2) -> None:
    run = probe.trace(smollm2, "Hi!", chat=True, system="Be kind.")
    text = run.prompts["rendered"][0]
    assert text.count("<|im_start|>system") == 1 and "Be kind." in text and text.endswith("<|im_start|>assistant\n")
    assert run.text() == text


def test_an_edit_holds_while_decoding_and_reading(llama) -> None:
    """Zeroed MLPs: the same tokens and log-probs as a model whose MLPs are zeroed by plain hooks."""
    run = probe.trace(llama, "Hello there, you", generate=6, edit="mlp_out@all=zero", capture="mlp_out@1", out=None)
    hooks = [layer.mlp.register_forward_hook(lambda m, a, o: torch.zeros_like(o)) for layer in llama.model.model.layers]
    plain = probe.trace(llama, "Hello there, you", generate=6, out=None)
    for hook in hooks:
        hook.remove()
    assert run.tokens["token_id"].tolist() == plain.tokens["token_id"].tolist()
    np.testing.assert_allclose(run.tokens["logprob"], plain.tokens["logprob"], atol=1e-5)
    assert (run.activation("mlp_out", 1) == 0).all()
    two = probe.trace(llama, ["Hello there, you", "Short"], generate=6, edit="mlp_out@all=zero", out=None)
    own = two.tokens[two.tokens["prompt_id"] == 0]
    assert own["token_id"].tolist() == run.tokens["token_id"].tolist()


@pytest.mark.slow
def test_what_was_asked_for_is_told_first(smollm2) -> None:
    """The template's own words are improbable to the model; an answer's perplexity is of the answer alone."""
    run = probe.trace(smollm2, "What is 3 + 4?", chat=True, generate=8)
    rendered = smollm2.render_chat("What is 3 + 4?").ids
    ids = run.tokens["token_id"].tolist()
    logprob = plain(smollm2, ids).logits[0, :-1].double().log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    own = logprob[len(rendered) - 1 :]
    asked = smollm2.ids_of("What is 3 + 4?")
    at = next(i for i in range(len(rendered)) if rendered[i : i + len(asked)] == asked)
    expected = {"completion": own, "prompt": logprob[at - 1 : at - 1 + len(asked)]}
    expected["template"] = torch.cat([logprob[: at - 1], logprob[at - 1 + len(asked) : len(rendered) - 1]])
    assert list(run.summary["parts"]) == list(expected)
    for name, values in expected.items():
        part = run.summary["parts"][name]
        assert part["scored"] == len(values) and part["logprob"] == pytest.approx(float(values.sum()), abs=1e-4)
        assert part["perplexity"] == pytest.approx(float((-values.mean()).exp()), rel=1e-5)
    template = run.tokens["template"].tolist()
    assert [i for i in range(len(ids)) if not template[i]] == [*range(at, at + len(asked)), *range(len(rendered), len(ids))]
    assert all(row["pos"] >= len(rendered) for row in run.summary["most_surprising"])
    (row,) = run.prompts.to_dict("records")
    entropy = run.tokens["entropy"].to_numpy()[len(rendered) :]
    assert row["scored"] == len(own) and row["logprob"] == pytest.approx(float(own.sum()), abs=1e-4)
    assert row["mean_entropy"] == pytest.approx(entropy.mean(), rel=1e-5)
    text = smollm2.pieces(ids[len(rendered) :]).text
    assert row["completion"] == text and run.summary["completions"] == [{"prompt_id": 0, "text": text}]


def test_numbers_of_a_prompt_that_nothing_follows(llama) -> None:
    run = probe.trace(llama, ["abc", "x" * 5000, "de"], attention="none")
    prompts = run.prompts.set_index("prompt_id")
    assert prompts["completion"].isna().all() and "completion" not in run.summary["parts"]
    for i in (0, 2):
        own = run.tokens[run.tokens["prompt_id"] == i]
        assert prompts["logprob"][i] == pytest.approx(own["logprob"].sum(), rel=1e-6)
        assert prompts["perplexity"][i] == pytest.approx(np.exp(-own["logprob"].mean()), rel=1e-5)
    assert np.isnan(prompts["logprob"][1]) and prompts["error"][1] != ""
    assert run.tokens["template"].isna().all()
    said = probe.trace(llama, [[{"role": "user", "content": "abc"}]], attention="none")
    own = said.tokens[~said.tokens["template"].astype(bool)]
    assert "".join(own["token"]) == "abc" and said.prompts["logprob"][0] == pytest.approx(own["logprob"].sum(), rel=1e-6)


@pytest.mark.slow
def test_the_summary_of_many_prompts_is_that_of_their_tables_after_a_resume_too(llama, tmp_path) -> None:
    """The numbers, computed from whole tables in float64; an interrupted run's come from files and memory, piece by piece."""
    prompts = [f"{'walk home again ' * (1 + i % 5)}{i}" for i in range(30)]
    prompts[7] = "x" * 5000
    what = {"generate": 3, "batch_tokens": 200, "attention": "none"}
    alone = probe.trace(llama, prompts, out=tmp_path / "alone", **what)

    def interrupt(stage: str, done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe.trace(llama, prompts, out=tmp_path / "run", progress=interrupt, **what)
    run = probe.trace(llama, prompts, out=tmp_path / "run", resume=True, **what)
    assert run.summary == alone.summary == probe.trace(llama, prompts, **what).summary
    tokens, found = run.tokens, run.summary
    assert list(found["parts"]) == ["completion", "prompt"]
    for rows, part in ((tokens, found), *((tokens[tokens["segment"] == name], p) for name, p in found["parts"].items())):
        logprob = rows["logprob"].dropna().astype(float)
        assert (part["tokens"], part["scored"]) == (len(rows), len(logprob))
        expected = (logprob.sum(), np.exp(-logprob.mean()), -logprob.mean() / np.log(2), rows["entropy"].astype(float).mean())
        got = [part[name] for name in ("logprob", "perplexity", "bits_per_token", "mean_entropy")]
        assert got == pytest.approx(expected, rel=1e-12)  # float64 sums in another order
    written = tokens[tokens["segment"] == "completion"]
    first = written.sort_values(["surprisal", "prompt_id", "pos"], ascending=[False, True, True]).head(8)
    assert [(t["prompt_id"], t["pos"], t["surprisal"]) for t in found["most_surprising"]] == list(
        first[["prompt_id", "pos", "surprisal"]].itertuples(index=False, name=None)
    )
    assert (found["prompts"], found["errors"], found["generated"]) == (30, 1, len(written))
    texts = run.prompts[run.prompts["error"] == ""]
    assert found["completions"] == [
        {"prompt_id": i, "text": t} for i, t in zip(texts["prompt_id"], texts["completion"], strict=True)
    ]
    assert found["stop_reasons"] == texts["stop_reason"].value_counts().to_dict()


def test_a_sum_in_pieces_is_the_exact_one() -> None:
    rng = np.random.default_rng(0)
    small = rng.normal(size=999) * 10.0 ** rng.integers(-30, 30, 999)
    values = np.concatenate([small, [1e30, 1.0, -1e30]]).astype(np.float32)
    pieces = [ExactSum() for _ in range(2)]
    for total, cuts in zip(pieces, ([400], [3, 500, 999]), strict=True):
        for piece in np.split(values, cuts):
            total.add(piece)
    assert pieces[0].total() == pieces[1].total() == math.fsum(values.tolist()) and pieces[0].count == len(values)
    pieces[0].add(np.array([-np.inf], np.float32))
    assert pieces[0].total() == -np.inf
