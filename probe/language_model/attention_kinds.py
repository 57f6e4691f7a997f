"""Which of transformers' attention functions a model runs: chosen by its own method, or refused in one line."""

from __future__ import annotations

from typing import Any

from probe.errors import BadOption

KINDS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


def check_kind(kind: str | None) -> None:
    """Raises `BadOption` for a name that transformers does not have. (Kernels of the Hub are code, and are not fetched.)"""
    if kind is not None and kind not in KINDS:
        raise BadOption(f"unknown attention implementation '{kind}'", hint=f"one of {', '.join(KINDS)}")


def choose_kind(model: Any, kind: str | None, name: str) -> None:
    """Have a model run one kind of attention; None: its own choice. Raises `BadOption` where it is not installed, or none can
    be chosen."""
    if kind is None:
        return
    hint = "leave --attn-implementation out"
    try:
        model.set_attn_implementation(kind)
    except (ImportError, ValueError, RuntimeError) as error:
        why = str(error).strip().partition("\n")[0]
        raise BadOption(f"'{name}' cannot run {kind} here: {why}", hint=hint) from error
    if model.config._attn_implementation != kind:
        raise BadOption(f"'{name}' does not let its attention be chosen", hint=hint)
