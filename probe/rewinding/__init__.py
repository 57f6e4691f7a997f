"""Going back into a generation: edits of its steps, continuations of both arms, and the difference."""

from probe.rewinding.rewinding import plan_rewind, rewind, run_rewind

__all__ = ["plan_rewind", "rewind", "run_rewind"]
