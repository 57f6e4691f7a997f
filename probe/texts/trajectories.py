"""The sequences of a recorded run: one as ids, text and steps, or the steps of all, cut anew. Runs no model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from probe.errors import BadOption, RunError
from probe.language_model import Pieces, check_model, model_of, same_tokenizer
from probe.requests import ChatOptions, SourceOptions
from probe.requests.rewind import parse_prompts
from probe.spans import Step, check_split, steps_from
from probe.store import Run, run_of
from probe.texts.columns import Columns, scored_step_columns
from probe.texts.encoding import encode
from probe.texts.prompts import as_prompts, system_of
from probe.texts.rows import Prompt
from probe.texts.sequences import TokenSequence

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


@dataclass(frozen=True)
class Trajectory:
    """One sequence of a run: `ids` of prompt and completion, and the steps that the completion is made of.

    Positions are those of the table `tokens`; a step's token and character spans count from the start of the sequence.
    """

    prompt_id: int
    ids: tuple[int, ...]
    n_prompt: int
    pieces: Pieces
    steps: tuple[Step, ...]
    chat: ChatOptions
    arguments: Mapping[str, Any]

    @property
    def text(self) -> str:
        """All of it."""
        return self.pieces.text

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """The characters of each token."""
        return self.pieces.offsets

    @property
    def completion(self) -> str:
        """The text after the prompt."""
        return self.text[self.offsets[self.n_prompt][0] :]


def trajectory(
    run: Run, lm: LanguageModel, *, prompt_id: int | None = None, branch: int = 0, split: str = "sentence"
) -> Trajectory:
    """The generation of a run to go back into.

    prompt_id: needed where the run has several. branch: of a run that was itself made by rewinding.
    Raises `RunError` for a run without a generation, without that prompt or branch, or by another tokenizer.
    """
    check_split(split)
    chosen = chosen_prompt(run, prompt_id)
    ids, n_prompt = sequence_ids(run, chosen, branch)
    if len(ids) <= n_prompt:
        raise RunError("this run has no generation to go back into", hint="make one: probe trace PROMPT --generate 200")
    same_tokenizer(run, lm)
    pieces = lm.pieces(ids)
    return Trajectory(
        chosen, tuple(ids), n_prompt, pieces, tuple(steps_from(pieces.text, pieces.offsets, n_prompt, split)),
        chat_of(run, chosen), arguments_of(run),
    )  # fmt: skip


def recorded_sequence(run: Run, lm: LanguageModel, prompt_id: int, branch: int, split: str) -> TokenSequence:
    """A sequence of the run, finished. Raises `RunError` for a prompt or branch that it has not."""
    ids, n_prompt = sequence_ids(run, chosen_prompt(run, prompt_id), branch)
    row = run.scan("prompts", columns=["text", "rendered"], prompt_id=prompt_id).to_pylist()[0]
    sequence = TokenSequence(Prompt(prompt_id, row["text"]), row["rendered"], ids, n_prompt, run=run, branch=branch)
    sequence.finish(lm, None, split)
    return sequence


def read_source(lm: LanguageModel | None, source: Any, options: SourceOptions) -> tuple[LanguageModel, TokenSequence]:
    """The model and the text: of a prompt (a text or chat messages), or of a run's sequence, whose own model is loaded if
    `lm` is None.

    Raises `BadPrompt`, `BadOption`, `RunError`.
    """
    run = run_of(source)
    if run is None:
        if lm is None:
            raise BadOption("which model is to read the prompt?", hint="give a model, or a run")
        if options.prompt_id is not None or options.branch:
            raise BadOption("a prompt has no other prompts or branches", hint="--prompt and --branch are for runs")
        prompts = as_prompts(source)
        if len(prompts) != 1:
            raise BadOption(f"{len(prompts)} prompts were given", hint="one at a time")
        sequence = encode(lm, prompts[0], options)
        sequence.finish(lm, None, options.split)
        return lm, sequence
    if options.chat or options.system is not None or options.template_options:
        raise BadOption("a run has its chat template applied", hint="leave --chat and its options out")
    lm = lm or model_of(run)
    if not options.other_model:
        check_model(run, lm)
    same_tokenizer(run, lm)
    return lm, recorded_sequence(run, lm, chosen_prompt(run, options.prompt_id), options.branch, options.split)


def arguments_of(run: Run) -> dict[str, Any]:
    """What a run was asked for, and what that came to."""
    return {**run.manifest["arguments"], **run.manifest.get("resolved", {})}


def chat_of(run: Run, prompt_id: int) -> ChatOptions:
    """How a prompt of the run became a conversation: as the run's arguments say, or by its own messages."""
    given = arguments_of(run)
    own = run.scan("tokens", columns=["template"], prompt_id=prompt_id, branch=0)["template"]
    templated = own.null_count < len(own)  # messages go through the template unasked
    text = run.scan("prompts", columns=["text"], prompt_id=prompt_id)["text"][0].as_py()
    return ChatOptions(
        chat=bool(given.get("chat")) or templated,
        system=given.get("system") or (system_of(text) if templated else None),
        template_options=given.get("template_options") or {},
        allow_template_loss=bool(given.get("allow_template_loss")),
    )


def chosen_prompt(run: Run, wanted: int | None) -> int:
    """The prompt that is wanted for, or the only one. Raises `RunError`."""
    if "tokens" not in run.tables:
        raise RunError("this run has no tokens", hint="probe runs show RUN lists what it has")
    if wanted is not None and len(run.scan("tokens", columns=["prompt_id"], prompt_id=wanted)):
        return wanted
    there = sorted(run.scan("tokens", columns=["prompt_id"])["prompt_id"].unique().to_pylist())
    if wanted is None and len(there) > 1:
        raise RunError(f"the run has {len(there)} prompts", hint=f"choose one with --prompt ({there[0]}..{there[-1]})")
    if wanted is not None:
        raise RunError(f"the run has no prompt {wanted}", hint=f"it has {there[0]}..{there[-1]}")
    return int(there[0])


def sequence_ids(run: Run, prompt_id: int, branch: int) -> tuple[list[int], int]:
    """The whole sequence of a branch, and how many of its tokens are the prompt's."""
    own = _rows(run, prompt_id, branch)
    if not own:
        raise RunError(f"the run has no branch {branch}", hint="the table 'branches' lists them")
    if branch == 0:
        return own, int(run.scan("prompts", columns=["n_tokens"], prompt_id=prompt_id)["n_tokens"][0].as_py())
    columns = ["parent", "fork_pos", "n_prompt"]
    (row,) = run.scan("branches", columns=columns, prompt_id=prompt_id, branch=branch).to_pylist()
    stem, _ = sequence_ids(run, prompt_id, int(row["parent"]))
    return stem[: int(row["fork_pos"])] + own, int(row["n_prompt"])


def _rows(run: Run, prompt_id: int, branch: int) -> list[int]:
    table = run.scan("tokens", columns=["pos", "token_id"], prompt_id=prompt_id, branch=branch)
    return [int(i) for i in table.sort_by("pos")["token_id"].to_pylist()]


def steps_of(
    run: Run, *, split: str = "sentence", prompt_id: int | str | None = None, branch: int | None = None
) -> pd.DataFrame:  # fmt: skip
    """Steps of every sequence of a run (of its completion, or, where it has none, of its prompt), as the table `steps`.

    A branch is the text before its fork and its own. prompt_id: one prompt, or some as `0,4..9`; None or `all` is every one.
    Raises `RunError` if the run has no tokens or not that prompt or branch, `BadOption` for a split that is not understood or
    does not fit.
    """
    check_split(split)
    wanted = parse_prompts(prompt_id)
    if "tokens" not in run.tables:
        raise RunError("this run has no tokens", hint="probe runs show RUN lists what it has")
    tokens = run.tokens
    if wanted is not None:
        inside = [(tokens["prompt_id"] >= some.start) & (tokens["prompt_id"] < some.stop) for some in wanted]
        for some, own in zip(wanted, inside, strict=True):
            if not own.any():
                raise RunError(f"the run has no tokens of prompt {some.start}", hint="the table 'prompts' lists them")
        tokens = tokens[np.logical_or.reduce(inside)]
    found = [
        _steps(rows, begin, int(prompt), number, split)
        for prompt, own in tokens.groupby("prompt_id", sort=True)
        for number, rows, begin in _sequences(run, own, int(prompt), branch)
    ]
    if not found:
        what = "no tokens" if branch is None else f"no branch {branch}"
        raise RunError(f"the run has {what}", hint="the table 'branches' lists what was drawn")
    return pd.DataFrame({name: [value for columns in found for value in columns[name]] for name in found[0]})


def _sequences(run: Run, tokens: pd.DataFrame, prompt: int, wanted: int | None) -> Iterator[tuple[int, pd.DataFrame, int]]:
    """(branch, its tokens from the beginning, position where its completion begins) of one prompt."""
    rows = {int(number): own.sort_values("pos") for number, own in tokens.groupby("branch", sort=True)}
    drawn = {}
    if "branches" in run.tables:
        drawn = {int(row.branch): row for row in run.branches.itertuples() if row.prompt_id == prompt and row.branch}

    def whole(number: int) -> pd.DataFrame:
        own = rows.get(number, tokens.iloc[:0])
        if number not in drawn:
            return own
        stem = whole(int(drawn[number].parent))
        return pd.concat([stem[stem["pos"] < drawn[number].fork_pos], own], ignore_index=True)

    for number in sorted({*rows, *drawn}):
        if wanted in (None, number):
            found = whole(number)
            completion = (found["segment"] == "completion").to_numpy()
            begin = int(drawn[number].n_prompt) if number in drawn else int(completion.argmax())
            yield number, found, begin if begin < len(found) else 0


def _steps(rows: pd.DataFrame, begin: int, prompt: int, branch: int, split: str) -> Columns:
    offsets = list(zip(rows["text_start"].tolist(), rows["text_end"].tolist(), strict=True))
    text = ""
    for token, (_, end) in zip(rows["token"], offsets, strict=True):
        if end > len(text):  # several tokens can share a character
            text += token[len(text) - end :]
    logprob, entropy = (rows[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in ("logprob", "entropy"))
    found = scored_step_columns(prompt, steps_from(text, offsets, begin, split), logprob, entropy)
    return {**found, "branch": [branch] * len(found["step"])}
