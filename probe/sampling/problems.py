"""The problems that answers are drawn to: prompts of a file, of a run, or one text, each as the ids that answers go on from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from probe import store as stores
from probe.decoding import Sampling
from probe.decoding.rollouts import problem_seed
from probe.errors import BadOption, RunError
from probe.language_model import check_model
from probe.requests import Sample
from probe.requests.rewind import parse_prompts
from probe.requests.sample import MAX_NEW
from probe.rewinding.preparing import sampling_of
from probe.rewinding.rollouts import Arm, ArmSamples, RolloutOptions, is_drawn
from probe.running import Running, found_once
from probe.sampling.statistics import ARM
from probe.texts import (
    Failed,
    Packed,
    Prompt,
    Survey,
    TokenSequence,
    arguments_of,
    as_prompts,
    columns_of,
    encode,
    hash_of,
    prompt_columns,
    recorded_sequence,
    survey,
    token_columns,
)

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

OF_A_GENERATION = ("stop_reason", "completion", "scored", "logprob", "perplexity", "mean_entropy")  # columns of `prompts`


@dataclass(frozen=True)
class ProblemSource:
    """Where the problems of a request come from, as many as have to be drawn from. seen: what a look through those of a file
    found; those of a run are encoded."""

    lm: LanguageModel
    request: Sample
    run: stores.Run | None
    inputs: Sequence[Prompt]
    seen: Survey | None

    @classmethod
    def of(cls, lm: LanguageModel, request: Sample) -> ProblemSource:
        """Raises `RunError`, `BadPrompt`, `BadOption`."""
        source = request.source
        run = None if _is_file(source) else stores.run_of(source)
        if run is None:
            inputs = _chosen(as_prompts(source, request), request)
            return cls(lm, request, None, inputs, found_once(partial(survey, lm, inputs, request, split="sentence")))
        if request.chat or request.system is not None or request.template_options:
            raise BadOption("a run has its chat template applied", hint="leave --chat and its options out")
        if "tokens" not in run.tables:
            raise RunError("this run has no tokens", hint="probe runs show RUN lists what it has")
        check_model(run, lm)
        return cls(lm, request, run, _chosen(_prompts(run), request), None)

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def fit(self) -> Iterator[int]:
        """The places among `inputs` of the problems that can be drawn from."""
        if self.seen is not None:
            return self.seen.fit
        return (place for place, prompt in enumerate(self.inputs) if not prompt.error)

    @property
    def failed(self) -> list[Failed]:
        """The others, and why."""
        if self.seen is not None:
            return list(self.seen.failed)
        return [Failed(prompt, RunError(prompt.error)) for prompt in self.inputs if prompt.error]

    def sequence(self, place: int) -> TokenSequence:
        """The problem at a place among `inputs` as the ids that its answers go on from."""
        prompt = self.inputs[place]
        if self.run is None:
            return encode(self.lm, prompt, self.request)
        sequence = recorded_sequence(self.run, self.lm, prompt.prompt_id, 0, "sentence")
        sequence.restart()
        return sequence

    def is_drawn(self, run: Running, place: int) -> bool:
        """Whether the run has all answers to the problem at a place."""
        return is_drawn(run, self.inputs[place].prompt_id, ARM, self.request.samples)

    @cached_property
    def sampling(self) -> Sampling:
        """As the request says, else as the run was drawn; a greedy one, or none, is drawn as `rewind` does."""
        arguments = {} if self.run is None else arguments_of(self.run)
        return self.request.sampling or sampling_of(arguments, self.request.seed or 0)

    @property
    def max_new(self) -> int:
        """Tokens that an answer may have."""
        own = 0 if self.run is None else int(arguments_of(self.run).get("generate") or 0)
        return self.request.max_new or own or MAX_NEW

    def resolved(self) -> dict[str, Any]:
        """What the source came to, for the manifest."""
        if self.run is not None:
            return {"source": self.run.run_id, "prompts": [prompt.prompt_id for prompt in self.inputs]}
        return {"prompts": len(self.inputs), "prompts_sha256": hash_of(self.inputs)}

    def wanted(self, sequence: TokenSequence) -> ArmSamples:
        """The answers to one problem that are to be drawn. Their noise is the problem's own: the same alone and in a file."""
        ids = tuple(sequence.ids)
        arm = Arm(ARM, 0, ids, len(ids), len(ids), of=1)
        sampling = replace(self.sampling, seed=problem_seed(self.sampling.seed, ids))
        rollout = RolloutOptions(sampling, self.max_new, self.request.rule, sequence.prompt.prompt_id)
        return ArmSamples([arm], range(self.request.samples), rollout)

    def extend(self, run: Running) -> None:
        """Give the run's `prompts` the columns that the problems came with."""
        run.writer.extend("prompts", columns_of(self.inputs).types if self.run is None else self.run.extra("prompts"))

    def write(self, run: Running, sequences: Sequence[TokenSequence], failed: Sequence[Failed]) -> None:
        """Rows of `prompts`, and of `tokens` those of the prompts as branch 0, which all answers fork from; inside a unit."""
        errors = [one.prompt._replace(error=one.error.message) for one in failed]
        if self.run is None:
            run.write("prompts", prompt_columns(list(sequences), errors))
        else:
            texts = {one.prompt_id: one.error for one in errors}
            ids = [*(one.prompt.prompt_id for one in sequences), *texts]
            run.write("prompts", _without_generation(self.run.scan("prompts", prompt_id=ids), texts))
        for one in sequences:
            run.write("tokens", token_columns(one.prompt.prompt_id, one.ids, self.lm.pieces(one.ids), one.n_prompt))


def _is_file(source: Any) -> bool:
    return isinstance(source, Path) and not source.is_dir()


def _prompts(run: stores.Run) -> Packed:
    pieces = (piece.select(["prompt_id", "text", "error"]).to_pylist() for piece in run.batches("prompts"))
    return Packed(Prompt(row["prompt_id"], row["text"], row["error"] or "") for rows in pieces for row in rows)


def _chosen(inputs: Sequence[Prompt], request: Sample) -> Sequence[Prompt]:
    wanted = parse_prompts(request.prompt_id)
    if wanted is None:
        return inputs
    found = Packed(one for one in inputs if any(one.prompt_id in some for some in wanted))
    if not found:
        raise BadOption(
            f"there is no problem {request.prompt_id}", hint=f"there are {inputs[0].prompt_id}..{inputs[-1].prompt_id}"
        )
    return found


def _without_generation(rows: pa.Table, errors: Mapping[int, str]) -> pa.Table:
    """Rows of `prompts` of another run, without what it wrote to them; errors: what went wrong here."""
    for name in OF_A_GENERATION:
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, rows.schema.field(at), pa.nulls(len(rows), rows.schema.field(at).type))
    old = zip(rows["prompt_id"].to_pylist(), rows["error"].to_pylist(), strict=True)
    at = rows.schema.get_field_index("error")
    return rows.set_column(at, rows.schema.field(at), pa.array([errors.get(i) or text for i, text in old], pa.string()))
