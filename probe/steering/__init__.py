"""Directions to steer along: the difference of the means of two sets of texts, with what speaks for it."""

from probe.steering.making import make_direction

__all__ = ["make_direction"]
