"""What is put in a step's place: an edit and the token prefixes of its arms. Knows wording, draws nothing but numerals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from probe.errors import BadOption
from probe.language_model.following import ids_after
from probe.rewinding import wording
from probe.rewinding.targets import Target
from probe.spans.negating import negate
from probe.texts import Trajectory

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

WAIT = "Wait,"
STUB = "\n\nSo the final answer is"
WITH_TEXT = ("replace", "insert", "swap", "prompt_b")
FLAGS = ("delete", "truncate", "append_wait", "numbers", "negate", "filler", "resample_until_different")
KINDS = (*WITH_TEXT, *FLAGS)


@dataclass(frozen=True)
class Edit:
    """One change of kind `kind` (one of KINDS, or `none`: plain resampling) with its text, if it takes one."""

    kind: str = "none"
    text: str = ""

    def __str__(self) -> str:
        name = self.kind.replace("_", "-")
        return f"{name}: {self.text}" if self.text else name


@dataclass(frozen=True)
class Arms:
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


def edit_from(given: Mapping[str, Any]) -> Edit:
    """The one edit among keywords named as in KINDS (None and False are not given). Raises `BadOption` for two."""
    unknown = sorted(set(given) - set(KINDS))
    if unknown:
        raise BadOption(f"unknown edit '{unknown[0]}'", hint=f"there are {', '.join(KINDS)}")
    asked = [name for name in KINDS if given.get(name) not in (None, False)]
    if len(asked) > 1:
        named = " and ".join("--" + name.replace("_", "-") for name in asked)
        raise BadOption(f"{named} are two edits", hint="one at a time: make a run of each")
    if not asked:
        return Edit()
    kind, value = asked[0], given[asked[0]]
    if kind in WITH_TEXT and not str(value):
        raise BadOption(f"the text of --{kind.replace('_', '-')} is empty", hint="use --delete to take the step out")
    return Edit(kind, str(value) if kind in WITH_TEXT else "")


def arms_for(
    lm: LanguageModel, trajectory: Trajectory, target: Target, edit: Edit, *,
    seed: int = 0, stub: str = STUB, swapped: Sequence[int] = (), prompt_b: Sequence[int] = (),
) -> Arms:  # fmt: skip
    """The prefixes of an edit. `swapped`: the ids for `swap` and `resample_until_different`; `prompt_b`: the other prompt's.

    Edits that replace the step have the step itself in their control; `insert`, `truncate`, `prompt_b` and plain
    resampling fork before it; `append_wait` after it.
    Raises `BadOption` where an edit changes nothing that could be written, or leaves nothing to continue.
    """
    ids, n = trajectory.ids, trajectory.n_prompt
    end = target.end - (target.end == len(ids) and ids[-1] in lm.eos_ids)  # nothing is continued after the end
    before, upto = ids[: target.start], ids[:end]
    old, text = ids[target.start : end], lm.pieces(ids[:end]).text[trajectory.offsets[target.start][0] :]
    if edit.kind == "none":
        return Arms(before, before, None)
    if edit.kind == "prompt_b":
        other = tuple(prompt_b)
        return Arms(before, before, other + ids[n : target.start], n_prompt_edited=len(other))
    if edit.kind in ("insert", "truncate"):
        new = tuple(ids_after(lm, before, wording.fitted(edit.text, text) if edit.kind == "insert" else stub))
        return Arms(before, before, before + new, (), new, n)
    if edit.kind == "append_wait":
        new = tuple(ids_after(lm, upto, WAIT if text[-1:].isspace() else " " + WAIT))
        return Arms(upto, upto, upto + new, (), new, n)
    new = tuple(_replacement(lm, edit, before, old, text, trajectory, seed, swapped))
    return Arms(before, upto, before + new, old, new, n)


def _replacement(
    lm: LanguageModel, edit: Edit, before: Sequence[int], old: Sequence[int], text: str, trajectory: Trajectory,
    seed: int, swapped: Sequence[int],
) -> Sequence[int]:  # fmt: skip
    if edit.kind == "replace":
        return wording.respelled(lm, before, old, wording.fitted(edit.text, text))
    if edit.kind == "delete":
        return ()
    if edit.kind in ("swap", "resample_until_different"):
        return swapped
    if edit.kind == "numbers":
        return wording.change_number(lm, before, old, text, context=trajectory.text, seed=seed)
    if edit.kind == "negate":
        return wording.respelled(lm, before, old, negate(text))
    if edit.kind == "filler":
        return wording.filler(lm, before, len(old))
    raise BadOption(f"unknown edit '{edit.kind}'", hint=f"there are {', '.join(KINDS)}")
