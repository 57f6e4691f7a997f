"""The feature maps with which a head's kernel is made a product, by name; which features they are is known elsewhere."""

from __future__ import annotations

from typing import NamedTuple

from probe.errors import BadOption

LARGEST = 8192  # features of a text and head are held at once


class Features(NamedTuple):
    """A map's name, and its number: 0 where it has none."""

    kind: str
    size: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.size}" if self.size else self.kind


def parse_features(text: str) -> Features:
    """`elu`, `dpfp:N` or `favor:M`; raises `BadOption`."""
    kind, colon, number = text.partition(":")
    if kind not in ("elu", "dpfp", "favor") or bool(colon) == (kind == "elu"):
        raise BadOption(f"unknown features '{text}'", hint="elu, dpfp:N or favor:M, as in dpfp:3 or favor:256")
    most = 16 if kind == "dpfp" else LARGEST
    if colon and not (number.isascii() and number.isdecimal() and 0 < int(number) <= most):
        raise BadOption(f"'{text}' has no such number of features", hint=f"{kind}:N, N from 1 to {most}")
    return Features(kind, int(number or 0))
