"""Going back into a generation: edits of its steps, continuations of both arms, and the difference."""

from probe.rewinding.planning import plan_rewind
from probe.rewinding.rewinding import rewind, run_rewind

__all__ = ["plan_rewind", "rewind", "run_rewind"]
