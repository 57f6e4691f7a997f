"""What is asked of `steer` and of `make_direction`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from probe.errors import BadOption
from probe.patterns import Pattern
from probe.requests.answering import WholeAnswerOptions
from probe.requests.base import Request
from probe.requests.groups import FileOptions, Seed, plain_prompts, plain_run, plain_texts, prompts_of
from probe.requests.options import Option
from probe.sites import parse_where

WRITTEN = 24  # tokens for an expression
MATCHING = "as 'good|great'"


Texts = Annotated[
    Any, Option("Texts, or a `Path` to a file of them.", hidden=True, to_plain=plain_texts, from_plain=prompts_of)
]
RunAt = Annotated[
    str | Path | None,
    Option(
        "The run directory, or its URL.",
        ("--run",),
        shell=str | None,
        metavar="PATH|URL",
        default="runs/TIME-COMMAND-WORD",
        stored=False,
    ),
]
Resume = Annotated[bool, Option("Complete the interrupted run at --run.", stored=False)]


@dataclass(frozen=True)
class Steer(WholeAnswerOptions, FileOptions, Request):
    """Which direction is added to which prompts, at which strengths, and what is measured after them."""

    command: ClassVar[str] = "steer"
    runner: ClassVar[str] = "probe.steering:run_steer"

    direction: Annotated[str | Path, Option("A file that `make_direction` wrote.", hidden=True, to_plain=plain_run)]
    prompts: Annotated[Any, Option("As the prompts of `trace`.", hidden=True, to_plain=plain_prompts, from_plain=prompts_of)]
    _: KW_ONLY
    at: Annotated[
        str | None,
        Option("One place, e.g. resid_post@12 or z@5.3:all.", complete="places",
               default="all positions where it was made; --make: last"),
    ] = None  # fmt: skip
    answer: Annotated[
        str | None, Option("Measure the log-prob of this token after the prompt; with --generate at each written token.")
    ] = None  # fmt: skip
    against: Annotated[str | None, Option("Less the log-prob of this one.")] = None
    matching: Annotated[str | None, Option("Or: whether what is written matches this regex.")] = None
    measure_at: Annotated[
        str | int | None,
        Option("After which token of the prompt it is measured: last, 7, tok=Paris or step3.", ("--measure-at",),
               shell=str | None, default="last"),
    ] = None  # fmt: skip
    generate: Annotated[
        int | None,
        Option("Tokens that are written under the direction, and measured.", ("--generate", "-n"), minimum=1,
               default="none; for --matching 24"),
    ] = None  # fmt: skip
    strengths: Annotated[
        str | Iterable[float], Option("Numbers with commas; 0 is always among them.", shell=str)
    ] = "-8,-4,-2,-1,1,2,4,8"  # fmt: skip
    controls: Annotated[int, Option("Random directions of the same norm.", minimum=1)] = 20
    seed: Seed = 0
    out: RunAt = None
    resume: Resume = False

    @property
    def scale(self) -> tuple[float, ...]:
        """The strengths as numbers, ascending; 0 is one of them."""
        assert isinstance(self.strengths, tuple), "they were read when they were given"
        return self.strengths

    @property
    def written(self) -> int:
        """How many tokens are written."""
        return self.generate or (0 if self.matching is None else WRITTEN)

    @classmethod
    def upgraded(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """Of a run that wrote for an expression alone."""
        if "measure_at" not in arguments and arguments.get("matching") is None:
            return {**arguments, "generate": None}
        return arguments

    def __post_init__(self) -> None:
        super().__post_init__()
        answered = (self.answer, self.answer_set) != (None, None)
        compared = (self.against, self.against_set) != (None, None)
        if answered == (self.matching is not None) or (compared and not answered):
            raise BadOption("what is to be measured?", hint="give --answer (and --against), or --matching REGEX")
        self.check_answer(self.answer, self.against)
        self.check_whole(self.answer, self.against)
        if self.whole_answer and self.generate is not None:
            raise BadOption("a whole answer is measured after the prompt", hint="leave out --generate or --whole-answer")
        if self.measure_at is not None:
            parse_where(str(self.measure_at))
        if self.controls < 1 or (self.generate or 1) < 1:
            raise BadOption("a scan needs at least one control and one token", hint="as --controls 20 --generate 24")
        try:
            given = self.strengths.split(",") if isinstance(self.strengths, str) else self.strengths
            scale = tuple(sorted({0.0, *map(float, given)}))
        except ValueError as error:
            raise BadOption(f"'{self.strengths}' is not numbers with commas", hint="as --strengths -4,-2,2,4") from error
        if len(scale) < 2 or not all(map(math.isfinite, scale)):
            raise BadOption("a scan needs strengths other than 0 that are numbers", hint="as --strengths -4,-2,2,4")
        object.__setattr__(self, "strengths", scale)
        if self.matching is not None:
            Pattern(self.matching, hint=MATCHING)


@dataclass(frozen=True)
class MakeDirection(Request):
    """Of which texts a direction is made, at which place, and in which file it is kept."""

    command: ClassVar[str] = "make_direction"
    runner: ClassVar[str] = "probe.steering:run_make_direction"

    positive: Texts
    negative: Texts
    _: KW_ONLY
    at: Annotated[str, Option("A place of one layer (of one head where the site has heads), as resid_post@12.")]
    to: Annotated[str | Path, Option("The file of the direction, .safetensors.", to_plain=plain_run)]
    seed: Seed = 0
    out: RunAt = None
    resume: Resume = False
