"""Rows of a rewind's run: the original, the effects, the re-scored tail. Writes; computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from probe.rewinding.rollouts import ORIGINAL, Outcome
from probe.store import Run, Writer
from probe.texts import Trajectory, step_columns, token_columns


def keep_original(writer: Writer, source: Run, original: Trajectory, branch: int, found: Outcome) -> None:
    """The sequence that was rewound, as branch 0, so that the run needs no other. `found`: what it answers."""
    if writer.done("original"):
        return
    prompt = original.prompt_id
    with writer.unit("original"):
        writer.write("prompts", source.scan("prompts", prompt_id=prompt))
        if branch == ORIGINAL:
            writer.write("tokens", source.scan("tokens", prompt_id=prompt, branch=ORIGINAL))
        else:
            writer.write("tokens", token_columns(prompt, original.ids, original.pieces, original.n_prompt))
        writer.write("steps", step_columns(prompt, original.steps))
        writer.write("branches", {
            "prompt_id": [prompt], "branch": [ORIGINAL], "parent": [-1], "arm": ["original"], "sample": [-1],
            "fork_pos": [0], "draw_pos": [original.n_prompt], "n_prompt": [original.n_prompt], "edit": [""],
            "text": [original.completion], "n_tokens": [len(original.ids) - original.n_prompt],
            "outcome": [found.key], "answer": [found.text], "rule": [found.rule], "confidence": [found.confidence],
        })  # fmt: skip


def keep_effects(writer: Writer, rows: Sequence[dict[str, Any]]) -> None:
    """One row a measured difference."""
    if rows:
        writer.write("effects", {name: [row.get(name) for row in rows] for name in rows[0]})


def keep_rescored(
    writer: Writer, original: Trajectory, first: int, scored: tuple[np.ndarray, np.ndarray] | None
) -> None:
    """One row for each token of the original from position `first` on, as it was and with the edit before it."""
    if scored is None or not len(scored[0]):
        return
    kept, edited = scored
    positions = np.arange(first, first + len(kept), dtype=np.int32)
    step = [next((i for i, s in enumerate(original.steps) if s.start <= p < s.end), None) for p in positions]
    writer.write("rescored", {
        "prompt_id": [original.prompt_id] * len(kept), "pos": positions,
        "token_id": np.asarray(original.ids[first : first + len(kept)], dtype=np.int32),
        "token": original.pieces.tokens[first : first + len(kept)],
        "step": pa.array(step, pa.int32()), "logprob": kept, "logprob_edited": edited, "difference": edited - kept,
    })  # fmt: skip


def drawn_by(writer: Writer, branches: pa.Table, arm: str) -> list[list[int]]:
    """The ids that were drawn in an arm, in order of samples."""
    chosen = branches.filter(pc.equal(branches["arm"].cast(pa.string()), arm)).sort_by("sample")
    tokens = writer.read("tokens")
    found = []
    for number, start in zip(chosen["branch"].to_pylist(), chosen["draw_pos"].to_pylist(), strict=True):
        own = tokens.filter(pc.and_(pc.equal(tokens["branch"], number), pc.greater_equal(tokens["pos"], start)))
        found.append(own.sort_by("pos")["token_id"].to_pylist())
    return found


def parent(source: Run, original: Trajectory, branch: int, position: int) -> dict[str, Any]:
    """The manifest's `parent`: the run, prompt and branch that was gone back into, and at which token."""
    return {
        "run": source.run_id, "path": str(source.path) if source.path else None, "prompt_id": original.prompt_id,
        "branch": branch, "position": position,
    }  # fmt: skip
