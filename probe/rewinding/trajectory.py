"""What is rewound: one generation of a run, as ids, text and steps. Reads a run; runs no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from probe.errors import RunError
from probe.spans import Step, check_split, steps_from
from probe.store import Run

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

SAME = ("files", "tokenizer_sha256", "class", "parameters", "adapter")


@dataclass(frozen=True)
class Trajectory:
    """One sequence of a run: `ids` of prompt and completion, and the steps that the completion is made of.

    Positions are those of the table `tokens`; a step's token and character spans count from the start of the sequence.
    """

    prompt_id: int
    ids: tuple[int, ...]
    n_prompt: int
    text: str
    offsets: tuple[tuple[int, int], ...]
    steps: tuple[Step, ...]
    chat: bool
    arguments: Mapping[str, Any]

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
    arguments = run.manifest["arguments"]
    return Trajectory(
        chosen, tuple(ids), n_prompt, pieces.text, tuple(pieces.offsets),
        tuple(steps_from(pieces.text, pieces.offsets, n_prompt, split)), bool(arguments.get("chat")), arguments,
    )  # fmt: skip


def check_model(run: Run, lm: LanguageModel) -> None:
    """Raises `RunError` if the run was made by other weights; `--model` says that this is meant."""
    made, now = run.manifest.get("model") or {}, lm.identity
    other = [name for name in SAME if made.get(name) != now.get(name)]
    if other:
        raise RunError(
            f"the run was made by '{made.get('name')}', and '{lm.name}' is another model ({', '.join(other)} differ)",
            hint="give --model to mean it",
        )


def same_tokenizer(run: Run, lm: LanguageModel) -> None:
    """Raises `RunError` if the run's token ids mean other texts to this model."""
    made, now = run.manifest.get("model") or {}, lm.identity
    if made.get("tokenizer_sha256") != now["tokenizer_sha256"]:
        raise RunError(
            f"the tokenizer of '{lm.name}' is not that of '{made.get('name')}', which made the run",
            hint="its token ids would mean other texts; trace the prompt with this model first",
        )


def chosen_prompt(run: Run, asked: int | None) -> int:
    """The prompt that is asked for, or the only one. Raises `RunError`."""
    if "tokens" not in run.tables:
        raise RunError("this run has no tokens", hint="probe runs show RUN lists what it has")
    there = sorted(set(run.scan("tokens", columns=["prompt_id"])["prompt_id"].to_pylist()))
    if asked is None and len(there) > 1:
        raise RunError(f"the run has {len(there)} prompts", hint=f"choose one with --prompt ({there[0]}..{there[-1]})")
    if asked is not None and asked not in there:
        raise RunError(f"the run has no prompt {asked}", hint=f"it has {there[0]}..{there[-1]}")
    return there[0] if asked is None else asked


def sequence_ids(run: Run, prompt_id: int, branch: int) -> tuple[list[int], int]:
    """The whole sequence of a branch, and how many of its tokens are the prompt's."""
    own = _rows(run, prompt_id, branch)
    if not own:
        raise RunError(f"the run has no branch {branch}", hint="the table 'branches' lists them")
    n_prompt = run.prompts.set_index("prompt_id").loc[prompt_id, "n_tokens"]
    if branch == 0:
        return own, int(n_prompt)
    row = run.branches.set_index("branch").loc[branch]
    stem, _ = sequence_ids(run, prompt_id, int(row["parent"]))
    return stem[: int(row["fork_pos"])] + own, int(row["n_prompt"])


def _rows(run: Run, prompt_id: int, branch: int) -> list[int]:
    table = run.scan("tokens", columns=["pos", "token_id"], prompt_id=prompt_id, branch=branch)
    return [int(i) for i in table.sort_by("pos")["token_id"].to_pylist()]
