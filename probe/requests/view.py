"""What is asked of `view`, which shows runs and makes none."""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from probe.errors import BadOption
from probe.requests.base import Progress
from probe.requests.options import Option
from probe.requests.rewind import parse_prompts

Heads = tuple[tuple[int, int | None], ...]
_HEAD = re.compile(r"(\d+)\.(\d+|all)|[Ll](\d+)[Hh](\d+)")


@dataclass(frozen=True)
class ViewRuns:
    """Which runs are shown, what of them, and where it is written."""

    command: ClassVar[str] = "view"

    run: Annotated[Any, Option("A run, of any command.", argument=True, metavar="RUN", shell=str, complete="runs")]
    run_b: Annotated[
        Any, Option("Another run, beside it.", argument=True, metavar="RUN_B", shell=str | None, complete="runs")
    ] = None
    _: KW_ONLY
    out: Annotated[
        str | Path | None, Option("The page.", ("--out", "-o"), shell=Path | None, default="RUN.html", stored=False)
    ] = None
    open: Annotated[bool, Option("Open the page in the browser.", ("--open",))] = False
    max_mb: Annotated[float, Option("Megabytes of the page; what is left out is said.", ("--max-mb",), minimum=0.1)] = 20.0
    prompt_id: Annotated[
        int | str | None, Option("Which prompts of the run: 3, 0,4..9 or all.", ("--prompt",), shell=str | None, default="all")
    ] = None  # fmt: skip
    heads: Annotated[
        str | None, Option("Attention patterns of these heads: 5.3,7.all (layer.head).", ("--heads",), default="what fits")
    ] = None
    watch: Annotated[
        bool, Option("Draw an unfinished run anew while it grows, until it is whole or Ctrl-C.", ("--watch",))
    ] = False  # fmt: skip
    png: Annotated[
        str | Path | None,
        Option("Write each panel as a PNG file into this folder; needs mechprobe[plot].", ("--png",), shell=Path | None),
    ] = None
    svg: Annotated[str | Path | None, Option("The same as SVG files.", ("--svg",), shell=Path | None)] = None
    measure: Annotated[
        str | None, Option("Columns that --png and --svg draw wherever a panel has them, in place of its first; all: each.")
    ] = None
    progress: Annotated[
        Progress | None, Option("Called with what is going on, how much is done, of how much.", hidden=True, stored=False)
    ] = None

    def __post_init__(self) -> None:
        parse_prompts(self.prompt_id)
        parse_heads(self.heads)
        if not self.max_mb > 0:
            raise BadOption(f"max-mb is {self.max_mb}", hint="it is a number of megabytes, such as 20")
        if self.measure is not None and self.png is None and self.svg is None:
            raise BadOption("--measure is for the files of --png and --svg", hint="on the page every measure can be chosen")
        if self.watch and (self.png is not None or self.svg is not None or self.run_b is not None):
            raise BadOption("--watch draws the page of one run", hint="when it is whole, give --png, --svg or the other run")

    @property
    def wanted(self) -> tuple[range, ...] | None:
        """The numbers of the prompts that are asked for; None for all."""
        return parse_prompts(self.prompt_id)

    @property
    def wanted_heads(self) -> Heads | None:
        """Layer and head of each that is asked for; None as head: all of the layer. None: as many as fit."""
        return parse_heads(self.heads)

    @property
    def measures(self) -> tuple[str, ...]:
        """The columns that are asked for."""
        return tuple(one.strip() for one in self.measure.split(",") if one.strip()) if self.measure else ()


def parse_heads(text: str | None) -> Heads | None:
    """`5.3,7.all`, `L5H3` -> ((5, 3), (7, None)), each once. Raises `BadOption`."""
    if text is None:
        return None
    found = []
    for part in text.split(","):
        match = _HEAD.fullmatch(part.strip())
        if match is None:
            raise BadOption(f"cannot read the heads '{text}'", hint="write layer.head, as in 5.3,7.all")
        layer, head = (match[1], match[2]) if match[1] else (match[3], match[4])
        found.append((int(layer), None if head == "all" else int(head)))
    return tuple(dict.fromkeys(found))
