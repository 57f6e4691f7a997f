"""Activation patching: what each place of one run carries to the answer of another."""

from probe.patching.planning import plan_patch
from probe.patching.sweeping import patch, run_patch

__all__ = ["patch", "plan_patch", "run_patch"]
