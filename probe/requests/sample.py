"""What is asked of `sample`: many answers to each problem."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from probe.errors import BadOption
from probe.requests.base import Request
from probe.requests.groups import ChatOptions, FileOptions, plain_prompts, plain_source, prompts_of
from probe.requests.options import Option
from probe.requests.outcomes import OutcomeOptions, plain_path
from probe.requests.sampling import ContinuedSamplingOptions
from probe.requests.workers import WorkerOptions, plain_engine

MAX_NEW = 512
PASS_AT = (1, 4, 16)


def plain_problems(source: Any) -> Any:
    """Problems as a manifest holds them: a run as its path, else as prompts are."""
    if hasattr(source, "run_id") or (isinstance(source, Path) and source.is_dir()):
        return {"run": plain_source(source)}
    return plain_prompts(source)


def problems_of(argument: Any) -> Any:
    """What `plain_problems` made such a value of."""
    return Path(argument["run"]) if isinstance(argument, dict) and "run" in argument else prompts_of(argument)


def parse_counts(given: str | Iterable[int | str]) -> tuple[int, ...]:
    """`1,4,16` or numbers -> numbers, ascending, each once. Raises `BadOption`."""
    parts = given.split(",") if isinstance(given, str) else list(given)
    try:
        found = sorted({int(str(part).strip()) for part in parts})
    except ValueError:
        found = [0]
    if not found or found[0] < 1:
        raise BadOption(f"cannot read the counts '{given}'", hint="whole numbers from 1 on: 1,4,16")
    return tuple(found)


def parse_percents(text: str) -> tuple[float, float]:
    """`25..75` (percent) -> shares. Raises `BadOption`."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%?\.\.\s*(\d+(?:\.\d+)?)\s*%?\s*", text)
    low, high = (float(match[1]) / 100, float(match[2]) / 100) if match else (1.0, 0.0)
    if not 0 <= low <= high <= 1:
        raise BadOption(f"cannot read the range '{text}'", hint="percents, both ends included: 25..75")
    return low, high


@dataclass(frozen=True)
class Sample(WorkerOptions, OutcomeOptions, ContinuedSamplingOptions, ChatOptions, FileOptions, Request):
    """Which problems, how many answers of each, and what is said of them."""

    command: ClassVar[str] = "sample"
    runner: ClassVar[str] = "probe.sampling:run_sample"

    source: Annotated[
        Any,
        Option(
            "A prompt, a `Path` to a file of problems, or a run of which the prompts are taken.", hidden=True,
            to_plain=plain_problems, from_plain=problems_of,
        ),
    ]  # fmt: skip
    _: KW_ONLY
    samples: Annotated[int, Option("Answers of each problem.", ("--samples", "-n"), minimum=1)] = 16
    max_new: Annotated[
        int | None,
        Option("Tokens of an answer.", ("--max-new", "--max-new-tokens"), minimum=1, default=f"as the run, or {MAX_NEW}"),
    ] = None  # fmt: skip
    prompt_id: Annotated[
        int | str | None, Option("Which problems: 3, 0,4..9 or all.", ("--prompt",), shell=str | None, default="all")
    ] = None
    pass_at: Annotated[
        str | tuple[int, ...] | None,
        Option("Attempts that pass@k is of.", ("--pass-at",), shell=str | None, default="those of 1,4,16 that were drawn"),
    ] = None  # fmt: skip
    engine: Annotated[
        str,
        Option("What draws: local, ray (many processes, here or on a cluster), or the address of a server: http://HOST:PORT.",
               complete="engines", to_plain=plain_engine),
    ] = "local"  # fmt: skip
    keep: Annotated[
        str | Path | None,
        Option(
            "Write the problems that --keep-accuracy keeps to this file.", shell=Path | None, to_plain=plain_path,
            stored=False,
        ),
    ] = None  # fmt: skip
    keep_accuracy: Annotated[
        str | None, Option("Which problems are kept, by the percent of right answers: 25..75.", stored=False)
    ] = None
    hold_out: Annotated[
        bool, Option("The first half of the answers chooses what is kept, the other half says how right it is.", stored=False)
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_outcomes()
        for name, value in (("samples", self.samples), ("max-new", self.max_new)):
            if value is not None and value < 1:
                raise BadOption(f"{name} is {value}", hint="it is at least 1")
        if self.pass_at is not None:
            object.__setattr__(self, "pass_at", parse_counts(self.pass_at))
            if max(self.ks) > self.samples:
                raise BadOption(f"pass@{max(self.ks)} of {self.samples} answers", hint="--samples says how many are drawn")
        if self.sampling is not None and self.sampling.temperature == 0 and self.samples > 1:
            raise BadOption("greedy answers are all the same", hint="--samples 1, or a temperature")
        if (self.keep is None) != (self.keep_accuracy is None):
            raise BadOption("--keep and --keep-accuracy belong together", hint="--keep-accuracy 25..75 --keep kept.jsonl")
        if self.hold_out and (self.keep is None or self.samples < 2):
            raise BadOption("nothing is held out", hint="--hold-out is for --keep-accuracy, and two answers or more")
        if self.keep_accuracy is not None:
            parse_percents(self.keep_accuracy)

    @property
    def ks(self) -> tuple[int, ...]:
        """Attempts that pass@k is of."""
        return tuple(k for k in PASS_AT if k <= self.samples) if self.pass_at is None else parse_counts(self.pass_at)
