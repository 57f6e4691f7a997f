"""Capturing: one forward over finished ids, read into a sink. Sites, attention patterns, scores; writes no file."""

from probe.capturing.reading import Reading, read
from probe.capturing.sinks import MemorySink, Ragged, Sink
from probe.capturing.spec import AttentionSpec

__all__ = ["AttentionSpec", "MemorySink", "Ragged", "Reading", "Sink", "read"]
