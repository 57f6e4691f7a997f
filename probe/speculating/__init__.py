"""Speculative decoding as a two-model microscope: a draft proposes, the target decides, and every proposal is kept."""

from probe.speculating.drafts import is_model
from probe.speculating.recording import plan_speculate, run_speculate, speculate

__all__ = ["is_model", "plan_speculate", "run_speculate", "speculate"]
