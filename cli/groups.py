"""Groups of options that only the command line has: which model, how it draws, what is shown. Each is declared once."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from probe.errors import BadOption
from probe.registries.quantizations import quantize_help
from probe.requests import KEYWORDS, Option, Progress, SamplingOptions

from .command import Begun

if TYPE_CHECKING:
    from probe.language_model import LanguageModel
    from probe.store import Run

R = TypeVar("R", bound=SamplingOptions)

NO_WEIGHTS = ("model", "allow_fetch")  # of the options below: what is no keyword of `probe.load`


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files come from, and what they may do."""

    revision: Annotated[str | None, Option("Branch, tag or commit on the Hub.")] = None
    trust_remote_code: Annotated[bool, Option("Run code that comes with the model.", ("--trust-remote-code",))] = False
    allow_pickle: Annotated[bool, Option("Load pickled weights, which can run code.", ("--allow-pickle",))] = False


@dataclass(frozen=True)
class PlacementOptions:
    """Where a model runs, and in which numbers."""

    device: Annotated[str, Option("auto, cpu, cuda, cuda:I or mps.", complete="devices")] = "auto"
    dtype: Annotated[str, Option("auto, float32, bfloat16 or float16.", complete="dtypes")] = "auto"


@dataclass(frozen=True)
class Weights(PlacementOptions, ModelSource):
    """Where a model's files come from, where it runs, and what is put on it."""

    adapter: Annotated[str | None, Option("A directory of the peft library (LoRA, …), merged into the weights.")] = None
    weights_patch: Annotated[
        tuple[str, ...],
        Option(
            "A file of edited weights (probe weights --edit-weights), put on in memory; repeatable.", shell=list[str] | None
        ),
    ] = ()
    context_length: Annotated[int | None, Option("Positions that it holds, where its config says too few.", minimum=1)] = None
    device_map: Annotated[str | None, Option("accelerate's map, e.g. auto.")] = None
    tp_plan: Annotated[str | None, Option("auto: split it over torchrun's processes, as transformers plans it.")] = None
    quantize: Annotated[str | None, Option(quantize_help(), complete="quantizations")] = None
    attn_implementation: Annotated[
        str | None, Option("eager, sdpa, flash_attention_2, flash_attention_3 or flex_attention.", complete="attention_kinds")
    ] = None


@dataclass(frozen=True)
class Loading(Weights):
    """Which model, and where it runs."""

    model: Annotated[
        str,
        Option(
            "Alias, Hugging Face id, local directory, .gguf file, or tiny:FAMILY (random weights).", ("--model", "-m"),
            envvar="PROBE_MODEL", complete="models",
        ),
    ] = "smollm2"  # fmt: skip

    def load(self, progress: Progress | None) -> LanguageModel:
        """The model of these options."""
        return load(self.model, self, progress=progress)


@dataclass(frozen=True)
class RunLoading(Weights):
    """Which model reads a run: its own, or one that is named."""

    model: Annotated[
        str | None, Option("Another model than the run's, with the same tokenizer.", ("--model", "-m"), complete="models")
    ] = None
    allow_fetch: Annotated[bool, Option("Download a model that only the run names.", ("--allow-fetch",))] = False

    def load_for(self, run: Run, progress: Progress | None) -> LanguageModel:
        """The run's own model, or the one that was named."""
        from probe.language_model import model_of

        if self.model is not None:
            return load(self.model, self, progress=progress)
        if self.revision is not None or self.adapter is not None:
            raise BadOption(
                "a run says which revision and adapter made it", hint="name the model too, with --model, to use another"
            )
        unsaid = (name for name in ("context_length", "weights_patch", "quantize") if not getattr(self, name))
        own = {*NO_WEIGHTS, "revision", "adapter", *unsaid}
        given = {key: value for key, value in vars(self).items() if key not in own}
        return model_of(run, allow_fetch=self.allow_fetch, **given, progress=progress)


@dataclass(frozen=True)
class SourceLoading(RunLoading):
    """Which model reads a prompt, or a run."""

    model: Annotated[
        str | None,
        Option(
            "Alias, Hugging Face id, local directory, .gguf file, or tiny:FAMILY.", ("--model", "-m"),
            default="the run's, or smollm2", complete="models",
        ),
    ] = None  # fmt: skip

    def load_for(self, source: Any, progress: Progress | None) -> LanguageModel:
        """The model that was named; else the run's own, or the default one for a prompt."""
        from probe.store import run_of

        run = run_of(source)
        if run is not None:
            return super().load_for(run, progress)
        return load(self.model, self, progress=progress)


@dataclass(frozen=True)
class TextLoading(SourceLoading):
    """Which model reads texts, or runs in their place."""

    model: Annotated[
        str | None,
        Option(
            "Alias, Hugging Face id, local directory, .gguf file, or tiny:FAMILY (random weights).", ("--model", "-m"),
            envvar="PROBE_MODEL", complete="models", default="the run's, or smollm2",
        ),
    ] = None  # fmt: skip


@dataclass(frozen=True)
class NamedModel(ModelSource):
    """A model that a command is about."""

    model: Annotated[
        str,
        Option(
            "Alias, Hugging Face id, local directory, .gguf file, or tiny:FAMILY.", argument=True, envvar="PROBE_MODEL",
            complete="models",
        ),
    ] = "smollm2"  # fmt: skip


@dataclass(frozen=True)
class NamedLoading(NamedModel, Weights):
    """The model that a command is about, where it runs, and what is put on it."""

    def load(self, progress: Progress | None) -> LanguageModel:
        """The model of these options."""
        return load(self.model, self, progress=progress)


def load(name: str | None, *groups: ModelSource | PlacementOptions, progress: Progress | None = None) -> LanguageModel:
    """A model, by its name and groups of options of which each field is a keyword of `probe.load`."""
    import probe

    given = {key: value for group in groups for key, value in vars(group).items() if key not in NO_WEIGHTS}
    return probe.load(name, **given, progress=progress)


@dataclass(frozen=True)
class ModelSettings:
    """Whether the model's own settings have a part in how tokens are drawn."""

    generation_config: Annotated[
        str, Option("model: draw by the model's generation_config.json, where no option says otherwise.", complete="settings")
    ] = "none"

    def __post_init__(self) -> None:
        if self.generation_config not in ("none", "model"):
            raise BadOption(f"unknown generation config '{self.generation_config}'", hint="none or model")

    def begin(self, begun: Begun[R], **more: Any) -> R:
        """The request, checked before a model is loaded; if the model has a part in how it draws, without a word of that."""
        if self.generation_config == "none":
            return begun.build(**more)
        return Begun(begun.kind, {key: value for key, value in begun.said.items() if key not in KEYWORDS}).build(**more)

    def settle(self, request: R, begun: Begun[R], lm: LanguageModel) -> R:
        """The request with the model's own settings, where they are asked for."""
        if self.generation_config == "none":
            return request
        from probe.decoding import sampling_for

        said = {name: begun.said[name] for name in KEYWORDS if begun.said.get(name) is not None}
        return replace(request, sampling=sampling_for(lm, generation_config=self.generation_config, **said))


@dataclass(frozen=True)
class PromptSource:
    """A prompt, or where many are."""

    prompt: Annotated[
        str | None,
        Option("The prompt; - reads many from standard input (see --file). After --, it may begin with a dash.", argument=True),
    ] = None
    file: Annotated[
        Path | None,
        Option(
            "Many prompts: .txt (one a line), .jsonl, .json, .csv, .parquet; - for stdin. trace also reads transcripts.",
            ("--file", "-f"),
        ),
    ] = None

    def prompts(self, said: Mapping[str, Any], *, transcripts: bool = False) -> Any:
        """The prompt's text, the path of the file, or the prompts of standard input. said: the options of `FileOptions`."""
        if (self.prompt is None) == (self.file is None):
            raise typer.BadParameter("give a prompt, or a file of prompts with --file")
        if self.prompt is not None and self.prompt != "-":
            if any(said[name] is not None for name in ("format", "column", "expect_column")):
                raise typer.BadParameter("--format, --column and --expect-column are for --file and for standard input")
            return self.prompt
        if self.file is not None and str(self.file) != "-":
            return self.file
        return _piped(said, transcripts=transcripts)


def texts_of(said: Mapping[str, Any]) -> list[Any]:
    """The files of a command line's FILE…, each as a path; - stands for the prompts of standard input."""
    named = said["texts"]
    if not named:
        raise typer.BadParameter("give a file of texts, or - for standard input")
    if named.count("-") > 1:
        raise typer.BadParameter("standard input can be read once")
    if "-" not in named:
        return [Path(one) for one in named]
    given = _piped(said)
    return [given if one == "-" else Path(one) for one in named]


def source_of(said: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in place of a command line's [RUN|PROMPT] and --file where one of them is -, for standard input."""
    if "-" not in (said["source"], str(said["file"])) or None not in (said["source"], said["file"]):
        return {}
    return {"source": _piped(said), "file": None}


def _piped(said: Mapping[str, Any], *, transcripts: bool = False) -> Any:
    """The prompts of standard input."""
    from probe.texts import read_prompts

    kind, column, expect = (said[name] for name in ("format", "column", "expect_column"))
    return read_prompts(sys.stdin.buffer, kind=kind, column=column, expect_column=expect, transcripts=transcripts)


@dataclass(frozen=True)
class Planning:
    """Whether anything is computed."""

    dry_run: Annotated[bool, Option("Say what would be computed; write nothing.", ("--dry-run",))] = False


@dataclass(frozen=True)
class Output:
    """Whether what is printed is for a program."""

    as_json: Annotated[bool, Option("Exactly one JSON document on stdout.", ("--json",))] = False


@dataclass(frozen=True)
class Watching:
    """Whether long work shows how far it is."""

    no_progress: Annotated[bool, Option("No progress bar.", ("--no-progress",))] = False

    @property
    def silent(self) -> bool:
        """Whether nobody watches."""
        return self.no_progress

    @contextmanager
    def progress(self) -> Iterator[Progress | None]:
        """What is called with how far the work is, or None; warnings of the library become plain lines."""
        from .progress import plain_warnings, progress

        with plain_warnings(), progress(shown=not self.silent) as report:
            yield report


@dataclass(frozen=True)
class Showing(Watching, Output):
    """What is printed of a run, and how."""

    quiet: Annotated[bool, Option("Print only where the run is.", ("--quiet", "-q"))] = False

    @property
    def silent(self) -> bool:
        return self.quiet or self.no_progress
