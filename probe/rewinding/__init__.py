"""Going back into a generation: edits of its steps, continuations of both arms, and the difference."""

from probe.rewinding.rewinding import plan_rewind, rewind

__all__ = ["model_of", "plan_rewind", "rewind"]
