"""Speculation on real models: greedy output is greedy decoding, whatever the draft; ends, limits, tables, refusals."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

import probe
from probe.decoding import Sampling, decode, processors
from probe.errors import BadModel, BadOption, BadPrompt, NonFinite
from probe.language_model import LanguageModel
from probe.requests import Speculate
from probe.speculating import plan_speculate
from probe.speculating.drafts import fitted, history, lookup, make_draft
from probe.speculating.proposals import kind_of
from probe.speculating.readers import CachedModel, EarlyExit
from probe.speculating.rounds import Blocks, Round, speculate_ids
from probe.tiny import tiny, tokenizer

FAMILIES = ("llama", "gpt2", "gemma2", "gpt_neox", "mixtral", "mamba", "jamba", "falcon_h1")
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "a", "dog"]


def loaded(family: str, **overrides: object) -> LanguageModel:
    model, tok = tiny(family, **overrides)
    return LanguageModel(model, tok, name=f"tiny:{family}")


def prompts(n: int) -> list[str]:
    """Texts that repeat themselves in places."""
    random = np.random.default_rng(0)
    return [" ".join(random.choice(WORDS, size=random.integers(1, 12))) for _ in range(n)]


def greedy(model: torch.nn.Module, ids: list[int], n: int) -> list[int]:
    """The plainest decoding there is: a full forward for every token."""
    text = list(ids)
    with torch.no_grad():
        for _ in range(n):
            text.append(int(model(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
    return text[len(ids) :]


def every_draft(lm: LanguageModel) -> list[object]:
    other, tok = tiny("gpt2", seed=5)
    return ["ngram", "ngram:1", "layers:1", "layers:2", lm, LanguageModel(other, tok, name="another")]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_greedy_decoding(family: str) -> None:
    lm = loaded(family)
    lm.eos_ids = set()
    for text in prompts(1):
        ids = lm.encode(text).ids
        expected = greedy(lm.model, ids, 12)
        for draft in every_draft(lm):
            for block in ("1", "adaptive"):
                found = speculate_ids(
                    lm, make_draft(lm, draft), ids, max_new=12, sampling=Sampling(), blocks=Blocks.parse(block)
                )
                assert found.found.ids == expected, (draft, block)


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["ngram", "layers:1", "another"])
def test_greedy_is_greedy_decoding_over_50_prompts(draft: str) -> None:
    lm = loaded("llama")
    proposing = make_draft(lm, every_draft(lm)[-1] if draft == "another" else draft)
    for text in prompts(50):
        ids = lm.encode(text).ids
        (plain,) = decode(lm, [ids], max_new=16, sampling=Sampling())
        found = speculate_ids(lm, proposing, ids, max_new=16, sampling=Sampling()).found
        assert (found.ids, found.stop_reason) == (plain.ids, plain.stop_reason)


@pytest.mark.slow
@pytest.mark.parametrize("draft", ["ngram", "layers:24", "itself"])
def test_greedy_is_greedy_decoding_on_real_weights(draft: str, smollm2: LanguageModel) -> None:
    proposing = make_draft(smollm2, smollm2 if draft == "itself" else draft)
    for text in ("1, 2, 3, 1, 2, 3, 1,", "The capital of France is"):
        ids = smollm2.encode(text).ids
        (plain,) = decode(smollm2, [ids], max_new=16, sampling=Sampling(repetition_penalty=1.1))
        found = speculate_ids(smollm2, proposing, ids, max_new=16, sampling=Sampling(repetition_penalty=1.1)).found
        assert found.ids == plain.ids


@pytest.mark.parametrize("wrong", ["raises", "shifts"])
def test_a_cache_that_takes_one_token_at_a_time_is_done_without(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in families whose own code fails, or is silently wrong, when several tokens follow what is cached."""
    lm = loaded("llama")
    ids, lm.eos_ids, forward = lm.encode("ab ab abc").ids, set(), lm.model.forward
    expected = greedy(lm.model, ids, 10)

    def one_at_a_time(*args: torch.Tensor, **kwargs: object) -> object:
        output = forward(*args, **kwargs)
        if kwargs.get("cache", kwargs.get("past_key_values")) is not None and args[0].shape[1] > 1:
            if wrong == "raises":
                raise RuntimeError("one token at a time")
            output.logits = output.logits.roll(1, dims=-1)
        return output

    draft = make_draft(lm, "ngram")
    monkeypatch.setattr(lm.model, "forward", one_at_a_time)
    found = speculate_ids(lm, draft, ids, max_new=10, sampling=Sampling())
    assert found.found.ids == expected and "taken back" in found.warnings[0]


@pytest.mark.slow
def test_a_sliding_window_is_crossed_and_taken_back() -> None:
    """Rejections at, before and beyond the window's edge; a crop without its past would shift what is seen."""
    lm, drafting = loaded("gemma2", sliding_window=8), loaded("mistral", sliding_window=8, layers=2, seed=5)
    lm.eos_ids = set()
    for n in (3, 7, 8, 20):
        ids = list(range(10, 10 + n))
        expected = greedy(lm.model, ids, 24)
        for draft in [*every_draft(lm), drafting]:
            assert speculate_ids(lm, make_draft(lm, draft), ids, max_new=24, sampling=Sampling()).found.ids == expected


def test_a_text_is_taken_back_beyond_what_a_window_holds() -> None:
    """A crop forgets what had left the window: the text is then read anew, and gives the same numbers."""
    lm = loaded("mistral", sliding_window=8)
    reader, ids = CachedModel(lm), list(range(10, 50))
    for n, keep in ((20, 1), (30, 3), (30, 1), (28, 1), (12, 2), (40, 1), (40, 30), (9, 1)):
        found, expected = reader.logits(ids[:n], keep), lm.model(torch.tensor([ids[:n]])).logits[0, -keep:]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gpt_neox", "mixtral", "mamba"])
def test_an_early_exit_is_the_models_norm_and_head_on_that_layer(family: str) -> None:
    """By a plain hook on the second block and the model's own modules; and the reader's cache is as it was."""
    lm, left = loaded(family), []
    ids = lm.encode("a text of some length").ids
    block = lm.model.get_submodule(lm.anatomy.layers[1].block)
    with torch.no_grad():
        handle = block.register_forward_hook(lambda _, given, output: left.append(output))
        lm.model(torch.tensor([ids]))
        handle.remove()
        hidden = (left[0] if isinstance(left[0], torch.Tensor) else left[0][0])[:, -1]
        expected = lm.model.get_submodule(lm.anatomy.head)(lm.model.get_submodule(lm.anatomy.final_norm.path)(hidden))
        cap = getattr(lm.model.config, "final_logit_softcapping", None)
        expected = cap * torch.tanh(expected / cap) if cap else expected
        plain = lm.model(torch.tensor([ids])).logits[0, -1]
        reader = CachedModel(lm)
        reader.logits(ids[:-3], 1)
        early = EarlyExit(reader, 2)
        for end in (-2, -1, len(ids)):
            found = early.logits(ids[:end])
        early.give_back()
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(reader.logits(ids, 1)[0], plain, atol=1e-4, rtol=1e-4)
        assert torch.equal(lm.model(torch.tensor([ids])).logits[0, -1], plain)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, seed=1), Sampling(0.7, top_p=0.9, repetition_penalty=1.2)])
def test_a_draft_that_is_the_target_is_always_right(sampling: Sampling) -> None:
    lm = loaded("llama")
    lm.eos_ids = set()
    for draft in (lm, "layers:3"):
        run = probe.speculate(lm, "ab", draft=draft, generate=21, sampling=sampling, block=4, plain=False)
        found = run.summary
        assert found["accepted"] == found["tested"] == found["drafted"] == 16
        assert found["acceptance"]["accepted/tested"]["estimate"] == 1.0
        overlap = found["acceptance"]["mean sum of min(p, q)"]
        assert overlap["estimate"] == pytest.approx(1.0, abs=1e-5) and 0.7 < overlap["low"] < 0.9  # 16 of 16: Wilson
        assert found["tokens_per_pass"]["predicted"] == pytest.approx(5.0, abs=1e-4)
        assert found["tokens_per_pass"]["measured"]["estimate"] == 5.0  # the bonus included


@pytest.mark.slow
def test_the_same_seed_gives_the_same_run_and_the_table_gives_the_text() -> None:
    lm = loaded("llama")
    sampling = Sampling(1.0, top_k=50, seed=4)
    runs = [probe.speculate(lm, prompts(3), draft="layers:1", generate=30, sampling=sampling) for _ in range(2)]
    alone = probe.speculate(lm, prompts(1), draft="layers:1", generate=30, sampling=sampling)
    for table in ("proposals", "tokens"):
        first, second = (run.table(table).drop(columns="run_id") for run in runs)
        assert first.equals(second)
    own = runs[0].tokens[runs[0].tokens["prompt_id"] == 0]
    assert own["token_id"].tolist() == alone.tokens["token_id"].tolist()
    for prompt, tokens in runs[0].tokens.groupby("prompt_id"):
        rows = runs[0].proposals[runs[0].proposals["prompt_id"] == prompt]
        told = rows[rows["verdict"] != "discarded"].sort_values("pos")
        written = np.where(told["verdict"] == "rejected", told["correction_id"], told["token_id"]).astype(int)
        completion = tokens[tokens["segment"] == "completion"]
        assert written.tolist() == completion["token_id"].tolist() and told["pos"].tolist() == completion["pos"].tolist()


def test_a_row_says_what_full_forwards_say() -> None:
    """p, q, tv, entropies and ranks of every tested token, by the two models run over the text up to there."""
    lm, (other, tok) = loaded("llama"), tiny("gpt2", seed=5)
    sampling = Sampling(0.9, top_k=40, repetition_penalty=1.3, seed=2)
    run = probe.speculate(lm, "hello hello", draft=LanguageModel(other, tok, name="b"), generate=24, sampling=sampling)
    ids, tested = run.tokens["token_id"].tolist(), run.proposals[run.proposals["accepted"].notna()]
    assert len(tested) > 8
    for row in tested.itertuples():
        before = torch.tensor([ids[: row.pos]])
        with torch.no_grad():
            raw = [model(before).logits[:, -1] for model in (lm.model, other)]
        p, q = (processors(sampling)(before, x.clone())[0].double().softmax(-1).numpy() for x in raw)
        np.testing.assert_allclose((row.p, row.q), (p[row.token_id], q[row.token_id]), atol=2e-5)
        np.testing.assert_allclose(row.tv, np.abs(p - q).sum() / 2, atol=2e-5)
        assert row.accept_prob == pytest.approx(min(1.0, row.p / row.q)) and row.accepted == (row.uniform <= row.accept_prob)
        if not row.accepted:
            assert p[int(row.correction_id)] > q[int(row.correction_id)]
        plain = [x[0].double().log_softmax(-1) for x in raw]
        assert row.logprob == pytest.approx(float(plain[0][row.token_id]), abs=1e-4)
        assert row.draft_entropy == pytest.approx(float(-(plain[1].exp() * plain[1]).sum()), abs=1e-4)
        assert row.rank == int((plain[0] > plain[0][row.token_id]).sum())


@pytest.mark.slow
def test_it_ends_where_it_should() -> None:
    lm = loaded("llama", max_position_embeddings=32)
    ids = lm.encode("hello").ids
    text = greedy(lm.model, ids, 20)
    for draft in ("ngram", "layers:2", lm):
        for max_new in (1, 2, 5, 6):
            lm.eos_ids = set()
            found = speculate_ids(lm, make_draft(lm, draft), ids, max_new=max_new, sampling=Sampling()).found
            assert (found.ids, found.stop_reason) == (text[:max_new], "length")
        found = speculate_ids(lm, make_draft(lm, draft), ids, max_new=99, sampling=Sampling()).found
        assert len(ids) + len(found.ids) == 32 and found.stop_reason == "context"
        lm.eos_ids = {text[4]}
        found = speculate_ids(lm, make_draft(lm, draft), ids, max_new=20, sampling=Sampling()).found
        assert (found.ids, found.stop_reason) == (text[: text.index(text[4]) + 1], "eos")
        lm.eos_ids = set()
        stop = lm.pieces(text).tokens[3]
        found = speculate_ids(lm, make_draft(lm, draft), ids, max_new=20, sampling=Sampling(stop=(stop,))).found
        (plain,) = decode(lm, [ids], max_new=20, sampling=Sampling(stop=(stop,)))
        assert (found.ids, found.stop_reason) == (plain.ids, "stop")


def test_a_draft_with_a_shorter_context_drafts_no_further() -> None:
    lm, other = loaded("llama"), loaded("gpt2", n_positions=16)
    assert other.context_length == 16
    lm.eos_ids, seen = set(), []
    ids = list(range(40, 50))
    found = speculate_ids(lm, make_draft(lm, other), ids, max_new=20, sampling=Sampling(), seen=seen.append)
    assert found.found.ids == greedy(lm.model, ids, 20)
    assert found.warnings == ("the draft 'tiny:gpt2' reads 16 tokens, and drafts none beyond",)
    assert all(len(r.text) + len(r.proposal.tokens) <= 17 for r in seen if r.proposal.tokens)


def test_a_draft_never_proposes_and_never_reads_an_id_that_it_lacks() -> None:
    """One family's sizes often pad one vocabulary to different lengths."""
    lm, other = loaded("llama", vocab_size=300), loaded("gpt2", vocab_size=270)
    lm.eos_ids = set()
    ids = list(range(40, 50))
    expected = greedy(lm.model, ids, 20)
    first = next(k for k, token in enumerate(expected) if token >= 270)
    assert 3 <= first < 19
    rounds: list[Round] = []
    for sampling in (Sampling(), Sampling(temperature=1.0, seed=1)):
        seen: list[Round] = []
        found = speculate_ids(lm, make_draft(lm, other), ids, max_new=20, sampling=sampling, seen=seen.append)
        rounds += seen
        if not sampling.temperature:
            assert found.found.ids == expected
            assert found.warnings == ("the draft 'tiny:gpt2' has 270 ids, and drafts none after another one",)
    drafted = [one for one in rounds if one.proposal.tokens]
    assert drafted and all(max(one.text) < 270 for one in drafted)
    for one in drafted:
        assert one.proposal.distributions.shape[-1] == 300 and float(one.proposal.distributions[:, 270:].abs().max()) == 0.0
        assert torch.allclose(one.proposal.distributions.sum(-1), torch.ones(len(one.proposal.tokens), dtype=torch.float64))


def test_one_prompt_of_nan_logits_is_an_error_and_a_row_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = loaded("llama")
    forward = lm.model.forward

    def broken(*args: object, **kwargs: object) -> object:
        output = forward(*args, **kwargs)
        ids = args[0] if args else kwargs["input_ids"]
        if 37 in ids.flatten().tolist():
            output.logits = output.logits * float("nan")
        return output

    bad = lm.pieces([37]).text
    lm.anatomy  # noqa: B018  (found while the model is whole)
    monkeypatch.setattr(lm.model, "forward", broken)
    with pytest.raises(NonFinite, match="not finite"):
        probe.speculate(lm, f"a{bad}", draft="ngram", generate=2)
    run = probe.speculate(lm, ["fine", f"a{bad}"], draft="ngram", generate=2)
    assert run.summary["errors"] == 1 and run.prompts["error"].tolist()[0] == "" and "finite" in run.prompts["error"][1]


def test_what_cannot_draft_is_refused() -> None:
    lm = loaded("llama")
    for draft, word in (("layers:4", "3 blocks"), ("layers:0", "layers:0"), ("layers", "layers"), ("ngram:x", "ngram:x")):
        with pytest.raises(BadOption, match=word):
            make_draft(lm, draft)
    with pytest.raises(BadOption, match="streams") as caught:
        make_draft(loaded("gemma3n_text"), "layers:1")
    assert caught.value.hint == "use another draft"
    with pytest.raises(BadModel, match="later tokens"):
        make_draft(loaded("xlm"), "ngram")
    turned = tokenizer(300)
    turned.get_vocab = lambda: {**tokenizer(300).get_vocab(), "A": 33, "B": 32}
    with pytest.raises(BadOption, match="259 and 300 tokens, 2 ids of which 32 is 'A' and 'B'; 33 is 'B' and 'A'"):
        make_draft(lm, LanguageModel(lm.model, turned, name="turned"))
    for block in ("0", "-1", "x", "²"):
        with pytest.raises(BadOption, match="block length"):
            Blocks.parse(block)
    with pytest.raises(BadOption, match="generate is 0"):
        probe.speculate(lm, "a", draft="ngram", generate=0)
    with pytest.raises(BadPrompt, match="context"):
        probe.speculate(lm, "a" * 5000, draft="ngram")


def test_blocks_grow_and_shrink() -> None:
    blocks = Blocks.parse("adaptive")
    assert [blocks.after(4, 4, 4), blocks.after(4, 4, 3), blocks.after(1, 1, 0), blocks.after(16, 16, 16)] == [6, 3, 1, 16]
    assert blocks.after(5, 0, 0) == 5 and Blocks.parse(3).after(3, 3, 3) == 3


def test_prompt_lookup_takes_the_longest_and_then_the_last_match() -> None:
    assert lookup([1, 2, 3, 9, 2, 3, 7, 1, 2, 3], 4, 3) == [9, 2, 3, 7]
    assert lookup([1, 2, 3, 9, 2, 3, 7, 1, 2, 3], 4, 2) == [7, 1, 2, 3]
    assert lookup([5, 5, 5], 4, 3) == [5] and lookup([1, 2, 3], 4, 3) == [] == lookup([1], 4, 3)


def test_a_penalty_looks_back_on_what_stands_there() -> None:
    assert history([7, 8], [9, 6], Sampling(repetition_penalty=1.2)).tolist() == [[7, 8, 7, 7], [7, 8, 9, 7], [7, 8, 9, 6]]
    assert history([7, 8], [9, 6], Sampling()) is None


def test_padding_of_a_vocabulary_means_nothing() -> None:
    logits = torch.randn(2, 5)
    assert torch.equal(fitted(logits, 4), logits[:, :4])
    assert torch.equal(fitted(logits, 7).softmax(-1)[:, :5], logits.softmax(-1)) and fitted(logits, 7)[0, 6] == -torch.inf


@pytest.mark.parametrize(
    ("text", "before", "kind"),
    [(" cat", "a", "word start"), ("ing", "go", "continuation"), ("The", "\n", "word start"), ("7", " ", "number"),
     (" 12th", "a", "number"), (",", "a", "punctuation"), ("\n\n", "a", "space"), ("\ufffd", "a", "bytes"),
     ("'s", "it", "word start"), ("é", "caf", "continuation")],
)  # fmt: skip
def test_kinds_of_tokens(text: str, before: str, kind: str) -> None:
    assert kind_of(text, before) == kind


@pytest.mark.slow
def test_the_summary_is_counted_from_the_table() -> None:
    lm = loaded("llama")
    run = probe.speculate(lm, prompts(4), draft="layers:2", generate=40, sampling=Sampling(1.0, seed=3))
    found, rows = run.summary, run.proposals
    drafted, tested = rows[rows["verdict"] != "bonus"], rows[rows["accepted"].notna()]
    n = int(tested["accepted"].sum())
    assert (found["drafted"], found["tested"], found["accepted"]) == (len(drafted), len(tested), n)
    three = [found["acceptance"][k]["estimate"] for k in ("accepted/drafted", "accepted/tested", "mean sum of min(p, q)")]
    assert three == pytest.approx([n / len(drafted), n / len(tested), 1 - tested["tv"].astype(float).mean()])
    passes = rows[rows["round"] > 0].groupby(["prompt_id", "round"]).ngroups
    kept = (run.tokens["segment"] == "completion").sum() - run.prompts.shape[0]
    assert found["passes"] == passes and found["tokens_per_pass"]["measured"]["estimate"] == pytest.approx(kept / passes)
    assert sum(row["tested"] for row in found["by_kind"]) == len(tested) == sum(r["tested"] for r in found["by_entropy"])
    bounds = [(row["from"], row["to"]) for row in found["by_entropy"]]
    assert len(bounds) == 4 and all(a[1] <= b[0] for a, b in itertools.pairwise(bounds))
    speed = found["speed"]
    assert speed["measured"] == pytest.approx(speed["tokens_per_second"] / speed["plain_tokens_per_second"])
    json.dumps(found, allow_nan=False)


def test_a_run_of_one_token_has_nothing_to_tell_but_is_whole(tmp_path) -> None:
    run = probe.speculate(loaded("llama"), "a", draft="layers:1", generate=1, out=tmp_path / "run")
    assert run.summary["passes"] == 0 and run.summary["speed"]["measured"] is None
    assert run.proposals["verdict"].tolist() == ["bonus"] and run.summary["same_as_plain"]
    again = probe.speculate(loaded("llama"), "a", draft="layers:1", generate=1, out=tmp_path / "run", resume=True)
    assert again.run_id == run.run_id and run.manifest["draft_model"] is None


def test_the_run_says_which_model_drafted() -> None:
    lm, other = loaded("llama"), loaded("gpt2")
    run = probe.speculate(lm, "a", draft=other, generate=2, plain=False)
    assert run.manifest["draft_model"]["class"] == "GPT2LMHeadModel" and run.manifest["model"]["class"] == "LlamaForCausalLM"


def test_a_speculated_run_can_be_rewound() -> None:
    lm = loaded("llama")
    run = probe.speculate(lm, "one two", draft="ngram", generate=12, sampling=Sampling(1.0))
    assert run.manifest["arguments"]["sampling"]["temperature"] == 1.0
    back = probe.rewind(run, lm=lm, to=str(len(run.tokens) - 3), samples=2, max_new=3)
    assert back.manifest["parent"]["run"] == run.run_id


def test_a_plan_bounds_what_happens() -> None:
    lm = loaded("llama")
    plan = plan_speculate(lm, Speculate(prompts(2), draft="layers:1", generate=10))
    run = probe.speculate(lm, prompts(2), draft="layers:1", generate=10)
    assert plan["target_passes_at_least"] <= run.summary["passes"] + 2 <= plan["target_passes_at_most"]
    for table in ("prompts", "tokens", "proposals"):
        assert len(run.table(table)) <= plan["tables"][table]["rows"]


def test_a_state_that_cannot_be_taken_back_is_said() -> None:
    run = probe.speculate(loaded("mamba"), "ab ab", draft="layers:1", generate=4)
    assert run.manifest["warnings"] == [
        "the target 'tiny:mamba' has a state that can't be taken back: each pass reads the whole text anew, which is slow"
    ]
