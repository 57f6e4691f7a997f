"""What is asked of `trace`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Any, ClassVar

from probe.errors import BadOption
from probe.registries.edit_operations import edit_help
from probe.requests.answering import AnswerOptions
from probe.requests.base import Request
from probe.requests.given_answers import GivenAnswers
from probe.requests.groups import ChatOptions, FileOptions, Prompts, Split
from probe.requests.options import Option
from probe.requests.sampling import SamplingOptions
from probe.requests.workers import SharedWork
from probe.sites import parse_places
from probe.spans import check_split


@dataclass(frozen=True)
class Trace(SharedWork, GivenAnswers, AnswerOptions, ChatOptions, FileOptions, SamplingOptions, Request):
    """Which prompts are run, how far each is continued, and what of it is recorded."""

    command: ClassVar[str] = "trace"
    runner: ClassVar[str] = "probe.tracing:run_trace"

    prompts: Prompts
    _: KW_ONLY
    generate: Annotated[
        int,
        Option("Let the model continue by N tokens; not where a file has the completions.", ("--generate", "-n"), minimum=0),
    ] = 0
    capture: Annotated[
        str | Iterable[str],
        Option("A place SITE[@LAYERS[.HEADS]][:POSITIONS], e.g. resid_post@all; repeatable. router@all: which experts each "
               "token goes to, and their loads.", ("--capture", "--at"), shell=list[str] | None, complete="places"),
    ] = ()  # fmt: skip
    attention: Annotated[str, Option("none, heads, summary, topk:K or full.", complete="attention")] = "heads"
    lens: Annotated[bool, Option("Record each layer's guess at every position.")] = False
    edit: Annotated[
        str | Iterable[Any], Option(f"{edit_help()} Repeatable.", ("--edit", "-e"), shell=list[str] | None, complete="edits")
    ] = ()
    top: Annotated[int, Option("Alternatives a position.", minimum=0)] = 5
    explain: Annotated[
        str | int | None,
        Option("Tell how these tokens were chosen: 7, -1, 3..9, last, completion, tok=Paris.", shell=str | None),
    ] = None
    order: Annotated[
        str | None, Option("Also in another engine's order of stages: hf, vllm, llamacpp or all.", complete="orders")
    ] = None
    split: Split = "sentence"
    store: Annotated[str, Option("Vectors exact, or rounded to bf16 (less than half the disk).", complete="stores")] = "exact"
    batch_tokens: Annotated[int, Option("At most this many padded tokens a batch.", minimum=1)] = 4096
    prefill_chunk_size: Annotated[
        int | None,
        Option("Read a long text N tokens at a time, with the model's cache of what came before; 0: in one forward.",
               minimum=0, default="what holds less memory"),
    ] = None  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, least in (
            ("generate", self.generate, 0), ("top", self.top, 0), ("batch_tokens", self.batch_tokens, 1),
            ("prefill_chunk_size", self.prefill_chunk_size or 0, 0),
        ):  # fmt: skip
            if value < least:
                raise BadOption(f"{name} is {value}", hint=f"it is at least {least}")
        if self.store not in ("exact", "bf16"):
            raise BadOption(f"unknown storage '{self.store}'", hint="exact or bf16")
        check_split(self.split)
        if self.generate and self.split.startswith("spans:"):
            raise BadOption(
                "spans of a text that is not written yet", hint="generate first, then probe steps RUN --split spans:FILE"
            )
        for text in self.capture:
            parse_places(text)
        self.check_answers()
        if self.against_set is not None and self.answer_set is None:
            raise BadOption("against which set?", hint="give --answer-set too")
        self.check_answer(None, None)
        if self.calibrate and self.edit:
            raise BadOption(
                "an edit's places are the prompt's, not the neutral prompt's", hint="leave out --calibrate or --edit"
            )
