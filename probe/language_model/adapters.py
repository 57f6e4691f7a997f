"""Adapters of the `peft` library: a directory's weights merged into a loaded model. Knows files, not kinds of adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from probe.errors import BadModel, BadOption
from probe.language_model.checkpoint import refusals
from probe.language_model.hashes import remembered

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def merged(model: Any, given: str | Path) -> tuple[Any, dict[str, Any]]:
    """(the model with the adapter of a directory in its weights, what the manifest says of the adapter).

    Raises `BadOption` without the `peft` package, `BadModel` for a directory that holds no adapter of this model.
    """
    directory = Path(given).expanduser().absolute()
    _check(directory, str(given))
    if any(parameter.is_meta for parameter in model.parameters()):
        raise BadModel(
            f"'{given}' cannot be merged into weights that are kept on disk until they are needed",
            hint="leave out --device-map, or give the merged model",
        )
    try:
        import peft
    except ImportError as error:
        raise BadOption("--adapter needs the peft package", hint="pip install 'mechprobe[peft]'") from error
    with refusals(str(given)):
        config = peft.PeftConfig.from_pretrained(str(directory))
        adapted = peft.PeftModel.from_pretrained(model, str(directory), config=config)
        _check_names(str(given), set(peft.get_peft_model_state_dict(adapted)), directory / WEIGHTS)
        if not hasattr(adapted.base_model, "merge_and_unload"):
            kind = getattr(config.peft_type, "value", config.peft_type)
            raise BadModel(
                f"'{given}' is an adapter of kind {kind}, which changes no weights: it cannot be merged",
                hint="adapters like LoRA can",
            )
        whole = adapted.merge_and_unload(safe_merge=True)
    about = {
        "path": str(directory), "files": remembered([directory / WEIGHTS, directory / CONFIG]),
        "kind": str(getattr(config.peft_type, "value", config.peft_type)), "made_for": config.base_model_name_or_path,
    }  # fmt: skip
    return whole, about


def _check(directory: Path, given: str) -> None:
    if not (directory / CONFIG).is_file():
        raise BadModel(f"'{given}' is no adapter: it has no {CONFIG}", hint="give the directory that peft saved")
    if not (directory / WEIGHTS).is_file():
        raise BadModel(f"'{given}' has no {WEIGHTS}", hint="save the adapter again with save_pretrained(…)")


def _check_names(given: str, wanted: set[str], file: Path) -> None:
    """`BadModel` unless the file holds a value for every weight of the adapter and no other: peft is silent about it."""
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as opened:
        found = set(opened.keys())
    odd = sorted(wanted ^ found)
    if odd:
        raise BadModel(
            f"'{given}' does not fit the model: {len(odd)} of its weights have no counterpart ({', '.join(odd[:2])})",
            hint="it was made for another model",
        )
