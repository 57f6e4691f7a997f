"""What each layer would answer is its stream through the model's own norm and head, cap included, worked out in float64."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor

import probe
from probe.capturing import MemorySink, logits, read
from probe.errors import SiteAbsent

# final norm, head, and the cap on its logits as the config says it
NORMS = {
    "llama": "model.norm", "qwen3": "model.norm", "mixtral": "model.norm", "gpt_oss": "model.norm", "gemma2": "model.norm",
    "gpt2": "transformer.ln_f", "bloom": "transformer.ln_f", "falcon_h1": "model.final_layernorm", "smollm2": "model.norm",
}  # fmt: skip
SLOW = pytest.param("smollm2", marks=pytest.mark.slow)
FAMILIES = [*(name for name in NORMS if name != "smollm2"), SLOW]
TOP = 4


@functools.lru_cache(maxsize=3)
def loaded(family: str) -> probe.LanguageModel:
    return probe.load(family if family == "smollm2" else f"tiny:{family}")


def drawn(n: int) -> Tensor:
    return torch.randint(3, 250, (n,), generator=torch.Generator().manual_seed(4))


def streams(lm: probe.LanguageModel, ids: Tensor, norm: str) -> list[Tensor]:
    """resid_post (pos, d_model) of every layer, by hooks of our own: what goes into the next block, or the final norm."""
    blocks = next(m for m in lm.model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == lm.anatomy.n_layers)
    seen: list[Tensor] = []

    def keep(_: object, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"])[0].clone())

    modules = [*list(blocks)[1:], lm.model.get_submodule(norm)]
    handles = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in modules]
    with torch.no_grad():
        lm.model(ids[None])
    for handle in handles:
        handle.remove()
    return seen


def read_out(lm: probe.LanguageModel, resid: Tensor, norm: str) -> Tensor:
    """(pos, d_model) -> log-probs (pos, d_vocab) in float64."""
    with torch.no_grad():
        logits = lm.model.lm_head(lm.model.get_submodule(norm)(resid)).double()
    multiplier = getattr(lm.model.config, "lm_head_multiplier", None)
    logits = logits if multiplier is None else logits * multiplier
    cap = getattr(lm.model.config, "final_logit_softcapping", None)
    return ((logits / cap).tanh() * cap if cap else logits).log_softmax(-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_is_the_norm_and_head_of_its_stream(family: str) -> None:
    lm, ids, sink = loaded(family), drawn(21), MemorySink()
    read(lm, ids[None], [21], lens=True, top=TOP, sink=sink)
    own = [read_out(lm, resid, NORMS[family]) for resid in streams(lm, ids, NORMS[family])]
    assert sorted(sink.guesses) == list(range(len(own)))
    for layer, logp in enumerate(own):
        guess = {name: column[0] for name, column in sink.guesses[layer].items()}
        p = logp.exp()
        best = logp.topk(TOP).values.numpy()
        np.testing.assert_allclose(guess["top_logprobs"], best, atol=2e-5)
        np.testing.assert_allclose(np.take_along_axis(logp.numpy(), guess["top_ids"], -1), best, atol=2e-5)
        np.testing.assert_allclose(guess["entropy"], -(p * logp).sum(-1), atol=2e-5)
        np.testing.assert_allclose(guess["kl_to_final"], (own[-1].exp() * (own[-1] - logp)).sum(-1), atol=2e-5)
        assert guess["target_id"].tolist() == [*ids[1:].tolist(), -1]
        target = logp[:-1].gather(1, ids[1:, None])
        np.testing.assert_allclose(guess["target_logprob"][:-1], target[:, 0], atol=2e-5)
        close = ((logp[:-1] - target).abs() < 1e-4).sum(-1).numpy()  # tokens that rounding may swap with the target
        assert (np.abs(guess["target_rank"][:-1] - (logp[:-1] > target).sum(-1).numpy()) < close).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_is_the_model(family: str) -> None:
    lm, ids, sink = loaded(family), drawn(33), MemorySink()
    reading = read(lm, ids[None], [33], lens=True, top=TOP, sink=sink)
    last = sink.guesses[lm.anatomy.n_layers - 1]
    assert np.abs(last["kl_to_final"]).max() <= 1e-6
    with torch.no_grad():
        model = lm.model(ids[None]).logits[0].double().log_softmax(-1)
    np.testing.assert_allclose(last["target_logprob"][0, :-1], model[:-1].gather(1, ids[1:, None])[:, 0], atol=2e-5)
    np.testing.assert_allclose(last["entropy"][0], reading.scores[0].entropy, atol=1e-5)
    assert np.array_equal(last["top_ids"][0, :, 0], reading.scores[0].top_ids[:, 0])
    before = sink.guesses[0]
    assert before["kl_to_final"].max() > 1e-3, "the first layer does not already know"


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_rows_are_read_in_pieces(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of positions where not all fit with all their layers, and of layers where one position's are too many."""
    lm, ids = loaded("llama"), drawn(5)
    whole = probe.lens(lm, lm.pieces(ids.tolist()).text, answer="a", against="b").lens
    monkeypatch.setattr(logits, "ELEMENTS", rows * lm.anatomy.d_vocab)
    pieces = probe.lens(lm, lm.pieces(ids.tolist()).text, answer="a", against="b").lens
    assert pieces["top_ids"].map(list).tolist() == whole["top_ids"].map(list).tolist()
    for name in ("target_logprob", "entropy", "kl_to_final", "answer_logprob", "against_logprob"):
        np.testing.assert_allclose(pieces[name], whole[name], rtol=1e-5, atol=1e-6)
    assert (pieces[pieces["layer"] == lm.anatomy.n_layers - 1]["kl_to_final"] == 0).all()


def test_a_layer_is_the_model_whose_later_writes_are_silent() -> None:
    lm, ids, sink = loaded("llama"), drawn(12), MemorySink()
    read(lm, ids[None], [12], lens=True, top=TOP, sink=sink)
    silent = probe.load("tiny:llama")
    for block in silent.model.model.layers[2:]:
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    with torch.no_grad():
        logp = silent.model(ids[None]).logits[0].double().log_softmax(-1)
    np.testing.assert_allclose(sink.guesses[1]["top_logprobs"][0], logp.topk(TOP).values, atol=2e-5)


def test_prompts_of_a_batch_and_a_prompt_of_one_token() -> None:
    lm, sink, ids = loaded("llama"), MemorySink(), torch.zeros(2, 5, dtype=torch.long)
    ids[0], ids[1, 0] = drawn(5), 7
    read(lm, ids, [5, 1], lens=True, top=2, sink=sink)
    assert sink.guesses[0]["target_id"].tolist() == [[*ids[0, 1:].tolist(), -1], [-1, 0, 0, 0, 0]]
    assert sink.guesses[2]["kl_to_final"].shape == (2, 5) and sink.guesses[2]["top_ids"].shape == (2, 5, 2)


def test_a_model_without_a_verified_head_has_no_lens() -> None:
    import dataclasses

    lm = probe.load("tiny:llama")
    lm.__dict__["anatomy"] = dataclasses.replace(lm.anatomy, readout_exact=False)
    with pytest.raises(SiteAbsent, match="no layer's guess"):
        read(lm, drawn(5)[None], [5], lens=True, sink=MemorySink())


TEXT, DIGITS = "abcdef Mary gh", "re:^[5-9]$"
MEASURED = 8  # where "M" stands


def by_layer(lm: probe.LanguageModel, ids: list[int], family: str) -> list[Tensor]:
    """Log-probs (pos, d_vocab) of every layer, float64, by hooks of our own."""
    return [read_out(lm, resid, NORMS[family]) for resid in streams(lm, torch.tensor(ids), NORMS[family])]


@pytest.mark.parametrize("family", ["llama", "gemma2", SLOW])
def test_a_whole_answer_is_read_token_by_token_at_each_layer(family: str) -> None:
    """After a position in the middle of the text, against an answer of one token; the last layer is the plain model."""
    lm = loaded(family)
    text, token, answer, against = (TEXT, "M", " 57", "b")
    if family == "smollm2":
        text, token, answer, against = "The capital of France is Paris", " is", " Paris, a city", " the"
    run = probe.lens(lm, text, answer=answer, against=against, whole_answer=True, measure_at=f"tok={token}", top=2)
    ids = lm.encode(text).ids
    measured = lm.pieces(ids).tokens.index(token)
    before, own, (other,) = ids[: measured + 1], lm.ids_of(answer), lm.ids_of(against)
    wanted = [
        float(logp[measured:-1].gather(1, torch.tensor(own)[:, None]).sum()) for logp in by_layer(lm, [*before, *own], family)
    ]
    rows = run.lens[run.lens["pos"] == measured].sort_values("layer")
    assert len(own) > 2
    np.testing.assert_allclose(rows["answer_logprob"], wanted, atol=5e-5)
    assert run.lens[run.lens["pos"] != measured]["answer_logprob"].isna().all()
    with torch.no_grad():
        plain = lm.model(torch.tensor([[*before, *own]])).logits[0, measured:-1].double().log_softmax(-1)
    assert wanted[-1] == pytest.approx(float(plain.gather(1, torch.tensor(own)[:, None]).sum()), abs=2e-5)
    for layer, logp in enumerate(by_layer(lm, ids, family)):  # one token: at every position
        held = run.lens[run.lens["layer"] == layer].sort_values("pos")["against_logprob"]
        np.testing.assert_allclose(held, logp[:, other], atol=5e-5)
    last = run.summary["last"]
    told = last["layers"][-1]
    assert (
        last["pos"] == measured
        and told["answer_logprob"] == pytest.approx(wanted[-1], abs=5e-5)
        and run.summary["whole_answer"]
    )


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_set_is_followed_through_the_layers(family: str) -> None:
    lm = loaded(family)
    run = probe.lens(lm, TEXT, answer_set=DIGITS, against_set="a|b", top=2)
    some, others = ([lm.ids_of(letter)[0] for letter in letters] for letters in ("56789", "ab"))
    for layer, logp in enumerate(by_layer(lm, lm.encode(TEXT).ids, family)):
        rows = run.lens[run.lens["layer"] == layer].sort_values("pos")
        np.testing.assert_allclose(rows["answer_logprob"], logp[:, some].exp().sum(-1).log(), atol=5e-5)
        np.testing.assert_allclose(rows["against_logprob"], logp[:, others].exp().sum(-1).log(), atol=5e-5)
    assert run.summary["last"]["pos"] == len(lm.encode(TEXT).ids) - 1 and run.summary["target"] == DIGITS
    assert run.lens["target_id"].tolist()[: len(rows) - 1] == lm.encode(TEXT).ids[1:], "the target is what follows"
    one = probe.lens(lm, TEXT, answer="a", position="last")
    assert one.lens["answer_logprob"].tolist() == pytest.approx(one.lens["target_logprob"].tolist(), abs=1e-6)
    assert probe.lens(lm, TEXT, position="last").lens["answer_logprob"].isna().all()


def test_an_edit_holds_where_the_text_is_read_and_not_on_an_answer_that_stands_in_the_place_of_what_follows() -> None:
    lm, asked = loaded("llama"), {"answer": " 57", "whole_answer": True, "measure_at": MEASURED, "position": str(MEASURED)}

    def found(*edits: str) -> list[float]:
        return list(probe.lens(lm, TEXT, edit=edits, **asked).lens["answer_logprob"])

    plain, later, all_of_it = found(), found("mlp_out@0:9..10=zero"), found("mlp_out@0=zero")
    assert plain == later != all_of_it
    assert found("mlp_out@0:3=zero", "mlp_out@1:9=zero") == found("mlp_out@0:3=zero") != plain
    with silent_mlp(lm):
        ids = [*lm.encode(TEXT).ids[: MEASURED + 1], *lm.ids_of(" 57")]
        with torch.no_grad():
            logp = lm.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    wanted = sum(float(logp[MEASURED + i, token]) for i, token in enumerate(lm.ids_of(" 57")))
    assert all_of_it[-1] == pytest.approx(wanted, abs=5e-5)


@contextmanager
def silent_mlp(lm: probe.LanguageModel) -> Iterator[None]:
    """Without the MLP of the first layer."""
    handle = lm.model.model.layers[0].mlp.register_forward_hook(lambda _, args, out: torch.zeros_like(out))
    try:
        yield
    finally:
        handle.remove()


def test_what_cannot_be_followed_is_said() -> None:
    lm = loaded("llama")
    for options, why in (
        ({"answer": "a", "target": "b"}, "two answers"), ({"against": "a"}, "against which"),
        ({"answer_set": "a", "whole_answer": True}, "followed whole"), ({"answer": "a", "answer_set": "b"}, "twice"),
        ({"answer": "a", "measure_at": "3..4"}, "2 positions"), ({"answer": "a", "measure_at": 99}, "no position 99"),
        ({"answer": "a", "measure_at": "here"}, "is no position"), ({"answer_set": "re:^qq$"}, "no token matches"),
        ({"answer": " 5" * 600, "whole_answer": True}, "longer than the context"),
    ):  # fmt: skip
        with pytest.raises(probe.errors.ProbeError, match=why) as told:
            probe.lens(lm, TEXT, **options)
        assert told.value.hint
    older = probe.requests.Lens.from_arguments({"source": TEXT, "target": "a", "position": "last"})
    assert older.answer == "a" and older.target is None
