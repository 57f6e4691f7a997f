"""Gives every edit absolute positions in one text or in each row of a batch, and refuses those that could have no effect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from probe.errors import BadEdit, OutOfRange
from probe.interventions.checking import check_edits
from probe.interventions.edits import AbsolutePositions, Cut, Edit, Patch
from probe.sites import Positions, Range
from probe.sites.positions import parse_range

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


class TextExtent(NamedTuple):
    """What positions refer to: n tokens, n_prompt of them the prompt's; it may grow to `longest`.

    `last` and negative numbers count from the end of the n tokens. `steps` are token spans, `tokens` token texts."""

    n: int
    n_prompt: int
    longest: int
    steps: Sequence[tuple[int, int]] = ()
    tokens: Sequence[str] = ()


def absolute_of(positions: Positions, text: TextExtent | None, *, what: str) -> AbsolutePositions:
    """The absolute positions that are meant; `what` names their owner in errors.

    Raises `BadEdit` where that depends on a text and none is given, `OutOfRange` for what lies outside of it, `BadPlace`
    for a token's text that is not there exactly once.
    """
    listed: set[int] = set()
    onward: int | None = None
    for part in positions.parts:
        begin = _begin(part, text)
        if begin is not None:
            onward = begin if onward is None else min(onward, begin)
            continue
        fixed = _fixed(part)
        if text is not None:
            n = text.longest if fixed is not None else text.n
            one = Positions((part,))
            listed.update(one.indices(n, text.n_prompt, steps=text.steps, tokens=text.tokens))
        elif fixed is not None:
            listed.update(fixed)
        else:
            raise BadEdit(f"where is '{part}' of {what}, without a text?", hint="give ids, or count from the start")
    return AbsolutePositions(tuple(sorted(p for p in listed if onward is None or p < onward)), onward)


def _begin(part: str, text: TextExtent | None) -> int | None:
    """Where an open part begins, if it is one: `all`, `completion`, `20..`."""
    if part == "all":
        return 0
    if part == "completion":
        if text is None:
            return None
        if text.longest == text.n_prompt:
            raise OutOfRange("there is no completion", hint="generate some tokens, or name positions of the prompt")
        return text.n_prompt
    numbers = _numbers(part)
    if numbers is None or numbers.high is not None or (numbers.low or 0) < 0:
        return None
    if text is not None:
        Range(numbers.low, numbers.low).of(text.longest, "position")
    return numbers.low or 0


def _fixed(part: str) -> range | None:
    """The positions of a part that no text is needed for: `7`, `3..9`."""
    numbers = _numbers(part)
    if numbers is None or numbers.high is None or numbers.high < 0 or (numbers.low or 0) < 0:
        return None
    return range(numbers.low or 0, numbers.high + 1)


def _numbers(part: str) -> Range | None:
    is_number = part.lstrip("-")[:1].isdigit() or part.startswith("..")
    return parse_range(part) if is_number else None


def locate_edits(
    lm: LanguageModel, edits: Sequence[Edit], *, ids: Any = None, n_prompt: int | Sequence[int] | None = None,
    longest: int | None = None, steps: Sequence[tuple[int, int]] = (),
) -> tuple[Edit, ...]:  # fmt: skip
    """The edits with absolute positions, which then hold in every forward over the text or over a part of it.

    ids: the text's, (pos,), or a list of them, one a row of the batch (padding left out): then an edit whose positions
    differ from row to row becomes one for each. n_prompt: how many of them are the prompt (all), for each row if they
    differ. longest: how long the text may grow (not at all). steps: token spans, for `step3`. Without ids only positions
    that count from the start can be meant. Edits that have absolute positions stay as they are.
    Raises `BadEdit`, `BadPlace` and its kinds.
    """
    check_edits(lm, edits)
    texts = None if ids is None else _texts(lm, edits, ids, n_prompt, longest, steps)
    found: list[Edit] = []
    for edit in edits:
        if edit.absolute is not None:
            found.append(edit)
        elif texts is None or len(texts) == 1:
            found.append(_located(lm, edit, texts[0] if texts else None))
        else:
            found += _by_row(lm, edit, texts)
    return tuple(found)


def edits_up_to(edits: Sequence[Edit], position: int) -> tuple[Edit, ...]:
    """Edits with absolute positions in a text, as they hold where other tokens follow its first `position` + 1: what is listed
    after them is left out; what goes on without end goes on, but for patches, which have a value for each token of theirs."""
    found = []
    for edit in edits:
        assert edit.absolute is not None, "they are located"
        absolute = _up_to(edit.absolute, position, endless=not isinstance(edit, Patch))
        if isinstance(edit, Cut):
            assert edit.absolute_keys is not None, "they are located"
            edit = replace(edit, absolute_keys=_up_to(edit.absolute_keys, position, endless=True))
        if absolute.listed or absolute.onward is not None:
            found.append(replace(edit, absolute=absolute))
    return tuple(found)


def _up_to(positions: AbsolutePositions, last: int, *, endless: bool) -> AbsolutePositions:
    listed, onward = tuple(p for p in positions.listed if p <= last), positions.onward
    if onward is None or onward > last:
        return AbsolutePositions(listed)
    return AbsolutePositions(listed, onward) if endless else AbsolutePositions((*listed, *range(onward, last + 1)))


def _by_row(lm: LanguageModel, edit: Edit, texts: list[TextExtent]) -> list[Edit]:
    rows = range(len(texts)) if edit.rows is None else edit.rows
    if not set(rows) <= set(range(len(texts))):
        raise BadEdit(f"{edit} is for rows {list(rows)}, and there are {len(texts)}", hint="rows count from 0")
    located = {row: _located(lm, edit, texts[row]) for row in rows}
    first = located[rows[0]]
    if all(_absolute(one) == _absolute(first) for one in located.values()):
        return [first]
    return [one.for_row(number, row, one.absolute or AbsolutePositions()) for number, (row, one) in enumerate(located.items())]


def _absolute(edit: Edit) -> tuple[AbsolutePositions | None, ...]:
    return edit.absolute, edit.absolute_keys if isinstance(edit, Cut) else None


def _located(lm: LanguageModel, edit: Edit, text: TextExtent | None) -> Edit:
    absolute = absolute_of(edit.cell.positions, text, what=str(edit))
    if not absolute.listed and absolute.onward is None:
        raise BadEdit(f"{edit} has no position", hint="name one that the text has")
    if isinstance(edit, Patch):
        _check_length(edit, absolute, text)
    if isinstance(edit, Cut):
        keys = absolute_of(edit.keys, text, what=f"the keys of {edit}")
        if not keys.listed and keys.onward is None:
            raise BadEdit(f"{edit} has no key", hint="name positions that the text has")
        if lm.anatomy.causal and keys.first > absolute.last:
            raise BadEdit(
                f"{edit} changes nothing: queries up to {absolute.last:.0f} do not see keys from {keys.first} on anyway",
                hint="keys come before the queries that see them",
            )
        return replace(edit, absolute=absolute, absolute_keys=keys)
    return replace(edit, absolute=absolute)


def _check_length(edit: Patch, absolute: AbsolutePositions, text: TextExtent | None) -> None:
    """As many values as positions; where positions go on without end, at least as many as are known."""
    known = len(absolute.listed) if text is None else absolute.known(text.n)
    growing = absolute.onward is not None and (text is None or text.longest > text.n)
    if edit.length == known or (growing and edit.length > known):
        return
    raise BadEdit(
        f"{edit} means {known} positions, and there are values for {edit.length}",
        hint="name positions that both texts have, as :last or :0..4",
    )


def _texts(
    lm: LanguageModel, edits: Sequence[Edit], ids: Any, n_prompt: int | Sequence[int] | None, longest: int | None,
    steps: Sequence[tuple[int, int]],
) -> list[TextExtent]:  # fmt: skip
    """One text for all rows, or one for each."""
    plain = ids.tolist() if isinstance(ids, Tensor) else list(ids)
    rows = [list(row) for row in plain] if plain and isinstance(plain[0], (list, tuple, Tensor)) else [plain]
    prompts = [n_prompt] * len(rows) if n_prompt is None or isinstance(n_prompt, int) else list(n_prompt)
    named = [p for e in edits for p in (*e.cell.positions.parts, *(e.keys.parts if isinstance(e, Cut) else ()))]
    wants_tokens = any(part.startswith("tok=") for part in named)
    return [
        TextExtent(
            len(row), len(row) if prompt is None else prompt, max(longest or 0, len(row)), steps,
            lm.pieces(row).tokens if wants_tokens else (),
        )
        for row, prompt in zip(rows, prompts, strict=True)
    ]  # fmt: skip
