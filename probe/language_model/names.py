"""What a user names: a model (an alias, a Hub id, a directory, a .gguf file, tiny:FAMILY), a device, a number type."""

from __future__ import annotations

import difflib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from probe.errors import BadOption, UnknownModel
from probe.language_model.quantization import check_known
from probe.language_model.spreading import check_launched

if TYPE_CHECKING:
    import torch

DEFAULT = "smollm2"
ALIASES = {
    "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "smollm2-base": "HuggingFaceTB/SmolLM2-135M",
    "smollm2-360m": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "smollm2-1.7b": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "gpt2": "openai-community/gpt2",
    "pythia-70m": "EleutherAI/pythia-70m-deduped",
    "pythia-160m": "EleutherAI/pythia-160m-deduped",
    "qwen3-0.6b": "Qwen/Qwen3-0.6B",
    "r1-1.5b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
}
TINY = "tiny:"
LONGEST = 96  # characters of an id on the Hub
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class Named(NamedTuple):
    """`kind` is tiny, directory, gguf or hub; `where` a family, an absolute path, or a Hub id."""

    name: str
    kind: str
    where: str


def default_name() -> str:
    """`$PROBE_MODEL`, else smollm2."""
    return os.environ.get("PROBE_MODEL") or DEFAULT


def name_kind(name: str) -> Named:
    """What `name` refers to. An alias wins over a folder of the same name (`./gpt2` is the folder).

    Raises `UnknownModel` for a path that is not there and for what cannot be a name at all.
    """
    if name.startswith(TINY):
        return Named(name, "tiny", name.removeprefix(TINY))
    if not name:
        raise UnknownModel("the model's name is empty", hint="leave --model out for the default, or name one")
    if name in ALIASES:
        return Named(name, "hub", ALIASES[name])
    try:
        path = Path(name).expanduser()
        path.stat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError, RuntimeError) as error:  # too long, not to be read, a null byte, no such user
        raise unknown(name, str(getattr(error, "strerror", None) or error).lower()) from error
    if path.is_dir():
        return Named(name, "directory", str(path.absolute()))
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise UnknownModel(f"no file '{name}'", hint="give the path of a .gguf file")
        return Named(name, "gguf", str(path.absolute()))
    if path.is_file():
        raise UnknownModel(f"'{name}' is a file, not a model", hint="give the directory that holds it, or a .gguf file")
    if not _HUB_ID.fullmatch(name) or len(name) > LONGEST:
        raise unknown(name, "no such directory")
    return Named(name, "hub", name)


def unknown(name: str, why: str) -> UnknownModel:
    """The error for a name that leads nowhere, with the nearest aliases."""
    near = difflib.get_close_matches(name.lower(), ALIASES, n=3)
    if near:
        hint = f"did you mean {' or '.join(repr(alias) for alias in near)}?"
    else:
        hint = f"aliases: {', '.join(ALIASES)}; or a Hub id OWNER/NAME, a directory, a .gguf file, tiny:FAMILY"
    shown = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
    return UnknownModel(f"unknown model '{shown}': {why}", hint=hint)


_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_KNOWN = ("float32", "bfloat16", "float16")


class Placement(NamedTuple):
    """`dtype` is None for the checkpoint's own; `device_map` is accelerate's, None for a plain load to the CPU."""

    dtype: torch.dtype | None
    device_map: Any
    chosen: bool  # the user asked for this dtype
    tp_plan: str | None = None  # how several processes share it, None for a model of one
    quantize: str | None = None  # a name of `QUANTIZATIONS`


def place(
    *,
    device: str = "auto",
    dtype: str = "auto",
    device_map: Any = None,
    tp_plan: str | None = None,
    quantize: str | None = None,
) -> Placement:
    """float32 on a CPU and the checkpoint's own type on an accelerator, unless `dtype` says otherwise.

    `device`: auto (an accelerator if there is one), cpu, cuda, cuda:I, mps. `device_map`: accelerate's names, or a
    mapping (also as JSON). `tp_plan`: auto, where torchrun started several processes. `quantize`: a name of
    `QUANTIZATIONS`. Raises `BadOption`.
    """
    import torch

    if device_map is not None and device != "auto":
        raise BadOption("both a device and a device map", hint="give one of --device and --device-map")
    check_known(quantize)
    if quantize is not None and tp_plan is not None:
        raise BadOption("weights in few bits are not split over processes", hint="leave out --quantize, or --tp-plan")
    name = _DTYPES.get(dtype, dtype)
    if name not in (*_KNOWN, "auto"):
        raise BadOption(f"unknown dtype '{dtype}'", hint=f"one of auto, {', '.join(_KNOWN)}")
    if tp_plan is not None:
        check_launched(tp_plan, device, device_map)
        on_cpu, where = not torch.accelerator.is_available(), None
    elif device_map is not None:
        on_cpu, where = not torch.accelerator.is_available(), _device_map(device_map)
        if quantize is not None and isinstance(where, dict) and "disk" in where.values():
            raise BadOption("weights in few bits are not kept on disk", hint="leave it out of --device-map, or --quantize out")
    else:
        found = _device(device)
        on_cpu, where = found.type == "cpu", None if found.type == "cpu" else {"": found}
    chosen = name != "auto"
    number = getattr(torch, name) if chosen else torch.float32 if on_cpu else None
    return Placement(number, where, chosen, tp_plan, quantize)


def _device(name: str) -> torch.device:
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return accelerator or torch.device("cpu")
    here = ["cpu"]
    if accelerator is not None:
        count = torch.accelerator.device_count()
        here += [accelerator.type, *(f"{accelerator.type}:{i}" for i in range(count))]
    if name not in here:
        raise BadOption(f"no device '{name}' here", hint=f"here: {', '.join(here)}")
    return torch.device(name)


def _device_map(given: Any) -> Any:
    unknown = BadOption(f"unknown device map '{given}'", hint="auto, balanced, sequential, or a JSON object")
    found = given
    if isinstance(given, str):
        if given in {"auto", "balanced", "balanced_low_0", "sequential"}:
            return given
        try:
            found = json.loads(given)
        except ValueError as error:
            raise unknown from error
    if not isinstance(found, dict) or not found:
        raise unknown
    for where in found.values():
        if where != "disk":
            _device(_numbered(where) if isinstance(where, int) else str(where))
    return found


def _numbered(i: int) -> str:
    """accelerate's number of a device as its name; the number alone where there is no accelerator."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return str(i) if accelerator is None else f"{accelerator.type}:{i}"
