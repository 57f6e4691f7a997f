"""The problems of a recorded run: the answer that each expects, its options, and their rows in a run made of it."""

from __future__ import annotations

from collections.abc import Sequence

from probe.store import Run, Writer


def expected_of(run: Run, prompt_id: int) -> str | None:
    """The right answer of a problem, as its file had it; None where it had none."""
    (row,) = run.scan("prompts", columns=["expect"], prompt_id=prompt_id).to_pylist() or [{"expect": None}]
    return None if row["expect"] is None else str(row["expect"])


def choices_of(run: Run, prompt_id: int) -> list[str] | None:
    """The options of a problem, as its file had them; None where it had none."""
    (row,) = run.scan("prompts", columns=["choices"], prompt_id=prompt_id).to_pylist() or [{"choices": None}]
    return None if row["choices"] is None else [str(one) for one in row["choices"]]


def copy_prompts(run: Run, writer: Writer, prompt_ids: Sequence[int] | None = None) -> None:
    """Write rows of a run's `prompts` (those of some problems, or all) into a run that is made of it, inside a unit of it.

    The columns that came from the run's file come along. All problems that the made run has share them.
    """
    writer.extend("prompts", run.extra("prompts"))
    rows = run.scan("prompts") if prompt_ids is None else run.scan("prompts", prompt_id=list(prompt_ids))
    writer.write("prompts", rows)
