"""One text to look into: a prompt, or a sequence of a run. Knows ids and where they come from; runs no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probe.errors import BadOption
from probe.language_model.chat import Chat
from probe.language_model.provenance import check_model, model_of, same_tokenizer
from probe.sites import parse_place
from probe.store import Run, run_of
from probe.texts.encoding import encode
from probe.texts.prompts import Prompt, as_prompts
from probe.texts.sequences import TokenSequence
from probe.texts.trajectories import chosen_prompt, sequence_ids

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


@dataclass(frozen=True)
class Subject:
    """A finished sequence; `run` and `branch` where it was read from a run."""

    sequence: TokenSequence
    run: Run | None = None
    branch: int = 0

    @property
    def ids(self) -> list[int]:
        """Its tokens."""
        return self.sequence.ids

    @property
    def tokens(self) -> list[str]:
        """Their texts."""
        assert self.sequence.pieces is not None
        return list(self.sequence.pieces.tokens)

    @property
    def steps(self) -> list[tuple[int, int]]:
        """Token spans of its steps."""
        return [(step.start, step.end) for step in self.sequence.steps]

    def batch(self, lm: LanguageModel) -> Tensor:
        """ids (1, pos) on the model's device."""
        return torch.tensor([self.ids], device=lm.device)

    def positions(self, text: str) -> list[int]:
        """Absolute positions that a text such as `last`, `3..9` or `tok=Paris` means here. Raises `BadPlace` and its kinds."""
        return self.sequence.positions(parse_place(f"embed:{text}").positions)

    def parent(self) -> dict[str, Any] | None:
        """The manifest's `parent`."""
        if self.run is None:
            return None
        path = str(self.run.path) if self.run.path else None
        return {
            "run": self.run.run_id, "path": path, "prompt_id": self.sequence.prompt.prompt_id, "branch": self.branch,
        }  # fmt: skip


def find_subject(
    lm: LanguageModel | None, source: Any, *, chat: bool = False, system: str | None = None,
    template_options: Mapping[str, Any] | None = None, allow_template_loss: bool = False,
    prompt_id: int | None = None, branch: int = 0, split: str = "sentence", other_model: bool = False, **placement: Any,
) -> tuple[LanguageModel, Subject]:  # fmt: skip
    """The model and the text: of a prompt (a text or chat messages), or of a run's sequence, whose own model is loaded if
    `lm` is None.

    other_model: the run's ids may be read by other weights (with the same tokenizer).
    Raises `BadPrompt`, `BadOption`, `RunError`.
    """
    run = run_of(source)
    if run is None:
        if lm is None:
            raise BadOption("which model is to read the prompt?", hint="give a model, or a run")
        if prompt_id is not None or branch:
            raise BadOption("a prompt has no other prompts or branches", hint="--prompt and --branch are for runs")
        prompts = as_prompts(source)
        if len(prompts) != 1:
            raise BadOption(f"{len(prompts)} prompts were given", hint="one at a time")
        how = Chat(chat, system, template_options or {}, allow_template_loss)
        how.check()
        sequence = encode(lm, prompts[0], how)
        sequence.finish(lm, None, split)
        return lm, Subject(sequence)
    if chat or system is not None or template_options:
        raise BadOption("a run has its chat template applied", hint="leave --chat and its options out")
    lm = lm or model_of(run, **placement)
    if not other_model:
        check_model(run, lm)
    same_tokenizer(run, lm)
    chosen = chosen_prompt(run, prompt_id)
    ids, n_prompt = sequence_ids(run, chosen, branch)
    row = run.scan("prompts", columns=["text", "rendered"], prompt_id=chosen).to_pylist()[0]
    sequence = TokenSequence(Prompt(chosen, row["text"]), row["rendered"], ids, n_prompt)
    sequence.finish(lm, None, split)
    return lm, Subject(sequence, run, branch)
