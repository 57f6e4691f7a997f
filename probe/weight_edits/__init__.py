"""Edits of a model's weights: rank-one, zeroed or scaled heads, neurons and matrices, gains; written as one small file."""

from probe.weight_edits.making import edit_weights, make_patch
from probe.weight_edits.targets import targets

__all__ = ["edit_weights", "make_patch", "targets"]
