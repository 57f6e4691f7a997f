"""The verb `import`: a server's hidden states, file by file, beside the model's own read of the same ids, as a run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from probe import store as stores
from probe.capturing import read
from probe.errors import BadPrompt, ProbeError
from probe.importing.checking import Check, ComparisonSink, cells_of, checked, settled_layers, streams_of
from probe.importing.files import States, count_ids, hash_of_files, name_of, read_states, state_files
from probe.requests import ImportStates, public
from probe.running import Running, running
from probe.texts import Prompt, TokenSequence, prompt_columns, scored_columns, scored_step_columns
from probe.tracing.planning import ROW_BYTES
from probe.tracing.summary import summarize

if TYPE_CHECKING:
    from probe.language_model import LanguageModel
    from probe.scoring import Scores

BESIDE = {"source": pa.string(), "state_dtype": pa.string()}  # columns of `prompts`: the file, and its number format
NOT_OURS = "the table activations holds what the server computed; tokens and steps are this model's own read of the same ids"


def run_import_states(lm: LanguageModel, request: ImportStates) -> stores.Run:
    """Hidden states that vLLM's `extract_hidden_states` wrote, as a run: tables `prompts` (one a file), `tokens`, `steps`, and
    `activations` as `trace --capture resid_pre@…` writes them, but with the server's numbers.

    A server's layer id N is the stream into layer N (`resid_pre@N`), and n_layers what leaves the last block, before the
    final norm (`resid_post` of the last layer). The file does not say which ids it has: each layer is held against the model's
    own read of the same ids, and refused where the relative difference is above the tolerance or another layer is nearer;
    table `imported`. One file that cannot be imported is an error; of several, it is a row of `prompts` with the reason in
    `error`, but what is wrong with the layers of the first is wrong with all.

    Raises `BadOption`, `BadPrompt`, `SiteAbsent`, `NonFinite`, `RunError`.
    """
    files = state_files(request.source)
    layers = settled_layers(lm, _first(lm, files), request.layer_ids, request.tolerance)
    came_to = {"files": len(files), "files_sha256": hash_of_files(files), "layers": layers, "activations": "server"}
    with running(request, lm, word=Path(request.source).stem, resolved=came_to) as run:
        run.writer.extend("prompts", BESIDE)
        run.warn(NOT_OURS)
        for unit, (i, path) in run.missing(
            "importing", ((f"file-{i}", (i, path)) for i, path in enumerate(files)), total=len(files)
        ):
            with unit:
                _import(run, request, i, path, layers, alone=len(files) == 1)
        return run.finish(_summary(run, request, layers))


import_states = public(run_import_states, ImportStates)


def plan_import_states(lm: LanguageModel, request: ImportStates) -> dict[str, Any]:
    """What `import` would read and write, by the headers of all files; only the first is checked. Raises as that does."""
    files = state_files(request.source)
    first, streams = _first(lm, files), streams_of(lm)
    layers = settled_layers(lm, first, request.layer_ids, request.tolerance)
    counts: list[int] = []
    for path in files:
        with suppress(BadPrompt):
            counts.append(count_ids(path))
    tokens = sum(counts)
    rows = {"prompts": len(files), "tokens": tokens, "activations": tokens * len(layers)}
    more = {"activations": first.states.element_size() * lm.anatomy.d_model}  # bytes of a vector
    return {
        "model": lm.name, "files": len(files), "unreadable": len(files) - len(counts), "tokens": tokens,
        "places": ", ".join(str(streams[layer]) for layer in layers), "read_passes": len(counts),
        "tables": {name: {"rows": n, "bytes": n * (ROW_BYTES[name] + more.get(name, 0))} for name, n in rows.items()},
    }  # fmt: skip


def _first(lm: LanguageModel, files: Sequence[Path]) -> States:
    """The first file that can be read. Raises what is wrong with the first of all if none can."""
    errors = []
    for path in files:
        try:
            return read_states(lm, path)
        except ProbeError as error:
            errors.append(error)
    raise errors[0]


def _import(run: Running, request: ImportStates, i: int, path: Path, layers: tuple[int, ...], *, alone: bool) -> None:
    """All rows of one file; if it cannot be imported, the row that says so."""
    lm = run.lm
    try:
        found = read_states(lm, path)
        sequence = _sequence(lm, i, path, found, request.split)
        if found.states.shape[1] != len(layers):
            raise _other_width(path, found, layers)
        sink = ComparisonSink(streams_of(lm), found.states, layers)
        reading = read(lm, torch.tensor([found.ids]), [len(found.ids)], sink=sink, cells=cells_of(lm))
        checks = checked(lm, sink, layers, request.tolerance)
    except ProbeError as error:
        if alone:
            raise
        failed = Prompt(i, "", error.message, columns={"source": name_of(path), "state_dtype": None})
        run.write("prompts", prompt_columns([], [failed]))
        return
    run.warn(*reading.warnings)
    _write_text(run, sequence, reading.scores[0])
    _write_states(run, i, found, checks)


def _other_width(path: Path, found: States, layers: tuple[int, ...]) -> ProbeError:
    return BadPrompt(
        f"'{name_of(path)}' has {found.states.shape[1]} layers, and the first file {len(layers)}",
        hint="import what was written with other layers by itself",
    )


def _sequence(lm: LanguageModel, i: int, path: Path, found: States, split: str) -> TokenSequence:
    """The ids as a prompt, finished: where in them a server began to write, the file does not say."""
    text = lm.pieces(found.ids).text
    prompt = Prompt(i, text, columns={"source": name_of(path), "state_dtype": found.dtype})
    sequence = TokenSequence(prompt, text, found.ids, len(found.ids))
    sequence.finish(lm, None, split)
    return sequence


def _write_text(run: Running, sequence: TokenSequence, scores: Scores) -> None:
    """Tokens, steps and the row of the prompt, by the model's own read."""
    columns = scored_columns(sequence, scores)
    logprob, entropy = (columns[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in ("logprob", "entropy"))
    sequence.sum_up(logprob, entropy)
    run.write("tokens", columns)
    run.write("steps", scored_step_columns(sequence.prompt.prompt_id, sequence.steps, logprob, entropy))
    run.write("prompts", prompt_columns([sequence], []))


def _write_states(run: Running, i: int, found: States, checks: Sequence[Check]) -> None:
    """The server's vectors, and how far each layer is from the model's own."""
    store = "bf16" if found.states.dtype == torch.bfloat16 else "exact"  # both hold exactly what the file has
    for column, one in enumerate(checks):
        vectors = found.states[:, column].float().contiguous()
        rows: dict[str, Any] = {
            "prompt_id": i, "branch": 0, "site": one.stream.site, "layer": one.stream.layer, "head": -1,
            "pos": np.arange(len(vectors), dtype=np.int32), "vector": vectors.numpy(),
            "norm": torch.linalg.vector_norm(vectors, dim=-1).numpy(),
        }  # fmt: skip
        run.write("activations", rows, store=store)
    run.write(
        "imported",
        {
            "prompt_id": [i] * len(checks), "site": [one.stream.site for one in checks],
            "layer": [one.stream.layer for one in checks], "difference": [one.mean for one in checks],
            "largest": [one.largest for one in checks], "largest_pos": [one.position for one in checks],
            "other": [str(one.other) for one in checks], "other_difference": [one.other_mean for one in checks],
        },
    )  # fmt: skip


def _summary(run: Running, request: ImportStates, layers: tuple[int, ...]) -> dict[str, Any]:
    """As that of a trace, and what the check came to: of each layer the mean over files, and the worst of all tokens."""
    lm, found = run.lm, summarize(run.writer.batches, expected=run.lm.token_text, shown=run.lm.label)
    rows, streams = run.frame("imported"), streams_of(lm)
    told = []
    for layer in layers:
        own = rows[(rows["site"] == streams[layer].site) & (rows["layer"] == streams[layer].layer)]
        if len(own):
            worst, near = own.loc[own["largest"].idxmax()], own.loc[own["other_difference"].idxmin()]
            told.append({
                "id": layer, "place": str(streams[layer]), "difference": float(own["difference"].mean()),
                "largest": float(worst["largest"]), "prompt_id": int(worst["prompt_id"]), "pos": int(worst["largest_pos"]),
                "other": str(near["other"]), "other_difference": float(near["other_difference"]),
            })  # fmt: skip
    dtypes = sorted({dtype for dtype in run.frame("prompts")["state_dtype"] if isinstance(dtype, str)})
    found["imported"] = {
        "written_by": "a server (vLLM's extract_hidden_states)", "dtypes": dtypes,
        "own_dtype": str(lm.dtype).removeprefix("torch."), "tolerance": request.tolerance, "layers": told,
    }  # fmt: skip
    return found
