"""Gives every edit absolute positions in one text or in each row of a batch, and refuses those that could have no effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from probe.errors import BadEdit
from probe.interventions.checking import check_edits
from probe.interventions.edits import Cut, Edit, Patch
from probe.interventions.spots import Spots, Text, spots_of

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


def settle(
    lm: LanguageModel, edits: Sequence[Edit], *, ids: Any = None, n_prompt: int | Sequence[int] | None = None,
    longest: int | None = None, steps: Sequence[tuple[int, int]] = (),
) -> tuple[Edit, ...]:  # fmt: skip
    """The edits with absolute positions, which then hold in every forward over the text or over a part of it.

    ids: the text's, (pos,), or a list of them, one a row of the batch (padding left out): then an edit whose positions
    differ from row to row becomes one for each. n_prompt: how many of them are the prompt (all), for each row if they
    differ. longest: how long the text may grow (not at all). steps: token spans, for `step3`. Without ids only positions
    that count from the start can be meant. Edits that are settled stay as they are.
    Raises `BadEdit`, `BadPlace` and its kinds.
    """
    check_edits(lm, edits)
    texts = None if ids is None else _texts(lm, edits, ids, n_prompt, longest, steps)
    found: list[Edit] = []
    for edit in edits:
        if edit.spots is not None:
            found.append(edit)
        elif texts is None or len(texts) == 1:
            found.append(_settled(lm, edit, texts[0] if texts else None))
        else:
            found += _by_row(lm, edit, texts)
    return tuple(found)


def _by_row(lm: LanguageModel, edit: Edit, texts: list[Text]) -> list[Edit]:
    rows = range(len(texts)) if edit.rows is None else edit.rows
    if not set(rows) <= set(range(len(texts))):
        raise BadEdit(f"{edit} is for rows {list(rows)}, and there are {len(texts)}", hint="rows count from 0")
    settled = {row: _settled(lm, edit, texts[row]) for row in rows}
    first = settled[rows[0]]
    if all(_spots(one) == _spots(first) for one in settled.values()):
        return [first]
    return [one.for_row(number, row, one.spots or Spots()) for number, (row, one) in enumerate(settled.items())]


def _spots(edit: Edit) -> tuple[Spots | None, ...]:
    return edit.spots, edit.key_spots if isinstance(edit, Cut) else None


def _settled(lm: LanguageModel, edit: Edit, text: Text | None) -> Edit:
    spots = spots_of(edit.cell.positions, text, what=str(edit))
    if not spots.listed and spots.onward is None:
        raise BadEdit(f"{edit} has no position", hint="name one that the text has")
    if isinstance(edit, Patch):
        _check_length(edit, spots, text)
    if isinstance(edit, Cut):
        keys = spots_of(edit.keys, text, what=f"the keys of {edit}")
        if not keys.listed and keys.onward is None:
            raise BadEdit(f"{edit} has no key", hint="name positions that the text has")
        if lm.anatomy.causal and keys.first > spots.last:
            raise BadEdit(
                f"{edit} changes nothing: queries up to {spots.last:.0f} do not see keys from {keys.first} on anyway",
                hint="keys come before the queries that see them",
            )
        return replace(edit, spots=spots, key_spots=keys)
    return replace(edit, spots=spots)


def _check_length(edit: Patch, spots: Spots, text: Text | None) -> None:
    """As many values as positions; where positions go on without end, at least as many as are known."""
    known = len(spots.listed) if text is None else spots.known(text.n)
    growing = spots.onward is not None and (text is None or text.longest > text.n)
    if edit.length == known or (growing and edit.length > known):
        return
    raise BadEdit(
        f"{edit} means {known} positions, and there are values for {edit.length}",
        hint="name positions that both texts have, as :last or :0..4",
    )


def _texts(
    lm: LanguageModel, edits: Sequence[Edit], ids: Any, n_prompt: int | Sequence[int] | None, longest: int | None,
    steps: Sequence[tuple[int, int]],
) -> list[Text]:  # fmt: skip
    """One text for all rows, or one for each."""
    plain = ids.tolist() if isinstance(ids, Tensor) else list(ids)
    rows = [list(row) for row in plain] if plain and isinstance(plain[0], (list, tuple, Tensor)) else [plain]
    prompts = [n_prompt] * len(rows) if n_prompt is None or isinstance(n_prompt, int) else list(n_prompt)
    named = [p for e in edits for p in (*e.cell.positions.parts, *(e.keys.parts if isinstance(e, Cut) else ()))]
    wants_tokens = any(part.startswith("tok=") for part in named)
    return [
        Text(
            len(row), len(row) if prompt is None else prompt, max(longest or 0, len(row)), steps,
            lm.pieces(row).tokens if wants_tokens else (),
        )
        for row, prompt in zip(rows, prompts, strict=True)
    ]  # fmt: skip
