"""What a command and a server must have in common, or the command would not do in the server what it does by itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# settings that Python, torch and the others read when they are imported, and what a program's library is found by
_READ_EARLY = (
    "ACCELERATE_", "ARROW_", "ATEN_", "BLIS_", "CUBLAS_", "CUDA_", "CUDNN_", "DNNL_", "GLIBC_", "GOMP_", "HF_", "HIP_",
    "HUGGINGFACE_", "HSA_", "KMP_", "LD_", "MALLOC_", "MKL_", "MPLCONFIG", "NUMBA_", "NUMEXPR_", "NVIDIA_", "OMP_", "ONEDNN_",
    "OPENBLAS_", "PANDAS_", "PYTHON", "PYTORCH_", "ROCR_", "SAFETENSORS_", "TORCH", "TRANSFORMERS_", "TYPER_",
)  # fmt: skip
_READ_EARLY_TOO = ("HOME", "XDG_CACHE_HOME", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TERMINAL_WIDTH")
_SENT_OTHERWISE = ("PYTHONIOENCODING", "PYTHONUNBUFFERED")  # the streams are made as the client's are


def conditions() -> dict[str, Any]:
    """Of this process, by the name of each in words."""
    with Path(os.devnull).open() as text:
        encoding = text.encoding
    options = [list(sys.warnoptions), sorted(map(str, sys._xoptions.items()))]
    return {
        "Python, or locale": [sys.version, sys.prefix, list(sys.flags), *options],
        "encoding of texts": [sys.getfilesystemencoding(), encoding],
        "set of CPUs": sorted(os.sched_getaffinity(0)),
        "container": [_space(name) for name in ("mnt", "net", "pid", "user")],
        **{f"${name}": value for name, value in sorted(os.environ.items()) if _is_read_early(name)},
    }


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first condition that is not the same, in words; None if all are. Both as JSON brought them."""
    return next((name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)), None)


def _is_read_early(name: str) -> bool:
    return name not in _SENT_OTHERWISE and (name.startswith(_READ_EARLY) or name in _READ_EARLY_TOO)


def _space(name: str) -> str:
    try:
        return str(Path(f"/proc/self/ns/{name}").readlink())
    except OSError:
        return ""
