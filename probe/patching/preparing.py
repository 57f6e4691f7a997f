"""From what was asked of a sweep to its plan: everything is checked here, before the model runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.errors import BadOption
from probe.interventions import Edit, parse_all
from probe.language_model.chat import Chat
from probe.patching.grid import Asked, slices
from probe.patching.memory import DEFAULT, parse_memory
from probe.patching.metrics import check_metric
from probe.patching.pairs import COLUMNS, Pair, Words, make_pair, read_pairs
from probe.patching.rewound import PARTING, Rewound, rewound_pair
from probe.patching.routes import sends
from probe.patching.sources import check_source

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

DIRECTIONS = ("denoise", "noise")
METHODS = ("exact", "attribution")
SAMPLE = 40  # cells that attribution runs too


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
    method: str = "exact"
    ig: int = 0
    sample: int = 0
    path: str | None = None
    rewound: Rewound | None = None


def prepare(
    lm: LanguageModel, *, clean: Any = None, corrupt: Any = None, answer: str | None = None, against: str | None = None,
    pairs: Iterable[Any] | Path = (), sites: str | Sequence[str] = "resid_pre", layers: str | int = "all",
    heads: str | int | None = None, positions: str | int = "all", by: str | Sequence[str] | None = None,
    source: str = "clean", direction: str | None = None, metric: str = "logit-diff", align: str | None = None,
    memory: str | int = DEFAULT, rewind: Any = None, edit: str | Iterable[str | Edit] = (), chat: bool = False,
    system: str | None = None, template_options: Mapping[str, Any] | None = None, allow_template_loss: bool = False,
    seed: int = 0, method: str = "exact", ig: int = 0, sample: int | None = None,
    path: str | None = None, measure_at: str | int | None = None,
) -> Plan:  # fmt: skip
    """Check what is asked (see `patch`) and make the pairs. Raises as it does."""
    check_source(source)
    how = Chat(chat, system, template_options or {}, allow_template_loss)
    how.check()
    direction = direction or ("denoise" if source == "clean" else "noise")
    if direction not in DIRECTIONS:
        raise BadOption(f"unknown direction '{direction}'", hint="denoise or noise")
    asked = Asked(
        tuple([sites] if isinstance(sites, str) else sites), str(layers), None if heads is None else str(heads),
        str(positions), tuple(by.replace(" ", "").split(",")) if isinstance(by, str) else None if by is None else tuple(by),
    )  # fmt: skip
    _check_method(method, ig, sample, path, asked, source=source, direction=direction, metric=metric)
    rewound = None
    if rewind is not None:
        if clean is not None or corrupt is not None or pairs:
            raise BadOption("a rewind brings its own texts", hint="leave out --clean, --corrupt and --file")
        place = PARTING if measure_at is None else str(measure_at)
        rewound = rewound_pair(lm, rewind, answer=answer, against=against, align=align, measure_at=place)
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
            slices(lm, pair, asked, direction)
        else:
            sends(lm, pair, path, asked, direction)
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
    return Plan(
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
    method: str, ig: int, sample: int | None, path: str | None, asked: Asked, *, source: str, direction: str, metric: str
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
    if path is not None and asked[:4] != Asked()[:4]:
        raise BadOption("a path names its own places", hint="leave out --sites, --layers, --heads and --positions")


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
