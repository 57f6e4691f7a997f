"""A model's own generation settings: said where they are not used, and with --generation-config model what `generate` does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import probe
from probe.decoding import Sampling, differences, sampling_for
from probe.errors import BadOption
from probe.language_model import LanguageModel
from probe.tiny import tiny

PROMPT = "abcabcabc"


def model(**settings: Any) -> LanguageModel:
    lm = LanguageModel(*tiny("llama"), name="little")
    for name, value in settings.items():
        setattr(lm.model.generation_config, name, value)
    return lm


def generated(lm: LanguageModel, n: int) -> list[int]:
    ids = torch.tensor([lm.encode(PROMPT).ids])
    return lm.model.generate(ids, max_new_tokens=n, do_sample=False, pad_token_id=0)[0].tolist()


def test_greedy_by_the_models_settings_is_generate_token_by_token() -> None:
    plain = generated(model(), 24)
    never = plain[len(model().encode(PROMPT).ids)]
    lm = model(repetition_penalty=1.6, suppress_tokens=[never, 7])
    sampling = sampling_for(lm, generation_config="model")
    assert sampling == Sampling(repetition_penalty=1.6, suppress=(never, 7))
    run = probe.trace(lm, PROMPT, generate=24, sampling=sampling)
    assert run.table("tokens").token_id.tolist() == generated(lm, 24) != plain
    assert not run.manifest["warnings"]
    kept = run.manifest["arguments"]["sampling"]
    assert Sampling(**{**kept, "stop": ()}) == sampling


def test_a_suppressed_token_is_never_drawn_and_its_stage_is_named() -> None:
    lm = model(do_sample=True, temperature=2.0, top_p=0.9, suppress_tokens=list(range(0, 200)))
    sampling = sampling_for(lm, generation_config="model", seed=4)
    assert sampling == Sampling(2.0, 50, 0.9, suppress=tuple(range(200)), seed=4)  # 50: generate's own
    run = probe.trace(lm, PROMPT, generate=12, sampling=sampling, explain="completion", order="all")
    drawn = run.table("tokens").token_id.tolist()[-12:]
    assert min(drawn) >= 200
    stages = run.table("stages")
    for order in ("hf", "vllm", "llamacpp"):
        own = stages[(stages.order == order) & (stages.name == "suppress")]
        assert len(own) == 12 and (own.removed == 200).all() and (own.setting == 200).all()


def test_options_win_over_the_models_settings() -> None:
    lm = model(do_sample=True, temperature=0.7, top_k=5, repetition_penalty=1.3, stop_strings=["x"])
    cooler = sampling_for(lm, generation_config="model", temperature=0.2, repetition_penalty=1.0)
    assert cooler == Sampling(0.2, 5, stop=("x",))
    assert sampling_for(lm, generation_config="model", temperature=0.0) == Sampling(repetition_penalty=1.3, stop=("x",))
    assert sampling_for(lm) == Sampling()


def test_settings_that_are_not_used_are_said() -> None:
    lm = model(do_sample=True, temperature=0.7, repetition_penalty=1.3, no_repeat_ngram_size=3, top_p=1.0, num_beams=1)
    (said,) = differences(lm, Sampling())
    assert "temperature=0.7, top_k=50, repetition_penalty=1.3, no_repeat_ngram_size=3;" in said
    run = probe.trace(lm, PROMPT, generate=2)
    assert run.manifest["warnings"] == [said]
    assert not probe.trace(lm, PROMPT).manifest["warnings"]  # nothing was generated
    assert differences(model(), Sampling(0.6, None, 0.95)) == []
    with pytest.raises(BadOption, match="no_repeat_ngram_size=3"):
        sampling_for(lm, generation_config="model")
    with pytest.raises(BadOption, match="unknown generation config 'hf'"):
        sampling_for(lm, generation_config="hf")


@pytest.mark.slow
def test_the_command_line_applies_them_and_a_rewind_keeps_them(shell: Any, tmp_path: Path) -> None:
    lm = model(repetition_penalty=1.6)
    lm.model.save_pretrained(tmp_path / "m")
    lm.tokenizer.save_pretrained(tmp_path / "m")
    given = ("trace", PROMPT, "-m", "./m", "-n", "8", "--no-progress")
    done = shell(*given, "--generation-config", "model", "--out", "applied")
    assert done.returncode == 0 and "generation_config" not in done.stderr
    tokens = probe.open_run(tmp_path / "applied").table("tokens").token_id.tolist()
    assert tokens == generated(lm, 8)
    done = shell(*given, "--out", "not")
    assert "warning: generation_config.json of ./m" in done.stderr and "repetition_penalty=1.6" in done.stderr
    words = ("rewind", "applied", "--to", "14", "-n", "2", "--max-new", "2", "--no-progress", "--out")
    assert shell(*words, "again").returncode == 0
    manifest = json.loads((tmp_path / "again" / "manifest.json").read_text())
    assert manifest["resolved"]["sampling"]["repetition_penalty"] == 1.6
    done = shell(*words, "own", "--generation-config", "model", "-t", "0.5")
    sampling = json.loads((tmp_path / "own" / "manifest.json").read_text())["arguments"]["sampling"]
    assert (sampling["temperature"], sampling["repetition_penalty"]) == (0.5, 1.6)
