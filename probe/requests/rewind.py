"""What is asked of `rewind` and of `importance`, which begin with a generation of a run and draw continuations of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass, field, make_dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from probe.errors import BadOption
from probe.registries.edit_operations import edit_help
from probe.registries.importance_methods import METHODS, check_options, methods_of
from probe.registries.step_edits import STEP_EDITS, STUB, ChosenEdit, check_edit_options, chosen_edit
from probe.requests.base import Request
from probe.requests.budget import BudgetOptions
from probe.requests.groups import Split, plain_run
from probe.requests.options import Option
from probe.requests.outcomes import OutcomeOptions
from probe.requests.sampling import ContinuedSamplingOptions
from probe.requests.workers import WorkerOptions, plain_engine
from probe.spans import check_split

RUN = Option(
    "A run with a generation (probe trace PROMPT --generate N).", argument=True, shell=str, complete="runs", to_plain=plain_run
)


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Which generation of the run, how it is cut, and the model that reads it."""

    split: Split = "sentence"
    prompt_id: Annotated[
        int | str | None,
        Option("Which prompts of the run: 3, 0,4..9 or all.", ("--prompt",), shell=str | None, default="all"),
    ] = None  # fmt: skip
    branch: Annotated[int, Option("Which branch of a run made by rewind.", minimum=0)] = 0
    lm: Annotated[Any, Option("The model, if it is loaded already.", hidden=True, stored=False)] = None
    other_model: Annotated[bool, Option("The model is another than the run's, and that is meant.", hidden=True)] = False

    def check_generation(self) -> None:
        """Raises `BadOption` for prompts or steps that cannot be read."""
        check_split(self.split)
        parse_prompts(self.prompt_id)

    @property
    def wanted(self) -> tuple[range, ...] | None:
        """The numbers of the prompts that are asked for; None for all."""
        return parse_prompts(self.prompt_id)


def parse_prompts(text: int | str | None) -> tuple[range, ...] | None:
    """`3`, `0,4..9` -> ranges of prompt ids; None for all. Raises `BadOption`."""
    if text is None or text == "all":
        return None
    found = []
    for part in str(text).split(","):
        match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", part.strip())
        if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
            raise BadOption(f"cannot read the prompts '{text}'", hint="write 3, 0,4..9 or all")
        found.append(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Continuations(WorkerOptions, BudgetOptions, OutcomeOptions, ContinuedSamplingOptions):
    """How continuations are drawn, and how their outcomes are read."""

    samples: Annotated[
        int, Option("Continuations of each arm, or from each boundary between steps.", ("--samples", "-n"), minimum=1)
    ] = 16
    max_new: Annotated[
        int | None,
        Option("Tokens of a continuation.", ("--max-new", "--max-new-tokens"), minimum=1, default="1.5 x what was left"),
    ] = None  # fmt: skip
    engine: Annotated[
        str,
        Option("What draws: local, ray (many processes, here or on a cluster), or the address of a server: http://HOST:PORT.",
               complete="engines", to_plain=plain_engine),
    ] = "local"  # fmt: skip

    def check_continuations(self) -> None:
        """Raises `BadOption` for numbers that mean nothing."""
        for name, value in (("samples", self.samples), ("max-new", self.max_new)):
            if value is not None and value < 1:
                raise BadOption(f"{name} is {value}", hint="it is at least 1")
        self.check_outcomes()
        self.check_budget()
        if self.shared and self.in_rounds:
            raise BadOption(
                "--until and --budget look at all problems before each round, and a worker ends one before it sees the next",
                hint="--engine local, or http://HOST:PORT, a server that draws each round in parallel; or leave them out",
            )
        if self.labelled and self.in_rounds:
            raise BadOption(
                "--until and --budget look at outcomes while they draw, and labels come when all is drawn",
                hint="leave them out, or --judge and --labels",
            )


if TYPE_CHECKING:  # the same names as in the registry, for editors and type checkers; a test compares them

    @dataclass(frozen=True, kw_only=True)
    class EditOptions:
        replace: str | None = None
        insert: str | None = None
        swap: str | None = None
        prompt_b: str | None = None
        delete: bool = False
        truncate: bool = False
        append_wait: bool = False
        numbers: bool = False
        negate: bool = False
        filler: bool = False
        resample_until_different: bool = False

else:
    EditOptions = make_dataclass(
        "EditOptions",
        [
            (edit.name, Annotated[edit.type, Option(edit.help, metavar=edit.metavar)], field(default=edit.default))
            for edit in STEP_EDITS.values()
        ],
        frozen=True,
        kw_only=True,
    )


@dataclass(frozen=True)
class Rewind(EditOptions, Continuations, Generation, Request):
    """Where a run's generation is gone back into, what is put there, and how both arms go on."""

    command: ClassVar[str] = "rewind"
    runner: ClassVar[str] = "probe.rewinding:run_rewind"

    run: Annotated[Any, RUN]
    _: KW_ONLY
    to: Annotated[
        str,
        Option("Where to: step4, 50%, all (every step), 57 (a position), tok=TEXT[#2] or regex=/PATTERN/.", complete="steps"),
    ]
    swap_prompt: Annotated[int | None, Option("Which prompt of the run that --swap names.", minimum=0)] = None
    swap_branch: Annotated[int | None, Option("Which branch of the run that --swap names.", minimum=0)] = None
    swap_split: Annotated[str | None, Option("How that run is cut.", default="as --split")] = None
    stub: Annotated[str, Option("Text that asks for the answer, for --truncate.", default=repr(STUB))] = STUB
    edit: Annotated[
        str | Iterable[Any],
        Option(
            f"{edit_help()} From the last token before the first drawn one on; repeatable.",
            ("--edit", "-e"), shell=list[str] | None, complete="edits",
        ),
    ] = ()  # fmt: skip
    merge_answers: Annotated[
        bool, Option("Answers whose formulas simplify to one are one.", ("--merge-answers",))
    ] = False  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_continuations()
        self.check_generation()
        check_edit_options(self.step_edit, vars(self))

    @property
    def step_edit(self) -> ChosenEdit:
        """The one edit of the step that is asked for. Raises `BadOption` for two."""
        return chosen_edit(vars(self))


@dataclass(frozen=True)
class Importance(Continuations, Generation, Request):
    """Which generation, and by which methods its steps are measured."""

    command: ClassVar[str] = "importance"
    runner: ClassVar[str] = "probe.step_importance:run_importance"

    run: Annotated[Any, RUN]
    _: KW_ONLY
    method: Annotated[
        str,
        Option(
            f"{'; '.join(f'{m.name}: {m.help}' for m in METHODS.values())} Several with commas, or all.", complete="methods"
        ),
    ] = "resampling"
    stub: Annotated[str, Option("Text that asks for the answer, for early-answer.", default=repr(STUB))] = STUB
    candidates: Annotated[
        Iterable[str], Option("An answer to score, for early-answer; repeatable.", ("--candidate",), shell=list[str] | None)
    ] = ()
    embedder: Annotated[str | None, Option("A sentence-transformers model, for counterfactual.")] = None
    suppress: Annotated[str | None, Option("Only these heads look away, for suppression: pattern@5.3,7.1.")] = None
    heads: Annotated[
        Any,
        Option(
            "Take the receiver heads of this importance run over another text.",
            shell=str | None,
            metavar="PATH|URL",
            complete="runs",
            to_plain=plain_run,
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_continuations()
        self.check_generation()
        check_options(methods_of(self.method), vars(self))
