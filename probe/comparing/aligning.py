"""One text in the tokens of two models, between the boundaries that both have; two runs as far as they say the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from probe.errors import RunError
from probe.store import Run

Span = tuple[int, int]


class Tokens(NamedTuple):
    """One model's tokens of a text: character spans that tile it, log-probs (NaN where nothing predicted a token)."""

    spans: Sequence[Span]
    logprobs: Sequence[float]
    whole: Callable[[int], bool]  # whether no character is torn at the end of token i


def segment_columns(text: str, a: Tokens, b: Tokens) -> dict[str, Any]:
    """Columns of `segments`: from each boundary that both tokenizations have to the next, log-probs summed on both sides.

    What comes before the first boundary after an unscored token is left out. No rows if they share no boundary.
    """
    ends_a, ends_b = _boundaries(text, a), _boundaries(text, b)
    start = max(_scored_from(a), _scored_from(b))
    shared = sorted(end for end in ends_a.keys() & ends_b.keys() if end >= start and end <= len(text))
    if start == 0:
        shared = [0, *shared]
        ends_a[0], ends_b[0] = _last_unscored(a), _last_unscored(b)
    rows = []
    for i, (low, high) in enumerate(pairwise(dict.fromkeys(shared))):
        row: dict[str, Any] = {"segment": i, "text_start": low, "text_end": high, "text": text[low:high]}
        for name, one, ends in (("a", a, ends_a), ("b", b, ends_b)):
            first, last = ends[low] + 1, ends[high] + 1
            row[f"tokens_{name}"] = last - first
            row[f"logprob_{name}"] = float(np.sum(np.asarray(one.logprobs[first:last], np.float64)))
        rows.append({**row, "difference": row["logprob_b"] - row["logprob_a"]})
    names = ("segment", "text_start", "text_end", "text", "tokens_a", "tokens_b", "logprob_a", "logprob_b", "difference")
    return {name: [row[name] for row in rows] for name in names}


def ascii_end(text: str, spans: Sequence[Span]) -> Callable[[int], bool]:
    """A test of ends where the ids cannot be decoded again: a character of one byte is never torn."""
    return lambda i: spans[i][1] > 0 and text[spans[i][1] - 1].isascii()


def _boundaries(text: str, one: Tokens) -> dict[int, int]:
    """Character at which a token ends -> the last token that ends there, where no character is torn."""
    ends = {end: i for i, (_, end) in enumerate(one.spans)}
    return {end: i for end, i in ends.items() if i == len(one.spans) - 1 or (end <= len(text) and one.whole(i))}


def _last_unscored(one: Tokens) -> int:
    return max((i for i, logprob in enumerate(one.logprobs) if np.isnan(logprob)), default=-1)


def _scored_from(one: Tokens) -> int:
    """The character from which on every token has a log-prob."""
    last = _last_unscored(one)
    return one.spans[last][1] if last >= 0 else 0


COLUMNS = ["pos", "token_id", "token", "text_start", "text_end", "logprob", "entropy", "rank", "top_ids"]


def one_tokenizer(a: Run, b: Run) -> bool:
    """Whether the runs' models have the same tokenizer."""
    known = [(run.manifest.get("model") or {}).get("tokenizer_sha256") for run in (a, b)]
    return known[0] is not None and known[0] == known[1]


def pairs(a: Run, b: Run) -> list[tuple[int, int]]:
    """Prompts of A and B with the same text, each of B's used once. Raises `RunError` if there are none."""
    for run in (a, b):
        if not {"prompts", "tokens"} <= set(run.tables):
            raise RunError(f"the run '{run.run_id}' has no tokens", hint="compare runs of probe trace")
    texts_a, texts_b = ([(int(p), t) for p, t in zip(r.prompts["prompt_id"], r.prompts["text"], strict=True)] for r in (a, b))
    waiting: dict[str, list[int]] = {}
    for prompt, text in texts_b:
        waiting.setdefault(text, []).append(prompt)
    found = [(prompt, waiting[text].pop(0)) for prompt, text in texts_a if waiting.get(text)]
    if not found:
        raise RunError("the two runs have no prompt in common", hint="trace the same text with both models")
    return found


def by_tokens(a: Run, b: Run, prompt_a: int, prompt_b: int) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Columns of `comparison` up to where the ids part, and the parting: its position and the token of each."""
    x, y = (_rows(run, prompt) for run, prompt in ((a, prompt_a), (b, prompt_b)))
    ids_a, ids_b = (table["token_id"].to_numpy() for table in (x, y))
    n = min(len(ids_a), len(ids_b))
    differ = np.flatnonzero(ids_a[:n] != ids_b[:n])
    n = int(differ[0]) if len(differ) else n
    if n < 2:
        raise RunError("the two texts part at their first token", hint="compare runs of one prompt, encoded alike")
    parting = None
    if len(differ):
        parting = {"pos": n, "token_a": x["token"][n].as_py(), "token_b": y["token"][n].as_py()}
    x, y = x.slice(0, n), y.slice(0, n)
    columns: dict[str, Any] = {name: x[name] for name in ("pos", "token_id", "token", "text_start", "text_end")}
    for name, table in (("a", x), ("b", y)):
        columns |= {f"{key}_{name}": table[key] for key in ("logprob", "entropy", "rank")}
        columns[f"top_{name}"] = [ids[0] if ids else None for ids in table["top_ids"].to_pylist()]
    columns["difference"] = _minus(y["logprob"], x["logprob"])
    tops = zip(columns["top_a"], columns["top_b"], strict=True)
    columns["same_top"] = [None if p is None or q is None else p == q for p, q in tops]
    return columns, parting


def by_characters(a: Run, b: Run, prompt_a: int, prompt_b: int, prompt: str) -> dict[str, Any]:
    """Columns of `segments` up to the character where the two texts part, counted from the prompt's beginning."""
    sides = [_from_prompt(run, number, prompt) for run, number in ((a, prompt_a), (b, prompt_b))]
    text_a, text_b = (text for text, _ in sides)
    n = next((i for i, (p, q) in enumerate(zip(text_a, text_b, strict=False)) if p != q), min(len(text_a), len(text_b)))
    tokens = []
    for text, table in sides:
        spans = list(zip(table["text_start"].to_pylist(), table["text_end"].to_pylist(), strict=True))
        logprobs = [np.nan if value is None else value for value in table["logprob"].to_pylist()]
        tokens.append(Tokens(spans, logprobs, ascii_end(text, spans)))
    return segment_columns(text_a[:n], *tokens)


def _from_prompt(run: Run, number: int, prompt: str) -> tuple[str, pa.Table]:
    """The decoded text from the prompt's first character on, and its tokens with spans in it."""
    text, rows = run.text(number), _rows(run, number)
    shift = text.find(prompt)
    if shift < 0:
        raise RunError(f"the text of '{run.run_id}' does not hold its prompt as given", hint="trace it without --chat")
    starts = rows["text_start"].to_numpy()
    rows = rows.filter(pa.array((starts >= shift) & (rows["text_end"].to_numpy() > shift)))
    for name in ("text_start", "text_end"):
        moved = pa.array(rows[name].to_numpy() - shift)
        rows = rows.set_column(rows.column_names.index(name), name, moved)
    return text[shift:], rows


def _rows(run: Run, prompt: int) -> pa.Table:
    return run.scan("tokens", columns=COLUMNS, prompt_id=prompt, branch=0).sort_by("pos")


def _minus(x: pa.ChunkedArray, y: pa.ChunkedArray) -> list[float | None]:
    return [None if p is None or q is None else p - q for p, q in zip(x.to_pylist(), y.to_pylist(), strict=True)]
