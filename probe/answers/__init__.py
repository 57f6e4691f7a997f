"""What a text answers, as a class: found by rules, compared by canonical keys."""

from probe.answers.algebra import merge
from probe.answers.canonical import canonical, equal
from probe.answers.extraction import (
    HOWS,
    NONE,
    TRUNCATED,
    Answer,
    Candidate,
    explain,
    extract,
    key,
    opens_thinking,
    speech,
    spoken,
)

__all__ = [
    "HOWS",
    "NONE",
    "TRUNCATED",
    "Answer",
    "Candidate",
    "canonical",
    "equal",
    "explain",
    "extract",
    "key",
    "merge",
    "opens_thinking",
    "speech",
    "spoken",
]
