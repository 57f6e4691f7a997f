"""From the request of a rewind to the arms of each problem: everything is checked here, before anything is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from probe import store as stores
from probe.decoding import Sampling
from probe.decoding.rollouts import problem_seed
from probe.errors import BadOption, BadPrompt, OutOfRange, ProbeError, RunError
from probe.interventions import Edit, parse_all
from probe.language_model import check_model, model_of
from probe.outcomes import Outcome
from probe.registries.step_edits import ChosenEdit
from probe.requests import Importance, Rewind
from probe.requests.options import plain
from probe.rewinding.arms import Arms, RewindFork, Target, find_target
from probe.rewinding.rollouts import ARMS, Arm, RolloutOptions, outcome_of
from probe.texts import Trajectory, arguments_of, chat_of, expected_of, trajectory

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

DEFAULT = {"temperature": 0.6, "top_p": 0.95}  # as Bogdan et al. 2025 (2506.19143) drew theirs
MAX_NEW = 256
LEFT_OUT = (BadOption, BadPrompt, OutOfRange, RunError)  # for these one problem, or one step, is left out of several
T = TypeVar("T")
ROOM, FEWEST = 1.5, 64  # tokens of a continuation: times what the original still needed; at least


@dataclass(frozen=True)
class OpenedRun:
    """The run that is gone back into, the model that goes on, which of its prompts, and how continuations are sampled."""

    source: stores.Run
    lm: LanguageModel
    prompts: tuple[int, ...]
    sampling: Sampling
    request: Rewind | Importance

    @property
    def alone(self) -> bool:
        """Whether it is about one problem: then what is wrong with it is an error, and not a row."""
        return len(self.prompts) == 1

    def resolved(self) -> dict[str, Any]:
        """What a request came to, for the manifest; who goes back into what was drawn reads it there."""
        about = {"source": self.source.run_id, "prompts": list(self.prompts), "sampling": plain(self.sampling)}
        return {**about, **asdict(chat_of(self.source, self.prompts[0]))}


@dataclass(frozen=True)
class Origin:
    """One problem: the generation that is gone back into, and what it answers. `expected` is a class of answers.

    noise_seed: of all its continuations.
    """

    opened: OpenedRun
    original: Trajectory
    outcome: Outcome
    expected: str | None
    noise_seed: int

    @property
    def lm(self) -> LanguageModel:
        return self.opened.lm

    @property
    def seed(self) -> int:
        """Of what is random in the statistics."""
        return self.opened.sampling.seed

    @property
    def reference(self) -> str:
        """The class of answers that is counted: the expected one, else the original's."""
        return self.expected or self.outcome.key

    def resolved(self, max_new: int) -> dict[str, Any]:
        """What the manifest says of a run about this problem alone."""
        return {"prompt_id": self.original.prompt_id, "max_new": max_new, "generate": max_new}


def opened_for(request: Rewind | Importance) -> OpenedRun:
    """Open the run and its model, and find the prompts. Raises `RunError`, `BadOption`."""
    source = stores.open_run(request.run)
    lm = request.lm or model_of(source)
    if not request.other_model:
        check_model(source, lm)
    prompts = chosen_prompts(source, request.wanted, request.branch)
    return OpenedRun(source, lm, prompts, request.sampling or sampling_of(arguments_of(source), request.seed or 0), request)


def origin_of(opened: OpenedRun, prompt_id: int) -> Origin:
    """Find the generation of one prompt. Raises `RunError`, `BadOption`."""
    source, lm, request = opened.source, opened.lm, opened.request
    original = trajectory(source, lm, prompt_id=prompt_id, branch=request.branch, split=request.split)
    found = outcome_of(lm, original.ids, original.n_prompt, "eos", request.rule)
    expected = request.expected(expected_of(source, prompt_id))
    noise_seed = problem_seed(opened.sampling.seed, original.ids[: original.n_prompt])
    return Origin(opened, original, found, expected, noise_seed)


def chosen_prompts(run: stores.Run, wanted: Sequence[range] | None, branch: int = 0) -> tuple[int, ...]:
    """The prompts with a generation, or such a branch, that are wanted; all for None. Raises `RunError`."""
    if "tokens" not in run.tables:
        raise RunError("this run has no tokens", hint="probe runs show RUN lists what it has")
    generated = run.scan("tokens", columns=["prompt_id"], branch=sorted({0, branch}), segment="completion")
    there = sorted(generated["prompt_id"].unique().to_pylist())
    if not there:
        one = (
            "name one of its answers: --branch 1" if "branches" in run.tables else "make one: probe trace PROMPT --generate 200"
        )
        raise RunError("this run has no generation to go back into", hint=one)
    if wanted is None:
        return tuple(there)
    for some in wanted:
        if not any(prompt in some for prompt in there):
            first = some.start if len(some) == 1 else f"{some.start}..{some.stop - 1}"
            raise RunError(f"the run has no generation of prompt {first}", hint=f"it has {there[0]}..{there[-1]}")
    return tuple(prompt for prompt in there if any(prompt in some for some in wanted))


class LeftOut(NamedTuple):
    """A prompt that is left out, and why."""

    prompt_id: int
    error: ProbeError


class Problems(Generic[T]):
    """What is to be done with each problem, prepared one after the other as they are asked for.

    Of the only one it is prepared at once, and what is wrong with it is raised; of several, those that cannot be are in
    `failed` when all have been asked for.
    """

    def __init__(self, opened: OpenedRun, prepare: Callable[[Origin], T]) -> None:
        self.opened, self._prepare = opened, prepare
        self.failed: list[LeftOut] = []
        self._first = prepare(origin_of(opened, opened.prompts[0])) if opened.alone else None

    @property
    def only(self) -> T:
        """What is to be done with the only one."""
        assert self._first is not None, "there is one problem"
        return self._first

    def __iter__(self) -> Iterator[T]:
        if self._first is not None:
            yield self._first
            return
        self.failed = []
        for prompt in self.opened.prompts:
            try:
                found = self._prepare(origin_of(self.opened, prompt))
            except LEFT_OUT as error:
                self.failed.append(LeftOut(prompt, error.with_traceback(None)))
            else:
                yield found
        if len(self.failed) == len(self.opened.prompts):
            raise self.failed[0].error


@dataclass(frozen=True)
class RewindPlan:
    """A place in one generation: where it forks, its arms, and how they go on. `reference`: what is counted."""

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

    @property
    def step(self) -> int:
        """The step that is gone back to."""
        return self.fork.target.step

    @property
    def only(self) -> bool:
        """Whether the run is about this place alone."""
        return self.origin.opened.alone and self.request.to != "all"


def plans_of(origin: Origin, request: Rewind, *, dry: bool = False) -> list[RewindPlan]:
    """Check what is asked of one generation and find the arms of each place in it.

    Of `all` steps, those that the edit cannot be made in are left out; it is an error if that is every one.
    dry: a step that a model would have to draw is filler.
    """
    if request.to != "all":
        return [_plan(origin, request, find_target(origin.original, request.to), 0, 1, dry)]
    found, errors = [], []
    targets = [find_target(origin.original, f"step{i}") for i in range(len(origin.original.steps))]
    for i, target in enumerate(targets):
        try:
            found.append(_plan(origin, request, target, i, len(targets), dry))
        except LEFT_OUT as error:
            errors.append(error)
    if not found:
        raise errors[0]
    return found


def own_edit(origin: Origin, chosen: ChosenEdit) -> ChosenEdit:
    """The edit with the text that this problem has for it, where that stands in a column. Raises `BadOption`."""
    if chosen.column is None:
        return chosen
    rows = origin.opened.source.scan("prompts", prompt_id=origin.original.prompt_id)
    if chosen.column not in rows.column_names:
        raise BadOption(f"the prompts have no column '{chosen.column}'", hint=f"they have {', '.join(rows.column_names)}")
    text = rows[chosen.column][0].as_py()
    if not isinstance(text, str) or not text:
        raise BadOption(f"the prompt has no text in its column '{chosen.column}'", hint="fill it in, or leave the prompt out")
    return chosen._replace(text=text)


def _plan(origin: Origin, request: Rewind, target: Target, number: int, of: int, dry: bool) -> RewindPlan:
    """One place, the `number`th of so many."""
    lm, original, chosen = origin.lm, origin.original, own_edit(origin, request.step_edit)
    longest = new_tokens(lm, original, request.max_new, target.start)
    rollout = rollout_options(origin, longest)
    fork = RewindFork(lm, original, target, rollout, request, dry)
    arms = fork.arms(chosen)
    _check_room(lm, arms)
    changes = parse_all(lm, request.edit, seed=origin.seed)
    if changes and arms.edited is None:
        arms = arms._replace(edited=arms.control)
    named = tuple(
        arm._replace(number=ARMS * number + arm.number, of=ARMS * of, step=target.step)
        for arm in _named(arms, original, chosen, changes)
    )
    return RewindPlan(request, origin, fork, arms, named, rollout, origin.reference, origin.expected, changes)


def sampling_of(arguments: Mapping[str, Any], seed: int) -> Sampling:
    """A run's own sampling with this seed; a greedy run's continuations are sampled, or they would all be one."""
    own = dict(arguments.get("sampling") or {})
    own = {**own, "stop": tuple(own.get("stop", ())), "seed": seed}
    return Sampling(**({**own, **DEFAULT} if not own.get("temperature") else own))


def rollout_options(origin: Origin, max_new: int) -> RolloutOptions:
    """How continuations of a generation are drawn and read."""
    original, ids = origin.original, origin.original.ids
    stops = (original.arguments.get("sampling") or {}).get("stop", ())
    whole = ids[:-1] if ids[-1] in origin.lm.eos_ids else ids
    sampling = replace(origin.opened.sampling, seed=origin.noise_seed)
    return RolloutOptions(sampling, max_new, origin.opened.request.rule, original.prompt_id, tuple(stops), whole)


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
