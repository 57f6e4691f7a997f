"""What a trace's request on one model would cost: passes, rows, bytes, memory. Runs nothing of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from probe.instrument import held_bytes
from probe.texts import TokenSequence
from probe.texts.explaining import MOST, ExplainedTokens
from probe.tracing.memory import chunk_of, most_memory
from probe.tracing.resolving import Tracing

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


# bits a stored value takes on disk, and bytes of keys and numbers a row takes; measured on SmolLM2 runs
BITS = {"exact": 32, "bf16": 11}
ROW_BYTES = {
    "prompts": 200,
    "tokens": 60,
    "steps": 120,
    "activations": 6,
    "heads": 60,
    "attention_rows": 12,
    "attention": 8,
    "scores": 6,
    "lens": 30,
    "routing": 12,
    "expert_load": 60,
    "expert_balance": 90,
    "stages": 80,
    "candidates": 50,
    "answers": 150,
}
STAGES, CANDIDATES = 6, 12  # rows a token, about
TOP_BYTES = 7
PROCESS_BYTES = 540_000_000  # Python, torch, transformers and Arrow with a short text traced; measured on Linux, CPU


def estimate(lm: LanguageModel, tracing: Tracing, sequences: list[TokenSequence]) -> dict[str, Any]:
    """Passes, tokens, `tables` {name: {rows, bytes}} and peak memory of the request, if every continuation is full length."""
    lengths = [len(s.ids) + tracing.request.generate for s in sequences]
    tokens, square = sum(lengths), sum(n * (n + 1) // 2 for n in lengths)
    anatomy, longest = lm.anatomy, max(lengths)
    heads = sum(anatomy.n_heads("pattern", layer) for layer in range(anatomy.n_layers) if anatomy.has("pattern", layer))
    layers = sum(anatomy.has("pattern", layer) for layer in range(anatomy.n_layers))
    rows: dict[str, tuple[int, int]] = {"prompts": (len(sequences), 0), "tokens": (tokens, 8 * TOP_BYTES * tracing.request.top)}
    vectors = _vectors(lm, tracing, sequences)
    if vectors["rows"]:
        rows["activations"] = (vectors["rows"], vectors["values"] * BITS[tracing.request.store] // vectors["rows"])
    for cell in tracing.cells:
        if cell.site == "router" and (experts := anatomy.layers[cell.layer].experts) is not None:
            rows["routing"] = (rows.get("routing", (0, 0))[0] + tokens, 8 * 8 * experts.n_chosen)
            rows["expert_load"] = (rows.get("expert_load", (0, 0))[0] + experts.n_experts, 0)
            rows["expert_balance"] = (rows.get("expert_balance", (0, 0))[0] + 1, 0)
    mode = tracing.attention.mode
    if mode != "none" and heads:
        rows["heads"] = (len(sequences) * heads, 0)
    if mode in ("summary", "topk", "full"):
        rows["attention_rows"] = (tokens * heads, 0)
    if mode == "topk":
        rows["attention"] = (tokens * heads, 48 * min(tracing.attention.k, longest))
    if mode == "full":
        rows["attention"] = (tokens * heads, BITS["exact"] * square // tokens)
    if tracing.request.lens:
        rows["lens"] = (tokens * anatomy.n_layers, 8 * TOP_BYTES * tracing.request.top)
    if tracing.explain:
        explained = sum(min(MOST, _explained(tracing.explain, s, tracing.request.generate)) for s in sequences) * len(
            tracing.explain.orders
        )
        rows |= {"stages": (explained * STAGES, 0), "candidates": (explained * CANDIDATES, 0)}
    sets = sum(one is not None for one in (tracing.request.answer_set, tracing.request.against_set))
    if answers := sum(sets + len(tuple(tracing.request.answers) or s.prompt.choices or ()) for s in sequences):
        rows["answers"] = (answers, 0)
    return {
        "model": lm.name, "prompts": len(sequences), "tokens": tokens,
        "decode_steps": tracing.request.generate * len(sequences), "read_passes": len(sequences), "attention_layers": layers,
        "tokens_per_forward": chunk_of(lm, tracing, longest) or longest,
        "peak_memory_bytes": PROCESS_BYTES + held_bytes(lm.model) + most_memory(lm, tracing, lengths),
        "tables": {name: {"rows": n, "bytes": n * (ROW_BYTES[name] + bits // 8)} for name, (n, bits) in rows.items()},
    }  # fmt: skip


def _explained(explain: ExplainedTokens, sequence: TokenSequence, generate: int) -> int:
    """How many tokens of a text are explained; all it can be where that is known only later."""
    n = len(sequence.ids) + generate
    return len(explain.positions.indices(n, sequence.n_prompt)) if explain.positions.static else n


def _vectors(lm: LanguageModel, tracing: Tracing, sequences: list[TokenSequence]) -> dict[str, int]:
    """Rows and float values of the table `activations`, over all prompts."""
    rows = values = 0
    for cell in tracing.cells:
        width = lm.width(cell.site, cell.layer) if cell.units is None else len(cell.units)
        if not width:
            continue
        heads = len(cell.heads) if cell.heads is not None else 1
        for sequence in sequences:
            n = len(sequence.ids) + tracing.request.generate
            picked = len(cell.positions.indices(n, sequence.n_prompt)) if cell.positions.static else n
            rows += picked * heads
            values += picked * heads * width
    return {"rows": rows, "values": values}
