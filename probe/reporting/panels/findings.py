"""Findings of a first look, in their order, each with its control and the next command."""

from __future__ import annotations

from collections.abc import Iterator

from probe.reporting.panels.context import Context
from probe.reporting.views import Listing, Panel, ShownColumn


def found(context: Context) -> Iterator[Panel]:
    """What stands out in this text."""
    if not context.has("findings"):
        return
    yield Listing(
        "findings", "What stands out", "findings", context.rows("findings"), where={"prompt_id": context.prompt_id},
        columns=(
            ShownColumn("finding", "finding"), ShownColumn("value", "value", 3), ShownColumn("unit", "unit"),
            ShownColumn("control", "control", 3), ShownColumn("control_of", "of"),
            ShownColumn("pos", "position", cursor="token"), ShownColumn("layer", "layer", cursor="layer"),
            ShownColumn("head", "head", cursor="head"),
        ),
        text="command",
        note="Each fact stands out against its control; -1: of no position, layer or head. The command shows more of it.",
    )  # fmt: skip
