"""The verb `lens`: one forward, and each layer's stream through the model's own final norm and head. Knows no arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from probe import store as stores
from probe.lensing.reading import Lensing, guessed, resolved
from probe.requests import Lens, public
from probe.running import running
from probe.texts import prompt_columns, scored_columns

if TYPE_CHECKING:
    from probe.capturing.sinks import Columns
    from probe.language_model import LanguageModel
    from probe.scoring import Scores

KEY_BYTES = 30  # a row of `lens` beside its guesses


def run_lens(lm: LanguageModel | None, request: Lens) -> stores.Run:
    """What each layer would answer at each position: head(final_norm(resid_post)), with the head's scale and cap
    (nostalgebraist 2020), which is the model whose later writes are silent.

    Of a run the ids are read; then `lm` may be None for the run's own model. Without an answer the token that follows is
    followed at each position, and at the last one the final top token. The log-prob of an answer, or of a set, stands at each
    position; that of a whole answer where it is measured: teacher-forced, the sum over its tokens, each read at its own
    position. The edits hold while the text is read, and those without end while an answer is.

    Tables: `lens` (layer x position; KL(final || layer) in nats), `lens_positions` (from which layer on the top token no
    longer changes), `prompts`, `tokens`. Raises `SiteAbsent` where norm and head could not be verified, `BadPrompt`,
    `BadPlace`, `BadEdit`, `BadOption`, `RunError`, `NonFinite`.
    """
    asked = resolved(lm, request)
    sequence = asked.sequence
    came_to = {"source_run": sequence.run.run_id if sequence.run else None, "ids": sequence.ids}
    with running(request, asked.lm, word=(request.answer or request.answer_set or "").strip(), resolved=came_to) as run:
        if run.writer.whole:
            return run.writer.whole
        run.report("reading", 0, asked.forwards)
        scores, tables, targets = guessed(asked)
        run.report("reading", asked.forwards, asked.forwards)
        run.warn(*asked.notes)
        with run.writer.unit("lens", again=True):
            settled = _keep(asked, run.writer, scores, tables, targets)
        return run.finish(_summary(asked, tables, settled), seed=request.seed, parent=sequence.parent)


lens = public(run_lens, Lens)


def plan_lens(lm: LanguageModel | None, request: Lens) -> dict[str, Any]:
    """What `lens` would compute and write. Runs nothing."""
    asked = resolved(lm, request)
    n, layers = len(asked.positions), asked.lm.anatomy.n_layers
    row = KEY_BYTES + 14 * request.top + 4 * len(asked.answers)
    return {
        "model": asked.lm.name, "tokens": len(asked.sequence.ids), "positions": n, "read_passes": asked.forwards,
        "tables": {
            "lens": {"rows": n * layers, "bytes": n * layers * row},
            "lens_positions": {"rows": n, "bytes": n * 40},
        },
    }  # fmt: skip


def _keep(
    asked: Lensing, writer: stores.Writer, scores: Scores, tables: list[Columns], targets: Tensor
) -> list[dict[str, Any]]:
    """Write every table; the rows of `lens_positions`."""
    lm, sequence = asked.lm, asked.sequence
    key = {"prompt_id": sequence.prompt.prompt_id, "branch": sequence.branch}
    writer.write("prompts", prompt_columns([sequence], []))
    writer.write("tokens", scored_columns(sequence, scores, branch=sequence.branch))
    pos = np.asarray(asked.positions, np.int32)
    for layer, columns in enumerate(tables):
        own = {name: values if isinstance(values, list) else np.asarray(values) for name, values in columns.items()}
        writer.write("lens", {**key, "layer": layer, "pos": pos, **own})
    tops = np.stack([np.asarray(columns["top_ids"])[:, 0] for columns in tables])  # (layer, pos)
    rows = [
        {
            "pos": position, "token_id": sequence.ids[position],
            "token": lm.label(sequence.ids[position], sequence.tokens[position]),
            "final_id": int(tops[-1, i]), "final_token": lm.token_text(int(tops[-1, i])),
            "settled_layer": _settled(tops[:, i]), "target_id": int(targets[i]),
            "target_token": lm.token_text(int(targets[i])),
        }
        for i, position in enumerate(asked.positions)
    ]  # fmt: skip
    writer.write("lens_positions", {**key, **{name: [row[name] for row in rows] for name in rows[0]}})
    return rows


def _settled(tops: np.ndarray) -> int:
    """The first layer from which on the top token (layer,) is the last layer's."""
    other = np.flatnonzero(tops != tops[-1])
    return int(other[-1]) + 1 if len(other) else 0


def _summary(asked: Lensing, tables: list[Columns], settled: list[dict[str, Any]]) -> dict[str, Any]:
    """The layers at the position where the answer is measured, and where each position settles."""
    request, at, text = asked.request, asked.positions.index(asked.measured), asked.lm.token_text
    told = list(asked.answers) if asked.token is None or len(asked.answers) > 1 else []  # of a token, the target says it all
    layers = [
        {
            "layer": layer, "top": text(int(columns["top_ids"][at, 0])),
            "prob": float(columns["top_logprobs"][at, 0].double().exp()), "target_rank": int(columns["target_rank"][at]),
            "target_prob": float(columns["target_logprob"][at].double().exp()), "entropy": float(columns["entropy"][at]),
            "kl_to_final": float(columns["kl_to_final"][at]),
            **{name: float(columns[name][at]) for name in told},
        }
        for layer, columns in enumerate(tables)
    ]  # fmt: skip
    return {
        "tokens": len(asked.sequence.ids), "positions": len(settled), "target": request.answer or request.answer_set,
        "against": request.against or request.against_set, "whole_answer": request.whole_answer,
        "edit": [str(edit) for edit in asked.edits], "settled_layer": float(np.mean([row["settled_layer"] for row in settled])),
        "last": {**settled[at], "layers": layers},
    }  # fmt: skip
