"""The tokenizer of a run's model alone: from wherever the model is, without its weights, and never another's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import probe
from probe.errors import BadModel, RunError, UnknownModel
from probe.language_model import LanguageModel, tokenizer_of
from tests.test_language_model import save, write_gguf
from tests.test_model_sources import put

TEXT = "Some words, 1 + 2 and é"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROBE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def same(tokenizer, lm: LanguageModel) -> None:
    ids = lm.encode(TEXT).ids
    assert tokenizer(TEXT)["input_ids"] == ids and tokenizer.decode(ids) == lm.tokenizer.decode(ids)


def test_of_a_tiny_model() -> None:
    lm = probe.load("tiny:gpt2")
    same(tokenizer_of(lm.identity), lm)


def test_of_a_directory_whose_weights_are_gone(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    lm = probe.load(str(folder))
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    same(tokenizer_of(lm.identity), lm)


def test_one_that_was_changed_since_is_not_it(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    made = probe.load(str(folder)).identity
    file = folder / "tokenizer.json"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(RunError, match="not the one that made the run"):
        tokenizer_of(made)


def test_of_a_gguf_file_converted_and_not(tmp_path: Path, own_home: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    lm = probe.load(str(path))
    same(tokenizer_of(lm.identity), lm)
    path.unlink()
    with pytest.raises(UnknownModel):
        tokenizer_of(lm.identity)
    write_gguf(path)
    shutil.rmtree(own_home / "models")
    tokenizer = tokenizer_of({**lm.identity, "tokenizer_sha256": of_file(path)})
    same(tokenizer, lm)
    assert not (own_home / "models").exists()  # nothing was converted for it


def of_file(path: Path) -> str:
    """The hash that the manifest has of a model that was read from a file and not converted."""
    from probe.language_model import gguf
    from probe.language_model.model import tokenizer_text_sha256

    return tokenizer_text_sha256(gguf.load_tokenizer(path))


def test_of_the_hubs_cache_and_of_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    put(tmp_path / "hub", "someone/model", save(tmp_path / "model", "llama"))
    lm = probe.load("someone/model")
    same(tokenizer_of(lm.identity), lm)
    shutil.rmtree(tmp_path / "hub")
    with pytest.raises(UnknownModel, match="not on this machine"):
        tokenizer_of(lm.identity)


def test_a_broken_one_and_one_without_a_name_are_said(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "llama")
    made = probe.load(str(folder)).identity
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(BadModel):
        tokenizer_of(made)
    with pytest.raises(RunError, match="which model"):
        tokenizer_of({})
