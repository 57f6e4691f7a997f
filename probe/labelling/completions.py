"""The completions of a run's continuations as texts, put together from its tables: no model, no tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

COLUMNS = ("branch", "pos", "token", "text_start", "text_end")  # of `tokens`, which are needed
_FORK = ("arm", "step", "parent", "fork_pos", "draw_pos", "n_prompt", "edit")  # what makes the prefix of a continuation


class Completed(NamedTuple):
    """One continuation: its row of `branches`, the text of its prompt as the model saw it, and all that follows that."""

    row: Mapping[str, Any]
    prompt: str
    completion: str
    hidden: tuple[tuple[int, int], ...] = ()  # characters of the completion that are its end token


def completions(branches: pa.Table, tokens: pa.Table) -> Iterator[Completed]:
    """The continuations of one prompt, from its rows of `branches` and (with COLUMNS) of `tokens`, in order of branches.

    What all samples of an arm begin with is put together once.
    """
    own: dict[int, list[dict[str, Any]]] = {}
    rows = {int(row["branch"]): row for row in branches.sort_by("branch").to_pylist()}
    for token in tokens.select(list(COLUMNS)).sort_by([("branch", "ascending"), ("pos", "ascending")]).to_pylist():
        own.setdefault(int(token["branch"]), []).append(token)
    prefixes: dict[tuple[Any, ...], tuple[str, str]] = {}
    for row in rows.values():
        fork = tuple(row.get(name) for name in _FORK)
        if fork not in prefixes:
            before = [token for token in _sequence(row, rows, own) if token["pos"] <= row["draw_pos"]]
            prefixes[fork] = _split(before, row["n_prompt"], row["draw_pos"])
        prompt, begun = prefixes[fork]
        last = own[int(row["branch"])][-1] if row["stop_reason"] == "eos" and own.get(int(row["branch"])) else None
        hidden = ((last["text_start"] - len(prompt), last["text_end"] - len(prompt)),) if last else ()
        yield Completed(row, prompt, begun + row["text"], hidden)


def _sequence(row: Mapping[str, Any], rows: Mapping[int, Any], own: Mapping[int, list[Any]]) -> list[Any]:
    """All tokens of a continuation: its parent's before the fork, and its own."""
    there, parent = own.get(int(row["branch"]), []), int(row["parent"])
    if parent < 0 or row["fork_pos"] == 0:
        return there
    stem = _sequence(rows[parent], rows, own) if parent in rows else own.get(parent, [])
    return [token for token in stem if token["pos"] < row["fork_pos"]] + there


def _split(tokens: list[Any], n_prompt: int, end: int) -> tuple[str, str]:
    """The texts of positions [0, n_prompt) and [n_prompt, end). Several tokens can share a character: the first has it."""
    text, starts = "", {}
    for token in tokens:
        starts[token["pos"]] = token["text_start"]
        if token["pos"] < end and token["text_end"] > len(text):
            text += token["token"][len(text) - token["text_end"] :]
    text = text[: starts.get(end, len(text))]
    cut = starts.get(n_prompt, len(text))
    return text[:cut], text[cut:]
