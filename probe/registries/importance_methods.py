"""The methods of `importance`: for each its name, its sentence, what it fills, what it needs and costs, and where it is.

A method is one row here and the function that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from probe.errors import BadOption

INTERVAL = ("ci_low", "ci_high", "p_value", "q_value")


class Size(NamedTuple):
    """What a method's cost depends on: tokens of the prompt and of each step, and continuations of a boundary."""

    prompt: int
    steps: Sequence[int]
    samples: int

    @property
    def whole(self) -> int:
        """Tokens of the sequence."""
        return self.prompt + sum(self.steps)

    @property
    def tails(self) -> int:
        """Tokens that follow a step, summed over all steps."""
        return sum(i * n for i, n in enumerate(self.steps))


@dataclass(frozen=True)
class Method:
    """One way to measure how much each step matters.

    measure: "module:function", called with a `probe.step_importance.task.Task`; gives `Measured`. columns: what it fills
    of a row of the table `importance`, besides method, step, estimate and unit. tokens: about how many the model reads for
    it, besides those that are drawn. sampled: whether it needs continuations of every boundary. matrix: whether it fills
    the table `dependence` too. options: those that mean nothing without it.
    """

    name: str
    help: str
    measure: str
    columns: tuple[str, ...]
    tokens: Callable[[Size], int]
    sampled: bool = False
    matrix: bool = False
    options: tuple[str, ...] = ()


METHODS: dict[str, Method] = {method.name: method for method in (
    Method(
        "resampling", "The outcome with the step kept, against the outcome with it drawn anew.",
        "probe.step_importance.boundaries:resampling", (*INTERVAL, "control", "floor", "n"), lambda size: 0, sampled=True,
    ),
    Method(
        "counterfactual", "The same against only those draws whose own step says something else.",
        "probe.step_importance.boundaries:counterfactual", (*INTERVAL, "control", "floor", "n"),
        lambda size: (1 + size.samples) * sum(size.steps), sampled=True, 
    ),
    Method(
        "suppression", "How far later predictions move when they cannot look at the step.",
        "probe.step_importance.dependence:suppressed", ("n",), lambda size: size.whole + size.tails, matrix=True,
        options=("suppress",),
    ),
    Method(
        "early-answer", "How much the step raises the answer when the model has to give one after it.",
        "probe.step_importance.early_answers:early_answer", ("n",),
        lambda size: 2 * size.whole + 128 * (len(size.steps) + 1),
    ),
    Method(
        "rescore", "What the last step loses in log-prob when the step is taken out.",
        "probe.step_importance.dependence:rescored", ("control",), lambda size: size.whole + size.tails, matrix=True,
    ),
    Method(
        "receiver", "How much later steps look at the step, through heads that look at few steps.",
        "probe.step_importance.receiver_heads:received", ("control", "n"), lambda size: size.whole, options=("heads",),
    ),
)}  # fmt: skip


def methods_of(text: str) -> tuple[Method, ...]:
    """The methods that `resampling`, `rescore,receiver` or `all` means. Raises `BadOption`."""
    names = list(METHODS) if text == "all" else list(dict.fromkeys(part.strip() for part in text.split(",")))
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise BadOption(f"unknown method '{unknown[0]}'", hint=choices())
    return tuple(METHODS[name] for name in names)


def choices() -> str:
    """What `--method` takes, in words."""
    return f"{', '.join(METHODS)}, several with commas, or all"


def check_options(methods: Sequence[Method], given: Mapping[str, object]) -> None:
    """Raises `BadOption` for an option that was given though no method that takes it is asked for."""
    for method in METHODS.values():
        for option in method.options:
            if given.get(option) is not None and method not in methods:
                raise BadOption(f"--{option} is for {method.name}, which is not asked for", hint=f"--method {method.name}")
