"""Activation patching: what each place of one run carries to the answer of another."""

from probe.patching.patching import patch_sweep
from probe.patching.planning import plan_patch

__all__ = ["patch_sweep", "plan_patch"]
