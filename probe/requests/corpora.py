"""What is asked of `top` and of `means`: a file of texts, and places."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from probe.errors import BadOption, RunError
from probe.requests.base import Request
from probe.requests.groups import KEPT, ChatOptions, FileOptions, Seed
from probe.requests.options import Option, plain
from probe.requests.workers import SharedWork

LARGEST = 1024  # of a window that nobody names


def plain_corpus(texts: Any) -> Any:
    """Texts as a manifest holds them: {"files": […]}, a few texts as they are, or of many how many there were."""
    sources = list(texts) if isinstance(texts, (list, tuple)) else [texts]
    if all(isinstance(one, Path) for one in sources):
        return {"files": [str(one) for one in sources]}
    if isinstance(texts, str) or (isinstance(texts, (list, tuple)) and len(texts) <= KEPT and not _streams(texts)):
        return plain(texts)
    return {"given": sum(1 if isinstance(one, (str, Path)) else len(one) for one in sources)}


def _streams(texts: Iterable[Any]) -> bool:
    """Whether something among them is the prompts that were read from a stream."""
    return any(hasattr(one, "file_columns") for one in texts)


def corpus_of(argument: Any) -> Any:
    """What `plain_corpus` made such a value of. Raises `RunError` where the texts were too many to be kept."""
    if isinstance(argument, dict) and "files" in argument:
        return [Path(one) for one in argument["files"]]
    if isinstance(argument, dict) and "given" in argument:
        raise RunError(
            f"the run's {argument['given']:,} texts came from standard input or memory, and are not kept",
            hint="give them again, or put them in a file",
        )
    return argument


Texts = Annotated[
    Any,
    Option(
        "Files of texts: .txt (one a line), .jsonl, .json, .csv, .parquet; - for standard input.", argument=True,
        metavar="FILE…", shell=list[str], to_plain=plain_corpus, from_plain=corpus_of,
    ),
]  # fmt: skip
At = Annotated[
    str | Iterable[str],
    Option("A place SITE[@LAYERS[.HEADS]]; repeatable.", ("--at",), shell=list[str] | None, complete="places"),
]


@dataclass(frozen=True, kw_only=True)
class CorpusOptions(SharedWork, ChatOptions, FileOptions):
    """How texts are cut, which of their tokens count, and how many are read at once."""

    window: Annotated[
        int | None,
        Option("Longer texts are cut into pieces of so many tokens, read apart.", minimum=2,
               default=f"the model's context, at most {LARGEST:,}"),
    ] = None  # fmt: skip
    skip: Annotated[
        int,
        Option("First tokens of a text that do not count: position 0 is a sink. Later pieces have them as context.", minimum=0),
    ] = 1
    batch_tokens: Annotated[int, Option("At most this many padded tokens a batch.", minimum=1)] = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, least in (
            ("window", self.window or 2, 2), ("skip", self.skip, 0), ("batch_tokens", self.batch_tokens, 1),
        ):  # fmt: skip
            if value < least:
                raise BadOption(f"{name} is {value}", hint=f"it is at least {least}")
        if self.window is not None and self.window <= self.skip:
            raise BadOption(f"a window of {self.window} has no token after {self.skip}", hint="--window is larger than --skip")


@dataclass(frozen=True)
class Top(CorpusOptions, Request):
    """Which texts are read, at which places, and how many of them are shown."""

    command: ClassVar[str] = "top"
    runner: ClassVar[str] = "probe.corpora:run_top"

    texts: Texts
    _: KW_ONLY
    at: Annotated[
        str | Iterable[str],
        Option("A place: mlp_post@5.n1234 (its activation), z@5.3 or resid_post@12 (their norm), or direction:FILE "
               "(the projection where it was made); repeatable.", ("--at",), shell=list[str] | None, complete="places"),
    ] = ()  # fmt: skip
    project: Annotated[
        str | Path | None,
        Option("Project every place of --at on the direction in this file, instead of its norm.", shell=str | None),
    ] = None
    top: Annotated[int, Option("Texts of each kind that are kept: largest, smallest, random.", minimum=1)] = 10
    context: Annotated[int, Option("Tokens shown before and after the one that is marked.", minimum=0)] = 12
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.at:
            raise BadOption("at which place?", hint="--at mlp_post@5.n7, z@5.3, resid_post@12 or direction:FILE")
        for name, value, least in (("top", self.top, 1), ("context", self.context, 0)):
            if value < least:
                raise BadOption(f"{name} is {value}", hint=f"it is at least {least}")


@dataclass(frozen=True)
class CorpusMeans(CorpusOptions, Request):
    """Which texts are read, and of which places the mean and variance are taken."""

    command: ClassVar[str] = "means"
    runner: ClassVar[str] = "probe.corpora:run_means"

    texts: Texts
    _: KW_ONLY
    at: At = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.at:
            raise BadOption("at which place?", hint="--at z@all, mlp_out@5 or resid_post@0..4")
