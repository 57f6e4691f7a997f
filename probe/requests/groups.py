"""Groups of options that several requests have, each declared once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from probe.addresses import is_url
from probe.errors import BadOption
from probe.requests.options import Option, plain

FROM_TABLE = {"table": "prompts"}
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)i?b?\s*", re.IGNORECASE)
KEPT = 100  # prompts that a manifest holds; the table `prompts` holds them all


def plain_prompts(prompts: Any) -> Any:
    """Prompts as a manifest holds them: a text, messages, a list of some of them, {"file": path}, or, of many or of those that
    were read from a stream, {"table": "prompts"}: the run's own table has them."""
    if isinstance(prompts, Path):
        return {"file": str(prompts)}
    if prompts is None or isinstance(prompts, str) or (isinstance(prompts, list) and len(prompts) <= KEPT):
        return plain(prompts)
    return FROM_TABLE


def plain_texts(texts: Any) -> Any:
    """Texts of which the run has no table that is theirs alone: all of them, or {"file": path}."""
    return plain_prompts(texts) if isinstance(texts, Path) else plain(texts)


def plain_run(run: Any) -> str | None:
    """A run as a manifest holds it: where it lies, or its id if it is in memory only."""
    address = getattr(run, "address", run)
    if address is None:
        return None if run is None else str(run.run_id)
    return address if is_url(address) else str(Path(address).absolute())


def plain_source(source: Any) -> Any:
    """A prompt, or a run in its place, as a manifest holds it."""
    return plain_run(source) if isinstance(source, Path) or hasattr(source, "run_id") else plain(source)


def prompts_of(argument: Any) -> Any:
    """What `plain_prompts` made such a value of; {"table": …} stays, for the run to replace."""
    return Path(argument["file"]) if isinstance(argument, dict) and "file" in argument else argument


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """How prompts are read from a file."""

    format: Annotated[
        str | None,
        Option(
            "What --file or stdin is: txt, jsonl, json, csv, tsv, parquet.",
            ("--format",),
            default="by content",
            complete="inputs",
        ),
    ] = None
    column: Annotated[
        str | None, Option("The prompts' column.", ("--column",), default="messages or prompt")
    ] = None  # fmt: skip
    expect_column: Annotated[
        str | None, Option("The column of right answers.", ("--expect-column",), default="expect")
    ] = None  # fmt: skip


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` -> values, as JSON where they are JSON. Raises `BadOption`."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise BadOption(f"'{text}' is no template option", hint="NAME=VALUE, as in enable_thinking=false")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def parse_memory(text: str | int | float) -> int:
    """Bytes that a text such as `500MB` or `2GB` means. Raises `BadOption`."""
    match = _SIZE.fullmatch(str(text))
    if match is None or float(match[1]) == 0:
        raise BadOption(f"'{text}' is no size of memory", hint="write 500MB or 2GB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """How prompts become a conversation. Raises `BadOption` for a system message without one, or for no template option."""

    chat: Annotated[bool, Option("Apply the model's chat template to the prompt.", ("--chat/--raw",))] = False
    system: Annotated[str | None, Option("System message; needs --chat.")] = None
    template_options: Annotated[
        Mapping[str, Any] | Sequence[str] | None,
        Option(
            "Set a variable of the template: NAME=VALUE (JSON or text); repeatable.", ("--template-option",),
            shell=list[str] | None,
        ),
    ] = None  # fmt: skip
    allow_template_loss: Annotated[bool, Option("Go on where the template leaves out what a message says.")] = False

    @property
    def variables(self) -> Mapping[str, Any]:
        """What the template reads beside the messages."""
        assert isinstance(self.template_options, Mapping), "they are read when they are given"
        return self.template_options

    def __post_init__(self) -> None:
        getattr(super(), "__post_init__", lambda: None)()  # of the request that has these options
        given = self.template_options
        if not isinstance(given, Mapping):  # as on a command line
            object.__setattr__(self, "template_options", parse_options(given or ()))
        if self.system is not None and not self.chat:
            raise BadOption("a system message needs the chat template", hint="add --chat")


Source = Annotated[
    Any,
    Option(
        "A prompt, or the directory of a run.",
        argument=True,
        metavar="RUN|PROMPT",
        shell=str,
        complete="runs",
        to_plain=plain_source,
    ),
]
Prompts = Annotated[
    Any,
    Option(
        "A text, chat messages, a `Path` to a file of prompts, or a sequence of texts and message lists.", hidden=True,
        to_plain=plain_prompts, from_plain=prompts_of,
    ),
]  # fmt: skip
Split = Annotated[str, Option("sentence, line, paragraph, token, regex:PATTERN or spans:FILE.", complete="splits")]
Position = Annotated[str, Option("Positions: all, last, 7, 3..9, tok=Paris, step3.", ("--position", "-p"))]
Seed = Annotated[int, Option("Seeds every random choice.", minimum=0)]
Edits = Annotated[
    str | Iterable[Any],
    Option(
        "Change activations: PLACE=OP, e.g. z@5.3=zero; repeatable.", ("--edit", "-e"), shell=list[str] | None, complete="edits"
    ),
]


@dataclass(frozen=True, kw_only=True)
class SourceOptions(ChatOptions):
    """Which text is read: of a prompt, or of a run, whose ids stand as they are."""

    prompt_id: Annotated[int | None, Option("Which prompt of the run.", ("--prompt",), minimum=0)] = None
    branch: Annotated[int, Option("Which branch of a run made by rewind.", minimum=0)] = 0
    split: Annotated[str, Option("How steps are cut, for positions such as step3.", hidden=True)] = "sentence"
    other_model: Annotated[bool, Option("The run may be read by other weights, with the same tokenizer.", hidden=True)] = False
