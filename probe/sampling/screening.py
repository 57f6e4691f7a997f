"""The screen for problems that are neither always right nor always wrong: which of a run's are kept, and their file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from probe import durable
from probe.sampling.statistics import Attempts
from probe.store import Run

REASONS = {
    "kept": "kept", "above": "more often right", "below": "less often right", "unknown": "no right answer known",
    "failed": "could not be run",
}  # fmt: skip


class Screened(NamedTuple):
    """Which problems are kept, how many for each of REASONS, and how often the kept ones are right: in the draws that chose
    them, and in those that did not (None where all chose)."""

    kept: tuple[int, ...]
    counts: dict[str, int]
    accuracy: float | None
    held_out: float | None


def screen(
    drawn: Mapping[int, Attempts], expected: Mapping[int, str | None], prompts: Sequence[int], bounds: tuple[float, float],
    *, hold_out: bool,
) -> Screened:  # fmt: skip
    """Which problems are right in a share of their draws that lies within `bounds`, both ends included.

    That share is too near to the middle in those that are kept: who is chosen by a noisy measure lies nearer to the mean in
    the next one. hold_out: the first half of the samples chooses, and the other half says how often the chosen are right.
    """
    reasons: dict[int, str] = {}
    chose: list[float] = []
    others: list[float] = []
    for prompt in prompts:
        right = expected.get(prompt)
        if prompt not in drawn:
            reasons[prompt] = "failed"
        elif right is None:
            reasons[prompt] = "unknown"
        else:
            hits = [outcome == right for outcome in drawn[prompt].outcomes]
            half = len(hits) // 2 if hold_out else len(hits)
            share = sum(hits[:half]) / half
            reasons[prompt] = "below" if share < bounds[0] else "above" if share > bounds[1] else "kept"
            if reasons[prompt] == "kept":
                chose.append(share)
                others += [sum(hits[half:]) / len(hits[half:])] if hold_out else []
    counts = Counter(reasons.values())
    kept = tuple(prompt for prompt in prompts if reasons[prompt] == "kept")
    return Screened(kept, {reason: counts[reason] for reason in REASONS}, _mean(chose), _mean(others))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def write_problems(run: Run, prompt_ids: Sequence[int], path: Path) -> None:
    """A file of problems of a run (JSON lines) as `--file` reads it, with all the columns that they came with."""
    wanted, names = set(prompt_ids), ["prompt_id", "text", "rendered", "expect", "choices", *run.extra("prompts")]
    rows = [row for row in run.scan("prompts").select(names).to_pylist() if row["prompt_id"] in wanted]
    lines = [json.dumps(_problem(row), ensure_ascii=False) + "\n" for row in rows]
    with durable.stated(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_bytes(path, "".join(lines).encode(), shared=True)  # the processes of one command may share a model


def _problem(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a file: its prompt, or messages, and what stands beside them."""
    text, rendered = row.pop("text"), row.pop("rendered")
    del row["prompt_id"]
    chat = text.startswith("[") and rendered not in (None, text)
    prompt = {"messages": json.loads(text)} if chat else {"prompt": text}
    return {**prompt, **{name: value for name, value in row.items() if value is not None}}
