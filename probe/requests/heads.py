"""What is asked of `heads`."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from probe.errors import BadOption
from probe.registries.head_features import parse_features
from probe.registries.head_kinds import KINDS, SORTS, kinds_help, parse_thresholds
from probe.registries.tagger_languages import LANGUAGES
from probe.requests.base import Request
from probe.requests.groups import FileOptions, Seed, SourceOptions, plain_source
from probe.requests.options import Option


@dataclass(frozen=True)
class AttentionHeads(SourceOptions, FileOptions, Request):
    """Which texts are read, how many random ones, and what is asked of each head."""

    command: ClassVar[str] = "heads"
    runner: ClassVar[str] = "probe.attention_heads:run_heads"

    source: Annotated[
        Any,
        Option(
            "A prompt, or the directory of a run; without one, random tokens alone.", argument=True, metavar="[RUN|PROMPT]",
            shell=str | None, complete="runs", to_plain=plain_source,
        ),
    ] = None  # fmt: skip
    _: KW_ONLY
    file: Annotated[
        str | Path | None,
        Option("Many prompts: .txt (one a line), .jsonl, .json, .csv, .parquet; - for stdin; means over them.",
               ("--file", "-f"), shell=Path | None),
    ] = None  # fmt: skip
    kernel: Annotated[bool, Option("Each head as a kernel smoother: similarity, popularity, bandwidth.")] = False
    rows: Annotated[int, Option("Positions of a text, evenly spaced, at which --kernel looks.", minimum=1)] = 32
    memory: Annotated[
        str | None, Option("Each head beside its linearised memory: elu, dpfp:N or favor:M features.", metavar="FEATURES")
    ] = None
    keys: Annotated[bool, Option("Clusters of each head's keys over all texts, beside part of speech and position.")] = False
    tags: Annotated[
        str | None,
        Option("The file's column of tags that --keys is compared with: one a word or one a token.", metavar="COLUMN"),
    ] = None  # fmt: skip
    tagger: Annotated[
        str | None,
        Option(f"Parts of speech for --keys, by HanTa (pip install 'mechprobe[tags]'): {', '.join(LANGUAGES)}.",
               metavar="LANGUAGE", complete="tagger_languages"),
    ] = None  # fmt: skip
    clusters: Annotated[
        int | None, Option("Clusters of a head's keys, in place of as many of 2 to 16 as the silhouette says.", minimum=2)
    ] = None
    key_tokens: Annotated[int, Option("Tokens whose keys are clustered, drawn from all texts.", minimum=20)] = 1000
    shuffles: Annotated[int, Option("Times that labels are shuffled for the floor of --keys.", minimum=20)] = 100
    sequences: Annotated[int, Option("Sequences of repeated random tokens; 0 for none.", minimum=0)] = 4
    length: Annotated[int, Option("Random tokens of a sequence, before they are repeated.", minimum=2)] = 30
    threshold: Annotated[
        tuple[str, ...],
        Option(f"Another threshold, KIND=NUMBER; repeatable. {kinds_help()}", shell=list[str] | None),
    ] = ()  # fmt: skip
    sort: Annotated[str, Option(f"What heads are listed by: {', '.join(SORTS)}.", complete="head_sorts")] = "induction"
    top: Annotated[int, Option("How many heads are listed.", minimum=1)] = 10
    batch_tokens: Annotated[int, Option("At most this many padded tokens a batch.", minimum=1)] = 4096
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, least in (
            ("rows", self.rows, 1), ("sequences", self.sequences, 0), ("length", self.length, 2), ("top", self.top, 1),
            ("batch_tokens", self.batch_tokens, 1), ("clusters", self.clusters, 2), ("key_tokens", self.key_tokens, 20),
            ("shuffles", self.shuffles, 20),
        ):  # fmt: skip
            if value is not None and value < least:
                raise BadOption(f"{name} is {value}", hint=f"it is at least {least}")
        if self.source is not None and self.file is not None:
            raise BadOption("a prompt or run, and a file of prompts, were given", hint="give one of them")
        if self.source is None and self.file is None and (not self.sequences or self.views):
            raise BadOption("there is no text to read", hint="give a prompt, a run, or a file of prompts with --file")
        if self.sort not in SORTS:
            raise BadOption(f"heads can't be sorted by '{self.sort}'", hint=f"by {', '.join(SORTS)}")
        parse_thresholds(self.threshold)
        if self.memory is not None:
            parse_features(self.memory)
        self._check_keys()

    def _check_keys(self) -> None:
        for option in ("tags", "tagger", "clusters"):
            if getattr(self, option) is not None and not self.keys:
                raise BadOption(f"--{option} is for clusters of keys", hint="add --keys")
        if self.tags is not None and self.tagger is not None:
            raise BadOption("a column of tags and a tagger were given", hint="give one of them")
        if self.tags is not None and isinstance(self.source, str | Path):
            raise BadOption("--tags names a column of a file", hint="give the texts with --file, or --tagger en")
        if self.tags is not None and self.chat:
            raise BadOption("--tags are for plain texts", hint="leave out --chat, or give --tagger in their place")
        if self.tagger is not None and self.tagger not in LANGUAGES:
            raise BadOption(f"no tagger for '{self.tagger}'", hint=f"languages: {', '.join(LANGUAGES)}")

    @property
    def views(self) -> tuple[str, ...]:
        """What is asked of each head beside its summary."""
        return ("kernel",) * self.kernel + ("memory",) * bool(self.memory) + ("keys",) * self.keys

    @property
    def thresholds(self) -> dict[str, float]:
        """Kind -> the number from which on a head is of it."""
        return {**{name: kind.threshold for name, kind in KINDS.items()}, **parse_thresholds(self.threshold)}
