"""The path of single tokens through the sampler, from what a read found to rows and a summary. Samples nothing anew."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from probe.decoding import Sampling
from probe.decoding.stages import ORDERS, Token, candidate_columns, check_order, race, stage_columns, stages
from probe.errors import BadOption, OutOfRange
from probe.sites import Positions, parse_where
from probe.store import Writer
from probe.texts.sequences import TokenSequence

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

MOST = 256  # tokens explained in one text
SHOWN = 8  # of them in the summary


class ExplainedTokens(NamedTuple):
    """Which tokens are explained, and in whose orders; the first is what happened."""

    positions: Positions
    orders: tuple[str, ...]


def explanation(at: str | int | None, order: str | None, sampling: Sampling) -> ExplainedTokens | None:
    """Check what is asked: positions as in a place (`7`, `-1`, `completion`), and an engine's order or `all`.

    Raises `BadPlace`, `BadOption`.
    """
    if at is None:
        if order is not None:
            raise BadOption("an order needs a token to explain", hint="add --explain POS, as in --explain last")
        return None
    if order not in (None, "all"):
        check_order(order)
    if order not in (None, "hf") and sampling.temperature == 0.0:
        raise BadOption("greedy decoding takes the top token in every order", hint="add --temperature 1, or leave out --order")
    others = tuple(ORDERS) if order == "all" else () if order is None else (order,)
    return ExplainedTokens(parse_where(str(at)), tuple(dict.fromkeys(("hf", *others))))


def explain_sequence(
    lm: LanguageModel, sequence: TokenSequence, explain: ExplainedTokens, sampling: Sampling, logits: Callable[[Any], Tensor],
    writer: Writer,
) -> None:  # fmt: skip
    """Write `stages` and `candidates` of the tokens asked for. logits(rows) are those after some positions.

    A generated token's race is run again with its own noise. A token of the prompt was not drawn: it has no noise.
    """
    ids = torch.tensor(sequence.ids)
    for pos in _positions(sequence, explain.positions):
        row = logits(slice(pos - 1, pos))[0].cpu()
        for order in explain.orders:
            found = stages(row, ids[:pos], sampling, order)
            noise, chosen = None, None
            if pos >= sequence.n_prompt and sequence.given is None:  # else nobody drew it here
                noise, chosen = race(found[-1], sampling, sample=sequence.prompt.prompt_id, step=pos - sequence.n_prompt)
            about = Token(pos, sequence.ids[pos], order, noise, chosen)
            keys = {"prompt_id": sequence.prompt.prompt_id, "branch": 0}
            writer.write("stages", {**keys, **stage_columns(found, about)})
            writer.write("candidates", {**keys, **candidate_columns(found, about, lm.token_text)})
            if order == "hf" and chosen not in (None, sequence.ids[pos]):
                writer.warn(f"the token at {pos} is not the one that these logits choose: decoding rounded otherwise")


def _positions(sequence: TokenSequence, positions: Positions) -> list[int]:
    """Positions of one sequence, the first one left out if there are others."""
    found = sequence.positions(positions)
    if found == [0]:
        raise OutOfRange("nothing predicted the token at 0, the first of the text", hint="explain position 1 or later")
    found = [pos for pos in found if pos > 0]
    if len(found) > MOST:
        raise BadOption(f"{len(found)} tokens are to be explained", hint=f"{MOST} at most; name fewer positions")
    return found


def explained(tables: Callable[[str], pa.Table]) -> list[dict[str, Any]]:
    """The first few tokens' paths as plain values: one entry a token and order, with its stages and candidates."""
    found = {name: tables(name).to_pylist() for name in ("stages", "candidates")}
    shown = list(dict.fromkeys((row["prompt_id"], row["pos"]) for row in found["stages"]))[:SHOWN]
    stage_rows, rivals = ([row for row in rows if (row["prompt_id"], row["pos"]) in shown] for rows in found.values())
    entries: dict[tuple[int, int, str], dict[str, Any]] = {}
    for row in stage_rows:
        entry = entries.setdefault(
            (row["prompt_id"], row["pos"], row["order"]),
            {key: row[key] for key in ("prompt_id", "pos", "order", "token_id")}
            | {"token": "", "chosen": None, "stages": [], "candidates": []},
        )
        entry["stages"].append(_without(row))
    for row in sorted(rivals, key=lambda row: (row["rank"], row["token_id"])):
        entry = entries[row["prompt_id"], row["pos"], row["order"]]
        entry["candidates"].append(_without(row))
        if row["actual"]:
            entry["token"] = row["token"]
        if row["chosen"]:
            entry["chosen"] = row["token"]
    order = {name: i for i, name in enumerate(ORDERS)}
    return [entries[key] for key in sorted(entries, key=lambda key: (key[0], key[1], order[key[2]]))]


def _without(row: dict[str, Any]) -> dict[str, Any]:
    """A row without the columns that its entry says once."""
    return {name: value for name, value in row.items() if name not in ("run_id", "prompt_id", "branch", "pos", "order")}
