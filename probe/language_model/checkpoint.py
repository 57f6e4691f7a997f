"""What a model directory holds, looked at before anything is loaded. Knows files and their headers, not weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from probe.errors import BadModel, ProbeError

_INDEX = ".index.json"
SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"
# a directory has a tokenizer if it has one of these; tokenizer_config.json alone is enough for byte tokenizers
_TOKENIZERS = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model",
    "sentencepiece.bpe.model", "tekken.json", "*.tiktoken",
)  # fmt: skip


class Checkpoint(NamedTuple):
    """Files of one model on this machine. `gguf` is set where the weights are in that file and not in `directory`."""

    name: str
    directory: Path
    source: str
    revision: str | None = None
    quantisation: str | None = None
    gguf: Path | None = None


def weight_files(directory: Path, *, allow_pickle: bool = False) -> list[Path]:
    """The files that hold the weights, safetensors first; empty if there are none (that may be loaded)."""
    names = (SAFETENSORS, PICKLE) if allow_pickle else (SAFETENSORS,)
    for name in names:
        index = directory / f"{name}{_INDEX}"
        if (directory / name).is_file():
            return [directory / name]
        if index.is_file():
            return [directory / shard for shard in sorted(set(_read_json(index).get("weight_map", {}).values()))]
    return []


def check_directory(directory: Path, name: str, *, allow_pickle: bool) -> list[Path]:
    """The weight files of a directory that can be loaded as far as its file names and headers show; else `BadModel`."""
    if not (directory / "config.json").is_file():
        raise _no_config(directory, name)
    _read_json(directory / "config.json")
    files = weight_files(directory, allow_pickle=allow_pickle)
    if not files:
        raise _no_weights(directory, name)
    for file in files:
        _check_weights(file, name)
    if not any(any(directory.glob(pattern)) for pattern in _TOKENIZERS):
        raise BadModel(f"'{name}' has no tokenizer", hint="save it there with tokenizer.save_pretrained(…)")
    return files


def is_complete(directory: Path, *, allow_pickle: bool = False) -> bool:
    """Whether a directory has all that loading needs, by name and header."""
    try:
        check_directory(directory, str(directory), allow_pickle=allow_pickle)
    except ProbeError:
        return False
    return True


def shape_in(files: Sequence[Path], key: str) -> tuple[int, ...] | None:
    """The shape of a tensor in safetensors files, with or without the prefix that a class gives its names; else None."""
    from safetensors import safe_open

    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="numpy") as opened:
                for name in opened.keys():  # noqa: SIM118 (no mapping)
                    if name == key or name.endswith(f".{key}") or key.endswith(f".{name}"):
                        return tuple(opened.get_slice(name).get_shape())
    return None


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadModel(
            f"'{path}' is not JSON: {error}", hint="the file is damaged: copy or download it again"
        ) from error
    if not isinstance(content, dict):
        raise BadModel(f"'{path}' does not hold a JSON object", hint="the file is damaged: copy or download it again")
    return content


def _check_weights(file: Path, name: str) -> None:
    """The file is there and, if safetensors, as long as its header says."""
    if not file.is_file():
        raise BadModel(f"'{name}' lacks the weight file {file.name}", hint="copy or download all of its parts")
    if file.suffix != ".safetensors":
        return
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise BadModel(
            f"'{name}' has a damaged weight file {file.name}: {error}", hint="copy or download the file again"
        ) from error


def _no_config(directory: Path, name: str) -> BadModel:
    if (directory / "adapter_config.json").is_file():
        return BadModel(
            f"'{name}' is an adapter, not a whole model", hint="name its base model, and give this as the adapter"
        )
    ggufs = sorted(directory.glob("*.gguf"))
    if ggufs:
        return BadModel(f"'{name}' is a directory of GGUF files", hint=f"name the file: {ggufs[0]}")
    return BadModel(f"'{name}' has no config.json", hint="a model directory is what model.save_pretrained(…) writes")


def _no_weights(directory: Path, name: str) -> BadModel:
    if weight_files(directory, allow_pickle=True):
        return BadModel(
            f"'{name}' has its weights only as pickles, which can run code",
            hint="if you trust them: --allow-pickle (in Python allow_pickle=True)",
        )
    others = sorted(p.name for p in directory.iterdir() if p.suffix in {".safetensors", ".bin", ".pth", ".gguf"})
    found = f" (found: {', '.join(others[:3])})" if others else ""
    return BadModel(
        f"'{name}' has no weights{found}",
        hint=f"expected {SAFETENSORS} or its numbered parts with {SAFETENSORS}{_INDEX}",
    )
