"""`probe heads`: summaries are those of a trace, kinds are those that were planted, and runs come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from probe.cli.main import app
from scipy.stats import t as student
from typer.testing import CliRunner

import probe
from probe.attention_heads import repeated_tokens
from probe.attention_heads.repeated import ordinary_tokens
from probe.capturing.statistics import NAMES
from probe.errors import BadOption, SiteAbsent
from probe.language_model import LanguageModel
from probe.registries.head_kinds import KINDS, kind_of
from probe.replaying import replay
from tests import planted
from tests.test_requests import same_rows

TEXTS = ["one two three one two three four", "the cat sat on the mat and the dog sat on the cat"]


@pytest.fixture(scope="module")
def llama() -> LanguageModel:
    return probe.load("tiny:llama")


def test_the_summary_of_a_text_is_that_of_a_trace(llama: LanguageModel) -> None:
    run, traced = probe.heads(llama, TEXTS), probe.trace(llama, TEXTS)
    keys = ["prompt_id", "layer", "head"]
    own = run.heads[run.heads["input"] == "text"].sort_values(keys, ignore_index=True)
    theirs = traced.heads.sort_values(keys, ignore_index=True)
    pd.testing.assert_frame_equal(own[[*keys, "rows", *NAMES]], theirs[[*keys, "rows", *NAMES]])


def test_random_tokens_are_measured_as_the_definition_says(llama: LanguageModel) -> None:
    """w[i, i-1], w[i, i-n], w[i, i-n+1] of weights that the model itself gives."""
    n = 12
    run = probe.heads(llama, sequences=2, length=n, seed=3)
    ids = repeated_tokens(llama, n, 2, 2, 3)
    lead = ids.shape[1] - 2 * n
    assert all(len(set(row[lead : lead + n])) == n and row[lead : lead + n] == row[lead + n :] for row in ids.tolist())
    llama.model.set_attn_implementation("eager")
    weights = [w.double() for w in llama.model(ids, output_attentions=True).attentions]
    llama.model.set_attn_implementation("sdpa")
    again, rows = torch.arange(lead + n, lead + 2 * n), torch.arange(1, lead + 2 * n)
    for at, w in enumerate(weights):
        expected = {
            "prev": w[:, :, rows, rows - 1], "duplicate": w[:, :, again, again - n], "induction": w[:, :, again, again - n + 1],
            "sink": w[:, :, rows, 0],
        }  # fmt: skip
        for name, values in expected.items():
            found = run.heads[run.heads["layer"] == at].pivot(index="prompt_id", columns="head", values=name).to_numpy()
            np.testing.assert_allclose(found, values.mean(-1).detach(), rtol=1e-4, atol=1e-6)


def test_random_tokens_are_ordinary_and_addressed_by_their_seed(llama: LanguageModel) -> None:
    few, many = repeated_tokens(llama, 6, 3, 2, 5), repeated_tokens(llama, 6, 3, 4, 5)
    assert torch.equal(few, many[:2]) and not torch.equal(many[0], many[1])
    assert not torch.equal(few, repeated_tokens(llama, 6, 3, 2, 6))
    assert not set(ordinary_tokens(llama, at_least=6)) & set(llama.tokenizer.all_special_ids)
    with pytest.raises(BadOption, match="more than the context"):
        repeated_tokens(planted.induction().lm, 30, 2, 1, 0)


def test_planted_heads_are_found_and_nothing_else() -> None:
    """Heads that look one back, at what followed, at the same token, at the beginning; all others are noise."""
    model = planted._quiet(layers=2)
    planted._attend(model, 0, 1, score=30.0, query=("position", 0), key=("position", 1))
    planted._move(model, 0, 1, read="token", write="previous")
    planted._attend(model, 1, 2, score=30.0, query=("token", 0), key=("previous", 0))
    planted._attend(model, 0, 3, score=8.0, query=("token", 0), key=("token", 0))
    with torch.no_grad():  # every query looks for the first position
        planted._query(model, 1, 0).zero_()
        model.transformer.h[1].attn.c_attn.bias[0] = 20.0 * planted.D_HEAD**0.5
        planted._key(model, 1, 0).zero_()[planted._rows("position").start, 0] = 1.0
        # the token itself is seen where it stands too, and takes half: a score that falls with the position leaves the earlier
        planted._query(model, 0, 3)[planted._rows("position"), planted.D_HEAD - 1] = 1.0
        planted._key(model, 0, 3)[planted._rows("position"), planted.D_HEAD - 1] = -torch.arange(planted.N_POSITIONS) * 2.0
    lm = planted._named(model, "planted-kinds")
    run = probe.heads(lm, sequences=6, length=15)
    short = run.table("head_kinds")
    assert short["kind"].isna().all()  # 31 tokens: too short
    means = {(row.layer, row.head): row for row in short.itertuples()}
    wanted = {(0, 1): "prev", (1, 2): "induction", (0, 3): "duplicate", (1, 0): "sink"}
    for at, row in means.items():
        for name in ("prev", "induction", "duplicate", "sink"):
            assert (getattr(row, name) > 0.6) == (wanted.get(at) == name), (at, name, getattr(row, name))
        kind = kind_of({name: getattr(row, name) for name in NAMES}, 16.5, {name: one.threshold for name, one in KINDS.items()})
        assert kind == {"prev": "previous-token"}.get(wanted.get(at, "broad"), wanted.get(at, "broad"))


def test_weights_that_a_model_returns_are_summed_up_but_nothing_more() -> None:
    """The calls of falcon's attention can't be seen; what it returns can, text by text as in a trace."""
    falcon = probe.load("tiny:falcon")
    run, traced = probe.heads(falcon, TEXTS, sequences=1, length=40), probe.trace(falcon, TEXTS)
    assert any("those that the model returns" in warning for warning in run.manifest["warnings"])
    assert len(run.table("head_kinds").query("input == 'repeated' and kind == 'broad'")) == 12
    keys = ["prompt_id", "layer", "head"]
    own, theirs = (
        frame.sort_values(keys)[list(NAMES)].to_numpy() for frame in (run.heads.query("input == 'text'"), traced.heads)
    )
    np.testing.assert_allclose(own, theirs, rtol=1e-5, atol=1e-6)
    with pytest.raises(SiteAbsent, match="queries, keys and values can't be seen"):
        probe.heads(falcon, TEXTS, kernel=True)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_random_weights_have_no_kind_but_broad(family: str) -> None:
    kinds = probe.heads(probe.load(f"tiny:{family}")).table("head_kinds")["kind"]
    assert set(kinds) <= {"broad", "mixed"}


def test_means_have_students_interval_and_a_failed_row_costs_nothing(llama: LanguageModel, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text("".join(f'{{"prompt": "{text}"}}\n' for text in TEXTS) + '{"x": 1}\n{"prompt": "a b c d e f"}\n')
    run = probe.heads(llama, file=file, kernel=True, sequences=1, out=tmp_path / "run")
    assert run.summary["errors"] == 1 and run.summary["prompts"] == 4
    for table, name in (("heads", "entropy"), ("head_kernels", "output_error")):
        rows = run.table(table)
        rows = rows[rows["prompt_id"] < 4].query("layer == 1 and head == 2")[name].to_numpy(float)
        found = run.table("head_means").query("layer == 1 and head == 2 and statistic == @name and input == 'text'").iloc[0]
        half = student.ppf(0.975, 2) * rows.std(ddof=1) / 3**0.5
        assert found["texts"] == 3
        np.testing.assert_allclose(
            [found["mean"], found["low"], found["high"]], rows.mean() + np.array([0, -half, half]), rtol=1e-4
        )
    alone = run.table("head_means").query("input == 'repeated'")
    assert alone["low"].isna().all() and (alone["texts"] == 1).all()
    same_rows(replay(llama, run), run)


def test_a_run_is_read_again(llama: LanguageModel, tmp_path: Path) -> None:
    traced = probe.trace(llama, TEXTS[0], generate=6, out=tmp_path / "traced")
    run = probe.heads(None, traced, sequences=1, out=tmp_path / "heads")
    assert run.manifest["resolved"]["source_run"] == traced.run_id
    own = run.heads.query("prompt_id == 0")[list(NAMES)].to_numpy()
    np.testing.assert_allclose(own, traced.heads[list(NAMES)].to_numpy(), rtol=1e-5, atol=1e-6)
    same_rows(replay(llama, run), run)


def test_what_cannot_be_asked_is_said(llama: LanguageModel) -> None:
    with pytest.raises(SiteAbsent, match="no attention heads"):
        probe.heads(probe.load("tiny:mamba"), "x")
    for bad, word in (
        ({"kernel": True}, "no text"), ({"threshold": ["bold=1"]}, "threshold"), ({"sort": "size"}, "sorted"),
        ({"source": "a", "file": "b"}, "file of prompts"), ({"sequences": 0}, "no text"), ({"threshold": ["sink=x"]}, "number"),
    ):  # fmt: skip
        with pytest.raises(BadOption, match=word):
            probe.heads(llama, **bad)  # type: ignore[arg-type]


def test_the_command_prints_and_plans(tmp_path: Path) -> None:
    words = ["heads", TEXTS[1], "--model", "tiny:llama", "--no-progress", "--kernel"]
    shown = CliRunner().invoke(
        app, [*words, "--threshold", "broad=0.1", "--sort", "sink", "--top", "3", "-o", str(tmp_path / "a")]
    )
    assert shown.exit_code == 0 and "12 broad" in shown.stdout and "by sink" in shown.stdout
    planned = CliRunner().invoke(app, [*words, "--dry-run", "--json"])
    assert planned.exit_code == 0 and '"head_kernels"' in planned.stdout


@pytest.mark.parametrize("sort", ["induction", "layer"])
def test_a_text_in_which_nothing_repeats_has_no_induction_and_is_shown_all_the_same(sort: str, tmp_path: Path) -> None:
    """It has no kinds either: this ended in an error after the run was written."""
    words = ["heads", "abcdefghij", "--sequences", "0", "--sort", sort, "--model", "tiny:llama", "-o", str(tmp_path / "r")]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0 and "too short to tell kinds" in shown.stdout and "Heads on all texts" in shown.stdout


@pytest.mark.slow
def test_induction_heads_of_smollm2() -> None:
    """Measured by other scripts: which heads, their scores, and what zeroing them costs on repeated random tokens."""
    lm = probe.load("smollm2")
    kinds = probe.heads(lm).table("head_kinds").set_index(["layer", "head"])
    best = kinds["induction"].nlargest(3)
    assert list(best.index) == [(18, 6), (17, 4), (17, 3)]
    np.testing.assert_allclose(best, [0.83, 0.66, 0.65], atol=0.06)
    assert set(kinds["prev"].nlargest(2).index) == {(16, 0), (11, 1)}
    np.testing.assert_allclose(kinds["prev"].nlargest(2), 0.89, atol=0.03)
    ids = repeated_tokens(lm, 30, 2, 4, 0)
    text = [lm.pieces(row).text for row in ids.tolist()]

    def nats(edit: str) -> float:
        """Mean log-prob of the second copies, but for their first word."""
        tokens = (
            probe.trace(lm, text, attention="none", edit=edit).tokens
            if edit
            else probe.trace(lm, text, attention="none").tokens
        )
        return -float(tokens[tokens["pos"] > 30]["logprob"].mean())

    plain = nats("")
    cost = nats("z@17.3,17.4,18.6=zero") - plain
    assert cost == pytest.approx(3.9, abs=0.8)
    # three heads at random, five times: 0.03, -0.04, -0.04, 0.93, 0.22
    others = ("15.0,19.2,25.2", "0.5,2.7,5.8", "15.6,18.5,29.4", "8.0,16.7,28.6", "11.0,16.6,25.6")
    control = [nats(f"z@{heads}=zero") - plain for heads in others]
    assert np.median(control) == pytest.approx(0.03, abs=0.05) and np.mean(control) == pytest.approx(0.22, abs=0.1)
    assert max(control) < cost / 3
