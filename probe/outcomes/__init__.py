"""What a completion comes to: its class, by a rule that reads it, by a file of labels, or by a command that judges it."""

from probe.outcomes.rules import (
    CUT_OFF,
    OTHER,
    SILENT,
    UNLABELLED,
    Outcome,
    OutcomePattern,
    OutcomeRule,
    expected_class,
    outcome_class,
)

__all__ = [
    "CUT_OFF", "OTHER", "SILENT", "UNLABELLED", "Outcome", "OutcomePattern", "OutcomeRule", "expected_class",
    "outcome_class",
]  # fmt: skip
