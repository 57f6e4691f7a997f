"""The model of a recorded run: loaded by what its manifest says, or checked against it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from probe.errors import RunError
from probe.language_model.hashes import sha256
from probe.language_model.loading import load
from probe.language_model.model import LanguageModel
from probe.store import Run

SAME = ("files", "tokenizer_sha256", "class", "parameters", "adapter", "quantize")


def model_of(run: Run, *, allow_fetch: bool = False, **placement: Any) -> LanguageModel:
    """The model that made a run, loaded by the name in its manifest, quantised as it was, with its adapter and patches.
    Keywords as in `load`.

    A run may be somebody else's: the model is fetched only if `allow_fetch`.
    """
    made = run.manifest.get("model") or {}
    if not isinstance(made.get("name"), str):
        raise RunError("the run does not say which model made it", hint="give --model")
    adapter = made.get("adapter") or {}
    own = {
        "revision": made.get("revision") if made.get("source") == "hub" else None, "adapter": adapter.get("path"),
        "context_length": made.get("context_length"), "quantize": made.get("quantize"),
        "weights_patch": [_patch_file(run, one) for one in made.get("weights_patch") or [] if "weights_patch" not in placement],
    }  # fmt: skip
    return load(made["name"], **{**own, **placement}, fetch=allow_fetch)


def _patches(identity: Mapping[str, Any]) -> list[str]:
    """The hashes of the patches that are on the weights, in their order."""
    return [one["sha256"] for one in identity.get("weights_patch") or []]


def _patch_file(run: Run, said: Mapping[str, Any]) -> str:
    """Where a patch of the run's model lies. Raises `RunError` where it is gone, or another in its place."""
    path = Path(said["path"])
    hint = "give the file with --weights-patch, all of them if there were several"
    if not said["path"] or not path.is_file():
        raise RunError(f"the weights of the run's model were patched, and '{path}' is not there", hint=hint)
    if sha256(path) != said["sha256"]:
        raise RunError(f"'{path}' is not the patch that the run's model had: its contents are others", hint=hint)
    return str(path)


def check_model(run: Run, lm: LanguageModel) -> None:
    """Raises `RunError` if the run was made by other weights; `--model` says that this is meant."""
    made, now = run.manifest.get("model") or {}, lm.identity
    other = [name for name in SAME if made.get(name) != now.get(name)]
    if _patches(made) != _patches(now):
        other.append("weights_patch")
    if other:
        raise RunError(
            f"the run was made by '{made.get('name')}', and '{lm.name}' is another model ({', '.join(other)} differ)",
            hint="give --model to mean it",
        )


def same_tokenizer(run: Run, lm: LanguageModel) -> None:
    """Raises `RunError` if the run's token ids mean other texts to this model."""
    made, now = run.manifest.get("model") or {}, lm.identity
    if made.get("tokenizer_sha256") != now["tokenizer_sha256"]:
        raise RunError(
            f"the tokenizer of '{lm.name}' is not that of '{made.get('name')}', which made the run",
            hint="its token ids would mean other texts; trace the prompt with this model first",
        )
