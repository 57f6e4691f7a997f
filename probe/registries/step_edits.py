"""The edits of a rewind: for each its name, its sentence, and how the ids that it writes are made. Models stand behind `Fork`.

An edit is one function here: `@step_edit(…)` gives it its option, its place in the dry run and in the manual.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, NamedTuple, Protocol

from probe.errors import BadOption
from probe.spans.negating import negate

COLUMN = "column:"  # begins a text that each prompt has one of its own, in a column of its file
STUB = "\n\nSo the final answer is"
WAIT = "Wait,"
FILLER = " ..."
NUMERAL = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?!\w)")
NUMERALS = 64  # other numerals that are tried in a numeral's place

Place = Literal["step", "before", "after", "prompt"]


class Fork(Protocol):
    """A step that is gone back to, and what a model can say about ids there (`probe.rewinding.arms`)."""

    @property
    def text(self) -> str:
        """The step's text."""

    @property
    def context(self) -> str:
        """The whole text that the step stands in."""

    @property
    def old(self) -> Sequence[int]:
        """The step's ids."""

    @property
    def seed(self) -> int: ...

    @property
    def stub(self) -> str:
        """The text that asks for an answer."""

    def spelled(self, text: str) -> Sequence[int]:
        """Ids that read as `text` at the edit's place."""

    def respelled(self, text: str) -> Sequence[int]:
        """The same in the step's place, with the step's own ids wherever the two texts agree at either end."""

    def other_step(self, name: str) -> Sequence[int]:
        """Ids of a step of another run, RUN:step3."""

    def other_prompt(self, text: str) -> Sequence[int]:
        """Ids of another prompt, as the run's own was made of its text."""

    def different_step(self) -> Sequence[int]:
        """Ids of a step that the model draws there and that says something else."""


Make = Callable[[Fork, str], Sequence[int]]


@dataclass(frozen=True)
class StepEdit:
    """One way to change what a model has written. `make(fork, text)` gives the ids that are written.

    metavar: what text it takes; None: it is a flag. place: whether the ids stand for the step, stand before it or after
    it, or are another prompt for all that was written up to the step. draws: whether a model has to draw them, which a dry
    run does not. options: other options that only it has.
    """

    name: str
    help: str
    make: Make
    metavar: str | None = None
    place: Place = "step"
    draws: bool = False
    options: tuple[str, ...] = ()

    @property
    def type(self) -> Any:
        """Of its option: a text or None, or a flag."""
        return str | None if self.metavar else bool

    @property
    def default(self) -> bool | None:
        """Of its option."""
        return None if self.metavar else False

    @property
    def option(self) -> str:
        """As it is spelled on a command line."""
        return "--" + self.label

    @property
    def label(self) -> str:
        """Its name in words."""
        return self.name.replace("_", "-")


STEP_EDITS: dict[str, StepEdit] = {}


class ChosenEdit(NamedTuple):
    """One of `STEP_EDITS` by name, or `none`: plain resampling; with its text, if it takes one."""

    kind: str = "none"
    text: str = ""

    @property
    def declared(self) -> StepEdit | None:
        """Its declaration; None for plain resampling."""
        return STEP_EDITS.get(self.kind)

    @property
    def column(self) -> str | None:
        """The column in which each prompt's own text stands; None where the text is the same for all."""
        return self.text.removeprefix(COLUMN) if self.text.startswith(COLUMN) else None

    def __str__(self) -> str:
        name = self.declared.label if self.declared else self.kind
        return f"{name}: {self.text}" if self.text else name


def chosen_edit(given: Mapping[str, Any]) -> ChosenEdit:
    """The one edit among options named as in `STEP_EDITS` (None and False are not given). Raises `BadOption` for two."""
    chosen = [edit for edit in STEP_EDITS.values() if given.get(edit.name) not in (None, False)]
    if len(chosen) > 1:
        named = " and ".join(edit.option for edit in chosen)
        raise BadOption(f"{named} are two edits", hint="one at a time: make a run of each")
    if not chosen:
        return ChosenEdit()
    (edit,) = chosen
    if edit.metavar and not str(given[edit.name]):
        raise BadOption(f"the text of {edit.option} is empty", hint="use --delete to take the step out")
    return ChosenEdit(edit.name, str(given[edit.name]) if edit.metavar else "")


def check_edit_options(chosen: ChosenEdit, given: Mapping[str, Any]) -> None:
    """Raises `BadOption` for an option that was given without the edit that takes it."""
    for edit in STEP_EDITS.values():
        for option in edit.options:
            if given.get(option) is not None and edit.name != chosen.kind:
                name = option.replace("_", "-")
                raise BadOption(f"--{name} is for {edit.option}, which is not given", hint=f"add {edit.option}")


def step_edit(
    name: str, help: str, *, metavar: str | None = None, place: Place = "step", draws: bool = False,
    options: tuple[str, ...] = (),
) -> Callable[[Make], Make]:  # fmt: skip
    """Declares the function below it as an edit; the words are those of `StepEdit`."""

    def declare(make: Make) -> Make:
        assert name not in STEP_EDITS, f"there are two edits '{name}'"
        STEP_EDITS[name] = StepEdit(name, help, make, metavar, place, draws, options)
        return make

    return declare


@step_edit("replace", "Put this in the step's place; column:NAME is each prompt's own.", metavar="TEXT")
def _replace(fork: Fork, text: str) -> Sequence[int]:
    return fork.respelled(fitted(text, fork.text))


@step_edit("insert", "Put this before the step; or column:NAME.", metavar="TEXT", place="before")
def _insert(fork: Fork, text: str) -> Sequence[int]:
    return fork.spelled(fitted(text, fork.text))


@step_edit(
    "swap", "Put a step of another run in its place: RUN:step3.", metavar="RUN:STEP",
    options=("swap_prompt", "swap_branch", "swap_split"),
)  # fmt: skip
def _swap(fork: Fork, text: str) -> Sequence[int]:
    return fork.other_step(text)


@step_edit("prompt_b", "Keep the reasoning, change the prompt; or column:NAME.", metavar="TEXT", place="prompt")
def _prompt_b(fork: Fork, text: str) -> Sequence[int]:
    return fork.other_prompt(text)


@step_edit("delete", "Take the step out; the model goes on without it.")
def _delete(fork: Fork, text: str) -> Sequence[int]:
    return ()


@step_edit("truncate", "Answer now: see --stub.", place="before")
def _truncate(fork: Fork, text: str) -> Sequence[int]:
    return fork.spelled(fork.stub)


@step_edit("append_wait", "Say 'Wait,' after the step.", place="after")
def _append_wait(fork: Fork, text: str) -> Sequence[int]:
    return fork.spelled(WAIT if fork.text[-1:].isspace() else " " + WAIT)


@step_edit("numbers", "Change the step's last number.")
def _numbers(fork: Fork, text: str) -> Sequence[int]:
    """To another of as many digits, at best of as many tokens (positions stay: this goes first) and not in the context."""
    numerals = list(NUMERAL.finditer(fork.text))
    if not numerals:
        raise BadOption("the step holds no number to change", hint="choose another step, or --replace TEXT")
    last = numerals[-1]
    taken = {m[0] for m in NUMERAL.finditer(fork.context + fork.text)}
    best: tuple[int, Sequence[int]] | None = None
    for other in _other_numerals(last[0], Random(fork.seed)):
        changed = fork.respelled(fork.text[: last.start()] + other + fork.text[last.end() :])
        worse = 2 * (len(changed) != len(fork.old)) + (other in taken)
        if best is None or worse < best[0]:
            best = worse, changed
        if not worse:
            break
    assert best is not None, "a digit can be another one"
    return best[1]


@step_edit("negate", "Turn the step's claim round, by rules.")
def _negate(fork: Fork, text: str) -> Sequence[int]:
    return fork.respelled(negate(fork.text))


@step_edit("filler", "Dots in the step's place, as many tokens.")
def _filler(fork: Fork, text: str) -> Sequence[int]:
    """` ...` again and again: positions stay (Lanham et al. 2023, 2307.13702)."""
    return (list(fork.spelled(FILLER)) * len(fork.old))[: len(fork.old)]


@step_edit("resample_until_different", "Another step of the model's own that says something else.", draws=True)
def _resample_until_different(fork: Fork, text: str) -> Sequence[int]:
    return fork.different_step()


def fitted(text: str, old: str) -> str:
    """A user's step with the white space around it that the replaced one had, where the user gave none."""
    lead, trail = re.match(r"\s*", old), re.search(r"\s*\Z", old)
    assert lead is not None and trail is not None
    if not text.strip():
        return text
    return (text if text[0].isspace() else lead[0] + text) + ("" if text[-1].isspace() else trail[0])


def numbers_in(text: str) -> tuple[str, ...]:
    """The numerals of a text, sorted: two steps with other numbers differ, however alike their words (METHODS M2)."""
    return tuple(sorted(m[0].replace(",", "") for m in NUMERAL.finditer(text)))


def _other_numerals(like: str, random: Random) -> Iterator[str]:
    """Other numerals of the same form, at most NUMERALS, in random order; the first digit is never 0 where `like` had none."""
    digits = [i for i, c in enumerate(like) if c.isdigit()]
    seen = {like}
    for _ in range(512):
        drawn = list(like)
        for i in digits:
            leads = i == 0 and len(digits) > 1 and like[0] != "0"
            drawn[i] = random.choice("123456789" if leads else "0123456789")
        other = "".join(drawn)
        if other not in seen:
            seen.add(other)
            yield other
        if len(seen) > NUMERALS:
            return
