"""Ranges of layers, heads and positions (`0..4`), and which positions of a text are meant (`last`, `tok=Paris#2`)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from probe.errors import BadPlace, OutOfRange

# numbers as they are written: `5`, `-1`, `0..4`, `20..`, `all`; ends are inclusive
NUMBERS = r"(?:all|-?[0-9]+\.\.(?:-?[0-9]+)?|\.\.-?[0-9]+|-?[0-9]+)"


class Range(NamedTuple):
    """Inclusive; negative numbers count from the end, None is open: `Range()` is all."""

    low: int | None = None
    high: int | None = None

    def __str__(self) -> str:
        if self == (None, None):
            return "all"
        if self.one:
            return str(self.low)
        return f"{'' if self.low is None else self.low}..{'' if self.high is None else self.high}"

    @property
    def one(self) -> bool:
        """Whether it names a single number."""
        return self.low is not None and self.low == self.high

    def of(self, n: int, what: str) -> range:
        """The numbers it means among 0..n-1. Raises `OutOfRange` with the legal range."""
        low = 0 if self.low is None else self.low + n if self.low < 0 else self.low
        high = n - 1 if self.high is None else self.high + n if self.high < 0 else self.high
        if not 0 <= low <= high < n:
            legal = f"{what}s are 0..{n - 1}, or -{n}..-1 from the end" if n else f"there is no {what} at all"
            raise OutOfRange(f"no {what} {self}", hint=legal)
        return range(low, high + 1)


def parse_range(text: str) -> Range:
    """The range that a text of the form `NUMBERS` means, each in one way: `..4` is `0..4`, `0..` is `all`.

    Raises `BadPlace` where it runs backwards.
    """
    if text == "all":
        return Range()
    first, dots, last = text.partition("..")
    low = int(first) if first else 0
    high = low if not dots else int(last) if last else -1
    if high < low and (low < 0) == (high < 0):
        raise BadPlace(f"'{text}' runs backwards", hint=f"write {high}..{low}")
    if low == high:
        return Range(low, high)
    return Range(None if (low, high) == (0, -1) else low, None if high == -1 else high)


def listed(numbers: Iterable[int]) -> str:
    """[0, 1, 2, 5] -> '0..2,5'."""
    parts: list[list[int]] = []
    for n in sorted(numbers):
        if parts and n == parts[-1][1] + 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ",".join(str(a) if a == b else f"{a}..{b}" for a, b in parts)


# a comma, an equals sign and a number sign in a token's text are written twice
POSITION = re.compile(
    rf"tok=(?P<text>(?:[^,=#]|,,|==|##)+)(?:#(?P<nth>[0-9]+))?|step(?P<step>-?[0-9]+)|last|prompt|completion|{NUMBERS}"
)


@dataclass(frozen=True)
class Positions:
    """The union of parts such as `last`, `3..9`, `prompt`, `step3`, `tok=Paris#2`, each in its canonical text."""

    parts: tuple[str, ...] = ("all",)

    def __str__(self) -> str:
        return ",".join(self.parts)

    @property
    def static(self) -> bool:
        """Whether they are known before the text is generated and cut into steps: the prompt's first ones, or all."""
        return not any(part.startswith(("step", "tok=", "completion")) for part in self.parts)

    def indices(self, n: int, n_prompt: int, *, steps: Sequence[tuple[int, int]] = (), tokens: Sequence[str] = ()) -> list[int]:
        """Sorted positions among n tokens, n_prompt of them the prompt's. `steps` are token spans, `tokens` texts.

        Raises `OutOfRange` for what the text does not have, `BadPlace` for a token's text that is not there exactly once.
        """
        found: set[int] = set()
        for part in self.parts:
            match = POSITION.fullmatch(part)
            assert match is not None, f"{part} is no position"
            if match["text"]:
                found.add(_token(_unescaped(match["text"]), match["nth"], tokens))
            elif match["step"]:
                found.update(range(*steps[parse_range(match["step"]).of(len(steps), "step")[0]]))
            elif part == "prompt":
                found.update(range(n_prompt))
            elif part == "completion":
                if n == n_prompt:
                    raise OutOfRange("there is no completion", hint="generate some tokens, or name positions of the prompt")
                found.update(range(n_prompt, n))
            else:
                found.update((Range(-1, -1) if part == "last" else parse_range(part)).of(n, "position"))
        return sorted(found)

    def one(self, n: int, n_prompt: int, *, steps: Sequence[tuple[int, int]] = (), tokens: Sequence[str] = ()) -> int:
        """The one position that they name, of a step its last: after it something is measured.

        Raises as `indices` does, and `BadPlace` where they name several.
        """
        found = self.indices(n, n_prompt, steps=steps, tokens=tokens)
        of_one_step = len(self.parts) == 1 and self.parts[0].startswith("step")
        if len(found) != 1 and not of_one_step:
            raise BadPlace(f"'{self}' is {len(found)} positions, and one is measured", hint="last, 7, tok=Paris or step3")
        return found[-1]


EVERYWHERE = Positions()


def parse_positions(parts: Sequence[str]) -> Positions:
    """Positions from texts that match `POSITION`; each part once, and `all` alone. Raises `BadPlace`."""
    written = [_canonical(part) for part in parts]
    return Positions(("all",) if "all" in written else tuple(dict.fromkeys(written)))


def token_position(text: str, nth: int | None = None) -> str:
    """The words for a token's position, `tok=TEXT` or `tok=TEXT#2`: `,`, `=` and `#` in the text are written twice."""
    return "tok=" + re.sub("[,=#]", lambda sign: sign[0] * 2, text) + ("" if nth is None else f"#{nth}")


def _canonical(part: str) -> str:
    match = POSITION.fullmatch(part)
    assert match is not None, f"{part} is no position"
    if match["text"]:
        if match["nth"] and int(match["nth"]) < 1:
            raise BadPlace(f"'{part}' asks for occurrence {match['nth']}", hint="the first one is #1")
        return token_position(_unescaped(match["text"]), int(match["nth"]) if match["nth"] else None)
    if match["step"]:
        return f"step{int(match['step'])}"
    if part in ("last", "prompt", "completion"):
        return part
    numbers = str(parse_range(part))
    return "last" if numbers == "-1" else numbers


def _unescaped(text: str) -> str:
    return re.sub("([,=#])\\1", "\\1", text)


def _token(text: str, nth: str | None, tokens: Sequence[str]) -> int:
    """Position of the token with that text, spaces around it aside."""
    found = [i for i, token in enumerate(tokens) if text in (token, token.strip())]
    if not found:
        near = difflib.get_close_matches(text.strip(), dict.fromkeys(t.strip() for t in tokens), n=3, cutoff=0.5)
        hint = f"near it: {', '.join(map(repr, near))}" if near else "a token is a piece of a word or a whole one"
        raise BadPlace(f"no token is '{text}'", hint=hint)
    if nth is None and len(found) > 1:
        shown = ", ".join(map(str, found[:8])) + (", …" if len(found) > 8 else "")
        raise BadPlace(
            f"{len(found)} tokens are '{text}', at {shown}", hint=f"say which: {token_position(text, 1)} is the first"
        )
    if nth is not None and not 1 <= int(nth) <= len(found):
        raise OutOfRange(f"no token {nth} is '{text}'", hint=f"it occurs {len(found)} times")
    return found[int(nth) - 1 if nth else 0]
