"""The operations of an edit of weights, `WHERE=OP`: how each is written, what it computes, and where it is made."""

from __future__ import annotations

from probe.registries.edit_operations import Operation

_IN = "probe.weight_edits.making"
WEIGHT_OPERATIONS: dict[str, Operation] = {one.name: one for one in (
    Operation(
        "zero", "W's columns that read this head or neuron (z@5.3, mlp_post@5.n7), or this parameter, ← 0", f"{_IN}:make_zero"
    ),
    Operation("scale:FACTOR", "the same ← factor · W; also of parameters by a pattern, `*.mlp.*`", f"{_IN}:make_scale"),
    Operation(
        "gain:FACTOR[:CHANNELS]", "a norm's gain ← factor · gain, where a family stores gain − 1 too", f"{_IN}:make_gain"
    ),
    Operation(
        "rank-one:FILE.safetensors",
        "with u, v: W + u vᵀ; with k, v and optionally C: W + (v − W k) kᵀC⁻¹ / (kᵀC⁻¹k), so that W k = v (2202.05262)",
        f"{_IN}:make_rank_one", rest=True,
    ),
)}  # fmt: skip


def weight_edit_help() -> str:
    """What `--edit-weights` takes, in words."""
    forms = ", ".join(one.form for one in WEIGHT_OPERATIONS.values())
    return f"Change weights: WHERE=OP, e.g. z@5.3=zero or '*.down_proj.weight=scale:0.5'; OP is {forms}."
