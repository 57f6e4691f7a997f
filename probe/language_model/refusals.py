"""What the libraries say about a checkpoint that they cannot load, in our words. Knows their errors, not the files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from probe.errors import BadModel, ProbeError

# what transformers, torch and a checkpoint's own code raise about files and configs that don't fit together
_REFUSALS = (OSError, ValueError, RuntimeError, KeyError, ImportError, TypeError, AttributeError, NotImplementedError)


@contextmanager
def stated(name: str) -> Iterator[None]:
    """What the libraries say about a checkpoint that does not fit becomes one line and a hint."""
    try:
        yield
    except ProbeError:
        raise
    except _REFUSALS as error:
        said = " ".join(str(error).split()) or type(error).__name__
        if "trust_remote_code" in said:
            hint = "if you trust that code: --trust-remote-code (in Python trust_remote_code=True)"
            raise BadModel(f"'{name}' comes with code of its own", hint=hint) from error
        if "out of memory" in said.lower():
            raise BadModel(
                f"'{name}' does not fit into memory", hint="try --dtype bfloat16 or --device-map auto"
            ) from error
        if isinstance(error, ImportError):
            raise BadModel(
                f"'{name}' needs a package that is not installed: {said[:200]}", hint="install it"
            ) from error
        first = said if len(said) <= 200 else f"{said[:199]}…"
        raise BadModel(
            f"'{name}' cannot be loaded: {first}", hint="is it a causal language model that this transformers knows?"
        ) from error
