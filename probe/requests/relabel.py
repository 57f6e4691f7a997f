"""What is asked of `answers`: continuations that a run has, read by another rule."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated, Any, ClassVar

from probe.requests.base import Request
from probe.requests.groups import plain_run
from probe.requests.options import Option
from probe.requests.outcomes import OutcomeOptions
from probe.requests.sample import PASS_AT, parse_counts


@dataclass(frozen=True)
class Relabel(OutcomeOptions, Request):
    """Which run's continuations are read again, and how."""

    command: ClassVar[str] = "answers"
    runner: ClassVar[str] = "probe.relabelling:run_relabel"

    run: Annotated[
        Any,
        Option(
            "A run with continuations (probe sample, rewind, importance).", argument=True, shell=str, complete="runs",
            to_plain=plain_run,
        ),
    ]  # fmt: skip
    _: KW_ONLY
    pass_at: Annotated[
        str | tuple[int, ...] | None,
        Option("Attempts that pass@k is of, for a run of sample.", shell=str | None, default="those of 1,4,16 that were drawn"),
    ] = None  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_outcomes()
        if self.pass_at is not None:
            object.__setattr__(self, "pass_at", parse_counts(self.pass_at))

    @property
    def ks(self) -> tuple[int, ...]:
        """Attempts that pass@k is of; those that are too many are left out."""
        return PASS_AT if self.pass_at is None else parse_counts(self.pass_at)
