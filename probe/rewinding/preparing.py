"""From the request of a rewind to its arms: everything is checked here, before anything is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from probe import answers
from probe import store as stores
from probe.decoding import Sampling
from probe.errors import BadOption
from probe.interventions import Edit, parse_all
from probe.language_model import check_model, model_of
from probe.outcomes import Outcome
from probe.registries.step_edits import ChosenEdit
from probe.requests import Importance, Rewind
from probe.rewinding.arms import Arms, RewindFork, find_target
from probe.rewinding.rollouts import Arm, RolloutOptions, outcome_of
from probe.texts import Trajectory, trajectory

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

DEFAULT = {"temperature": 0.6, "top_p": 0.95}  # as Bogdan et al. 2025 (2506.19143) drew theirs
MAX_NEW = 256
ROOM, FEWEST = 1.5, 64  # tokens of a continuation: times what the original still needed; at least


@dataclass(frozen=True)
class Origin:
    """The generation that a request begins with, the model that goes on, and what the generation answers."""

    lm: LanguageModel
    source: stores.Run
    original: Trajectory
    outcome: Outcome
    expected: str | None
    sampling: Sampling

    @property
    def reference(self) -> str:
        """The class of answers that is counted: the expected one, else the original's."""
        return self.expected or self.outcome.key

    def resolved(self, rollout: RolloutOptions) -> dict[str, Any]:
        """What a request came to, for the manifest; who goes back into what was drawn reads it there."""
        return {
            "source": self.source.run_id, "prompt_id": self.original.prompt_id, "max_new": rollout.max_new,
            "generate": rollout.max_new, "sampling": {**asdict(rollout.sampling), "stop": list(rollout.sampling.stop)},
            **asdict(self.original.chat),
        }  # fmt: skip


def origin_of(request: Rewind | Importance) -> Origin:
    """Open the run and its model, and find the generation. Raises `RunError`, `BadOption`."""
    source = stores.open_run(request.run)
    lm = request.lm or model_of(source)
    if not request.other_model:
        check_model(source, lm)
    original = trajectory(source, lm, prompt_id=request.prompt_id, branch=request.branch, split=request.split)
    found = outcome_of(lm, original.ids, original.n_prompt, "eos", request.answer)
    expected = answers.key(request.expect, request.answer) if request.expect is not None else None
    return Origin(lm, source, original, found, expected, request.sampling or sampling_of(original, request.seed or 0))


@dataclass(frozen=True)
class RewindPlan:
    """A request on one generation: where it forks, its arms, and how they go on. `reference`: what is counted."""

    request: Rewind
    origin: Origin
    fork: RewindFork
    arms: Arms
    named: tuple[Arm, ...]
    rollout: RolloutOptions
    reference: str
    expected: str | None
    changes: tuple[Edit, ...]

    @property
    def what(self) -> str:
        """What was changed in the edited arm, in words."""
        return next((arm.edit for arm in self.named if arm.name == "edited"), str(self.request.step_edit))


def prepare(request: Rewind, *, dry: bool = False) -> RewindPlan:
    """Check what is asked and find the arms. dry: a step that a model would have to draw is filler."""
    origin, chosen = origin_of(request), request.step_edit
    lm, original = origin.lm, origin.original
    target = find_target(original, request.to)
    longest = new_tokens(lm, original, request.max_new, target.start)
    rollout = rollout_options(origin, longest, request.answer)
    fork = RewindFork(lm, original, target, rollout, request, dry)
    arms = fork.arms(chosen)
    _check_room(lm, arms)
    changes = parse_all(lm, request.edit, seed=origin.sampling.seed)
    if changes and arms.edited is None:
        arms = arms._replace(edited=arms.control)
    return RewindPlan(
        request, origin, fork, arms, _named(arms, original, chosen, changes), rollout, origin.reference, origin.expected,
        changes,
    )  # fmt: skip


def sampling_of(original: Trajectory, seed: int) -> Sampling:
    """The run's own sampling with this seed; a greedy run's continuations are sampled, or they would all be one."""
    own = dict(original.arguments.get("sampling") or {})
    own = {**own, "stop": tuple(own.get("stop", ())), "seed": seed}
    return Sampling(**({**own, **DEFAULT} if not own.get("temperature") else own))


def rollout_options(origin: Origin, max_new: int, answer: str) -> RolloutOptions:
    """How continuations of a generation are drawn and read."""
    original, ids = origin.original, origin.original.ids
    stops = (original.arguments.get("sampling") or {}).get("stop", ())
    whole = ids[:-1] if ids[-1] in origin.lm.eos_ids else ids
    return RolloutOptions(origin.sampling, max_new, answer, original.prompt_id, tuple(stops), whole)


def new_tokens(lm: LanguageModel, original: Trajectory, requested: int | None, start: int) -> int:
    """How far a continuation from position `start` may go: as requested, else ROOM times what the original still needed there.

    So that late continuations have no more room than early ones. What an original that was cut off needed is not known: it
    counts with what it wrote, and FEWEST is no more than it was given, lest every continuation end where it could not.
    """
    if requested is not None:
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
