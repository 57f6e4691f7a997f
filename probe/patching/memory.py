"""How many rows a pass may have: few enough for a budget of memory, many enough for fast products. Estimates; runs nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from probe.errors import BadOption, SiteAbsent

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

DEFAULT = "1GB"
TOKENS = 256  # of a pass: more make no product faster on a CPU, and begin earlier than some rows need
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)i?b?\s*", re.IGNORECASE)


def parse_memory(text: str | int | float) -> int:
    """Bytes that a text such as `500MB` or `2GB` means. Raises `BadOption`."""
    match = _SIZE.fullmatch(str(text))
    if match is None or float(match[1]) == 0:
        raise BadOption(f"'{text}' is no size of memory", hint="write 500MB or 2GB")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def rows_at_once(lm: LanguageModel, *, new: int, n: int, budget: int) -> int:
    """Rows of a pass over the last `new` positions of n, at least one."""
    return max(1, min(TOKENS // new, budget // row_bytes(lm, new=new, n=n)))


def row_bytes(lm: LanguageModel, *, new: int, n: int) -> int:
    """About what one row of such a pass holds at its fullest: stream, MLP, keys and values of one layer, and its logits."""
    anatomy, size = lm.anatomy, lm.dtype.itemsize
    heads = max((max(layer.n_heads, 1) * layer.d_head for layer in anatomy.layers), default=0) or anatomy.d_model
    stream = new * (8 * anatomy.d_model + 3 * _hidden(lm) + 3 * heads)
    eager = getattr(lm.model.config, "_attn_implementation", "") != "sdpa"
    scores = 3 * new * n * max((layer.n_heads for layer in anatomy.layers), default=1) if eager else new * n
    return size * (stream + 4 * n * heads + scores) + 4 * 6 * anatomy.d_vocab


def _hidden(lm: LanguageModel) -> int:
    """Width of the widest MLP; four times the stream's where it is not found."""
    try:
        return max(lm.width("mlp_post", i) for i in range(lm.anatomy.n_layers) if lm.anatomy.has("mlp_post", i))
    except (ValueError, SiteAbsent):
        return 4 * lm.anatomy.d_model
