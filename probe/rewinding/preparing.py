"""From what was asked of a rewind to its arms: everything is checked here, before anything is drawn."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

from probe import answers
from probe import store as stores
from probe.decoding import Sampling
from probe.errors import BadOption, BadPrompt
from probe.interventions import Edit as ActivationEdit
from probe.interventions import parse_all
from probe.language_model import check_model
from probe.rewinding.different import different_step
from probe.rewinding.edits import STUB, Arms, Edit, arms_for, edit_from
from probe.rewinding.rollouts import Arm, Drawing, Outcome, outcome
from probe.rewinding.targets import Target, find_target
from probe.texts import Trajectory, trajectory

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

DEFAULT = {"temperature": 0.6, "top_p": 0.95}  # as Bogdan et al. 2025 (2506.19143) drew theirs
MAX_NEW = 256
ROOM, FEWEST = 1.5, 64  # tokens of a continuation: times what the original still needed; at least


class Other(NamedTuple):
    """Which generation of the run that `swap` names: its prompt, its branch, and how it is cut (as this one if not said)."""

    swap_prompt: int | None = None
    swap_branch: int | None = None
    swap_split: str | None = None


@dataclass(frozen=True)
class Plan:
    """All that decides a rewind's numbers. `found`: outcome and answer of the original; `reference`: what is counted."""

    source: stores.Run
    original: Trajectory
    branch: int
    target: Target
    edit: Edit
    arms: Arms
    named: tuple[Arm, ...]
    drawing: Drawing
    samples: int
    until: float | None
    split: str
    found: Outcome
    reference: str
    expected: str | None
    arguments: dict[str, Any]
    changes: tuple[ActivationEdit, ...] = ()
    merging: bool = False

    @property
    def what(self) -> str:
        """What was changed in the edited arm, in words."""
        return next((arm.edit for arm in self.named if arm.name == "edited"), str(self.edit))


def prepare(
    lm: LanguageModel, source: stores.Run, *, to: str, other_model: bool = False, prompt_id: int | None = None,
    branch: int = 0, samples: int = 16, until: float | None = None, max_new: int | None = None,
    sampling: Sampling | None = None, seed: int = 0, answer: str = "auto", expect: str | None = None,
    split: str = "sentence", stub: str = STUB, drawing_steps: bool = True,
    edit: str | Iterable[str | ActivationEdit] = (), merge_answers: bool = False, swap_prompt: int | None = None,
    swap_branch: int | None = None, swap_split: str | None = None, **edits: Any,
) -> Plan:  # fmt: skip
    """Check what is asked (see `rewind`) and find the arms.

    Without `drawing_steps`, a step that would be drawn is filler.

    edit: changes of activations in the edited arm, from the last token before the first drawn one on.
    """
    if samples < 1:
        raise BadOption(f"samples is {samples}", hint="it is at least 1")
    if until is not None and not 0 < until < 1:
        raise BadOption(f"until is {until}", hint="the half-width of an interval of a proportion: between 0 and 1")
    step_edit = edit_from(edits)
    other = Other(swap_prompt, swap_branch, swap_split)
    if step_edit.kind != "swap" and other != Other():
        raise BadOption("no step of another run is asked for", hint="name the run and its step: --swap RUN:step3")
    if not other_model:
        check_model(source, lm)
    original = trajectory(source, lm, prompt_id=prompt_id, branch=branch, split=split)
    target = find_target(original, to)
    found = outcome(lm, original.ids, original.n_prompt, "eos", answer)
    longest = new_tokens(lm, original, max_new, target.start)
    drawing = drawing_from(lm, original, sampling or sampling_of(original, seed), longest, answer)
    expected = answers.key(expect, answer) if expect is not None else None
    if step_edit.kind == "resample_until_different" and not drawing_steps:
        step_edit = Edit("filler")
    arms = _arms(lm, original, target, step_edit, drawing, stub, split, other)
    changes = parse_all(lm, edit, seed=seed)
    if changes and arms.edited is None:
        arms = replace(arms, edited=arms.control)
    arguments = {
        "source": source.run_id, "branch": branch, "to": to, "edit": asdict(step_edit),
        "changes": [str(change) for change in changes], "samples": samples, "until": until,
        "max_new": drawing.max_new, "sampling": {**asdict(drawing.sampling), "stop": list(drawing.sampling.stop)},
        "answer": answer, "merge_answers": merge_answers, "expect": expect, "split": split, "stub": stub,
        **original.chat.arguments(),
        "generate": drawing.max_new, "prompt_id": original.prompt_id, "model": lm.name, "dtype": str(lm.dtype),
        **(other._asdict() if step_edit.kind == "swap" else {}),
    }  # fmt: skip
    return Plan(
        source, original, branch, target, step_edit, arms, _named(arms, original, step_edit, changes), drawing, samples, until,
        split, found, expected or found.key, expected, arguments, changes, merge_answers,
    )  # fmt: skip


def sampling_of(original: Trajectory, seed: int) -> Sampling:
    """The run's own sampling with this seed; a greedy run's continuations are sampled, or they would all be one."""
    own = dict(original.arguments.get("sampling") or {})
    own = {**own, "stop": tuple(own.get("stop", ())), "seed": seed}
    return Sampling(**({**own, **DEFAULT} if not own.get("temperature") else own))


def drawing_from(lm: LanguageModel, original: Trajectory, sampling: Sampling, max_new: int, answer: str) -> Drawing:
    """How continuations of this original are drawn and read."""
    stops = (original.arguments.get("sampling") or {}).get("stop", ())
    ids = original.ids
    whole = ids[:-1] if ids[-1] in lm.eos_ids else ids
    return Drawing(sampling, max_new, answer, original.prompt_id, tuple(stops), whole)


def new_tokens(lm: LanguageModel, original: Trajectory, asked: int | None, start: int) -> int:
    """How far a continuation from position `start` may go: as asked, else ROOM times what the original still needed there.

    So that late continuations have no more room than early ones. What an original that was cut off needed is not known: it
    counts with what it wrote, and FEWEST is no more than it was given, lest every continuation end where it could not.
    """
    if asked is not None:
        if asked < 1:
            raise BadOption(f"max-new is {asked}", hint="it is at least 1")
        return asked
    given = int(original.arguments.get("generate") or MAX_NEW)
    cut_off = original.ids[-1] not in lm.eos_ids and len(original.ids) - original.n_prompt >= given
    fewest = min(FEWEST, given) if cut_off else FEWEST
    return max(fewest, ceil(ROOM * (len(original.ids) - start)))


def _arms(
    lm: LanguageModel, original: Trajectory, target: Target, edit: Edit, drawing: Drawing, stub: str, split: str,
    other: Other,
) -> Arms:  # fmt: skip
    swapped: Sequence[int] = ()
    prompt_b: Sequence[int] = ()
    if edit.kind == "swap":
        swapped = _swapped(lm, edit.text, other, split)
    if edit.kind == "resample_until_different":
        swapped = different_step(lm, original, target, drawing, split)
    if edit.kind == "prompt_b":
        prompt_b = (lm.render(edit.text, original.chat) if original.chat.apply else lm.encode(edit.text)).ids
        if not prompt_b:
            raise BadPrompt("the other prompt is empty", hint="give it some text")
    arms = arms_for(
        lm, original, target, edit, seed=drawing.sampling.seed, stub=stub, swapped=swapped, prompt_b=prompt_b
    )
    longest = max(len(arms.control), len(arms.edited or ()))
    if lm.context_length is not None and longest >= lm.context_length:
        raise BadOption(
            f"the text up to there has {longest:,} tokens, and the context of {lm.name} holds {lm.context_length:,}",
            hint="go back to an earlier step",
        )
    return arms


def _swapped(lm: LanguageModel, text: str, which: Other, split: str) -> tuple[int, ...]:
    """The tokens of `RUN:step3`."""
    named = re.fullmatch(r"(.+?):(step-?\d+|-?\d+|tok=.+|regex=.+)", text, re.DOTALL)
    if named is None:
        raise BadOption(f"cannot read '{text}'", hint="write --swap RUN:step3")
    other = trajectory(
        stores.open_run(named[1]),
        lm,
        prompt_id=which.swap_prompt,
        branch=which.swap_branch or 0,
        split=which.swap_split or split,
    )
    there = find_target(other, named[2])
    ids = other.ids[there.start : there.end]
    return ids[:-1] if ids[-1] in lm.eos_ids else ids


def _named(arms: Arms, original: Trajectory, edit: Edit, changes: Sequence[ActivationEdit]) -> tuple[Arm, ...]:
    """The arms that are drawn: control, edited, and `before` where neither of them is drawn from there."""
    what = "; ".join([*([str(edit)] if edit.kind != "none" else []), *map(str, changes)])
    n = original.n_prompt
    named = [Arm("control", 0, arms.control, len(arms.control), n)]
    if arms.edited is not None:
        other_prompt = edit.kind == "prompt_b"
        fork = 0 if other_prompt else len(arms.edited) - len(arms.new)
        named.append(
            Arm(
                "edited",
                1,
                arms.edited,
                fork,
                arms.n_prompt_edited if other_prompt else n,
                what,
                changes=tuple(changes),
            )
        )
        if arms.before not in (arms.control, arms.edited):
            named.append(Arm("before", 2, arms.before, len(arms.before), n))
    return tuple(named)
