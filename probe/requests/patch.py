"""What is asked of `patch`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from probe.errors import BadOption
from probe.requests.answering import MEASURED, WholeAnswerOptions
from probe.requests.base import Request
from probe.requests.groups import ChatOptions, Seed, plain_run, plain_texts, prompts_of
from probe.requests.options import Option
from probe.requests.workers import SharedWork
from probe.sites import parse_where

METRICS = {
    "logit-diff": "logits, answer - against",
    "logprob": "nats, log-prob of the answer",
    "prob": "probability of the answer",
    "kl": "nats, KL(clean || patched)",
}
SOURCES = {
    "clean": "the other text of the pair, at the same place",
    "zero": "zeros",
    "mean": "the mean over all positions of all texts of the sweep",
    "noise": "the value there plus normal noise of 3 standard deviations of the site",
    "resample": "the value at another place, drawn from all texts of the sweep",
}
POOLED = ("mean", "noise", "resample")  # made of the values in all texts
DIRECTIONS = ("denoise", "noise")
METHODS = ("exact", "attribution")
AXES = ("pos", "head", "step", "neuron")
SAMPLE = 40  # cells that attribution runs too, and neurons that are patched beside those that were chosen
TOP = 20  # neurons


@dataclass(frozen=True)
class PatchSweep(SharedWork, WholeAnswerOptions, ChatOptions, Request):
    """Which texts, which places of them are patched with what, and what is measured."""

    command: ClassVar[str] = "patch"
    runner: ClassVar[str] = "probe.patching:run_patch"

    _: KW_ONLY
    clean: Annotated[Any, Option("The text with the right answer, or a run.", shell=str | None)] = None
    corrupt: Annotated[Any, Option("The same text with another answer, or a run.", shell=str | None)] = None
    answer: Annotated[str | None, Option("What follows the clean text, with its space: ' Mary'.")] = None
    against: Annotated[str | None, Option("What follows the corrupt text: ' John'.")] = None
    pairs: Annotated[
        Iterable[Any] | Path,
        Option("Many pairs: .jsonl or .csv with clean, corrupt, answer (or answer_set), against; averaged.", ("--file", "-f"),
               shell=Path | None, to_plain=plain_texts, from_plain=prompts_of),
    ] = ()  # fmt: skip
    rewind: Annotated[
        Any,
        Option("A rewind's run: where does its step travel to the answer? By step and layer.", ("--from-rewind",),
               shell=str | None, metavar="PATH|URL", complete="runs", to_plain=plain_run),
    ] = None  # fmt: skip
    measure_at: Annotated[
        str | int | None,
        Option(f"{MEASURED} Of a rewind: parting (the first token after the step that the arms expect otherwise), answer, "
               "or a number.", shell=str | None, default="last; parting"),
    ] = None  # fmt: skip
    sites: Annotated[
        str | Iterable[str],
        Option("resid_pre, resid_mid, resid_post, attn_out, mlp_out, mlp_post, z, q, k, v; or places: z@9.6, mlp_post@5.n3.",
               shell=list[str], complete="places"),
    ] = ("resid_pre",)  # fmt: skip
    layers: Annotated[str | int, Option("Of sites that name none: all, 5, 0..4, -1, with commas.", shell=str)] = "all"
    heads: Annotated[str | int | None, Option("Of z, q, k, v: all, 3, 0..4.", shell=str | None)] = None
    positions: Annotated[str | int, Option("all, last, 7, 3..9, step3, tok=Paris, with commas.", shell=str)] = "all"
    by: Annotated[
        str | Sequence[str] | None,
        Option("What is patched apart: pos, head, step, neuron, with commas; the rest at once.", shell=str | None,
               default="head if there are, else pos"),
    ] = None  # fmt: skip
    top: Annotated[
        int | None,
        Option("Of --by neuron: so many neurons of whole layers, those that a gradient promises most of.", minimum=1,
               default=str(TOP)),
    ] = None  # fmt: skip
    source: Annotated[
        str, Option("What is put in: clean (the other text), zero, mean, noise, resample.", ("--from",))
    ] = "clean"  # fmt: skip
    direction: Annotated[
        str | None, Option("denoise (into the corrupt run) or noise (into the clean).", default="by --from")
    ] = None  # fmt: skip
    metric: Annotated[
        str, Option("logit-diff, logprob, prob or kl, after the last token or --measure-at.", complete="metrics")
    ] = "logit-diff"
    align: Annotated[
        str | None, Option("Where lengths differ, which positions are one: left, right or ends.")
    ] = None  # fmt: skip
    method: Annotated[
        str, Option("exact, or attribution: estimated from one gradient, all cells at once.", complete="patching")
    ] = "exact"
    ig: Annotated[
        int, Option("Of a gradient: average it over so many points between the texts.", minimum=0)
    ] = 0  # fmt: skip
    sample: Annotated[
        int | None,
        Option("Of attribution and neurons: random cells (other neurons) that are run too, to compare.", default=str(SAMPLE)),
    ] = None  # fmt: skip
    path: Annotated[
        str | None, Option("Send a change along direct paths alone: 'z@5.3->q@8.1', 'z@all->logits'. Needs quotes.")
    ] = None
    memory: Annotated[
        str | int,
        Option("What a pass may take, which sizes the batches. auto: 1GB on a CPU, half of what is free elsewhere.", shell=str),
    ] = "auto"
    edit: Annotated[
        str | Iterable[Any],
        Option("Change activations in all runs: PLACE=OP, e.g. z@5.3=zero; repeatable.", ("--edit", "-e"),
               shell=list[str] | None, complete="edits"),
    ] = ()  # fmt: skip
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.pairs, Path):
            object.__setattr__(self, "pairs", tuple(self.pairs))
        for name in ("layers", "positions", "heads", "measure_at"):
            value = getattr(self, name)
            object.__setattr__(self, name, value if value is None else str(value))
        by = self.by.replace(" ", "").split(",") if isinstance(self.by, str) else self.by
        if by is None and self.rewind is not None and self.path is None:
            by = ("step",)
        object.__setattr__(self, "by", None if by is None else tuple(by))
        self._check_choices()
        self._check_texts()
        if (self.answer, self.answer_set) != (None, None):
            self.check_answer(self.answer, self.against)
        if not self.pairs:
            self.check_whole(self.answer, self.against)

    @property
    def towards(self) -> str:
        """The direction: from the other text it is denoising, unless another one is asked for."""
        return self.direction or ("denoise" if self.source == "clean" else "noise")

    @property
    def of_neurons(self) -> bool:
        """Whether neurons are patched one by one: those that are named, and of layers that are named whole some."""
        return "neuron" in (self.by or ())

    @property
    def chosen(self) -> int:
        """How many neurons are chosen."""
        return TOP if self.top is None else self.top

    @property
    def sampled(self) -> int:
        """How many cells are run to compare with: of those that attribution estimates, or neurons that were not chosen."""
        given = SAMPLE if self.sample is None else self.sample
        return given if self.method == "attribution" or self.of_neurons else 0

    @property
    def runs_cells(self) -> bool:
        """Whether any cell is run with a patch, so that a floor is needed."""
        return self.method == "exact" or self.sampled > 0

    def _check_choices(self) -> None:
        """Raises `BadOption` where the ways of measuring are not there, or do not go together."""
        for what, value, choices, option in (
            ("source", self.source, SOURCES, "--from takes "), ("direction", self.towards, DIRECTIONS, ""),
            ("method", self.method, METHODS, "--method takes "), ("metric", self.metric, METRICS, ""),
        ):  # fmt: skip
            if value not in choices:
                raise BadOption(f"unknown {what} '{value}'", hint=option + ", ".join(choices))
        by = self.by or ()
        if unknown := [axis for axis in by if axis not in AXES]:
            raise BadOption(f"unknown axis '{unknown[0]}'", hint=f"--by takes {', '.join(AXES)}, several with commas")
        if "pos" in by and "step" in by:
            raise BadOption("cells are by position or by step, not both", hint="a step is several positions at once")
        if self.path is not None and {"step", "neuron"} & set(by):
            raise BadOption("on a path senders are apart by head and by position", hint="--by pos")
        if self.top is not None and not self.of_neurons:
            raise BadOption("--top is of neurons that are patched one by one", hint="--sites mlp_post --by neuron")
        if self.chosen < 1:
            raise BadOption(
                f"--top {self.top} chooses no neuron", hint="--top counts from 1; or name neurons: mlp_post@5.n3..9"
            )
        if self.ig < 0 or (self.sample or 0) < 0:
            raise BadOption("--ig and --sample count from 0", hint="--ig 8 averages 8 gradients")
        if self.method == "exact" and not self.of_neurons and (self.ig or self.sample is not None):
            raise BadOption(
                f"{'--ig' if self.ig else '--sample'} is for gradients", hint="add --method attribution, or --by neuron"
            )
        if self.ig and self.source != "clean":
            raise BadOption("integrated gradients go from one text to the other", hint="leave --from or --ig out")
        if self.method == "attribution":
            self.check_slope()
        if self.path is not None and self.method == "attribution":
            raise BadOption("paths are patched exactly", hint="leave --method or --path out")
        places = (self.sites, self.layers, self.heads, self.positions)
        if self.path is not None and places != (("resid_pre",), "all", None, "all"):
            raise BadOption("a path names its own places", hint="leave out --sites, --layers, --heads and --positions")

    def check_slope(self) -> None:
        """Raises `BadOption` where the metric's gradient at the text that is patched is zero by its definition."""
        if self.towards == "noise" and self.metric == "kl" and not self.ig:
            raise BadOption("KL has no slope at the clean run itself", hint="--direction denoise, or --ig 8")

    def _check_texts(self) -> None:
        """Raises `BadOption` where texts come from two places."""
        if self.rewind is not None and (self.clean is not None or self.corrupt is not None or self.pairs):
            raise BadOption("a rewind brings its own texts", hint="leave out --clean, --corrupt and --file")
        if self.rewind is not None and self.whole_answer and self.answer is None:
            raise BadOption("what a rewind's arms expect are single tokens", hint="--whole-answer needs an --answer here")
        if self.rewind is None and self.measure_at in ("parting", "answer"):
            raise BadOption(
                f"--measure-at {self.measure_at} is for the arms of a rewind", hint="add --from-rewind, or name a position"
            )
        if self.rewind is None and self.measure_at is not None:
            parse_where(str(self.measure_at))
        if self.pairs and (self.clean is not None or self.corrupt is not None):
            raise BadOption("pairs were given twice", hint="either --file, or --clean and --corrupt")
