"""From what was asked of a rewind to its arms: everything is checked here, before anything is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from probe import answers
from probe import store as stores
from probe.decoding import Sampling
from probe.errors import BadOption
from probe.interventions import Edit, parse_all
from probe.language_model import check_model
from probe.registries.step_edits import STUB
from probe.rewinding.arms import Arms, ChosenEdit, OtherRun, RewindFork, Target, check_options, chosen_edit, find_target
from probe.rewinding.rollouts import Arm, Outcome, RolloutOptions, outcome_of
from probe.texts import Trajectory, trajectory

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

DEFAULT = {"temperature": 0.6, "top_p": 0.95}  # as Bogdan et al. 2025 (2506.19143) drew theirs
MAX_NEW = 256
ROOM, FEWEST = 1.5, 64  # tokens of a continuation: times what the original still needed; at least


@dataclass(frozen=True)
class RewindPlan:
    """All that decides a rewind's numbers. `outcome`: what the original answers; `reference`: what is counted."""

    source: stores.Run
    original: Trajectory
    branch: int
    target: Target
    edit: ChosenEdit
    arms: Arms
    named: tuple[Arm, ...]
    rollout: RolloutOptions
    samples: int
    until: float | None
    split: str
    outcome: Outcome
    reference: str
    expected: str | None
    arguments: dict[str, Any]
    changes: tuple[Edit, ...] = ()
    merging: bool = False

    @property
    def what(self) -> str:
        """What was changed in the edited arm, in words."""
        return next((arm.edit for arm in self.named if arm.name == "edited"), str(self.edit))


def prepare(
    lm: LanguageModel, source: stores.Run, *, to: str, other_model: bool = False, prompt_id: int | None = None,
    branch: int = 0, samples: int = 16, until: float | None = None, max_new: int | None = None,
    sampling: Sampling | None = None, seed: int = 0, answer: str = "auto", expect: str | None = None,
    split: str = "sentence", stub: str = STUB, dry: bool = False,
    edit: str | Iterable[str | Edit] = (), merge_answers: bool = False, swap_prompt: int | None = None,
    swap_branch: int | None = None, swap_split: str | None = None, **edits: Any,
) -> RewindPlan:  # fmt: skip
    """Check what is asked (see `rewind`) and find the arms.

    dry: a step that would be drawn is filler.

    edit: changes of activations in the edited arm, from the last token before the first drawn one on.
    """
    if samples < 1:
        raise BadOption(f"samples is {samples}", hint="it is at least 1")
    if until is not None and not 0 < until < 1:
        raise BadOption(f"until is {until}", hint="the half-width of an interval of a proportion: between 0 and 1")
    chosen = chosen_edit(edits)
    other = OtherRun(swap_prompt, swap_branch, swap_split)
    check_options(chosen, **other._asdict())
    if not other_model:
        check_model(source, lm)
    original = trajectory(source, lm, prompt_id=prompt_id, branch=branch, split=split)
    target = find_target(original, to)
    found = outcome_of(lm, original.ids, original.n_prompt, "eos", answer)
    longest = new_tokens(lm, original, max_new, target.start)
    rollout = rollout_options(lm, original, sampling or sampling_of(original, seed), longest, answer)
    expected = answers.key(expect, answer) if expect is not None else None
    arms = RewindFork(lm, original, target, rollout, split, stub, other, dry).arms(chosen)
    _check_room(lm, arms)
    changes = parse_all(lm, edit, seed=seed)
    if changes and arms.edited is None:
        arms = arms._replace(edited=arms.control)
    arguments = {
        "source": source.run_id, "branch": branch, "to": to, "edit": chosen._asdict(),
        "changes": [str(change) for change in changes], "samples": samples, "until": until,
        "max_new": rollout.max_new, "sampling": {**asdict(rollout.sampling), "stop": list(rollout.sampling.stop)},
        "answer": answer, "merge_answers": merge_answers, "expect": expect, "split": split, "stub": stub,
        **original.chat.arguments(),
        "generate": rollout.max_new, "prompt_id": original.prompt_id, "model": lm.name, "dtype": str(lm.dtype),
        **(other._asdict() if chosen.kind == "swap" else {}),
    }  # fmt: skip
    return RewindPlan(
        source, original, branch, target, chosen, arms, _named(arms, original, chosen, changes), rollout, samples, until,
        split, found, expected or found.key, expected, arguments, changes, merge_answers,
    )  # fmt: skip


def sampling_of(original: Trajectory, seed: int) -> Sampling:
    """The run's own sampling with this seed; a greedy run's continuations are sampled, or they would all be one."""
    own = dict(original.arguments.get("sampling") or {})
    own = {**own, "stop": tuple(own.get("stop", ())), "seed": seed}
    return Sampling(**({**own, **DEFAULT} if not own.get("temperature") else own))


def rollout_options(
    lm: LanguageModel, original: Trajectory, sampling: Sampling, max_new: int, answer: str
) -> RolloutOptions:
    """How continuations of this original are drawn and read."""
    stops = (original.arguments.get("sampling") or {}).get("stop", ())
    ids = original.ids
    whole = ids[:-1] if ids[-1] in lm.eos_ids else ids
    return RolloutOptions(sampling, max_new, answer, original.prompt_id, tuple(stops), whole)


def new_tokens(lm: LanguageModel, original: Trajectory, requested: int | None, start: int) -> int:
    """How far a continuation from position `start` may go: as requested, else ROOM times what the original still needed there.

    So that late continuations have no more room than early ones. What an original that was cut off needed is not known: it
    counts with what it wrote, and FEWEST is no more than it was given, lest every continuation end where it could not.
    """
    if requested is not None:
        if requested < 1:
            raise BadOption(f"max-new is {requested}", hint="it is at least 1")
        return requested
    given = int(original.arguments.get("generate") or MAX_NEW)
    cut_off = original.ids[-1] not in lm.eos_ids and len(original.ids) - original.n_prompt >= given
    fewest = min(FEWEST, given) if cut_off else FEWEST
    return max(fewest, ceil(ROOM * (len(original.ids) - start)))


def _check_room(lm: LanguageModel, arms: Arms) -> None:
    longest = max(len(arms.control), len(arms.edited or ()))
    if lm.context_length is not None and longest >= lm.context_length:
        raise BadOption(
            f"the text up to there has {longest:,} tokens, and the context of {lm.name} holds {lm.context_length:,}",
            hint="go back to an earlier step",
        )


def _named(arms: Arms, original: Trajectory, chosen: ChosenEdit, changes: Sequence[Edit]) -> tuple[Arm, ...]:
    """The arms that are drawn: control, edited, and `before` where neither of them is drawn from there."""
    what = "; ".join([*([str(chosen)] if chosen.declared else []), *map(str, changes)])
    n = original.n_prompt
    named = [Arm("control", 0, arms.control, len(arms.control), n)]
    if arms.edited is not None:
        other_prompt = chosen.declared is not None and chosen.declared.place == "prompt"
        fork, n_prompt = (0, arms.n_prompt_edited) if other_prompt else (len(arms.edited) - len(arms.new), n)
        named.append(Arm("edited", 1, arms.edited, fork, n_prompt, what, changes=tuple(changes)))
        if arms.before not in (arms.control, arms.edited):
            named.append(Arm("before", 2, arms.before, len(arms.before), n))
    return tuple(named)
