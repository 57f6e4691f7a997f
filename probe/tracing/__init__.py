"""Recording what a model does with a text: the verb `trace`."""

from probe.tracing.recording import plan_trace, run_trace, trace

__all__ = ["plan_trace", "run_trace", "trace"]
