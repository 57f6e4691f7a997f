"""From a place and an edit to the token prefixes that are continued: what stands before the fork, and what is written there."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from probe import store as stores
from probe.decoding import branch
from probe.decoding.teacher_forced import Prefix
from probe.errors import BadOption, BadPrompt, OutOfRange
from probe.language_model.following import WINDOW, ids_after
from probe.patterns import Pattern
from probe.registries.step_edits import STEP_EDITS, ChosenEdit, numbers_in
from probe.requests import Rewind
from probe.rewinding.teacher_forced import own_steps
from probe.texts import Trajectory, trajectory

if TYPE_CHECKING:
    from probe.language_model import LanguageModel
    from probe.rewinding.rollouts import RolloutOptions

_FORMS = "step4, 50%, all, 57 (a token position), tok=TEXT, tok=TEXT#2 or regex=/PATTERN/"
SIMILAR = 0.8  # share of common words from which two steps say the same
ROUND, MOST = 8, 64
APART = 1 << 20  # its noise is not that of any continuation


class Target(NamedTuple):
    """Tokens [start, end) that an edit acts on, their step, and whether their text began inside a token."""

    start: int
    end: int
    step: int
    mid_token: bool = False


class Arms(NamedTuple):
    """Token prefixes that are drawn from. `before`: up to the fork. `control`: what the original did there, kept.
    `edited`: the edit instead; None for plain resampling.

    `new` are the edit's ids and `old` those it stands for; where both are there, what follows `old` can be re-scored.
    """

    before: tuple[int, ...]
    control: tuple[int, ...]
    edited: tuple[int, ...] | None
    old: tuple[int, ...] = ()
    new: tuple[int, ...] = ()
    n_prompt_edited: int = 0


@dataclass
class RewindFork:
    """The place of an edit in a trajectory, and the model that spells and draws there (see `step_edits.Fork`).

    dry: steps that the model would have to draw are filler.
    """

    lm: LanguageModel
    original: Trajectory
    target: Target
    rollout: RolloutOptions
    request: Rewind
    dry: bool = False

    def __post_init__(self) -> None:
        ids, (start, end) = self.original.ids, self.target[:2]
        end -= end == len(ids) and ids[-1] in self.lm.eos_ids  # nothing is continued after the end
        self.before, self.upto, self.old = ids[:start], ids[:end], ids[start:end]
        self.at = self.before
        self.text = self.lm.pieces(self.upto).text[self.original.offsets[start][0] :]
        self.context, self.seed, self.stub = self.original.text, self.rollout.sampling.seed, self.request.stub

    @cached_property
    def stem(self) -> Prefix:
        """What stands before the step, read once for all that follows it."""
        return Prefix(self.lm, self.before)

    def forget(self) -> None:
        """Let the memory go that what was read takes; it is read again if it is asked for."""
        self.__dict__.pop("stem", None)

    def arms(self, chosen: ChosenEdit) -> Arms:
        """The prefixes of an edit. Those that replace the step have the step itself in their control; others fork before
        it, or after it.

        Raises `BadOption` where an edit changes nothing that could be written, or leaves nothing to continue.
        """
        before, upto, edit, n = self.before, self.upto, chosen.declared, self.original.n_prompt
        if edit is None:
            return Arms(before, before, None)
        self.at = upto if edit.place == "after" else before
        make = STEP_EDITS["filler"].make if self.dry and edit.draws else edit.make
        new = tuple(make(self, chosen.text))
        if edit.place == "prompt":
            return Arms(before, before, new + before[n:], n_prompt_edited=len(new))
        if edit.place == "step":
            return Arms(before, upto, before + new, self.old, new, n)
        return Arms(self.at, self.at, self.at + new, (), new, n)

    def spelled(self, text: str) -> Sequence[int]:
        return ids_after(self.lm, self.at, text)

    def respelled(self, text: str) -> Sequence[int]:
        return respelled(self.lm, self.before, self.old, text)

    def other_step(self, name: str) -> Sequence[int]:
        named = re.fullmatch(r"(.+?):(step-?\d+|-?\d+|tok=.+|regex=.+)", name, re.DOTALL)
        if named is None:
            raise BadOption(f"cannot read '{name}'", hint="write --swap RUN:step3")
        given = self.request
        there = trajectory(
            stores.open_run(named[1]), self.lm, prompt_id=given.swap_prompt, branch=given.swap_branch or 0,
            split=given.swap_split or given.split,
        )  # fmt: skip
        start, end, *_ = find_target(there, named[2])
        ids = there.ids[start:end]
        return ids[:-1] if ids[-1] in self.lm.eos_ids else ids

    def other_prompt(self, text: str) -> Sequence[int]:
        chat = self.original.chat
        ids = (self.lm.render(text, chat) if chat.chat else self.lm.encode(text)).ids
        if not ids:
            raise BadPrompt("the other prompt is empty", hint="give it some text")
        return ids

    def different_step(self) -> Sequence[int]:
        """The first drawn step that is not `similar` to the original's: an edit that is on-policy.

        Raises `BadOption` if MOST draws all are.
        """
        lm, text = self.lm, self.lm.pieces(self.old).text
        longest = min(self.rollout.max_new, max(48, 3 * len(self.old)))
        for first in range(0, MOST, ROUND):
            samples = range(APART + first, APART + first + ROUND)
            (found,) = branch(lm, [self.before], samples, max_new=longest, sampling=self.rollout.sampling, stem=self.stem)
            for ids in own_steps(lm, [one.ids for one in found], self.request.split):
                kept = ids[:-1] if ids[-1] in lm.eos_ids else ids
                if kept and not similar(lm.pieces(kept).text, text):
                    return kept
        raise BadOption(f"{MOST} draws of this step all say the same", hint="raise --temperature, or --replace TEXT")


def similar(a: str, b: str, *, share: float = SIMILAR) -> bool:
    """Whether two steps say the same, by words alone: the same numbers, and at least `share` of all words in common."""
    if numbers_in(a) != numbers_in(b):
        return False
    x, y = (set(re.findall(r"[^\W\d_]+", text.lower())) for text in (a, b))
    return len(x & y) >= share * len(x | y)


def respelled(lm: LanguageModel, prefix: Sequence[int], old: Sequence[int], text: str) -> list[int]:
    """Ids that read as `text` after the prefix, with the tokens of `old` kept wherever the two texts agree at either end.

    A model rarely cuts its own text as its tokenizer would: spelling a whole step anew would change more than was asked.
    """
    pieces = lm.pieces([*prefix[-WINDOW:], *old])
    begin, offsets = pieces.offsets[len(prefix[-WINDOW:])][0], pieces.offsets[len(prefix[-WINDOW:]) :]
    was = pieces.text[begin:]
    same = next((i for i, (a, b) in enumerate(zip(was, text, strict=False)) if a != b), min(len(was), len(text)))
    head = sum(1 for _, end in offsets if end - begin <= same)
    rest = min(len(was), len(text)) - (offsets[head - 1][1] - begin if head else 0)
    alike = next((i for i in range(rest) if was[-1 - i] != text[-1 - i]), rest)
    tail = sum(1 for start, _ in offsets[head:] if start - begin >= len(was) - alike)
    kept, after = list(old[:head]), list(old[len(old) - tail :])
    low = offsets[head - 1][1] - begin if head else 0
    high = len(text) - (pieces.offsets[-1][1] - offsets[len(old) - tail][0] if tail else 0)
    middle = ids_after(lm, [*prefix, *kept], text[low:high]) if high > low else []
    ids = [*kept, *middle, *after]
    reads = lm.pieces([*prefix[-WINDOW:], *ids]).text[begin:]
    return ids if reads == text else ids_after(lm, prefix, text)


def find_target(trajectory: Trajectory, to: str) -> Target:
    """The tokens that `to` means. Raises `BadOption` if it can't be read, `OutOfRange` if there is no such place."""
    to = to.strip()
    if match := re.fullmatch(r"step(-?\d+)", to):
        return _step(trajectory, int(match[1]))
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)%", to):
        return _share(trajectory, float(match[1]))
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
        raise OutOfRange(f"no step {number}", hint=f"the generation has steps 0..{count - 1}: probe steps RUN shows them")
    step = trajectory.steps[number]
    return Target(step.start, step.end, number % count, step.mid_token)


def _share(trajectory: Trajectory, percent: float) -> Target:
    """The step that holds the token before which that share of the generation stands."""
    if percent > 100:
        raise OutOfRange(f"no place at {percent:g}%", hint="0% is the first step, 100% the last")
    n, total = trajectory.n_prompt, len(trajectory.ids) - trajectory.n_prompt
    return _step(trajectory, _step_at(trajectory, n + min(total - 1, int(total * percent / 100))))


def _position(trajectory: Trajectory, position: int) -> Target:
    n = len(trajectory.ids)
    at = position + n if position < 0 else position
    if not trajectory.n_prompt <= at < n:
        raise OutOfRange(f"no generated token at {position}", hint=f"generated are positions {trajectory.n_prompt}..{n - 1}")
    return Target(at, at + 1, _step_at(trajectory, at))


def _text(trajectory: Trajectory, text: str) -> Target:
    which = re.search(r"#(\d+)\Z", text)
    wanted = text[: which.start()] if which else text
    found = [m.span() for m in re.finditer(re.escape(wanted), trajectory.completion)] if wanted else []
    if not found:
        raise OutOfRange(f"the generation does not hold '{wanted}'", hint="probe steps RUN shows its text")
    if which is None and len(found) > 1:
        raise BadOption(f"'{wanted}' stands there {len(found)} times", hint=f"say which: tok={wanted}#1 … #{len(found)}")
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
