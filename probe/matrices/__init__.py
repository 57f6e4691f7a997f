"""The weights themselves as a verb: matrices, norms, heads' circuits and how heads compose; reads no text."""

from probe.matrices.planning import plan_weights
from probe.matrices.surveying import run_weights, weights

__all__ = ["plan_weights", "run_weights", "weights"]
