"""Where things are in a model, found by equations that hold numerically; no table of architectures."""

from probe.anatomy.checking import read_out, verify
from probe.anatomy.finding import cached_find, find
from probe.anatomy.parts import Anatomy, Layer, Readout, Write, of_text
from probe.instrument import Tap

__all__ = ["Anatomy", "Layer", "Readout", "Tap", "Write", "cached_find", "find", "of_text", "read_out", "verify"]
