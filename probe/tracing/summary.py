"""The totals of a trace, from its tables alone."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SHOWN = 8
TEXTS = 100  # of what was generated, in the summary; the table has all
_PARTS = ("completion", "prompt", "template")  # in the order in which they are shown
_NUMBERS = ("segment", "template", "logprob", "entropy")
_SHOWN_COLUMNS = ("prompt_id", "pos", "token_id", "token", "surprisal", "rank", "top_ids")

Read = Callable[[str, Sequence[str]], Iterable[pa.Table]]


def summarize(read: Read, *, expected: Callable[[int], str], shown: Callable[[int, str], str]) -> dict[str, Any]:
    """First what was asked for: what was generated, or the prompt; a chat template's own words apart. Then the whole text.

    `parts` are in that order, each with its log-prob (nats), perplexity, bits a token and mean entropy over its scored
    positions, as the whole text has them too; `most_surprising` are tokens of the first part; `completions` are texts of the
    first prompts. read(table, columns) gives the rows in pieces, in any order: one at a time is held, for there may be more
    than memory holds. expected(id) is the text of a token that was not chosen, shown(id, piece) that of one in the text.
    """
    whole, parts = _Totals(), defaultdict[str, _Totals](_Totals)
    for tokens in read("tokens", (*_NUMBERS, *_SHOWN_COLUMNS)):
        whole.add(tokens)
        for name, mask in _masks(tokens).items():
            parts[name].add(tokens.filter(mask))
    there = {name: parts[name] for name in _PARTS if parts[name].rows}
    return {
        "parts": {name: part.totals() for name, part in there.items()},
        **_prompts(read),
        **_transcripts(read),
        "generated": parts["completion"].rows,
        **whole.totals(),
        "most_surprising": _shown(next(iter(there.values()), whole).top, expected, shown),
    }


def _prompts(read: Read) -> dict[str, Any]:
    """What the table `prompts` says: how many, how many failed, why they stopped, and the first texts."""
    rows, failed, reasons, first = 0, 0, Counter[str](), None
    for prompts in read("prompts", ("prompt_id", "completion", "stop_reason", "error")):
        rows += prompts.num_rows
        failed += pc.sum(pc.not_equal(prompts["error"], "")).as_py() or 0
        reasons.update(reason for reason in prompts["stop_reason"].to_pylist() if reason)
        texts = prompts.select(["prompt_id", "completion"])
        first = texts if first is None else pa.concat_tables([first, texts])
        first = first.sort_by("prompt_id").slice(0, TEXTS)
    texts = [] if first is None else first.to_pylist()
    return {
        "completions": [
            {"prompt_id": row["prompt_id"], "text": row["completion"]} for row in texts if row["completion"] is not None
        ],
        "prompts": rows,
        "errors": failed,
        "stop_reasons": dict(sorted(reasons.items())),
    }


def _transcripts(read: Read) -> dict[str, Any]:
    """Of the generations that came with their prompts: how far this model would have written them, where their ids are others
    than their texts', and what was left out of how many. Nothing where there is none."""
    scored, nats, top, rare, differ, left_out, n = 0, 0.0, 0, 0, list[int](), Counter[str](), 0
    names = ("prompt_id", "scored", "mean_logprob", "top1_agreement", "below_1pct", "differs_at", "left_out")
    for prompts in read("prompts", names):
        for row in prompts.filter(pc.is_valid(prompts["left_out"])).to_pylist():
            n += 1
            differ += [row["prompt_id"]] if row["differs_at"] is not None else []
            left_out.update(one for one in row["left_out"].split("; ") if one)
            if row["mean_logprob"] is not None:
                scored += row["scored"]
                nats += row["mean_logprob"] * row["scored"]
                top += round(row["top1_agreement"] * row["scored"])
                rare += round(row["below_1pct"] * row["scored"])
    if not n:
        return {}
    shares = {"mean_logprob": nats, "top1_agreement": top, "below_1pct": rare}
    return {
        "transcripts": {
            "n": n, "tokens": scored, **{name: value / scored if scored else None for name, value in shares.items()},
            "tokens_below_1pct": rare, "ids_differ": len(differ), "ids_differ_in": sorted(differ)[:TEXTS],
            "left_out": dict(sorted(left_out.items())),
        }
    }  # fmt: skip


def _masks(tokens: pa.Table) -> dict[str, pa.ChunkedArray]:
    """Which tokens are of each part."""
    written = pc.equal(tokens["segment"].cast(pa.string()), "completion")
    template = pc.fill_null(tokens["template"], False)
    return {"completion": written, "prompt": pc.invert(pc.or_(written, template)), "template": template}


class ExactSum:
    """The sum of float32 values that come in pieces, rounded once: the same however they are cut, in any order.

    Those of one exponent are multiples of one power of two: float64 adds 2**29 of them exactly.
    """

    _ZERO = 256  # the bin of exponent 0; those of float32 go from -148 to 128

    def __init__(self) -> None:
        self.count = 0
        self._bins = np.zeros(2 * self._ZERO)
        self._infinite = 0.0

    def add(self, values: np.ndarray) -> None:
        finite = np.isfinite(values)
        self.count += len(values)
        self._infinite += float(values[~finite].sum())
        mantissas, exponents = np.frexp(values[finite].astype(np.float64))
        self._bins += np.bincount(exponents + self._ZERO, weights=mantissas, minlength=2 * self._ZERO)

    def total(self) -> float:
        return math.fsum(np.ldexp(self._bins, np.arange(-self._ZERO, self._ZERO))) + self._infinite

    def mean(self) -> float:
        return self.total() / self.count if self.count else math.nan


class _Totals:
    """The totals of some tokens, and the most surprising of them, while they come in."""

    def __init__(self) -> None:
        self.rows = 0
        self.top: pa.Table | None = None
        self._logprob, self._entropy = ExactSum(), ExactSum()

    def add(self, tokens: pa.Table) -> None:
        self.rows += tokens.num_rows
        for name, into in (("logprob", self._logprob), ("entropy", self._entropy)):
            into.add(tokens[name].drop_null().to_numpy())
        rows = tokens.select(list(_SHOWN_COLUMNS))
        self.top = most_surprising(rows if self.top is None else pa.concat_tables([self.top, rows]))

    def totals(self) -> dict[str, Any]:
        scored, mean = self._logprob.count, self._logprob.mean()
        return {
            "tokens": self.rows,
            "scored": scored,
            "logprob": _number(self._logprob.total() if scored else math.nan),
            "perplexity": _number(math.exp(-mean) if -mean < 700 else math.inf),
            "bits_per_token": _number(-mean / math.log(2)),
            "mean_entropy": _number(self._entropy.mean() if scored else math.nan),
        }


def most_surprising(tokens: pa.Table, shown: int = SHOWN) -> pa.Table:
    """The `shown` rows of `tokens` with the highest surprisal, highest first; ties by position."""
    scored = tokens.filter(pc.is_valid(tokens["surprisal"]))
    order = [("surprisal", "descending"), ("prompt_id", "ascending"), ("pos", "ascending")]
    return scored.sort_by(order).slice(0, shown)


def _shown(top: pa.Table | None, expected: Callable[[int], str], shown: Callable[[int, str], str]) -> list[dict[str, Any]]:
    return [
        {
            "prompt_id": row["prompt_id"], "pos": row["pos"], "token": shown(row["token_id"], row["token"]),
            "surprisal": _number(row["surprisal"]), "rank": row["rank"],
            "expected": expected(row["top_ids"][0]) if row["top_ids"] else "",
        }
        for row in ([] if top is None else top.to_pylist())
    ]  # fmt: skip


def _number(value: float) -> float | None:
    """JSON has no infinity and no NaN: null stands for both."""
    return value if math.isfinite(value) else None
