"""What a step seems to do, by its words: a heuristic baseline with the labels of Bogdan et al. 2025 (2506.19143)."""

from __future__ import annotations

import re

_RULES = (
    ("final_answer_emission", r"\\boxed|final answer|\b(?:the )?answer is\b|^#### "),
    (
        "self_checking",
        r"\b(?:double[- ]check|verify|check (?:that|if|this|my)|let me check|re-?check|confirm|make sure)\b",
    ),
    (
        "uncertainty_management",
        r"\b(?:wait|hmm|actually|alternatively|not sure|maybe|perhaps|confus|mistake|hold on|on second thought)",
    ),
    (
        "plan_generation",
        r"\b(?:let'?s|let me|i(?:'ll| will| need to| should| want to)|we (?:need|should|can|will)|first,|next,|step \d+"
        r"|to (?:find|solve|determine|calculate))\b",
    ),
    ("active_computation", r"\d\s*[-+*/×÷=^]\s*\$?\d|=\s*-?\$?\d|\b(?:plus|minus|times|multipl|divid|subtract|add)\w*"),
    (
        "result_consolidation",
        r"^(?:so|therefore|thus|hence|in total|altogether|this (?:means|gives)|in (?:summary|conclusion))\b",
    ),
    ("problem_setup", r"\b(?:the (?:problem|question)|we are given|given that|we have|asks?|asked|starts? with)\b"),
    ("fact_retrieval", r"\b(?:is|are|was|were|has|have|means|recall|remember|known|defined|formula|according to)\b"),
)
KINDS = (*(name for name, _ in _RULES), "unknown")
_COMPILED = tuple((name, re.compile(pattern, re.IGNORECASE)) for name, pattern in _RULES)


def kind(text: str) -> str:
    """The first label whose words occur in the step. A guess from words alone: label by hand or import labels to be sure."""
    text = text.strip()
    return next((name for name, pattern in _COMPILED if pattern.search(text)), "unknown")
