"""Drawing by budget: never more than there is, the same continuations, honest intervals, and a kill that changes nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import probe
from probe import stats
from probe.errors import BadOption, ProbeError
from probe.requests.budget import Budget, parse_budget
from probe.rewinding import rollouts, rounds
from tests.test_rewind import TEXT, same_tables

SAMPLING = probe.Sampling(temperature=1.0, seed=1, stop=("e", "a"))  # some stop there, some are cut off: two outcomes
WHAT = {"samples": 16, "max_new": 8, "expect": "<truncated>", "sampling": SAMPLING}
TEXTS = (TEXT, "First we look at 3 pears. Then one of them goes away. So 2 are left.")


@pytest.fixture(scope="module")
def tiny():
    return probe.load("tiny:llama")


@pytest.fixture(scope="module")
def run(tiny):
    """Two problems, as if the model had written them."""
    from probe.store import create
    from probe.texts import token_columns

    with create(None, command="trace", arguments={"generate": 24, "sampling": {"temperature": 1.0}}) as writer:
        for k, text in enumerate(TEXTS):
            prompt = list(tiny.encode(f"Q{k}: how many?\n").ids)
            ids = [*prompt, *tiny.ids_of(text)]
            with writer.unit(f"prompt-{k}"):
                writer.write("prompts", {"prompt_id": [k], "text": [f"Q{k}"], "n_tokens": [len(prompt)], "error": [""]})
                writer.write("tokens", token_columns(k, ids, tiny.pieces(ids), len(prompt)))
        return writer.finish(summary={}, model=tiny.identity)


@pytest.mark.parametrize(
    ("text", "means"),
    [
        (200_000, Budget(tokens=200_000)),
        ("200k", Budget(tokens=200_000)),
        ("2.5M tokens", Budget(tokens=2_500_000)),
        ("10min", Budget(seconds=600)),
        ("90 s", Budget(seconds=90)),
        ("1.5h", Budget(seconds=5400)),
    ],
)
def test_budgets(text, means: Budget) -> None:
    assert parse_budget(text) == means


@pytest.mark.parametrize("text", ["10m", "tokens", "0", "-3", "1e5", "10min tokens", "0.2", ""])
def test_budgets_that_cannot_be_read(text: str) -> None:
    with pytest.raises(BadOption) as told:
        parse_budget(text)
    assert "200k" in told.value.hint or "10min" in told.value.hint


def arms(done) -> dict[tuple[int, str], object]:
    """Continuations of each arm of each problem, in order of samples."""
    drawn = done.branches[done.branches["sample"] >= 0].sort_values("sample")
    return dict(list(drawn.groupby(["prompt_id", "arm"], observed=True)))


@pytest.mark.slow
def test_importance_by_budget(run, tiny) -> None:
    done = probe.importance(run, lm=tiny, method="resampling", budget=6000, until=0.2, **WHAT)
    drawing, drawn = done.summary["drawing"], arms(done)
    tokens = sum(rows["n_tokens"].sum() for rows in drawn.values())
    assert (tokens == drawing["tokens"] <= 6000 and 6000 - tokens < 16) or "budget" not in drawing["stopped"]
    assert drawing["continuations"] == sum(map(len, drawn.values()))
    # the same continuations as without a budget
    plain = arms(probe.importance(run, lm=tiny, method="resampling", **WHAT))
    for key, rows in plain.items():
        assert list(drawn[key]["text"][:16]) == list(rows["text"])
    rows = done.importance[done.importance["method"] == "resampling"]
    assert len(set(rows["n"])) > 1 and rows["n"].min() >= 16
    for row in rows.itertuples():
        before, after = (
            np.array(drawn[row.prompt_id, f"boundary-{k}"]["outcome"][: row.n] == "<truncated>")
            for k in (row.step, row.step + 1)
        )
        found = stats.anytime(before, after)
        assert (row.estimate, row.ci_low, row.ci_high, row.p_value) == pytest.approx(found)
        said = stats.StoppingRule(differs=True, smaller=0.2).reasons(np.array([found.low]), np.array([found.high]))[0]
        assert row.stopped == (said or "budget")
    assert done.importance.loc[done.importance["method"] != "resampling", "p_value"].isna().all()
    each = {key: own["n_tokens"].mean() for key, own in drawn.items()}
    assert drawing["uniform_tokens"] == pytest.approx(sum(each.values()) * rows["n"].max(), abs=1)
    assert drawing["saved"] == pytest.approx(1 - tokens / drawing["uniform_tokens"], abs=1e-3)
    last = done.rounds.sort_values("round").groupby(["prompt_id", "arm"], observed=True)["samples"].last()
    assert {key: len(own) for key, own in drawn.items()} == last.to_dict()


@pytest.mark.slow
def test_counterfactual_by_budget_is_judged_as_in_the_first_round(run, tiny) -> None:
    done = probe.importance(run, lm=tiny, method="counterfactual", prompt_id=0, until=0.35, **WHAT)
    rows = done.importance[done.importance["method"] == "counterfactual"]
    assert (rows["stopped"] == "known to ±0.35").all()
    assert ((rows["ci_high"] - rows["ci_low"]) / 2 <= 0.35).all() and (rows["n"] >= 10).all()
    assert done.summary["counterfactual"]["threshold"] == pytest.approx(
        probe.importance(run, lm=tiny, method="counterfactual", prompt_id=0, **WHAT).summary["counterfactual"]["threshold"]
    )


@pytest.mark.slow
def test_rewind_until_all_places_are_known(run, tiny) -> None:
    done = probe.rewind(run, lm=tiny, to="all", delete=True, until=0.25, **WHAT)
    rows = done.effects[(done.effects["metric"] == "share") & (done.effects["outcome"] == "<truncated>")]
    assert len(rows) > 4 and set(rows["stopped"]) == {"known to ±0.25"}
    assert ((rows["ci_high"] - rows["ci_low"]) / 2 <= 0.25).all() and set(rows["method"]) == {"confidence sequence by betting"}
    lengths = done.effects[done.effects["metric"] == "tokens"]
    assert (lengths["ci_low"] < lengths["difference"]).all() and (lengths["difference"] < lengths["ci_high"]).all()
    assert done.effects.loc[done.effects["metric"] == "total_variation", "p_value"].isna().all()
    assert done.summary["drawing"]["stopped"] == {"known to ±0.25": len(rows)}


def torn(call, folder: Path, after: int, monkeypatch) -> None:
    """The verb, killed after so many continuations."""
    real, left = rollouts._write, [after]

    def dying(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(rollouts, "_write", dying)
        with pytest.raises(KeyboardInterrupt):
            call(out=folder)
    assert not folder.exists()


CALLS = {
    "importance": {"method": "resampling,counterfactual", "prompt_id": 0, "budget": 2400},
    "rewind": {"to": "all", "replace": "Then we stop.", "prompt_id": 1, "budget": 2400, "until": 0.3},
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", CALLS)
def test_a_kill_in_any_round_changes_nothing(verb: str, run, tiny, tmp_path: Path, monkeypatch) -> None:
    def call(**more):
        return getattr(probe, verb)(run, lm=tiny, **CALLS[verb], **WHAT, **more)

    whole = call(out=tmp_path / "whole")
    total = whole.summary["drawing"]["continuations"]
    for i, after in enumerate((20, 2 * total // 3)):
        torn(call, tmp_path / str(i), after, monkeypatch)
        resumed = call(out=tmp_path / str(i), resume=True)
        same_tables(resumed, whole)
        assert resumed.summary["drawing"] == whole.summary["drawing"]
    same_tables(call(out=tmp_path / "whole", resume=True), whole)


@pytest.mark.slow
def test_minutes_are_kept_and_gone_on_with(run, tiny, tmp_path: Path, monkeypatch) -> None:
    """Of a clock that ticks once a look: what was decided is drawn again, and the time until then counts."""
    now = [0.0]

    class Clock:
        @staticmethod
        def monotonic() -> float:
            now[0] += 1.0
            return now[0]

    monkeypatch.setattr(rounds, "time", Clock)

    def call(**more):
        return probe.importance(run, lm=tiny, method="resampling", budget="30s", **WHAT, **more)

    whole = call(out=tmp_path / "whole")
    first = whole.rounds[whole.rounds["round"] == 0]
    assert set(first["samples"]) == {rounds.PILOT} and whole.rounds["seconds"].max() <= 31
    assert "budget" in whole.summary["drawing"]["stopped"] and whole.summary["drawing"]["rounds"] > 3
    torn(call, tmp_path / "torn", whole.summary["drawing"]["continuations"] // 2, monkeypatch)
    resumed = call(out=tmp_path / "torn", resume=True)
    seconds = resumed.rounds.groupby("round")["seconds"].first()
    assert seconds.is_monotonic_increasing and seconds.max() <= 31 and resumed.summary["drawing"]["rounds"] > 3
    again = call(out=tmp_path / "torn", resume=True)
    assert again.summary == resumed.summary


@pytest.mark.parametrize(
    ("verb", "what", "said"),
    [
        ("importance", {"budget": 40}, "may not pay"),
        ("rewind", {"to": "step1", "delete": True, "budget": 15}, "may not pay"),
        ("importance", {"budget": "soon"}, "cannot read"),
        ("importance", {"until": 0.0}, "until is 0.0"),
        ("importance", {"method": "early-answer", "until": 0.1}, "nothing is drawn"),
    ],
)
def test_bad_input(verb: str, what, said: str, run, tiny, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match=said) as told:
        getattr(probe, verb)(run, lm=tiny, out=tmp_path / "a", **WHAT, **what)
    assert told.value.hint and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_drawing_takes_is_said_before(run, tiny) -> None:
    """Counted by hand; of the prefixes every beginning once; as many samples as the means suffice for."""
    from probe.requests import Importance, Rewind
    from probe.rewinding import plan_rewind
    from probe.step_importance import plan_importance

    plan = plan_importance(Importance(run, lm=tiny, method="resampling", **WHAT))
    done = probe.importance(run, lm=tiny, method="resampling", **WHAT)
    drawn = done.branches[done.branches["sample"] >= 0]
    assert (plan["problems"], plan["steps"]) == (2, done.steps[["prompt_id", "step"]].drop_duplicates().shape[0])
    assert plan["continuations"] == len(drawn) and plan["tokens"] == 8 * len(drawn) >= drawn["n_tokens"].sum()
    whole = run.tokens.sort_values("pos").groupby("prompt_id")["token_id"].apply(tuple)
    ends = drawn.groupby("prompt_id")["draw_pos"].unique()
    prefixes = {(whole[k][:i]) for k in (0, 1) for end in ends[k] for i in range(1, end + 1)}
    assert plan["tokens_read"]["prefixes"] == len(prefixes)
    assert plan["tables"]["branches"]["rows"] == len(drawn) and plan["seconds"] > 0 and "P = 0.5" in plan["assumes"]
    assert plan["half_width"] == pytest.approx(stats.half_width(16), abs=1e-3) and plan["half_width_mean"] > plan["half_width"]
    arms = len(drawn) // 16
    for budget, n in ((8 * 40 * arms, 40), (8 * arms - 1, 1)):
        plan = plan_importance(Importance(run, lm=tiny, method="resampling", **WHAT, budget=budget))
        assert plan["samples"] == n and plan["tokens"] <= max(budget, 8 * arms) and plan["continuations"] == n * arms
        assert plan["half_width"] == pytest.approx(stats.anytime_half_width(n), abs=1e-3) and plan["tells_from_0"] is None
    plan = plan_rewind(Rewind(run, lm=tiny, to="all", delete=True, until=0.2, **WHAT))
    n = plan["samples"]
    assert plan["half_width"] <= 0.2 < stats.anytime_half_width(n - 1) and plan["continuations"] == 2 * n * plan["places"]
    alone = plan_rewind(Rewind(run, lm=tiny, to="step1", delete=True, prompt_id=0, budget="1h", **WHAT))
    assert alone["half_width_mean"] is None and 1 <= alone["samples"] <= rounds.MOST


def test_tokens_that_prefixes_have_in_common_are_counted_once() -> None:
    from probe.decoding.costs import distinct_tokens

    random = np.random.default_rng(0)
    for _ in range(50):
        prefixes = [tuple(random.integers(0, 3, random.integers(1, 7)).tolist()) for _ in range(8)]
        assert distinct_tokens(prefixes) == len({one[:i] for one in prefixes for i in range(1, len(one) + 1)})


def test_the_width_of_a_mean_over_problems_is_what_simulation_gives() -> None:
    random = np.random.default_rng(1)
    problems, n, between = 12, 20, 0.1
    true = random.normal(0, between, (4000, problems))
    down, up = (0.25 - true) / 2, (0.25 + true) / 2
    pairs = random.random((n, *true.shape))
    means = np.where(pairs < np.clip(up, 0, 1), 1, np.where(pairs < np.clip(up, 0, 1) + np.clip(down, 0, 1), -1, 0)).mean(0)
    half = stats.mean_half_width(problems, n, between=between)
    assert np.mean(np.abs(means.mean(1)) <= half) == pytest.approx(0.97, abs=0.015)  # t of 11, where the spread is known
    assert stats.mean_half_width(1, n, between=between) is None
