"""Where to go back to: `step4`, `57`, `tok=TEXT`, `regex=/Wait/` as a span of tokens of a trajectory."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from typing import NamedTuple

from probe.errors import BadOption, OutOfRange
from probe.patterns import Pattern
from probe.texts import Trajectory

_FORMS = "step4, 57 (a token position), tok=TEXT, tok=TEXT#2 or regex=/PATTERN/"


class Target(NamedTuple):
    """Tokens [start, end) that an edit acts on, their step, and whether their text began inside a token."""

    start: int
    end: int
    step: int
    mid_token: bool = False


def find_target(trajectory: Trajectory, to: str) -> Target:
    """The tokens that `to` means. Raises `BadOption` if it can't be read, `OutOfRange` if there is no such place."""
    to = to.strip()
    if match := re.fullmatch(r"step(-?\d+)", to):
        return _step(trajectory, int(match[1]))
    if re.fullmatch(r"-?\d+", to):
        return _position(trajectory, int(to))
    if to.startswith("tok=") and len(to) > 4:
        return _text(trajectory, to[4:])
    if to.startswith("regex=") and len(to) > 6:
        return _regex(trajectory, to[6:])
    raise BadOption(f"cannot read the place '{to}'", hint=f"write {_FORMS}")


def _step(trajectory: Trajectory, number: int) -> Target:
    count = len(trajectory.steps)
    if not -count <= number < count:
        raise OutOfRange(
            f"no step {number}", hint=f"the generation has steps 0..{count - 1}: probe steps RUN shows them"
        )
    step = trajectory.steps[number]
    return Target(step.start, step.end, number % count, step.mid_token)


def _position(trajectory: Trajectory, position: int) -> Target:
    n = len(trajectory.ids)
    at = position + n if position < 0 else position
    if not trajectory.n_prompt <= at < n:
        raise OutOfRange(
            f"no generated token at {position}", hint=f"generated are positions {trajectory.n_prompt}..{n - 1}"
        )
    return Target(at, at + 1, _step_at(trajectory, at))


def _text(trajectory: Trajectory, text: str) -> Target:
    which = re.search(r"#(\d+)\Z", text)
    wanted = text[: which.start()] if which else text
    found = [m.span() for m in re.finditer(re.escape(wanted), trajectory.completion)] if wanted else []
    if not found:
        raise OutOfRange(f"the generation does not hold '{wanted}'", hint="probe steps RUN shows its text")
    if which is None and len(found) > 1:
        raise BadOption(
            f"'{wanted}' stands there {len(found)} times", hint=f"say which: tok={wanted}#1 … #{len(found)}"
        )
    number = int(which[1]) if which else 1
    if not 1 <= number <= len(found):
        raise OutOfRange(f"there is no '{wanted}' number {number}", hint=f"it stands there {len(found)} times")
    return _span(trajectory, *found[number - 1])


def _regex(trajectory: Trajectory, pattern: str) -> Target:
    bare = pattern[1:-1] if len(pattern) > 2 and pattern[0] == pattern[-1] == "/" else pattern
    found = Pattern(bare, hint=f"write {_FORMS}").search(trajectory.completion)
    if found is None or found[0] == found[1]:
        raise OutOfRange(f"nothing in the generation matches /{bare}/", hint="probe steps RUN shows its text")
    return _span(trajectory, *found)


def _span(trajectory: Trajectory, low: int, high: int) -> Target:
    """The tokens that hold characters [low, high) of the completion."""
    begin = trajectory.offsets[trajectory.n_prompt][0]
    starts = [start for start, _ in trajectory.offsets]
    start = max(trajectory.n_prompt, bisect_right(starts, begin + low) - 1)
    end = max(start + 1, bisect_left(starts, begin + high))
    return Target(start, end, _step_at(trajectory, start), bool(trajectory.text[starts[start] : begin + low].strip()))


def _step_at(trajectory: Trajectory, position: int) -> int:
    return next(i for i, step in enumerate(trajectory.steps) if step.start <= position < step.end)
