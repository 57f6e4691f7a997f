"""The files that vLLM's hidden-states connectors write: ids and streams, checked against what a model can have read.

`ExampleHiddenStatesConnector` writes one safetensors file a request: `token_ids` (pos,) and `hidden_states`
(pos, layer, d_model), in vLLM 0.32 as before; connectors of others, such as `OnlineHiddenStatesConnector`, the same, compressed
(.safetensors.zst). The ids are the prompt's; with what was written after it, but for the last token, where the request has
`"kv_transfer_params": {"include_output_tokens": true}`. Runs no model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from probe.errors import BadOption, BadPrompt

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

IDS, STATES = "token_ids", "hidden_states"
ENDINGS = (".safetensors", ".safetensors.zst")
FLOATS = (torch.bfloat16, torch.float16, torch.float32)
INTEGERS = (torch.int64, torch.int32, torch.int16)
UNREADABLE = "is it whole? a server may still be writing it"
CONNECTOR = "vLLM's extract_hidden_states writes token_ids (token) and hidden_states (token, layer, d_model)"


class States(NamedTuple):
    """One request: its ids, and the streams (pos, layer, d_model) in the server's own number format."""

    ids: list[int]
    states: Tensor

    @property
    def dtype(self) -> str:
        """The server's number format."""
        return str(self.states.dtype).removeprefix("torch.")


def state_files(source: str | Path) -> list[Path]:
    """The file, or those of a directory by name. Raises `BadOption` where there is none."""
    path = Path(source)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise BadOption(f"there is no '{path}'", hint="name a .safetensors file, or a directory of them")
    found = sorted(one for one in path.iterdir() if one.name.endswith(ENDINGS) and one.is_file())
    if not found:
        below = sorted(one for one in path.iterdir() if one.is_dir())
        hint = f"is it '{below[0]}'?" if below else "they end with .safetensors (or .safetensors.zst)"
        raise BadOption(f"'{path}' has no files of hidden states", hint=hint)
    return found


def name_of(path: Path) -> str:
    """The file's name as a table can hold it: what is no UTF-8 is escaped."""
    return path.name.encode("utf-8", "backslashreplace").decode()


def hash_of_files(files: Sequence[Path]) -> str:
    """Of their names and sizes: a resume must be asked for the same."""
    told = "\n".join(f"{path.name}\t{path.stat().st_size}" for path in files)
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).hexdigest()


def read_states(lm: LanguageModel, path: Path) -> States:
    """The ids and streams of a file. Raises `BadPrompt` for one that is broken, or that this model cannot have made."""
    tensors = _tensors(path)
    if missing := {IDS, STATES} - tensors.keys():
        there = ", ".join(sorted(tensors)[:3]) or "nothing"
        raise BadPrompt(f"'{name_of(path)}' has no {min(missing)} (it has {there})", hint=CONNECTOR)
    ids, states = tensors[IDS], tensors[STATES]
    if ids.ndim != 1 or ids.dtype not in INTEGERS:
        raise BadPrompt(f"the token_ids of '{name_of(path)}' are {_shape(ids)}, not a list of ids", hint=CONNECTOR)
    if states.ndim != 3 or states.dtype not in FLOATS:
        raise BadPrompt(
            f"the hidden_states of '{name_of(path)}' are {_shape(states)}, not (token, layer, d_model) in bf16, fp16 or fp32",
            hint=CONNECTOR,
        )
    if not len(ids) or not states.shape[1]:
        raise BadPrompt(
            f"'{name_of(path)}' is empty", hint="a prompt that was given as embeddings has no ids, and cannot be checked"
        )
    if len(ids) != len(states):
        raise BadPrompt(
            f"'{name_of(path)}' has {len(ids):,} ids, and hidden states of {len(states):,} tokens", hint=UNREADABLE
        )  # fmt: skip
    found = States(ids.tolist(), states)
    _check_model(lm, path, found)
    return found


def count_ids(path: Path) -> int:
    """How many ids a file has: by its header, where that is not compressed. Raises `BadPrompt` for one that is broken."""
    from safetensors import safe_open

    if path.name.endswith(".zst"):
        tensors = _tensors(path)
        return len(tensors[IDS]) if IDS in tensors else 0
    with _readable(path), safe_open(path, "pt") as file:
        return int(file.get_slice(IDS).get_shape()[0])


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load, load_file

    with _readable(path):
        if path.name.endswith(".zst"):
            with pa.input_stream(str(path), compression="zstd") as stream:
                return load(stream.read())
        return load_file(path)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raises `BadPrompt` for what a library says of a broken file."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise BadPrompt(f"cannot read '{name_of(path)}': {said}", hint=UNREADABLE) from error


def _check_model(lm: LanguageModel, path: Path, found: States) -> None:
    """Raises `BadPrompt` for what this model cannot have made."""
    width, other = lm.anatomy.d_model, "are they of another model? name it with --model"
    if found.states.shape[2] != width:
        raise BadPrompt(
            f"the vectors of '{name_of(path)}' have {found.states.shape[2]:,} entries, and those of {lm.name} {width:,}",
            hint=other,
        )
    wrong = next((i for i in found.ids if i < 0), lm.lacks(found.ids))
    if wrong is not None:
        raise BadPrompt(f"'{name_of(path)}' holds the id {wrong:,}, and {lm.name} reads {lm.n_ids or 0:,} ids", hint=other)
    if lm.context_length is not None and len(found.ids) > lm.context_length:
        raise BadPrompt(
            f"'{name_of(path)}' has {len(found.ids):,} tokens, and the context of {lm.name} holds {lm.context_length:,}",
            hint="if the server was told of a longer one, so must be the model: --context-length",
        )
    bad = ~torch.isfinite(found.states).all(-1)  # (pos, layer)
    if bool(bad.any()):
        position, column = bad.nonzero()[0].tolist()
        raise BadPrompt(
            f"'{name_of(path)}' has numbers that are none, the first at token {position} in layer {column} of the file",
            hint="the server read them from memory that it had not written: try it without prefix caching",
        )


def _shape(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
