"""`probe.importance` on models whose answer is known: planted facts, a chain, a Markov chain, enumerated and hand-set."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import probe
from probe import stats
from probe.decoding import Sampling, teacher_forced
from probe.errors import BadModel, BadOption, ProbeError, RunError
from probe.registries.importance_methods import METHODS, Method, methods_of
from probe.requests import Importance
from probe.rewinding.drawing import Samples
from probe.step_importance import boundaries, dependence, plan_importance, receiver_heads, similarity
from probe.step_importance.task import Measured, StepImportance, Task
from probe.texts import trajectory
from tests.test_rewind import same_tables, written

NAMES, THINGS = (["Alice", "Bob", "Carol", "David", "Emma", "Frank"], ["piano", "violin", "drum", "flute", "guitar", "trumpet"])
REASONING = (
    "First we count all apples here. There are 12 apples. Then we add 7 more. So there are 19 apples now. "
    "Wait, that is not right. We have to take 2 away. That leaves 17 apples. So the answer is 17."
)


def task(lm, text: str = REASONING, prompt: str = "Q: how many?\n", **what) -> Task:
    run = written(lm, text, prompt)
    return Task(lm, trajectory(run, lm), Importance(run, **what))


@pytest.fixture(scope="module")
def tiny():
    return probe.load("tiny:llama")


@pytest.mark.slow
def test_a_planted_fact_is_found(smollm2) -> None:
    """Five facts, one asked for: taking that one out costs the answer most, in at least 22 of 24 texts (METHODS V6)."""
    found = 0
    for seed in range(24):
        draw = random.Random(seed)
        names, things, asked = draw.sample(NAMES, 5), draw.sample(THINGS, 5), draw.randrange(5)
        facts = " ".join(f"{n} plays the {t}." for n, t in zip(names, things, strict=True))
        text = f"{facts} So the instrument that {names[asked]} plays is the {things[asked]}."
        rows = dependence.rescored(task(smollm2, text, "Facts:\n")).rows
        assert len(rows) == 5
        found += max(rows, key=lambda row: row.estimate).step == asked
    assert found >= 22


@pytest.mark.slow
def test_a_planted_chain_is_recovered(smollm2) -> None:
    """a -> b -> c beside a distractor: each link's loss is the largest of its target's column (METHODS V7)."""
    right = tested = 0
    for seed in range(6):
        draw = random.Random(seed)
        a, other = (str(n) for n in draw.sample(range(12, 99), 2))
        text = f"The red box holds {a} coins. The sky over the town is grey today, and number {other} is on the door. "
        text += f"The blue box holds as many coins as the red box, so it holds {a} coins. "
        text += f"The green box holds as many coins as the blue box, so it holds {a} coins."
        matrix = dependence.rescored(task(smollm2, text, "Story:\n")).matrix
        for source, target in ((0, 2), (2, 3)):
            right += int(np.nanargmax(matrix[:, target])) == source
            tested += 1
    assert right >= tested - 2


def test_rescoring_is_a_text_without_the_step(tiny) -> None:
    asked = task(tiny)
    original, found = asked.original, dependence.rescored(asked)
    rows, matrix = found.rows, found.matrix
    ids, steps = list(original.ids), original.steps

    def scores(these: list[int], last: int) -> np.ndarray:
        with torch.no_grad():
            logits = tiny.model(torch.tensor([these])).logits[0].double().log_softmax(-1)[:-1]
        return logits.gather(1, torch.tensor(these[1:])[:, None])[:, 0].numpy()[-last:]

    for i, step in enumerate(steps[:-1]):
        n = len(ids) - step.end
        lost = scores(ids, n) - scores(ids[: step.start] + ids[step.end :], n)
        assert rows[i].estimate == pytest.approx(lost[steps[-1].start - step.end :].sum(), abs=1e-4)
        for j in range(i + 1, len(steps)):
            assert matrix[i, j] == pytest.approx(lost[steps[j].start - step.end : steps[j].end - step.end].mean(), abs=1e-5)
    assert np.isnan(matrix[np.tril_indices(len(steps))]).all()


@pytest.mark.parametrize("name", ["tiny:llama", "tiny:gpt2", pytest.param("smollm2", marks=pytest.mark.slow)])
def test_suppression_is_deletion_with_positions_kept(name: str) -> None:
    lm = probe.load(name)
    original = trajectory(written(lm, REASONING), lm)
    matrix = dependence.suppressed(task(lm)).matrix
    ids, steps = list(original.ids), original.steps
    with torch.no_grad():
        whole = lm.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for i in (0, 3):
            start, end = steps[i].start, steps[i].end
            positions = torch.tensor([[*range(start), *range(end, len(ids))]])
            gone = lm.model(torch.tensor([ids[:start] + ids[end:]]), position_ids=positions).logits[0]
            gone = gone.double().log_softmax(-1)
            for j in range(i + 1, len(steps)):
                # the first token after the gap is predicted at the step itself
                at = torch.arange(max(steps[j].start - 1, end), steps[j].end - 1)
                p, q = whole[at], gone[at - (end - start)]
                assert matrix[i, j] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), abs=1e-4)


def test_a_long_generation_is_read_out_in_pieces(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its logits are never held together: the same matrices."""
    whole = [measure(task(tiny)).matrix for measure in (dependence.rescored, dependence.suppressed)]
    for module in (dependence, teacher_forced):
        monkeypatch.setattr(module, "BATCH_TOKENS", 9)
    pieces = [measure(task(tiny)).matrix for measure in (dependence.rescored, dependence.suppressed)]
    np.testing.assert_allclose(pieces[0], whole[0], atol=1e-5)
    np.testing.assert_allclose(pieces[1], whole[1], atol=1e-5)


@pytest.mark.parametrize("name", ["tiny:llama", "tiny:gpt2"])
def test_suppression_in_all_heads_by_edits_is_the_slice(name: str) -> None:
    lm = probe.load(name)
    sliced = dependence.suppressed(task(lm)).matrix
    cut = dependence.suppressed(task(lm, method="suppression", suppress="pattern@all")).matrix
    np.testing.assert_allclose(cut, sliced, atol=1e-5)  # two kernels in fp32


def test_suppression_in_one_head_is_a_forward_with_that_mask(tiny) -> None:
    """Head 1 of layer 1, by a mask that the test adds to what that layer's attention is given."""
    original = trajectory(written(tiny, REASONING), tiny)
    matrix = dependence.suppressed(task(tiny, method="suppression", suppress="pattern@1.1")).matrix
    ids, steps, step = list(original.ids), original.steps, original.steps[1]
    n = len(ids)
    mask = torch.full((n, n), -torch.inf).triu(1).expand(1, tiny.anatomy.n_heads("pattern", 1), n, n).clone()
    mask[0, 1, step.end :, step.start : step.end] = -torch.inf

    def hide(module, args, kwargs):
        return args, {**kwargs, "attention_mask": mask}

    with torch.no_grad():
        whole = tiny.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        hook = tiny.model.model.layers[1].self_attn.register_forward_pre_hook(hide, with_kwargs=True)
        try:
            blind = tiny.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        finally:
            hook.remove()
    moved = (whole.exp() * (whole - blind)).sum(-1)
    assert moved.max() > 1e-7
    for j in range(2, len(steps)):
        own = moved[max(steps[j].start - 1, step.end) : steps[j].end - 1].mean()
        assert matrix[1, j] == pytest.approx(float(own), rel=0.02, abs=1e-6)


@pytest.mark.parametrize("place", ["resid_post@1", "pattern@1.99", "pattern@99", "pattern@1:3", "what"])
def test_no_heads_to_suppress_is_one_line(tiny, place: str) -> None:
    with pytest.raises(ProbeError) as error:
        probe.importance(written(tiny, REASONING), lm=tiny, method="suppression", suppress=place)
    assert "\n" not in error.value.message
    bloom = probe.load("tiny:bloom")
    with pytest.raises(ProbeError):
        dependence.check_place(bloom, "pattern@1")


@pytest.mark.slow
def test_suppression_refuses_what_it_cannot_do() -> None:
    lm = probe.load("tiny:mamba")
    with pytest.raises(BadModel, match="positions"):
        probe.importance(written(lm, REASONING), lm=lm, method="suppression")
    done = probe.importance(written(lm, REASONING), lm=lm, method="all", samples=2, max_new=3)
    assert any("suppression was left out" in text for text in done.manifest["warnings"])
    assert "rescore" in done.summary["methods"]


def test_receiver_statistics_on_a_hand_set_pattern(tiny) -> None:
    n = 8
    matrix = np.full((2, n, n), 0.1)
    matrix[0, :, 2] = 0.9
    scores = receiver_heads.vertical(matrix, gap=2)
    assert scores[0, 2] == pytest.approx(0.9) and scores[1, 2] == pytest.approx(0.1) and np.isnan(scores[:, -2:]).all()
    spread = receiver_heads.kurtosis(scores)
    import scipy.stats

    assert spread[0] == pytest.approx(scipy.stats.kurtosis(scores[0, :-2])) and spread[0] > 1
    original = trajectory(written(tiny, REASONING), tiny)
    found = receiver_heads.looks(tiny, original)
    tiny.model.set_attn_implementation("eager")
    with torch.no_grad():
        patterns = tiny.model(torch.tensor([original.ids]), output_attentions=True).attentions
    tiny.model.set_attn_implementation("sdpa")
    for (layer, head), own in zip(found.names, found.matrix, strict=True):
        full = patterns[layer][0, head].double().numpy()
        for i, a in enumerate(original.steps):
            for j, b in enumerate(original.steps):
                expected = full[a.start : a.end, b.start : b.end].mean()
                assert own[i, j] == pytest.approx(expected, abs=1e-5)


def test_weights_are_shuffled_among_the_steps_that_count(tiny) -> None:
    n, random = 20, np.random.default_rng(0)
    matrix = np.tril(random.random((3, n, n)) + 1.0)
    mixed = receiver_heads.shuffled(matrix, random, gap=4)
    counts = np.subtract.outer(np.arange(n), np.arange(n)) >= 4
    assert (mixed[:, ~counts] == matrix[:, ~counts]).all() and (mixed[:, counts] >= 1.0).all()
    np.testing.assert_array_equal(
        np.sort(np.where(counts, mixed, 9.0)), np.sort(np.where(counts, matrix, 9.0))
    )  # row by row the same weights
    assert (mixed[:, counts] != matrix[:, counts]).mean() > 0.5
    # a head that gives every step its share is no more peaked than its own shuffles; one that looks at one step is
    even, one = matrix[:1], matrix[:1].copy()
    one[:, 4:, 7] = 8.0
    for own, peaked in ((even, False), (one, True)):
        null = [receiver_heads.kurtosis(receiver_heads.vertical(receiver_heads.shuffled(own, random)))[0] for _ in range(200)]
        assert (receiver_heads.kurtosis(receiver_heads.vertical(own))[0] > np.quantile(null, 0.95)) == peaked


@pytest.mark.slow
def test_receiver_heads_of_another_text(tiny, tmp_path: Path) -> None:
    """Too few scores a head are refused; the table says on which text its heads were chosen; another run's can be taken."""
    with pytest.raises(BadOption, match="at least 16 steps"):
        probe.importance(written(tiny, REASONING), lm=tiny, method="receiver")
    long, other = written(tiny, REASONING * 3), written(tiny, REASONING.replace("apples", "pears") * 3)
    chosen = probe.importance(other, lm=tiny, method="receiver", out=tmp_path / "chosen")
    assert chosen.importance["unit"].str.endswith("chosen on this text").all()
    done = probe.importance(long, lm=tiny, method="receiver", heads=tmp_path / "chosen")
    assert done.importance["unit"].str.endswith("chosen on chosen").all()
    places = [(h["layer"], h["head"]) for h in chosen.summary["receiver"]["heads"]]
    heads = sum(tiny.anatomy.n_heads("pattern", layer) for layer in range(tiny.anatomy.n_layers))
    assert len(places) == heads // 4
    assert [(h["layer"], h["head"]) for h in done.summary["receiver"]["heads"]] == places
    found = receiver_heads.looks(tiny, trajectory(long, tiny))
    own = receiver_heads.vertical(found.matrix[[found.names.index(place) for place in places]]).mean(axis=0)
    np.testing.assert_allclose(done.importance["estimate"], own[~np.isnan(own)])
    for run, said in ((done, "chose no"), (tmp_path / "chosen", "same text")):
        source = long if run is done else other
        with pytest.raises(RunError, match=said):
            probe.importance(source, lm=tiny, method="receiver", heads=run)
    with pytest.raises(BadOption, match="for receiver"):
        probe.importance(long, lm=tiny, method="rescore", heads=tmp_path / "chosen")


def chain(lm, table: dict[str, dict[str, float]]) -> None:
    """Make `lm` a Markov chain over single characters: table[state][next] are probabilities, "" is the end."""
    end = next(iter(lm.eos_ids))
    token = lambda c: lm.ids_of(c)[0] if c else end  # noqa: E731
    model = lm.model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.zero_()
        width = model.config.hidden_size
        assert len(table) <= width
        model.model.embed_tokens.weight.zero_()
        model.lm_head.weight.zero_()
        model.model.norm.weight.fill_(1.0)
        for state, (character, following) in enumerate(table.items()):
            model.model.embed_tokens.weight[token(character), state] = 1.0
            model.lm_head.weight[:, state] = -60.0 / width**0.5
            for other, p in following.items():
                model.lm_head.weight[token(other), state] = np.log(p) / width**0.5


CHAIN = {
    "a": {"0": 0.3, "1": 0.7}, "b": {"0": 0.6, "1": 0.4}, "c": {"x": 1.0}, "x": {"0": 0.3, "1": 0.7},
    "0": {"": 1.0}, "1": {"": 1.0}, ".": {" ": 1.0}, " ": {"a": 1.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def markov():
    lm = probe.load("tiny:llama")
    assert lm.model.lm_head.weight is not lm.model.model.embed_tokens.weight
    chain(lm, CHAIN)
    return lm


def test_the_chain_is_what_it_says(markov) -> None:
    with torch.no_grad():
        logits = markov.model(torch.tensor([markov.ids_of("xyz.a")])).logits[0, -1]
    p = logits.softmax(-1)
    assert float(p[markov.ids_of("1")[0]]) == pytest.approx(0.7, abs=1e-4)


@pytest.mark.slow
def test_intervals_cover_and_p_values_hold_on_a_known_chain(markov) -> None:
    """a -> b changes P("1") by -0.3; a -> c changes nothing, with noise of its own (METHODS V8).

    tests/test_stats.py has the coverage of these intervals exactly; this is that of what `rewind` draws and puts into them.
    """
    hits, rejected, trials = 0, 0, 50
    for edit, truth in (("b", -0.3), ("c", 0.0)):
        for seed in range(trials):
            done = probe.rewind(
                written(markov, "So it goes a"), lm=markov, to="-1", replace=edit, samples=40, max_new=4, seed=seed,
                sampling=Sampling(temperature=1.0, seed=seed), answer="regex=[01]", expect="1",
            )  # fmt: skip
            row = done.summary["difference"]
            assert row["n"] == 40 and {r["outcome"] for r in done.summary["arms"]["edited"]["outcomes"]} <= {"0", "1"}
            drawn = done.branches.sort_values("sample").astype({"arm": str, "outcome": str}).groupby("arm")["outcome"]
            arms = (drawn.get_group(arm).to_numpy() == "1" for arm in ("control", "edited"))
            found = stats.compare(*arms, paired=done.summary["paired"])
            assert (row["ci_low"], row["ci_high"], row["p_value"]) == pytest.approx((found.low, found.high, found.p_value))
            hits += row["ci_low"] <= truth <= row["ci_high"]
            rejected += edit == "c" and row["p_value"] <= 0.05
    assert hits / (2 * trials) >= 0.9
    assert rejected / trials <= 0.1


@pytest.mark.slow
def test_resampling_finds_the_step_that_decides(markov) -> None:
    source = written(markov, "Then b.\n a")
    done = probe.importance(
        source, lm=markov, samples=200, max_new=4, sampling=Sampling(temperature=1.0), answer="regex=[01]", expect="1",
        split="token",
    )  # fmt: skip
    rows = done.importance[done.importance["method"] == "resampling"].set_index("step")
    steps = done.steps.sort_values("step")["text"].tolist()
    last = len(steps) - 1
    assert steps[last].strip() == "a"
    # before the last token stands a blank, which leads to `a` anyway: the last step decides nothing
    assert rows.loc[last, "estimate"] == pytest.approx(0.0, abs=0.12)
    # but after `b` alone P("1") is 0.4, and after `b.` it is that of `a`
    at = next(i for i, s in enumerate(steps) if s.strip() == ".")
    assert rows.loc[at, "estimate"] == pytest.approx(0.3, abs=0.12) and rows.loc[at, "q_value"] < 0.01
    assert rows.loc[at, "ci_low"] > 0.1


@pytest.mark.slow
def test_steps_are_ranked_by_what_is_above_the_floor(markov) -> None:
    """A distance of two samples is not 0 where nothing differs, and what it is then is another number at each step."""
    from scipy.stats import spearmanr

    done = probe.importance(
        written(markov, "Then b.\n a. a. b"), lm=markov, samples=8, max_new=4, sampling=Sampling(temperature=1.0),
        answer="regex=[01]", expect="1", split="token",
    )  # fmt: skip
    rows = done.importance.assign(size=lambda x: x.estimate.abs() - x.floor.fillna(0.0))
    rows["raw"] = rows.estimate.abs()
    sizes, raw = (rows.pivot(index="step", columns="method", values=name) for name in ("size", "raw"))
    other = 0
    for pair in done.summary["agreement"]:
        if pair["spearman"] is not None:
            both = sizes[[pair["a"], pair["b"]]].dropna()
            assert pair["steps"] == len(both) and pair["spearman"] == pytest.approx(spearmanr(both).statistic)
            other += not np.isclose(spearmanr(raw[[pair["a"], pair["b"]]].dropna()).statistic, pair["spearman"])
    assert other, "no floor was there to take away"
    assert done.summary["most_important"] == {name: sizes[name].idxmax() for name in done.summary["methods"]}


def test_what_says_something_else() -> None:
    own = np.array([[1.0, 0.0], [0.0, 1.0]])
    vectors = [np.array([[1.0, 0.1], [0.0, 1.0]]), np.array([[0.1, 1.0], [1.0, 0.2]])]
    different, _ = similarity.say_otherwise(
        ["It is 12.", "So yes."], [["It is 13.", "Nope."], ["So yes!", "Nope."]], vectors, own
    )
    assert different[0].tolist() == [True, True] and different[1].tolist() == [False, True]
    assert similarity.cosines(np.zeros((1, 2)), own[0]).tolist() == [0.0]


def outcomes(**arms: str | list[str]) -> pa.Table:
    """A table `branches` of outcomes by arm; a text is one outcome a character."""
    rows = [(name.replace("_", "-"), i, c) for name, drawn in arms.items() for i, c in enumerate(drawn)]
    return pa.table(dict(zip(("arm", "sample", "outcome"), map(list, zip(*rows, strict=True)), strict=True)))


def test_counterfactual_needs_enough_draws() -> None:
    table = outcomes(boundary_0="1" * 6 + "0" * 18, boundary_1="1" * 20 + "0" * 4)
    few = np.arange(24) < 5
    row, *others = boundaries.counterfactual_rows(table, "1", [few], samples=[Samples(24)])
    assert row.estimate is None and row.n == 5 and row.control == pytest.approx(20 / 24 - 1 / 19)
    assert all(r.estimate is None and r.p_value is None and r.control is not None for r in others)
    row, *others = boundaries.counterfactual_rows(table, "1", [~few], samples=[Samples(24)])
    assert row.estimate == pytest.approx(20 / 24 - 1 / 19) and row.control is None
    assert stats.Difference(row.estimate, row.ci_low, row.ci_high, row.p_value) == stats.independent(1, 19, 20, 24)
    assert all(r.estimate is not None and r.control is None for r in others)


def test_counterfactual_divergences_and_both_their_controls() -> None:
    """KL(other || kept), TV, the variant that pools, and the controls, from counts by hand."""
    import scipy.stats

    table = outcomes(boundary_0="1" * 4 + "2" * 10 + "3" * 6 + "1" * 12, boundary_1="1" * 25 + "2" * 7)
    different = np.arange(32) < 20
    rows = {row.method: row for row in boundaries.counterfactual_rows(table, "1", [different], samples=[Samples(32)], seed=1)}

    def kl(p: list[int], q: list[int]) -> float:
        return float(scipy.stats.entropy(np.add(p, 0.5), np.add(q, 0.5)))

    assert rows["counterfactual_kl"].estimate == pytest.approx(kl([4, 10, 6], [25, 7, 0]))
    assert rows["counterfactual_kl_pooled"].estimate == pytest.approx(kl([4, 10, 6], [37, 7, 0]))
    assert rows["counterfactual_tv"].estimate == pytest.approx(25 / 32 - 4 / 20)
    assert rows["counterfactual_tv_pooled"].estimate == pytest.approx(37 / 44 - 4 / 20)
    # draws that say the same as the step: over the classes that they and the kept have
    assert rows["counterfactual_kl"].control == pytest.approx(kl([12, 0], [25, 7]))
    assert rows["counterfactual_tv"].control == pytest.approx(7 / 32)
    # what chance gives: two arms of 20 and 32 drawn from all 52 outcomes
    random, pool = np.random.default_rng(0), [29 / 52, 17 / 52, 6 / 52]
    a, b = random.multinomial(20, pool, size=20000), random.multinomial(32, pool, size=20000)
    assert rows["counterfactual_tv"].floor == pytest.approx(stats.tv(a, b).mean(), abs=0.006)
    assert rows["counterfactual_tv"].p_value < 0.001


def test_early_answers_on_a_known_chain(markov) -> None:
    """After `b` the chain says 1 with 0.4, after `a` with 0.7: exact, whatever is drawn."""
    source = written(markov, "Then b.\n a")
    done = probe.importance(
        source,
        lm=markov,
        method="early-answer",
        stub=" a",
        candidates=("0", "1"),
        answer="regex=[01]",
        expect="1",
        split="line",
    )
    early = done.summary["early_answer"]
    assert early["answers"] == ["1"] * len(early["answers"]) and early["commitment_step"] == 0
    assert early["area_over_curve"] == 0.0


def test_an_answer_has_an_end() -> None:
    """After 5 + 7 a model that says "12" nine times of ten has not said "1": exactly, from the chain's own probabilities."""
    lm = probe.load("tiny:llama")
    chain(lm, {
        "=": {" ": 1.0}, " ": {"1": 1.0}, "1": {"2": 0.9, ".": 0.1}, "2": {".": 0.7, "3": 0.3}, "3": {"": 1.0},
        ".": {"": 1.0},
    })  # fmt: skip
    source = written(lm, "1.\n2.\n")
    what = {"method": "early-answer", "answer": "last-number", "split": "line"}
    done = probe.importance(source, lm=lm, stub="=", candidates=("1", "12", "123"), expect="12", **what)
    early = done.summary["early_answer"]
    by = dict(zip(early["candidates"], np.transpose(early["chances"]), strict=True))
    for key, p in (("1", 0.1), ("12", 0.9 * 0.7), ("123", 0.9 * 0.3)):
        np.testing.assert_allclose(by[key], p, atol=1e-4)


@pytest.mark.parametrize("stub", ["\nThe answer is", "\nThe answer is \\boxed{"])
def test_chances_are_those_of_the_best_spelling_with_the_best_end(tiny, stub: str) -> None:
    """Against one whole forward for every spelling and end."""
    source = written(tiny, REASONING)
    done = probe.importance(
        source, lm=tiny, method="early-answer", stub=stub, candidates=("17", "1", "1.7"), expect="17",
    )  # fmt: skip
    original, early = trajectory(source, tiny), done.summary["early_answer"]
    ends = {"17": [".", "\n", "}"], "1": ["\n", "}"], "1.7": [".", "\n", "}"]}  # "1." might go on to be 1.7
    for k in (0, 3):
        before = list(original.ids[: original.steps[k].start]) + tiny.ids_of(stub)
        best = []
        for text, marks in ends.items():
            spelled = [tiny.ids_of(lead + text + mark) for lead in (" ", "") for mark in marks]
            spelled += [[*tiny.ids_of(lead + text), eos] for lead in (" ", "") for eos in tiny.eos_ids]
            best.append(max(total(tiny, before, ids) for ids in spelled))
        p = np.exp(np.asarray(best) - max(best))
        np.testing.assert_allclose(early["chances"][k], p / p.sum(), atol=1e-4)


def total(lm, before: list[int], ids: list[int]) -> float:
    with torch.no_grad():
        rows = lm.model(torch.tensor([[*before, *ids]])).logits[0].double().log_softmax(-1)[len(before) - 1 : -1]
    return float(rows.gather(1, torch.tensor(ids)[:, None]).sum())


@pytest.mark.slow
def test_each_boundary_has_the_room_it_needs_and_a_confound_is_said(tiny) -> None:
    """1.5 times what the original still needed, 64 (or what it was given) at least; as asked; cut-off draws are counted."""
    source = written(tiny, REASONING)
    original = trajectory(source, tiny)
    done = probe.importance(source, lm=tiny, method="resampling", samples=3, answer="last-number")
    edges = [*(step.start for step in original.steps), len(original.ids)]
    # a text as long as its budget of 24 or longer was cut off: it had no 64 either
    assert done.summary["max_new"] == [max(24, int(np.ceil(1.5 * (len(original.ids) - edge)))) for edge in edges]
    drawn = done.branches[done.branches["arm"] != "original"]
    for i, rows in drawn.groupby(drawn["arm"].astype(str).str.removeprefix("boundary-").astype(int)):
        budget = done.summary["max_new"][i]
        assert (rows.loc[rows["stop_reason"] == "length", "n_tokens"] == budget).all()
        assert (rows["n_tokens"] <= budget).all()
        assert done.summary["truncated"][i] == pytest.approx((rows["outcome"] == "<truncated>").mean())
    asked = probe.importance(source, lm=tiny, method="resampling", samples=2, max_new=3)
    assert set(asked.summary["max_new"]) == {3}


def test_a_different_share_cut_off_is_said() -> None:
    from probe.rewinding.effects import cut_off_across, cut_off_between

    def table(**arms: list[int]) -> pa.Table:
        cut = {name: ["<truncated>" if c else "7" for c in drawn] for name, drawn in arms.items()}
        return outcomes(**cut)

    even, none = [1, 0] * 8, [0] * 16
    assert cut_off_between(table(control=even, edited=even[::-1]), 16) == []
    (said,) = cut_off_between(table(control=even, edited=none), 16)
    assert "0.50 of control and 0.00 of edited" in said and f"p = {2 / 2**8:.3g}" in said
    assert cut_off_across(table(a=even, b=even[::-1], c=even), ["a", "b", "c"], 16, paired=True)[1] == []
    shares, (said,) = cut_off_across(table(a=even, b=[1, 0, 0, 0] * 4, c=none), ["a", "b", "c"], 16, paired=True)
    assert shares == [0.5, 0.25, 0.0] and "from 0.00 to 0.50" in said and "Cochran" in said


def test_cochrans_q_is_scipys() -> None:
    """On bool tables Friedman's statistic with ties is Cochran's Q; chi-square against a permutation, many samples."""
    import scipy.stats

    random = np.random.default_rng(0)
    table = random.random((200, 4)) < [0.3, 0.36, 0.3, 0.24]
    expected = scipy.stats.friedmanchisquare(*table.T.astype(int)).pvalue
    assert stats.cochran(table, seed=0) == pytest.approx(expected, abs=0.02)
    assert stats.cochran(np.ones((5, 3), bool), seed=0) == 1.0


@pytest.mark.slow
def test_all_methods_and_a_killed_run(tiny, tmp_path: Path, monkeypatch) -> None:
    from probe.rewinding import rollouts

    source = written(tiny, REASONING)
    what = {"method": "all", "samples": 3, "max_new": 4}
    whole = probe.importance(source, lm=tiny, out=tmp_path / "whole", **what)
    assert {"resampling", "counterfactual", "suppression", "rescore"} <= set(whole.summary["methods"])
    assert any("receiver was left out: receiver heads need" in text for text in whole.manifest["warnings"])
    assert whole.branches["branch"].is_unique and len(whole.branches) == 1 + 3 * (whole.summary["steps"] + 1)
    real, left = rollouts._write, [9]

    def dying(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        real(*args, **kwargs)

    monkeypatch.setattr(rollouts, "_write", dying)
    with pytest.raises(KeyboardInterrupt):
        probe.importance(source, lm=tiny, out=tmp_path / "torn", **what)
    monkeypatch.setattr(rollouts, "_write", real)
    resumed = probe.importance(source, lm=tiny, out=tmp_path / "torn", resume=True, **what)
    same_tables(resumed, whole)


def test_bad_input(tiny) -> None:
    for what, said in (
        ({"method": "magic"}, "rescore"), ({"samples": 0}, "at least 1"), 
        ({"method": "receiver", "split": "paragraph"}, "--split"),
        ({"resume": True}, "--out"), ({"embedder": "none", "method": "counterfactual", "samples": 1, "max_new": 2},
         "embedder"),
    ):  # fmt: skip
        with pytest.raises(BadOption) as caught:
            probe.importance(written(tiny, REASONING), lm=tiny, **what)
        assert said in caught.value.message + caught.value.hint


@pytest.mark.slow
def test_the_command_line(shell) -> None:
    assert shell("trace", "Count: one.", "--model", "tiny:llama", "--generate", "30", "--out", "run").returncode == 0
    words = ("--split", "token", "-n", "2", "--max-new", "3")
    plan = json.loads(shell("importance", "run", *words, "--dry-run", "--json").stdout)
    assert plan["continuations"] == 2 * (plan["steps"] + 1)
    done = shell("importance", "run", "--method", "rescore,suppression", "--split", "token", "--out", "new")
    assert done.returncode == 0, done.stderr
    assert "rescore" in done.stdout and "Spearman" in done.stdout and "█" in done.stdout
    assert shell("runs", "check", "new").returncode == 0
    failed = shell("importance", "run", "--method", "magic")
    assert failed.returncode == 1 and "rescore" in failed.stderr and "Traceback" not in failed.stderr


def by_length(task: Task) -> Measured:
    """A method of the test's own: a step matters as much as it has tokens."""
    steps = task.original.steps
    return Measured(
        [StepImportance("length", i, float(s.end - s.start), "tokens") for i, s in enumerate(steps)], summary={"n": 1}
    )


LENGTH = Method("length", "As many tokens as it has.", f"{__name__}:by_length", (), lambda size: sum(size.steps))


@pytest.mark.slow
def test_a_method_is_one_row_and_one_function(tiny, monkeypatch) -> None:
    """A row in the registry: the verb takes it, alone and among all, its plan says what it costs, and `--help` names it."""
    monkeypatch.setitem(METHODS, "length", LENGTH)
    source = written(tiny, REASONING)
    done = probe.importance(source, lm=tiny, method="length,rescore")
    steps = trajectory(source, tiny).steps
    rows = done.importance[done.importance["method"] == "length"]
    assert rows["estimate"].tolist() == [s.end - s.start for s in steps] and done.summary["length"] == {"n": 1}
    plan = plan_importance(Importance(source, lm=tiny, method="length"))
    assert plan["methods"] == "length" and plan["tokens_read"] == {"length": sum(s.end - s.start for s in steps)}
    assert "length" in [method.name for method in methods_of("all")]
    with pytest.raises(BadOption) as caught:
        methods_of("lenght")
    assert "length" in caught.value.hint
    code = (
        "from probe.registries.importance_methods import METHODS, Method\n"
        "METHODS['length'] = Method('length', 'As many tokens as it has.', '', (), lambda size: 0)\n"
        "from probe.cli.main import app\napp(['importance', '--help'])\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "length: As many tokens as it has." in " ".join(shown.split())


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_row_of_the_registry_is_what_its_method_does(name: str, markov) -> None:
    """The columns that it declares are those that it fills, the table `dependence` too; options of its own are refused to
    others; and the model reads no more than the plan says."""
    method, lm = METHODS[name], markov
    source = written(lm, "Then b.\n a" * 9)
    what = {"samples": 12, "max_new": 4, "split": "token", "answer": "regex=[01]", "expect": "1", "candidates": ("0", "1")}
    done = probe.importance(source, lm=lm, method=name, sampling=Sampling(temperature=1.0), **what)
    assert not done.importance["unit"].isna().any() and done.importance["method"].str.startswith(name).all()
    fixed = {"run_id", "prompt_id", "method", "step", "estimate", "unit", "kind", "text"}
    filled = {column for column in done.importance.columns if done.importance[column].notna().any()}
    assert filled - fixed == set(method.columns)
    assert ("dependence" in done.tables) == method.matrix and (len(done.branches) > 1) == method.sampled
    for option in method.options:
        with pytest.raises(BadOption, match=f"--{option} is for {name}"):
            probe.importance(source, lm=lm, method="early-answer", **{option: "anything"})
    if not method.sampled:
        read = []
        hook = lm.model.get_input_embeddings().register_forward_hook(lambda m, args, out: read.append(args[0].numel()))
        probe.importance(source, lm=lm, method=name, **what)
        hook.remove()
        planned = plan_importance(Importance(source, lm=lm, method=name, **what))["tokens_read"][name]
        assert (0.1 if name == "early-answer" else 0.8) * planned <= sum(read) <= planned
