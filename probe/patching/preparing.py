"""From what was asked of a sweep to its plan: everything is checked here, before the model runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.errors import BadOption
from probe.interventions import Edit, parse_all
from probe.patching.grid import Asked, slices
from probe.patching.memory import DEFAULT, parse_memory, row_bytes, rows_at_once
from probe.patching.metrics import check_metric
from probe.patching.pairs import COLUMNS, Pair, Words, make_pair, read_pairs
from probe.patching.rewound import rewound_pair
from probe.patching.sources import check_source

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

DIRECTIONS = ("denoise", "noise")
ROW_BYTES = {"patches": 90, "prompts": 200, "tokens": 14, "patch_means": 60}


@dataclass(frozen=True)
class Plan:
    """All that decides a sweep's numbers."""

    pairs: tuple[Pair, ...]
    asked: Asked
    source: str
    direction: str
    metric: str
    memory: int
    edits: tuple[Edit, ...]
    seed: int
    arguments: dict[str, Any]


def prepare(
    lm: LanguageModel, *, clean: Any = None, corrupt: Any = None, answer: str | None = None, against: str | None = None,
    pairs: Iterable[Any] | Path = (), sites: str | Sequence[str] = "resid_pre", layers: str | int = "all",
    heads: str | int | None = None, positions: str | int = "all", by: str | Sequence[str] | None = None,
    source: str = "clean", direction: str | None = None, metric: str = "logit-diff", align: str | None = None,
    memory: str | int = DEFAULT,
    rewind: Any = None, edit: str | Iterable[str | Edit] = (), chat: bool = False, system: str | None = None,
    seed: int = 0,
) -> Plan:  # fmt: skip
    """Check what is asked (see `patch_sweep`) and make the pairs. Raises as it does."""
    check_source(source)
    direction = direction or ("denoise" if source == "clean" else "noise")
    if direction not in DIRECTIONS:
        raise BadOption(f"unknown direction '{direction}'", hint="denoise or noise")
    asked = Asked(
        tuple([sites] if isinstance(sites, str) else sites), str(layers), None if heads is None else str(heads),
        str(positions), tuple(by.replace(" ", "").split(",")) if isinstance(by, str) else None if by is None else tuple(by),
    )  # fmt: skip
    if rewind is not None:
        if clean is not None or corrupt is not None or pairs:
            raise BadOption("a rewind brings its own texts", hint="leave out --clean, --corrupt and --file")
        made: tuple[Pair, ...] = (rewound_pair(lm, rewind, answer=answer, against=against, align=align),)
        asked = asked if asked.by is not None else asked._replace(by=("step",))
    else:
        words = _words(clean, corrupt, answer, against, pairs)
        made = tuple(make_pair(lm, one, align=align, chat=chat, system=system) for one in words)
    for pair in made:
        check_metric(metric, pair.target)
        slices(lm, pair, asked, direction)
    edits = parse_all(lm, edit, seed=seed)
    arguments = {
        "pairs": [[*pair.names, *pair.answers] for pair in made], "sites": list(asked.sites), "layers": asked.layers,
        "heads": asked.heads, "positions": asked.positions, "by": None if asked.by is None else list(asked.by),
        "from": source, "direction": direction, "metric": metric, "align": align, "chat": chat, "system": system,
        "edits": [str(one) for one in edits], "seed": seed, "model": lm.name, "dtype": str(lm.dtype),
    }  # fmt: skip
    return Plan(made, asked, source, direction, metric, parse_memory(memory), edits, seed, arguments)


def plan_patch(lm: LanguageModel, **what: Any) -> dict[str, Any]:
    """What `patch_sweep` would do; keywords as there. Runs nothing, writes nothing. Cells before the first difference need no
    pass; a model that cannot be entered in the middle takes more."""
    plan = prepare(lm, **what)
    cells = forwards = tokens = peak = 0
    for pair in plan.pairs:
        n = len(pair.base(plan.direction))
        tokens += len(pair.clean) + len(pair.corrupt)
        for part in slices(lm, pair, plan.asked, plan.direction):
            cells += len(part.swaps)
            at, needed = 0, sorted(
                swap.positions[0] for swap in part.swaps if plan.source != "clean" or swap.positions[-1] >= pair.first
            )  # fmt: skip
            while at < len(needed):
                new = n - needed[at]
                size = rows_at_once(lm, new=new, n=n, budget=plan.memory)
                peak = max(peak, min(size, len(needed) - at) * row_bytes(lm, new=new, n=n))
                at, forwards = at + size, forwards + 1
    counts = {"patches": cells, "prompts": 2 * len(plan.pairs), "tokens": tokens}
    return {
        "model": lm.name, "pairs": len(plan.pairs), "direction": plan.direction, "metric": plan.metric, "cells": cells,
        "passes": forwards, "pass_memory_bytes": peak,
        "tables": {name: {"rows": rows, "bytes": rows * ROW_BYTES[name]} for name, rows in counts.items()},
    }  # fmt: skip


def _words(
    clean: Any, corrupt: Any, answer: str | None, against: str | None, pairs: Iterable[Any] | Path
) -> list[Words]:
    given = read_pairs(pairs) if isinstance(pairs, Path) else [_pair(one) for one in pairs]
    if given:
        if clean is not None or corrupt is not None:
            raise BadOption("pairs were given twice", hint="either --file, or --clean and --corrupt")
        return [one._replace(answer=one.answer or answer or "", against=one.against or against) for one in given]
    missing = [
        f"--{name}" for name, value in (("clean", clean), ("corrupt", corrupt), ("answer", answer)) if value is None
    ]
    if missing:
        raise BadOption(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing",
            hint="give --clean TEXT --corrupt TEXT --answer ' Mary' --against ' John', or --file PAIRS.jsonl",
        )
    assert answer is not None
    return [Words(clean, corrupt, answer, against)]


def _pair(one: Any) -> Words:
    """A pair given in Python: a mapping, or a sequence of its texts."""
    found: list[Any] = [one.get(name) for name in COLUMNS] if isinstance(one, dict) else list(one)
    return Words(*found)
