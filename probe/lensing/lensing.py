"""The verb `lens`: one forward, and each layer's stream through the model's own final norm and head. Knows no arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probe import store as stores
from probe.capturing import MemorySink, read
from probe.capturing.logits import row_guesses, unembedding
from probe.errors import BadEdit, BadOption
from probe.interventions import Edit, applying, parse_all
from probe.language_model.following import first_token
from probe.sites import SITES, parse_places, parse_where, resolve
from probe.texts import TokenSequence, prompt_columns, read_source, scored_columns

if TYPE_CHECKING:
    from probe.capturing.sinks import Columns
    from probe.language_model import LanguageModel
    from probe.scoring import Scores

Progress = Callable[[str, int, int], None]
ROW_BYTES = 86


def lens(
    lm: LanguageModel | None, source: Any, *, target: str | None = None, position: str = "all",
    edit: str | Iterable[str | Edit] = (), top: int = 5, seed: int = 0, out: str | Path | None = None, resume: bool = False,
    progress: Progress | None = None, **where: Any,
) -> stores.Run:  # fmt: skip
    """What each layer would answer at each position: head(final_norm(resid_post)), with the head's scale and cap
    (nostalgebraist 2020), which is the model whose later writes are silent.

    source: a prompt (text or chat messages), or a run (or its path), whose ids are read; then `lm` may be None for the
    run's own model. target: a text whose first token is followed at each position; without it, the token that follows,
    and at the last position the final top token. position: as in places, `last`, `3..9`, `tok=Paris`. edit: changes of
    activations (`z@5.3=zero`) while the text is read. where: chat, system; prompt_id, branch, other_model; split.

    Tables: `lens` (layer x position; KL(final || layer) in nats), `lens_positions` (from which layer on the top token no
    longer changes), `prompts`, `tokens`. Raises `SiteAbsent` where norm and head could not be verified, `BadPrompt`,
    `BadPlace`, `BadEdit`, `BadOption`, `RunError`, `NonFinite`.
    """
    lm, sequence = read_source(lm, source, **where)
    positions = sequence.positions(parse_where(position))
    edits, notes = _edits(lm, edit, seed), _notes(sequence, edit)
    if top < 1:
        raise BadOption(f"top is {top}", hint="it is at least 1")
    wanted = None
    if target is not None:
        wanted, said = first_token(lm, target, "target", after=sequence.ids[: positions[-1] + 1])
        notes += said
    arguments: dict[str, Any] = {
        "source": sequence.run.run_id if sequence.run else None, "ids": sequence.ids, "target": target, "position": position,
        "edit": [str(e) for e in edits], "top": top, "model": lm.name, "dtype": str(lm.dtype), "seed": seed,
    }  # fmt: skip
    path = stores.place_for("lens", out, word=(target or "").strip(), resume=resume)
    with stores.create(path, command="lens", arguments=arguments, resume=resume) as writer:
        if writer.whole:
            return writer.whole
        if progress:
            progress("reading", 0, 1)
        scores, tables, targets = _guessed(lm, sequence, positions, edits, wanted, top)
        if progress:
            progress("reading", 1, 1)
        for note in notes:
            writer.warn(note)
        with writer.unit("lens", again=True):
            settled = _keep(lm, writer, sequence, scores, tables, positions, targets)
        return writer.finish(
            summary=_summary(lm, sequence, tables, settled, target, arguments["edit"]), model=lm.identity,
            anatomy=lm.anatomy.to_dict(), seed=seed, parent=sequence.parent,
        )  # fmt: skip


def plan_lens(
    lm: LanguageModel | None, source: Any, *, position: str = "all", top: int = 5, **more: Any
) -> dict[str, Any]:
    """What `lens` would compute and write; keywords as there. Runs nothing."""
    edit, target, seed = more.pop("edit", ()), more.pop("target", None), more.pop("seed", 0)
    lm, sequence = read_source(lm, source, **more)
    _edits(lm, edit, seed)
    positions = sequence.positions(parse_where(position))
    if target is not None:
        first_token(lm, target, "target", after=sequence.ids[: positions[-1] + 1])
    n, layers = len(positions), lm.anatomy.n_layers
    return {
        "model": lm.name, "tokens": len(sequence.ids), "positions": n, "read_passes": 1,
        "tables": {
            "lens": {"rows": n * layers, "bytes": n * layers * (ROW_BYTES - 56 + 14 * top)},
            "lens_positions": {"rows": n, "bytes": n * 40},
        },
    }  # fmt: skip


def _edits(lm: LanguageModel, given: str | Iterable[str | Edit], seed: int) -> tuple[Edit, ...]:
    edits = parse_all(lm, given, seed=seed)
    for edit in edits:
        if SITES[edit.cell.site].after_blocks:
            raise BadEdit(
                f"{edit} changes no layer's guess: the lens reads the stream before it", hint="edit resid_post"
            )
    return edits


def _notes(sequence: TokenSequence, edit: object) -> list[str]:
    """What has to be said of how a chat was rendered, and of a run that was made under edits which are not at work now."""
    notes = list(sequence.notes)
    made = (sequence.run.manifest["arguments"].get("edit") if sequence.run else None) or []
    if made and isinstance(made, list) and not edit:
        notes.append(
            f"the run was made with edits ({'; '.join(map(str, made))}): give them with --edit to see them at work"
        )
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
    lm: LanguageModel,
    sequence: TokenSequence,
    positions: list[int],
    edits: tuple[Edit, ...],
    wanted: int | None,
    top: int,
) -> tuple[Scores, list[Columns], Tensor]:
    """Scores of the text, columns of `lens` for each layer, and the target at each position (pos,)."""
    anatomy, ids, index = lm.anatomy, torch.tensor([sequence.ids], device=lm.device), torch.tensor(positions)
    cells = resolve(parse_places("resid_post@all"), n_layers=anatomy.n_layers, n_heads=anatomy.n_heads, has=anatomy.has)
    n_prompt, sink = sequence.n_prompt, _Streams(index)
    with applying(lm, edits, ids=sequence.ids, n_prompt=n_prompt, steps=sequence.spans):
        reading = read(lm, ids, [len(sequence.ids)], sink=sink, cells=cells, top=top)
    streams = [sink.stream[cell.layer] for cell in cells]
    (scores,) = reading.scores
    following = torch.tensor([*sequence.ids[1:], int(scores.top_ids[-1, 0])])
    targets = following[index] if wanted is None else torch.full_like(index, wanted)
    with torch.no_grad():  # outside of the edits: norm and head are called with rows that are not the text's
        tables = row_guesses(
            lm.model, anatomy, unembedding(lm.model, anatomy), streams, targets.to(ids.device), top=top
        )
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
