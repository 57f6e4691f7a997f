"""The verb `lens`: one forward, and each layer's stream through the model's own final norm and head. Knows no arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probe import store as stores
from probe.capturing import MemorySink, read
from probe.capturing.logits import row_guesses, unembedding
from probe.errors import BadEdit
from probe.interventions import Edit, applying, parse_all
from probe.requests import Lens, public
from probe.running import running
from probe.sites import SITES, parse_places, parse_where
from probe.targets import NO_SETS, contrast_after
from probe.texts import TokenSequence, prompt_columns, read_source, scored_columns

if TYPE_CHECKING:
    from probe.capturing.sinks import Columns
    from probe.language_model import LanguageModel
    from probe.scoring import Scores

ROW_BYTES = 86


def run_lens(lm: LanguageModel | None, request: Lens) -> stores.Run:
    """What each layer would answer at each position: head(final_norm(resid_post)), with the head's scale and cap
    (nostalgebraist 2020), which is the model whose later writes are silent.

    Of a run the ids are read; then `lm` may be None for the run's own model. Without a target the token that follows is
    followed at each position, and at the last one the final top token. The edits hold while the text is read.

    Tables: `lens` (layer x position; KL(final || layer) in nats), `lens_positions` (from which layer on the top token no
    longer changes), `prompts`, `tokens`. Raises `SiteAbsent` where norm and head could not be verified, `BadPrompt`,
    `BadPlace`, `BadEdit`, `BadOption`, `RunError`, `NonFinite`.
    """
    lm, sequence, positions, wanted, notes = _resolved(lm, request)
    edits = _edits(lm, request)
    source = sequence.run.run_id if sequence.run else None
    with running(request, lm, word=(request.target or "").strip(), resolved={"source_run": source, "ids": sequence.ids}) as run:
        if run.writer.whole:
            return run.writer.whole
        run.report("reading", 0, 1)
        scores, tables, targets = _guessed(lm, sequence, positions, edits, wanted, request.top)
        run.report("reading", 1, 1)
        run.warn(*_notes(sequence, edits), *notes)
        with run.writer.unit("lens", again=True):
            settled = _keep(lm, run.writer, sequence, scores, tables, positions, targets)
        summary = _summary(lm, sequence, tables, settled, request.target, [str(edit) for edit in edits])
        return run.finish(summary, seed=request.seed, parent=sequence.parent)


lens = public(run_lens, Lens)


def plan_lens(lm: LanguageModel | None, request: Lens) -> dict[str, Any]:
    """What `lens` would compute and write. Runs nothing."""
    lm, sequence, positions, _, _ = _resolved(lm, request)
    _edits(lm, request)
    n, layers = len(positions), lm.anatomy.n_layers
    return {
        "model": lm.name, "tokens": len(sequence.ids), "positions": n, "read_passes": 1,
        "tables": {
            "lens": {"rows": n * layers, "bytes": n * layers * (ROW_BYTES - 56 + 14 * request.top)},
            "lens_positions": {"rows": n, "bytes": n * 40},
        },
    }  # fmt: skip


def _resolved(lm: LanguageModel | None, request: Lens) -> tuple[LanguageModel, TokenSequence, list[int], int | None, list[str]]:
    """The model, the text, the positions, the target's token, and what has to be said of it."""
    lm, sequence = read_source(lm, request.source, request)
    positions = sequence.positions(parse_where(request.position))
    after = sequence.ids[: positions[-1] + 1]
    target, notes = contrast_after(lm, NO_SETS, request.target, None, after=after, name="target")
    return lm, sequence, positions, None if target is None else target.answer.token, notes


def _edits(lm: LanguageModel, request: Lens) -> tuple[Edit, ...]:
    edits = parse_all(lm, request.edit, seed=request.seed)
    for edit in edits:
        if SITES[edit.cell.site].after_blocks:
            raise BadEdit(f"{edit} changes no layer's guess: the lens reads the stream before it", hint="edit resid_post")
    return edits


def _notes(sequence: TokenSequence, edits: tuple[Edit, ...]) -> list[str]:
    """What has to be said of how a chat was rendered, and of a run that was made under edits which are not at work now."""
    notes = list(sequence.notes)
    made = (sequence.run.manifest["arguments"].get("edit") if sequence.run else None) or []
    if made and isinstance(made, list) and not edits:
        notes.append(f"the run was made with edits ({'; '.join(map(str, made))}): give them with --edit to see them at work")
    return notes


class _Streams(MemorySink):
    """Keeps resid_post of the chosen positions: stream[layer] (pos, d_model)."""

    def __init__(self, positions: Tensor) -> None:
        super().__init__()
        self._positions = positions
        self.stream: dict[int, Tensor] = {}

    def activation(self, site: str, layer: int, head: int | None, values: Tensor) -> None:
        self.stream[layer] = values[0].index_select(0, self._positions.to(values.device))


def _guessed(
    lm: LanguageModel, sequence: TokenSequence, positions: list[int], edits: tuple[Edit, ...], wanted: int | None, top: int
) -> tuple[Scores, list[Columns], Tensor]:
    """Scores of the text, columns of `lens` for each layer, and the target at each position (pos,)."""
    anatomy, ids, index = lm.anatomy, torch.tensor([sequence.ids], device=lm.device), torch.tensor(positions)
    cells = anatomy.cells(parse_places("resid_post@all"))
    n_prompt, sink = sequence.n_prompt, _Streams(index)
    with applying(lm, edits, ids=sequence.ids, n_prompt=n_prompt, steps=sequence.spans):
        reading = read(lm, ids, [len(sequence.ids)], sink=sink, cells=cells, top=top)
    streams = [sink.stream[cell.layer] for cell in cells]
    (scores,) = reading.scores
    following = torch.tensor([*sequence.ids[1:], int(scores.top_ids[-1, 0])])
    targets = following[index] if wanted is None else torch.full_like(index, wanted)
    with torch.no_grad():  # outside of the edits: norm and head are called with rows that are not the text's
        tables = row_guesses(lm.model, anatomy, unembedding(lm.model, anatomy), streams, targets.to(ids.device), top=top)
    return scores, tables, targets


def _keep(
    lm: LanguageModel, writer: stores.Writer, sequence: TokenSequence, scores: Scores, tables: list[Columns],
    positions: list[int], targets: Tensor,
) -> list[dict[str, Any]]:  # fmt: skip
    """Write every table; the rows of `lens_positions`."""
    key = {"prompt_id": sequence.prompt.prompt_id, "branch": sequence.branch}
    writer.write("prompts", prompt_columns([sequence], []))
    writer.write("tokens", scored_columns(sequence, scores, branch=sequence.branch))
    pos = np.asarray(positions, np.int32)
    for layer, columns in enumerate(tables):
        own = {name: np.asarray(values) for name, values in columns.items()}
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
        for i, position in enumerate(positions)
    ]  # fmt: skip
    writer.write("lens_positions", {**key, **{name: [row[name] for row in rows] for name in rows[0]}})
    return rows


def _settled(tops: np.ndarray) -> int:
    """The first layer from which on the top token (layer,) is the last layer's."""
    other = np.flatnonzero(tops != tops[-1])
    return int(other[-1]) + 1 if len(other) else 0


def _summary(
    lm: LanguageModel, sequence: TokenSequence, tables: list[Columns], settled: list[dict[str, Any]], target: str | None,
    edits: list[str],
) -> dict[str, Any]:  # fmt: skip
    """The layers at the last chosen position, and where each position settles."""
    last = settled[-1]
    layers = [
        {
            "layer": layer, "top": lm.token_text(int(columns["top_ids"][-1, 0])),
            "prob": float(columns["top_logprobs"][-1, 0].double().exp()), "target_rank": int(columns["target_rank"][-1]),
            "target_prob": float(columns["target_logprob"][-1].double().exp()), "entropy": float(columns["entropy"][-1]),
            "kl_to_final": float(columns["kl_to_final"][-1]),
        }
        for layer, columns in enumerate(tables)
    ]  # fmt: skip
    return {
        "tokens": len(sequence.ids), "positions": len(settled), "target": target, "edit": edits,
        "settled_layer": float(np.mean([row["settled_layer"] for row in settled])), "last": {**last, "layers": layers},
    }  # fmt: skip
