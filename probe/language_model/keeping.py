"""Models that stay loaded in this process, each lent once and only while its files are what they were. Loads none itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from probe.language_model.checkpoint import Checkpoint
from probe.language_model.names import Named, Placement

if TYPE_CHECKING:
    from probe.language_model.model import LanguageModel

Stamps = dict[str, tuple[int, int, int, int]]


class LoadedFrom(NamedTuple):
    """What a model was loaded from, and how; `found` is None for random weights."""

    named: Named
    found: Checkpoint | None
    placement: Placement
    allow_pickle: bool


class Kept(NamedTuple):
    """A model that stays loaded, its files as they were before they were read, and what was warned of meanwhile."""

    origin: LoadedFrom
    lm: LanguageModel
    stamps: Stamps
    warned: list[warnings.WarningMessage]


_KEPT: list[Kept] = []
_STAYS = [False]


@contextmanager
def staying() -> Iterator[list[Kept]]:
    """Models that are loaded in this block stay; it gives all that do. What is loaded later, or in a fork of this process,
    is one of them where it is the same."""
    _STAYS[0] = True
    try:
        yield _KEPT
    finally:
        _STAYS[0] = False


def loaded(origin: LoadedFrom, load: Callable[[], LanguageModel]) -> LanguageModel:
    """The model that stays of this origin, with the warnings that came with it, or else what `load` gives.

    A model is lent once: who asks again, to compare it with itself, has two.
    """
    kept = next((one for one in _KEPT if one.origin == origin), None)
    if kept is not None:
        _KEPT.remove(kept)
        if kept.stamps == _stamps(origin):
            if _STAYS[0]:
                _KEPT.append(kept)
            for one in kept.warned:
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
            return kept.lm
    if not _STAYS[0]:
        return load()
    stamps = _stamps(origin)
    with warnings.catch_warnings(record=True) as warned:
        lm = load()
    _KEPT.append(Kept(origin, lm, stamps, warned))
    return lm


def _stamps(origin: LoadedFrom) -> Stamps:
    """Size, times and inode of each file that a model's weights, config and tokenizer can be read from: no program can set the
    last time back."""
    if origin.found is None:
        return {}
    folder, gguf = origin.found.directory, origin.found.gguf
    files: list[Path] = [*folder.glob("*"), *folder.glob("*/*.jinja"), *([gguf] if gguf else [])]
    stats = {str(path): path.stat() for path in files if path.is_file()}
    return {name: (s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for name, s in stats.items()}
