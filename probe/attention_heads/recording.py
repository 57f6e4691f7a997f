"""The verb `heads`: texts and repeated random tokens read once each, every head summed up. Knows no statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from probe import store as stores
from probe.attention_heads.counting import head_counts
from probe.attention_heads.features import FeatureMap
from probe.attention_heads.inputs import Inputs, inputs_of
from probe.attention_heads.kernel import KernelView
from probe.attention_heads.key_space import KeyRecorder, cluster_keys, draw_keys, key_cells, planned_rows
from probe.attention_heads.means import mean_tables
from probe.attention_heads.memory import checkpoints
from probe.attention_heads.memory_view import MemoryView
from probe.attention_heads.summary import summarize
from probe.attention_heads.views import HeadView, LayerAttention, Rows
from probe.capturing import AttentionSpec, MemorySink, read
from probe.capturing.patterns import CalledPattern
from probe.errors import NonFinite, OutOfMemory, SiteAbsent
from probe.fitting import fitting
from probe.instrument import AttentionCall
from probe.requests import AttentionHeads, public
from probe.running import Running, running
from probe.texts import Failed, TokenSequence, batches, padded, prompt_columns, scored_columns

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


def run_heads(lm: LanguageModel | None, request: AttentionHeads) -> stores.Run:
    """What each attention head does, on the user's texts and on random tokens, twice over, where only induction can foretell
    what comes (Elhage et al. 2021; Olsson et al. 2022, 2209.11895); a kind for each head by stated thresholds.

    kernel: each head as a kernel smoother: see `probe.attention_heads.kernel`. memory: each head beside its linearised memory,
    see `probe.attention_heads.memory`. keys: clusters of its keys over all texts, see `probe.attention_heads.key_space`. Of a
    run the ids are read; then `lm` may be None for the run's own model. The sequences of random tokens stand in the run as
    prompts, after the user's own.

    Tables: `heads` (a head in a text), `head_kinds` and `head_means` (over all texts), `head_kernels`, `head_memory`,
    `head_retrieval`, `head_keys`, `head_key_agreement`, `head_key_clusters`, `head_key_tokens`, `prompts`, `tokens`.
    Raises `SiteAbsent` for a model without attention that can be read, `BadPrompt`, `BadOption`, `RunError`, `NonFinite`.
    """
    inputs = inputs_of(lm, request)
    lm, repeated = inputs.lm, inputs.repeated()
    counts = head_counts(lm, views=bool(request.views))
    views, keys = views_of(request), KeyRecorder(inputs) if request.keys else None
    with running(request, lm, word=_word(inputs), resolved=inputs.came_to) as run:
        if run.writer.whole:
            return run.writer.whole
        run.writer.extend("prompts", inputs.extra)
        _record_failed(run, inputs.failed)
        run.warn(*inputs.notes)
        done, total = 0, inputs.readable + len(repeated)
        for batch in batches(inputs.texts(), generate=0, tokens=_batch_tokens(inputs)):
            _record(run, batch, "text", views, keys, alone=total == 1)
            run.report("reading texts", done := done + len(batch), total)
        for batch in batches(repeated, generate=0, tokens=request.batch_tokens):
            _record(run, batch, "repeated", (), None, alone=True)
            run.report("reading random tokens", done := done + len(batch), total)
        if keys is not None:
            run.warn(*keys.notes(lm))
            cluster_keys(run, keys, request)
        _gather(run, views, counts)
        parent = inputs.one.parent if inputs.one is not None else None
        return run.finish(summarize(run, request), seed=request.seed, parent=parent)


heads = public(run_heads, AttentionHeads)


def plan_heads(lm: LanguageModel | None, request: AttentionHeads) -> dict[str, Any]:
    """What `heads` would compute and write. Runs nothing."""
    inputs = inputs_of(lm, request)
    lm, repeated = inputs.lm, inputs.repeated()
    n_heads = sum(head_counts(lm, views=bool(request.views)))
    tokens = sum(len(one.ids) for one in inputs.texts())
    texts, random = inputs.readable, len(repeated)
    inputs_read = (texts > 0) + (random > 0)
    steps = sum(len(checkpoints(len(one.ids))) for one in inputs.texts()) if request.memory else 0
    n_kv = sum(lm.anatomy.n_heads("k", layer) for layer in range(lm.anatomy.n_layers))
    rows = {
        "heads": n_heads * (texts + random), "head_kinds": n_heads * inputs_read, "head_means": 8 * n_heads * inputs_read,
        **({"head_kernels": n_heads * texts} if request.kernel else {}),
        **({"head_memory": 2 * n_heads * steps, "head_retrieval": 3 * n_kv * steps} if request.memory else {}),
        **(planned_rows(lm, draw_keys(inputs, key_cells(lm)).kept, request) if request.keys else {}),
    }  # fmt: skip
    size = {
        "heads": 48, "head_kinds": 48, "head_means": 28, "head_kernels": 52, "head_memory": 26, "head_retrieval": 40,
        "head_keys": 40 + 4 * request.key_tokens, "head_key_agreement": 56, "head_key_clusters": 200, "head_key_tokens": 24,
    }  # fmt: skip
    return {
        "model": lm.name, "texts": texts, "tokens": tokens, "random_tokens": sum(len(one.ids) for one in repeated),
        "heads": n_heads, "views": ", ".join(request.views) or "none",
        "tables": {name: {"rows": n, "bytes": n * size[name]} for name, n in rows.items()},
    }  # fmt: skip


def views_of(request: AttentionHeads) -> tuple[HeadView, ...]:
    """What is asked of each head beside its summary."""
    found: list[HeadView] = []
    if request.kernel:
        found.append(KernelView(request.rows))
    if request.memory:
        found.append(MemoryView(FeatureMap.parse(request.memory, seed=request.seed)))
    return tuple(found)


def _batch_tokens(inputs: Inputs) -> int:
    """Texts one by one where the longest would set the rotary frequencies of the others."""
    return 1 if inputs.lm.sets_frequencies(inputs.longest) else inputs.request.batch_tokens


def _record(
    run: Running, batch: list[TokenSequence], which: str, views: Sequence[HeadView], keys: KeyRecorder | None, *, alone: bool
) -> None:
    """Read and write one batch as one unit. If a text of it makes NaN logits, or it does not fit into memory, each is read by
    itself."""
    key = _unit(which, batch)
    if run.writer.done(key):
        return
    if len(batch) > 1 and run.writer.done(_unit(which, batch[:1])):  # so it was before
        for sequence in batch:
            _record(run, [sequence], which, views, keys, alone=False)
        return
    try:
        longest = max(len(one.ids) for one in batch)
        with fitting(f"a text of {longest:,} tokens", hint="shorter ones, or --dtype bfloat16"), run.writer.unit(key):
            _read(run, batch, which, views, keys)
    except (NonFinite, OutOfMemory) as error:
        if len(batch) == 1:
            if alone:
                raise
            _record_failed(run, [Failed(batch[0].prompt._replace(error=error.message), error)])
            return
        for sequence in batch:
            _record(run, [sequence], which, views, keys, alone=alone)


def _unit(which: str, batch: list[TokenSequence]) -> str:
    return f"{which}-{batch[0].prompt.prompt_id}-{batch[-1].prompt.prompt_id}"


def _read(run: Running, batch: list[TokenSequence], which: str, views: Sequence[HeadView], keys: KeyRecorder | None) -> None:
    lm = run.lm
    sink, (ids, lengths) = _Summaries(run, batch, which, keys), padded(batch)

    def look(prompt: int, layer: int, call: AttentionCall, output: Tensor, pattern: CalledPattern) -> None:
        attention = LayerAttention.of(batch[prompt], prompt, layer, call, output, pattern)
        for view in views:
            for rows in view.read(attention):
                _write(run, rows, batch[prompt], layer)

    reading = read(
        lm, ids.to(lm.device), lengths, sink=sink, cells=keys.cells if keys is not None else (),
        attention=AttentionSpec("heads"), top=1, calls=look if views else None,
    )  # fmt: skip
    if not sink.seen:
        raise SiteAbsent(f"{lm.name} has no attention that can be read", hint="; ".join(reading.warnings))
    run.warn(*reading.warnings, *(note for view in views for note in view.notes()))
    for sequence, scores in zip(batch, reading.scores, strict=True):
        columns = scored_columns(sequence, scores, branch=sequence.branch)
        run.write("tokens", columns)
        logprob, entropy = (columns[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in ("logprob", "entropy"))
        sequence.sum_up(logprob, entropy)
        if keys is not None:
            keys.tokens(run, sequence)
    run.write("prompts", prompt_columns(batch, []))


def _write(run: Running, rows: Rows, sequence: TokenSequence, layer: int) -> None:
    table, columns = rows
    run.write(table, {"prompt_id": sequence.prompt.prompt_id, "branch": sequence.branch, "layer": layer, **columns})


class _Summaries(MemorySink):
    """Writes the head summaries of a batch as they come."""

    def __init__(self, run: Running, batch: list[TokenSequence], which: str, keys: KeyRecorder | None) -> None:
        super().__init__()
        self._run, self._batch, self._which, self._keys, self.seen = run, batch, which, keys, False

    def activation(self, site: str, layer: int, head: int | None, values: Tensor) -> None:
        assert self._keys is not None, "only keys ask for activations"
        self._keys.activation(self._run, self._batch, site, layer, values)

    def heads(self, layer: int, columns: dict[str, Any]) -> None:
        self.seen = True
        for row, sequence in enumerate(self._batch):
            own = {name: np.asarray(values)[row] for name, values in columns.items()}
            n_heads = len(own["rows"])
            _write(
                self._run, ("heads", {"head": np.arange(n_heads, dtype=np.int16), **own, "input": [self._which] * n_heads}),
                sequence, layer,
            )  # fmt: skip


def _record_failed(run: Running, failed: list[Failed]) -> None:
    if failed and not run.writer.done(key := f"failed-{failed[0].prompt.prompt_id}"):
        with run.writer.unit(key):
            run.write("prompts", prompt_columns([], [f.prompt for f in failed]))


def _gather(run: Running, views: Sequence[HeadView], counts: Sequence[int]) -> None:
    """What all texts come to, as one unit."""
    if run.writer.done("means"):
        return
    with run.writer.unit("means"):
        for view in views:
            for table, columns in view.finished():
                run.write(table, columns)
        for table, columns in mean_tables(run, counts).items():
            run.write(table, columns)


def _word(inputs: Inputs) -> str:
    """A word to name the run by: the longest of the prompt, or what else was read."""
    if inputs.one is None and not inputs.prompts:
        return "random"
    text = inputs.one.prompt.text if inputs.one is not None else inputs.prompts[0].text
    words = [word for word in text.split() if word.isascii() and word.isalpha()]
    return max(words, key=len, default="")
