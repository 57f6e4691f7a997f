"""Directions to steer along: the difference of the means of two sets of texts, with what speaks for it; and what they do."""

from probe.steering.making import make_direction, run_make_direction
from probe.steering.scanning import run_steer, steer

__all__ = ["make_direction", "run_make_direction", "run_steer", "steer"]
