"""One forward, hooked: activations read or replaced, attention calls seen; knows modules, not what they mean.

The only package that changes a live module or touches transformers' attention registry. Everything is a context manager and
leaves the model as it was, in the middle of an exception too.
"""

from probe.instrument.attention import AttentionCall, Observer, attended, attending
from probe.instrument.choosing import ChangedChoice, choosing
from probe.instrument.hooks import Reader, Tap, bypassing, element, emptied, entering, filled, recording, tapping
from probe.instrument.offloading import (
    bytes_elsewhere,
    device_of,
    devices,
    held_bytes,
    in_memory,
    is_readable,
    parameters,
    weight_of,
    wrapped,
)
from probe.instrument.shards import SIDES, is_sharded, shards, style

__all__ = [
    "SIDES",
    "AttentionCall",
    "ChangedChoice",
    "Observer",
    "Reader",
    "Tap",
    "attended",
    "attending",
    "bypassing",
    "bytes_elsewhere",
    "choosing",
    "device_of",
    "devices",
    "element",
    "emptied",
    "entering",
    "filled",
    "held_bytes",
    "in_memory",
    "is_readable",
    "is_sharded",
    "parameters",
    "recording",
    "shards",
    "style",
    "tapping",
    "weight_of",
    "wrapped",
]
