"""Reasoning steps: where a text is cut, which tokens a step has, and a heuristic label of what it does."""

from probe.spans.cutting import StepBoundary, check_split, cuts, of_other_texts, split
from probe.spans.protecting import zones
from probe.spans.steps import KINDS, Span, Step, from_spans, kind, steps, steps_from

__all__ = [
    "KINDS",
    "Span",
    "Step",
    "StepBoundary",
    "check_split",
    "cuts",
    "from_spans",
    "kind",
    "of_other_texts",
    "split",
    "steps",
    "steps_from",
    "zones",
]
