"""The operations of an edit, `PLACE=OP`: how each is written, what it computes, and where it is made from its arguments.

An operation is one row here and the class and function that it names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Operation:
    """One change of an activation. form: how it is written, optional arguments in brackets. make: "module:function", called
    with what the edits of a command share, the cell and the arguments; gives an `Edit`. use: which of the uses of a site it
    is. rest: the last argument may hold colons of its own.
    """

    form: str
    help: str
    make: str
    use: Literal["change", "cut", "route"] = "change"
    rest: bool = False

    @property
    def name(self) -> str:
        """The word before the first argument."""
        return self.form.partition(":")[0].partition("[")[0]

    @property
    def whole(self) -> str:
        """The edit in which it stands."""
        return f"{'router@LAYER.eEXPERT' if self.use == 'route' else 'PLACE'}={self.form}"

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
        f"{_IN}:make_cut", use="cut", rest=True,
    ),
    Operation("ablate", "experts `router@3.e5`: never chosen: logits of −inf before the choice", f"{_IN}:make_ablate",
              use="route"),
    Operation(
        "force", "experts: always chosen, in the place of the last, with the weights that their own logits give",
        f"{_IN}:make_force", use="route",
    ),
    Operation(
        "weigh:FACTOR", "experts: where they are chosen, their weights in the sum times the factor", f"{_IN}:make_weigh",
        use="route",
    ),
)}  # fmt: skip


def edit_help() -> str:
    """What `--edit` takes, in words."""
    return f"Change activations: PLACE=OP, e.g. z@5.3=zero; OP is {', '.join(one.form for one in OPERATIONS.values())}."
