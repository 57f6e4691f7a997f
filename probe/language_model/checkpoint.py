"""What a checkpoint holds, before it is loaded; what the libraries refuse; whether its weights are all there. Loads nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

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
        raise BadModel(f"'{path}' is not JSON: {error}", hint="the file is damaged: copy or download it again") from error
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
        return BadModel(f"'{name}' is an adapter, not a whole model", hint="name its base model, and give this as the adapter")
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
        f"'{name}' has no weights{found}", hint=f"expected {SAFETENSORS} or its numbered parts with {SAFETENSORS}{_INDEX}"
    )


# what transformers, torch and a checkpoint's own code raise about files and configs that don't fit together
_REFUSALS = (OSError, ValueError, RuntimeError, KeyError, ImportError, TypeError, AttributeError, NotImplementedError)


@contextmanager
def refusals(name: str) -> Iterator[None]:
    """What the libraries say about a checkpoint that does not fit becomes one line and a hint."""
    try:
        yield
    except ProbeError:
        raise
    except _REFUSALS as error:
        message = " ".join(str(error).split()) or type(error).__name__
        if "trust_remote_code" in message:
            hint = "if you trust that code: --trust-remote-code (in Python trust_remote_code=True)"
            raise BadModel(f"'{name}' comes with code of its own", hint=hint) from error
        if "out of memory" in message.lower():
            raise BadModel(f"'{name}' does not fit into memory", hint="try --dtype bfloat16 or --device-map auto") from error
        if message.startswith("We encountered some issues during automatic conversion"):
            raise BadModel(
                f"'{name}' has weights that do not fit the quantisation", hint="TRANSFORMERS_VERBOSITY=warning shows which"
            ) from error
        if message.startswith("The device_map provided does not give any device"):
            parts = message.partition("parameters: ")[2].split(", ")
            raise BadModel(f"the device map leaves out {_shown(parts)}", hint="name every part of the model in it") from error
        if isinstance(error, ImportError):
            raise BadModel(f"'{name}' needs a package that is not installed: {message[:200]}", hint="install it") from error
        first = message if len(message) <= 200 else f"{message[:199]}…"
        raise BadModel(
            f"'{name}' cannot be loaded: {first}", hint="is it a causal language model that this transformers knows?"
        ) from error


# buffers that older versions of transformers saved and newer ones compute
_BUFFERS = re.compile(
    r"(^|\.)((rotary_emb|rotary_pos_emb|rope)\.(inv_freq|freqs|cos_cached|sin_cached)|inv_freq|original_inv_freq|position_ids"
    r"|masked_bias|relative_position_index|num_batches_tracked|rel_pos_bucket)$"
)
# a causal mask: (1, 1, length, length), where a bias of a projection has one axis
_MASKS = re.compile(r"(^|\.)(attn|attention|self_attn|self_attention|attn\.attention)\.(bias|causal_mask)$")
# heads for other tasks, over the same text: they change no next token
_OTHER_HEADS = re.compile(r"^(v_head|score|classifier|value_head|reward_head|cls|pooler)\.")
_MORE_TOKENS = re.compile(r"(^|\.)(mtp|mtp_layers|mtp_block|nextn)(_[a-z]+)*(\.|$)")
_OTHER_SENSES = re.compile(
    r"(^|\.)(vision|visual|image|video|audio|speech|multi_?modal|mm|vit|v_tower|a_tower|siglip|conformer)(_\w+)?\."
)
_SENSES = re.compile(r"(vision|visual|vit|image|video|audio|speech|sound)\w*_config$")
_CACHE_SCALES = re.compile(r"attn\.(q|k|v|prob)_scale$")

Shape = Callable[[str], tuple[int, ...] | None]


def check_all_there(name: str, missing: Iterable[str]) -> None:
    """`BadModel` if there are weights that the checkpoint did not bring: they are random."""
    keys = sorted(missing)
    if keys:
        raise BadModel(
            f"'{name}' lacks {len(keys)} of its weights ({_shown(keys)}): they would be random",
            hint="the checkpoint is of another class, or not whole",
        )


def check_all_used(name: str, unexpected: Iterable[str], config: Mapping[str, Any], shape: Shape) -> None:
    """`BadModel` if the checkpoint brings weights that the model has no place for: without them it is another model.

    config: the parsed config.json. shape: of a tensor of the checkpoint by its name, None if it is not known.
    """
    keys = [key for key in sorted(unexpected) if not _harmless(key, config, shape)]
    if keys:
        raise BadModel(
            f"'{name}' brings {len(keys)} weights that would be left unused ({_shown(keys)}): its config has no place for them",
            hint="the config is of another model, or lacks what these need (layers, norms, a quantisation)",
        )


def _harmless(key: str, config: Mapping[str, Any], shape: Shape) -> bool:
    """Whether a model without this weight gives the same next tokens."""
    if _BUFFERS.search(key) or _OTHER_HEADS.search(key) or _MORE_TOKENS.search(key):
        return True
    if _MASKS.search(key):
        found = shape(key)
        return found is not None and len(found) == 4 and found[:2] == (1, 1) and found[2] == found[3]
    if _OTHER_SENSES.search(key):
        return any(_SENSES.fullmatch(field) for field in config)
    if _CACHE_SCALES.search(key):
        quantised = config.get("quantization_config")
        return isinstance(quantised, Mapping) and bool(quantised.get("kv_cache_scheme"))
    return _beyond_the_last(key, config)


def _beyond_the_last(key: str, config: Mapping[str, Any]) -> bool:
    """Whether it is of a layer that only predicts further tokens: these are counted apart, and stand after the others."""
    found = re.search(r"(^|\.)layers\.(\d+)\.", key)
    layers = config.get("num_hidden_layers")
    more = config.get("num_nextn_predict_layers") or config.get("mtp_num_hidden_layers") or 0
    if not found or not isinstance(layers, int) or not isinstance(more, int):
        return False
    return layers <= int(found[2]) < layers + more


def _shown(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (", …" if len(keys) > 3 else "")
