"""What is asked of `import`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from probe.errors import BadOption
from probe.requests.base import Request
from probe.requests.groups import Split, plain_run
from probe.requests.options import Option
from probe.spans import check_split

_LAYERS = re.compile(r"(\d{1,6})(?:\.\.(\d{1,6}))?")


def parse_layers(given: str | Iterable[int]) -> tuple[int, ...]:
    """`1,5,9` or `0..12` -> layer ids in their order. Raises `BadOption`, also for one that is named twice."""
    if not isinstance(given, str):
        found = [one if isinstance(one, int) and not isinstance(one, bool) else -1 for one in given]
    else:
        found = []
        for part in given.split(","):
            match = _LAYERS.fullmatch(part.strip())
            found += [-1] if match is None else range(int(match[1]), int(match[2] or match[1]) + 1) or [-1]
    if not found or min(found) < 0:
        raise BadOption(f"cannot read the layers '{given}'", hint="write 1,5,9 or 0..12, as the server was told")
    if len(set(found)) < len(found):
        raise BadOption(f"the layers '{given}' name one twice", hint="each is once in the file")
    return tuple(found)


@dataclass(frozen=True)
class ImportStates(Request):
    """Which files of hidden states are read, which layers they are of, and how near the model's own read must be."""

    command: ClassVar[str] = "import"
    runner: ClassVar[str] = "probe.importing:run_import_states"

    source: Annotated[
        str | Path,
        Option("A .safetensors file that vLLM's extract_hidden_states wrote, or a directory of them.", argument=True,
               metavar="FILE|DIR", shell=Path, to_plain=plain_run),
    ]  # fmt: skip
    _: KW_ONLY
    layers: Annotated[
        str | Iterable[int] | None,
        Option("The server's eagle_aux_hidden_state_layer_ids, as 1,5,9 or 0..12: the stream into layer N.",
               shell=str | None, default="all, where the file has all"),
    ] = None  # fmt: skip
    tolerance: Annotated[
        float,
        Option("Relative difference from the model's own read that is accepted: the mean over tokens; of one token ten times "
               "that."),
    ] = 0.05  # fmt: skip
    split: Split = "sentence"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None:
            object.__setattr__(self, "layers", parse_layers(self.layers))
        if not (math.isfinite(self.tolerance) and self.tolerance > 0):
            raise BadOption(f"tolerance is {self.tolerance}", hint="it is a number above 0, as 0.05")
        check_split(self.split)
        if self.split.startswith("spans:"):
            raise BadOption(
                "spans are of a text, and files hold ids", hint="import first, then probe steps RUN --split spans:FILE"
            )

    @property
    def layer_ids(self) -> tuple[int, ...] | None:
        """The layers as they were given, or None."""
        assert self.layers is None or isinstance(self.layers, tuple), "they were read when they were given"
        return self.layers
