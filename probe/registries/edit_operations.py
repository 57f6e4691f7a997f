"""The operations of an edit, `PLACE=OP`: how each is written, what it computes, and where it is made from its arguments.

An operation is one row here and the class and function that it names.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Operation:
    """One change of an activation. form: how it is written, optional arguments in brackets. make: "module:function", called
    with what the edits of a command share, the cell and the arguments; gives an `Edit`. rest: the last argument may hold
    colons of its own.
    """

    form: str
    help: str
    make: str
    rest: bool = False

    @property
    def name(self) -> str:
        """The word before the first argument."""
        return self.form.partition(":")[0].partition("[")[0]

    @property
    def least(self) -> int:
        """Arguments that it needs."""
        return self.form.partition("[")[0].count(":")

    @property
    def most(self) -> int:
        """Arguments that it takes."""
        return 99 if self.rest else self.form.count(":")


_IN = "probe.interventions.parsing"
OPERATIONS: dict[str, Operation] = {one.name: one for one in (
    Operation("zero", "h ← 0", f"{_IN}:make_zero"),
    Operation("scale:FACTOR", "h ← factor · h", f"{_IN}:make_scale"),
    Operation("mean:RUN", "h ← the mean that a run of means or trace has there, at each position", f"{_IN}:make_mean"),
    Operation("patch:RUN[:PROMPT]", "h ← what a run recorded there, position by position", f"{_IN}:make_patch"),
    Operation("resample:RUN[:SEED]", "h ← a vector that a run recorded there, drawn by position", f"{_IN}:make_resample"),
    Operation("add:FILE.safetensors[:STRENGTH]", "h ← h + strength · vector (2308.10248)", f"{_IN}:make_add"),
    Operation(
        "project:FILE.safetensors", "h ← h − (h·v̂) v̂ with v̂ = vector / ‖vector‖ (2406.11717)", f"{_IN}:make_project"
    ),
    Operation(
        "noise:SIGMA[:SEED]", "h ← h + sigma · ε, ε normal, in the activation's own unit (2202.05262)", f"{_IN}:make_noise"
    ),
    Operation(
        "cut:KEYS", "positions of a pattern, as queries, no longer see these keys: −inf before the softmax",
        f"{_IN}:make_cut", rest=True,
    ),
    Operation(
        "ablate:EXPERTS", "of a router: these experts (5 or 2,5 or 0..3) are never chosen: logits of −inf before the choice",
        f"{_IN}:make_ablate",
    ),
    Operation(
        "force:EXPERTS", "of a router: always chosen, in the place of the last, with the weights that their own logits give",
        f"{_IN}:make_force",
    ),
    Operation(
        "weigh:EXPERTS:FACTOR", "of a router: where they are chosen, their weights in the sum times the factor",
        f"{_IN}:make_weigh",
    ),
)}  # fmt: skip


def edit_help() -> str:
    """What `--edit` takes, in words."""
    return f"Change activations: PLACE=OP, e.g. z@5.3=zero; OP is {', '.join(one.form for one in OPERATIONS.values())}."
