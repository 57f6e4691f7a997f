"""Capturing: one forward over finished ids, read into a sink. Sites, attention patterns, scores; writes no file."""

from probe.capturing.reading import Reading, observe, read
from probe.capturing.sinks import AttentionSpec, MemorySink, Ragged, Sink

__all__ = ["AttentionSpec", "MemorySink", "Ragged", "Reading", "Sink", "observe", "read"]
