"""The model of a recorded run: loaded by what its manifest says, or checked against it."""

from __future__ import annotations

from typing import Any

from probe.errors import RunError
from probe.language_model.loading import load
from probe.language_model.model import LanguageModel
from probe.store import Run

SAME = ("files", "tokenizer_sha256", "class", "parameters", "adapter")


def model_of(run: Run, *, allow_fetch: bool = False, **placement: Any) -> LanguageModel:
    """The model that made a run, loaded by the name in its manifest, with its adapter; keywords as in `load`.

    A run may be somebody else's: the model is fetched only if `allow_fetch`.
    """
    made = run.manifest.get("model") or {}
    if not isinstance(made.get("name"), str):
        raise RunError("the run does not say which model made it", hint="give --model")
    adapter = made.get("adapter") or {}
    own = {
        "revision": made.get("revision") if made.get("source") == "hub" else None, "adapter": adapter.get("path"),
        "context_length": made.get("context_length"),
    }  # fmt: skip
    return load(made["name"], **{**own, **placement}, fetch=allow_fetch)


def check_model(run: Run, lm: LanguageModel) -> None:
    """Raises `RunError` if the run was made by other weights; `--model` says that this is meant."""
    made, now = run.manifest.get("model") or {}, lm.identity
    other = [name for name in SAME if made.get(name) != now.get(name)]
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
