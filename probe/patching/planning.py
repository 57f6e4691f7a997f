"""From what was asked of a sweep to its plan, and what it would take: everything is checked here, before the model runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from probe.errors import BadOption, SiteAbsent
from probe.interventions import Edit, parse_all
from probe.language_model.chat import Chat
from probe.patching.cells import Selection, cells_of
from probe.patching.metrics import check_metric
from probe.patching.pairs import COLUMNS, Pair, PairTexts, make_pair, read_pairs
from probe.patching.paths import path_groups
from probe.patching.rewind_pairs import PARTING, RewindPair, rewind_pair
from probe.patching.sources import check_source

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

DEFAULT = "1GB"
TOKENS = 256  # of a pass: more make no product faster on a CPU, and begin earlier than some rows need
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)i?b?\s*", re.IGNORECASE)
DIRECTIONS = ("denoise", "noise")
METHODS = ("exact", "attribution")
SAMPLE = 40  # cells that attribution runs too


@dataclass(frozen=True)
class PatchPlan:
    """All that decides a sweep's numbers."""

    pairs: tuple[Pair, ...]
    asked: Selection
    source: str
    direction: str
    metric: str
    memory: int
    edits: tuple[Edit, ...]
    seed: int
    arguments: dict[str, Any]
    method: str = "exact"
    ig: int = 0
    sample: int = 0
    path: str | None = None
    rewound: RewindPair | None = None


def prepare(
    lm: LanguageModel, *, clean: Any = None, corrupt: Any = None, answer: str | None = None, against: str | None = None,
    pairs: Iterable[Any] | Path = (), sites: str | Sequence[str] = "resid_pre", layers: str | int = "all",
    heads: str | int | None = None, positions: str | int = "all", by: str | Sequence[str] | None = None,
    source: str = "clean", direction: str | None = None, metric: str = "logit-diff", align: str | None = None,
    memory: str | int = DEFAULT, rewind: Any = None, edit: str | Iterable[str | Edit] = (), chat: bool = False,
    system: str | None = None, template_options: Mapping[str, Any] | None = None, allow_template_loss: bool = False,
    seed: int = 0, method: str = "exact", ig: int = 0, sample: int | None = None,
    path: str | None = None, measure_at: str | int | None = None,
) -> PatchPlan:  # fmt: skip
    """Check what is asked (see `patch`) and make the pairs. Raises as it does."""
    check_source(source)
    how = Chat(chat, system, template_options or {}, allow_template_loss)
    how.check()
    direction = direction or ("denoise" if source == "clean" else "noise")
    if direction not in DIRECTIONS:
        raise BadOption(f"unknown direction '{direction}'", hint="denoise or noise")
    asked = Selection(
        tuple([sites] if isinstance(sites, str) else sites), str(layers), None if heads is None else str(heads),
        str(positions), tuple(by.replace(" ", "").split(",")) if isinstance(by, str) else None if by is None else tuple(by),
    )  # fmt: skip
    _check_method(method, ig, sample, path, asked, source=source, direction=direction, metric=metric)
    rewound = None
    if rewind is not None:
        if clean is not None or corrupt is not None or pairs:
            raise BadOption("a rewind brings its own texts", hint="leave out --clean, --corrupt and --file")
        place = PARTING if measure_at is None else str(measure_at)
        rewound = rewind_pair(lm, rewind, answer=answer, against=against, align=align, measure_at=place)
        made: tuple[Pair, ...] = (rewound.pair,)
        asked = asked if asked.by is not None or path is not None else asked._replace(by=("step",))
    elif measure_at is not None:
        raise BadOption(
            "--measure-at is for the arms of a rewind", hint="add --from-rewind; else the last token is measured"
        )
    else:
        words = _words(clean, corrupt, answer, against, pairs)
        made = tuple(make_pair(lm, one, align=align, chat=how) for one in words)
    for pair in made:
        check_metric(metric, pair.target)
        if path is None:
            cells_of(lm, pair, asked, direction)
        else:
            path_groups(lm, pair, path, asked, direction)
        if ig and len(pair.clean) != len(pair.corrupt):
            raise BadOption("integrated gradients need texts of one length", hint="leave --ig out")
    edits = parse_all(lm, edit, seed=seed)
    arguments = {
        "pairs": [[*pair.names, *pair.answers] for pair in made], "sites": list(asked.sites), "layers": asked.layers,
        "heads": asked.heads, "positions": asked.positions, "by": None if asked.by is None else list(asked.by),
        "from": source, "direction": direction, "metric": metric, "align": align, **how.arguments(),
        "edits": [str(one) for one in edits], "seed": seed, "model": lm.name, "dtype": str(lm.dtype),
        "method": method, "ig": ig, "sample": sample, "path": path,
        "measure_at": None if rewound is None else rewound.measure_at,
    }  # fmt: skip
    sample = (SAMPLE if sample is None else sample) if method == "attribution" else 0
    return PatchPlan(
        made,
        asked,
        source,
        direction,
        metric,
        parse_memory(memory),
        edits,
        seed,
        arguments,
        method,
        ig,
        sample,
        path,
        rewound,
    )


def _check_method(
    method: str, ig: int, sample: int | None, path: str | None, asked: Selection, *, source: str, direction: str, metric: str
) -> None:  # fmt: skip
    """Raises `BadOption` where the ways of measuring do not go together."""
    if method not in METHODS:
        raise BadOption(f"unknown method '{method}'", hint=f"--method takes {' or '.join(METHODS)}")
    if ig < 0 or (sample or 0) < 0:
        raise BadOption("--ig and --sample count from 0", hint="--ig 8 averages 8 gradients")
    if method == "exact" and (ig or sample is not None):
        raise BadOption(f"{'--ig' if ig else '--sample'} is for gradients", hint="add --method attribution")
    if ig and source != "clean":
        raise BadOption("integrated gradients go from one text to the other", hint="leave --from or --ig out")
    if method == "attribution" and direction == "noise" and metric == "kl" and not ig:
        raise BadOption("KL has no slope at the clean run itself", hint="--direction denoise, or --ig 8")
    if path is not None and method == "attribution":
        raise BadOption("paths are patched exactly", hint="leave --method or --path out")
    if path is not None and asked[:4] != Selection()[:4]:
        raise BadOption("a path names its own places", hint="leave out --sites, --layers, --heads and --positions")


def _words(
    clean: Any, corrupt: Any, answer: str | None, against: str | None, pairs: Iterable[Any] | Path
) -> list[PairTexts]:
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
    return [PairTexts(clean, corrupt, answer, against)]


def _pair(one: Any) -> PairTexts:
    """A pair given in Python: a mapping, or a sequence of its texts."""
    found: list[Any] = [one.get(name) for name in COLUMNS] if isinstance(one, dict) else list(one)
    return PairTexts(*found)


ROW_BYTES = {"patches": 90, "prompts": 200, "tokens": 14, "patch_means": 60}


class Cost(NamedTuple):
    """Of one pair: cells, forwards (and backwards), bytes of the largest of them."""

    cells: int
    passes: int
    peak: int


def plan_patch(lm: LanguageModel, **what: Any) -> dict[str, Any]:
    """What `patch` would do; keywords as there. Runs nothing, writes nothing. Cells before the first difference need no
    pass; a model that cannot be entered in the middle takes more."""
    plan = prepare(lm, **what)
    cost = _attribution_cost if plan.method == "attribution" else _path_cost if plan.path else _exact_cost
    costs = [cost(lm, pair, plan) for pair in plan.pairs]
    cells = sum(one.cells for one in costs)
    tokens = sum(len(pair.clean) + len(pair.corrupt) for pair in plan.pairs)
    counts = {"patches": cells, "prompts": 2 * len(plan.pairs), "tokens": tokens}
    return {
        "model": lm.name, "pairs": len(plan.pairs), "direction": plan.direction, "metric": plan.metric, "cells": cells,
        "passes": sum(one.passes for one in costs) + plan.sample, "pass_memory_bytes": max(one.peak for one in costs),
        "tables": {name: {"rows": rows, "bytes": rows * ROW_BYTES[name]} for name, rows in counts.items()},
    }  # fmt: skip


def _exact_cost(lm: LanguageModel, pair: Pair, plan: PatchPlan) -> Cost:
    """Batches of cells, slice by slice."""
    n = len(pair.base(plan.direction))
    cells = forwards = peak = 0
    for part in cells_of(lm, pair, plan.asked, plan.direction):
        cells += len(part.locations)
        at, needed = 0, sorted(
            swap.positions[0] for swap in part.locations if plan.source != "clean" or swap.positions[-1] >= pair.first
        )  # fmt: skip
        while at < len(needed):
            new = n - needed[at]
            size = rows_at_once(lm, new=new, n=n, budget=plan.memory)
            peak = max(peak, min(size, len(needed) - at) * row_bytes(lm, new=new, n=n))
            at, forwards = at + size, forwards + 1
    return Cost(cells, forwards, peak)


def _attribution_cost(lm: LanguageModel, pair: Pair, plan: PatchPlan) -> Cost:
    """Two forwards and a backward, which keeps what every layer computed; for integrated gradients four forwards more, and
    both for each step."""
    n = len(pair.base(plan.direction))
    cells = sum(len(part.locations) for part in cells_of(lm, pair, plan.asked, plan.direction))
    return Cost(cells, 3 + (4 + 2 * plan.ig if plan.ig else 0), lm.anatomy.n_layers * row_bytes(lm, new=n, n=n))


def _path_cost(lm: LanguageModel, pair: Pair, plan: PatchPlan) -> Cost:
    """A batch of senders, and then a batch for each of their receivers."""
    assert plan.path is not None
    n = len(pair.base(plan.direction))
    size = rows_at_once(lm, new=n, n=n, budget=plan.memory)
    paths = forwards = rows = 0
    for send in path_groups(lm, pair, plan.path, plan.asked, plan.direction):
        paths += len(send.paths)
        senders = list(dict.fromkeys(sender for sender, _ in send.paths))
        for first in range(0, len(senders), size):
            some = set(senders[first : first + size])
            rows = max(rows, len(some))
            receivers = {receiver for sender, receiver in send.paths if sender in some and receiver.site != "logits"}
            forwards += 1 + len(receivers)
    return Cost(paths, forwards, rows * row_bytes(lm, new=n, n=n))


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
