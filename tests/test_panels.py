"""What the panels show is what the tables of the run say: compared by pandas, on runs of every kind that has them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

import probe
from probe.errors import BadOption
from probe.reporting.panels import sequence_views
from probe.reporting.views import Panel, TokenStrip
from probe.store import Run, open_run


@pytest.fixture(scope="module")
def lm():
    return probe.load("tiny:llama")


@pytest.fixture(scope="module")
def traced(lm, tmp_path_factory) -> Run:
    """Two prompts, one of them broken, with half characters; sampled."""
    prompts = ["Ünï 😀 and </script>", ""]
    sampling = probe.Sampling(temperature=1.0, seed=3)
    out = tmp_path_factory.mktemp("look") / "traced"
    return probe.trace(lm, prompts, generate=6, sampling=sampling, out=out)


def panels(run: Run, prompt: int = 0, **options) -> dict[str, Panel]:
    (view,) = sequence_views(run, prompts=[prompt], **options)
    names = [panel.name for panel in view.panels]
    assert len(set(names)) == len(names)
    return {panel.name: panel for panel in view.panels}


def same_as_the_table(run: Run, panel: Panel) -> None:
    """The panel's own columns are the rows of the table that `where` names, in some order."""
    table = run.table(panel.table)
    for column, value in panel.where.items():
        table = table[table[column].isin(value) if isinstance(value, list | tuple) else table[column] == value]
    own = [name for name in panel.frame if name not in panel.derived]
    assert set(own) <= set(table)
    keys = [k for k in own if k in probe.tables.TABLES[panel.table].keys]
    left, right = (f[own].sort_values(keys, kind="stable", ignore_index=True) for f in (panel.frame, table))
    pd.testing.assert_frame_equal(left, right, check_categorical=False, check_like=True)


def test_the_strip_is_the_table_of_tokens(traced: Run) -> None:
    strip = panels(traced)["tokens"]
    assert isinstance(strip, TokenStrip)
    same_as_the_table(traced, strip)
    numbers = {m.column for m in strip.measures}
    assert numbers >= {"logprob", "entropy", "rank", "prob", "surprisal", "sample_logprob", "kept", "noise"}
    assert strip.measures[0].unit == "nats"


def test_alternatives_are_texts_by_the_runs_own_tokenizer(traced: Run, lm) -> None:
    strip = panels(traced)["tokens"]
    assert isinstance(strip, TokenStrip)
    assert strip.alternatives == ("top_tokens", "top_logprobs")
    for ids, texts in zip(strip.frame["top_ids"], strip.frame["top_tokens"], strict=True):
        assert (ids is None) == (texts is None)
        assert ids is None or texts == [lm.token_text(i) for i in ids]


def test_half_characters_stand_as_their_bytes(traced: Run, lm) -> None:
    strip = panels(traced)["tokens"].frame
    labels = lm.labels(strip["token_id"].tolist())
    assert strip["shown"].fillna(strip["token"]).tolist() == labels
    assert "<0xF0>" in labels and "<0x80>" in labels


def test_a_prompt_that_failed_stands_with_its_reason(traced: Run) -> None:
    strip = panels(traced, 1)["tokens"]
    same_as_the_table(traced, strip)
    assert traced.prompts["error"][1] in strip.note


def test_without_the_tokenizer_tokens_are_ids_and_the_note_says_so(traced: Run) -> None:
    elsewhere = open_run(traced.path)
    elsewhere.manifest["model"] = {**elsewhere.manifest["model"], "name": "nobody/has-this"}
    strip = panels(elsewhere)["tokens"]
    assert strip.frame["top_tokens"][1] == [f"#{i}" for i in strip.frame["top_ids"][1]]
    assert "nobody/has-this" in strip.note


def test_another_tokenizer_under_the_same_name_is_not_used(traced: Run) -> None:
    """Its ids would mean other texts."""
    other = open_run(traced.path)
    other.manifest["model"] = {**other.manifest["model"], "tokenizer_sha256": "0" * 64}
    assert "not the one that made the run" in panels(other)["tokens"].note


def test_a_run_in_memory_has_the_same_panels(lm) -> None:
    run = probe.trace(lm, "a b", out=None)
    assert run.path is None
    same_as_the_table(run, panels(run)["tokens"])


def test_prompts_are_chosen_and_others_are_refused(traced: Run) -> None:
    assert [view.prompt_id for view in sequence_views(traced)] == [0, 1]
    assert [view.prompt_id for view in sequence_views(traced, prompts=[1])] == [1]
    with pytest.raises(BadOption, match="no prompt 7"):
        sequence_views(traced, prompts=[7])


def test_a_strip_of_the_real_model_reads_back_its_text(smollm2, tmp_path: Path) -> None:
    run = probe.trace(smollm2, "The capital of France is", out=tmp_path / "r")
    strip = panels(run)["tokens"]
    assert "".join(strip.frame["token"]) == run.text()
    ids = torch.tensor([strip.frame["token_id"].tolist()])
    best = smollm2.model(ids).logits[0, :-1].argmax(-1)
    assert [texts[0] for texts in strip.frame["top_tokens"][1:]] == [smollm2.tokenizer.decode([i]) for i in best]
