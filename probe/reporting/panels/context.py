"""What the panels of one prompt are made from: its rows of the run's tables, and token ids as text. Makes no panel."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from probe.errors import ProbeError
from probe.language_model import tokenizer_of
from probe.language_model.pieces import alone, spelled
from probe.reporting.views import ShownColumn
from probe.store import Run
from probe.store.reading import filtered
from probe.tables import TABLES

Made = TypeVar("Made")

HELD = 500_000  # rows of a table that are read at once, for all prompts

Head = tuple[int, int | None]
"""Layer and head; None is every head of the layer."""


class TokenTexts:
    """Token ids of a vocabulary as text, by the tokenizer of the model that a manifest names, if that is on this machine.

    `missing` says why it is not to be had; then a token is `#1234`. Nothing is loaded before the first id is asked for.
    """

    def __init__(self, made: Any) -> None:
        self._made = made or {}
        self._texts: dict[int, str] = {}
        self.missing = ""

    @cached_property
    def tokenizer(self) -> Any:
        """None where it is not to be had."""
        try:
            return tokenizer_of(self._made)
        except ProbeError as error:
            self.missing = error.message
            return None

    def __call__(self, token_id: int) -> str:
        """A token as it reads in the middle of a text, a part of a character as its bytes: `<0xC3>`."""
        token_id = int(token_id)
        if token_id not in self._texts:
            tokenizer = self.tokenizer
            text = f"#{token_id}" if tokenizer is None else spelled(tokenizer, token_id) or alone(tokenizer, token_id)
            self._texts[token_id] = text
        return self._texts[token_id]

    def bytes_of(self, token_id: int) -> str | None:
        """The bytes of a token that holds a part of a character; None for one of whole characters, or without a tokenizer."""
        return None if self.tokenizer is None else spelled(self.tokenizer, int(token_id))

    def bytes_in_place_of(self, texts: Iterable[str | None], token_ids: Iterable[int]) -> list[str | None]:
        """Bytes of the tokens that hold a part of a character, whose piece of the text is empty or lost; None for others."""
        pairs = zip(texts, token_ids, strict=True)
        return [None if text and text.isascii() else self.bytes_of(token_id) for text, token_id in pairs]

    def of_lists(self, lists: Iterable[Sequence[int] | None]) -> list[list[str] | None]:
        """Every list of ids as a list of texts; None stays None."""
        return [None if ids is None else [self(i) for i in ids] for ids in lists]

    @property
    def note(self) -> str:
        """What a reader must know of tokens that were asked for; empty if they have their texts."""
        return f"Tokens stand as their ids: {self.missing}." if self.missing else ""


@dataclass(frozen=True)
class Tables:
    """The tables of a run, read once where a panel shows all of it, whatever the prompt: the frame is the same object then,
    and stands in a page once."""

    run: Run
    _whole: dict[str, pd.DataFrame] = field(default_factory=dict)
    _made: dict[Hashable, Any] = field(default_factory=dict)

    def whole(self, name: str) -> pd.DataFrame:
        """All rows of a table; to be left as it is."""
        if name not in self._whole:
            self._whole[name] = self.run.scan(name).to_pandas()
        return self._whole[name]

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` gives, made once: a part of a table that several prompts show, a tree of the whole run."""
        if key not in self._made:
            self._made[key] = make()
        found: Made = self._made[key]
        return found

    def held(self, name: str) -> bool:
        """Whether a table is so small that it is read once, for all prompts."""
        return not TABLES[name].large and self.run.manifest["tables"][name]["rows"] <= HELD

    def of_prompt(self, name: str, prompt_id: int) -> pa.Table:
        """The rows of one prompt. A table that is not large is read once, for all prompts."""
        if not self.held(name):
            return self.run.scan(name, prompt_id=prompt_id)
        table, places = self.once(("by prompt", name), lambda: _by_prompt(self.run.scan(name)))
        return table.slice(*places.get(prompt_id, (0, 0)))

    def texts(self, made: dict[str, Any] | None) -> TokenTexts:
        """Token ids of the model that a part of the manifest names as text; the tokenizer is loaded once."""
        about = made or {}
        return self.once(("texts", about.get("name"), about.get("tokenizer_sha256")), lambda: TokenTexts(about))

    def original(self, prompt_id: int) -> tuple[int, pd.DataFrame]:
        """The branch that the strip shows, which is the first that there is, and its rows of `tokens` in order of position."""
        if "tokens" not in self.run.tables:
            return 0, pd.DataFrame()
        own = self.of_prompt("tokens", prompt_id)
        branch = pc.min(own["branch"]).as_py() or 0
        found = filtered(own, {"branch": branch}).sort_by("pos")
        return branch, found.to_pandas() if found.num_rows else pd.DataFrame()


@dataclass(frozen=True)
class Context:
    """One prompt of a run, as the functions in `PANELS` see it.

    branch: the sequence that the strip shows (the original of a rewind). tokens: its rows of the table `tokens`, of none if
    the run has no such table or the prompt failed. heads: those asked for; None leaves the choice to the panel.
    """

    tables: Tables
    prompt: dict[str, Any] = field(repr=False)  # its row of `prompts`
    branch: int
    tokens: pd.DataFrame = field(repr=False)
    text_of: TokenTexts
    heads: tuple[Head, ...] | None = None

    @property
    def run(self) -> Run:
        return self.tables.run

    @property
    def prompt_id(self) -> int:
        return int(self.prompt["prompt_id"])

    @property
    def summary(self) -> dict[str, Any]:
        return self.run.summary

    def has(self, *names: str) -> bool:
        """Whether the run has all these tables."""
        return set(names) <= set(self.run.tables)

    def rows(self, name: str, *, columns: Sequence[str] | None = None, **where: Any) -> pd.DataFrame:
        """This prompt's rows of a table, also where other columns have the values given; of none if there is no such table.

        Of a table with branches those of all branches, unless `branch` is given.
        """
        if name not in self.run.tables:
            return pd.DataFrame()
        if not self.tables.held(name):  # only what is asked for is read: patterns and activations can be larger than memory
            return self.run.scan(name, columns=columns, prompt_id=self.prompt_id, **where).to_pandas()
        found = filtered(self.tables.of_prompt(name, self.prompt_id), where)
        return (found if columns is None else found.select(list(columns))).to_pandas()

    def sequence_rows(self, name: str, *, columns: Sequence[str] | None = None, **where: Any) -> pd.DataFrame:
        """This prompt's rows of a table that belong to the sequence that is shown."""
        return self.rows(name, columns=columns, branch=self.branch, **where)

    def whole(self, name: str) -> pd.DataFrame:
        """All rows of a table that is not about single prompts; to be left as it is."""
        return self.tables.whole(name)

    def where(self, **more: Any) -> dict[str, Any]:
        """How rows of the sequence were chosen, for `Panel.where`."""
        return {"prompt_id": self.prompt_id, "branch": self.branch, **more}


def _by_prompt(table: pa.Table) -> tuple[pa.Table, dict[int, tuple[int, int]]]:
    """The table sorted by prompt, and where the rows of each begin and how many they are."""
    prompts = table["prompt_id"].to_numpy()
    order = np.argsort(prompts, kind="stable")
    values, starts, counts = np.unique(prompts[order], return_index=True, return_counts=True)
    places = {int(v): (int(s), int(n)) for v, s, n in zip(values, starts, counts, strict=True)}
    return table.take(order).combine_chunks(), places


def panel_name(*parts: str) -> str:
    """A panel's name of letters, digits, `-`, `.` and `>`."""
    return re.sub(r"[^A-Za-z0-9.>]+", "-", "-".join(parts)).strip("-")


def noted(*sentences: str) -> str:
    """A note of those that say something."""
    return " ".join(sentence for sentence in sentences if sentence)


def one_line(text: object, most: int | None = None) -> str:
    """A text without line ends and runs of spaces; of more than `most` characters its beginning, with an ellipsis."""
    line = " ".join(str(text).split())
    return line if most is None or len(line) <= most else f"{line[: most - 1]}…"


def measured_columns(rows: pd.DataFrame, titles: Mapping[str, str], digits: int | None = None) -> list[ShownColumn]:
    """The columns of a listing in which something stands, by their names: those of numbers with their digits."""
    return [ShownColumn(name, title, digits) for name, title in titles.items() if rows[name].notna().any()]
