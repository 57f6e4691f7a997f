"""Recording what a model does with a text: the verb `trace`, and the steps of what it recorded."""

from probe.tracing.recording import plan_trace, trace
from probe.tracing.resplitting import steps_of

__all__ = ["plan_trace", "steps_of", "trace"]
