"""The tokenizer of the model that a manifest names, without the model: it reads token ids as text. Fetches nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probe.errors import RunError, UnknownModel
from probe.language_model import gguf, hub, wheel
from probe.language_model.checkpoint import Checkpoint, refusals
from probe.language_model.hashes import tokenizer_sha256
from probe.language_model.home import models_dir, record_of
from probe.language_model.loading import load_tokenizer, quiet
from probe.language_model.model import tokenizer_text_sha256
from probe.language_model.names import DEFAULT, Named, name_kind


def tokenizer_of(made: Mapping[str, Any]) -> Any:
    """The tokenizer of the model in a manifest (`run.manifest["model"]`), if it is on this machine and is still the same.

    No weights are read, nothing is fetched or converted, no code of the model's is run. Raises `UnknownModel` where it is
    not here, `BadModel` where it cannot be read, `RunError` where it is another one: its ids would mean other texts.
    """
    name = made.get("name")
    if not isinstance(name, str):
        raise RunError("the run does not say which model made it", hint="give --model")
    with quiet():
        tokenizer, digest = _found(name_kind(name), made)
    if digest != made.get("tokenizer_sha256"):
        raise RunError(f"the tokenizer of '{name}' is not the one that made the run", hint="its ids mean other texts now")
    return tokenizer


def _found(named: Named, made: Mapping[str, Any]) -> tuple[Any, str]:
    """The tokenizer that the name leads to, and its hash as a manifest has it."""
    if named.kind == "tiny":
        from probe.tiny import tiny

        tokenizer = tiny(named.where)[1]  # a random model of some kilobytes: its config says how many ids there are
        return tokenizer, tokenizer_text_sha256(tokenizer)
    found = _here(named, made)
    with refusals(named.name):
        tokenizer = gguf.load_tokenizer(found.gguf) if found.gguf else load_tokenizer(found, code=False)
    return tokenizer, (None if found.gguf else tokenizer_sha256(found.directory)) or tokenizer_text_sha256(tokenizer)


def _here(named: Named, made: Mapping[str, Any]) -> Checkpoint:
    """Its files on this machine, as they are."""
    if named.kind == "directory":
        return Checkpoint(named.name, Path(named.where), "directory")
    if named.kind == "gguf":
        path = Path(named.where)
        converted = models_dir() / f"{path.stem}-{str(made.get('revision'))[:12]}"
        if record_of(converted) is not None:
            return Checkpoint(named.name, converted, "gguf")
        return Checkpoint(named.name, path.parent, "gguf", gguf=path)
    if made.get("source") == "wheel" and named.name == DEFAULT and wheel.converted(DEFAULT):
        return Checkpoint(named.name, models_dir() / DEFAULT, "wheel")
    snapshot = hub.cached(named.where, revision=made.get("revision") if made.get("source") == "hub" else None)
    if snapshot is None:
        raise UnknownModel(f"'{named.name}' is not on this machine", hint="fetch it with probe models fetch")
    return Checkpoint(named.name, snapshot, "hub")
