"""Texts on their way through a model: prompts, their ids, sequences, and the columns that a run keeps of them."""

from probe.texts.columns import prompt_columns, scored_columns, scored_step_columns, step_columns, token_columns
from probe.texts.encoding import (
    UNFIT,
    Failed,
    Survey,
    batches,
    encode,
    encode_all,
    encode_each,
    encode_whole,
    encoded,
    padded,
    survey,
)
from probe.texts.problems import choices_of, copy_prompts, expected_of
from probe.texts.prompts import Packed, as_prompts, columns_of, first_given, hash_of, read_prompts
from probe.texts.rows import FOR_TEMPLATES, GivenCompletion, Prompt, parsed
from probe.texts.sequences import TokenSequence
from probe.texts.trajectories import (
    Trajectory,
    arguments_of,
    chat_of,
    chosen_prompt,
    read_source,
    recorded_sequence,
    sequence_ids,
    steps_of,
    trajectory,
)

__all__ = [
    "FOR_TEMPLATES",
    "UNFIT",
    "Failed",
    "GivenCompletion",
    "Packed",
    "Prompt",
    "Survey",
    "TokenSequence",
    "Trajectory",
    "arguments_of",
    "as_prompts",
    "batches",
    "chat_of",
    "choices_of",
    "chosen_prompt",
    "columns_of",
    "copy_prompts",
    "encode",
    "encode_all",
    "encode_each",
    "encode_whole",
    "encoded",
    "expected_of",
    "first_given",
    "hash_of",
    "padded",
    "parsed",
    "prompt_columns",
    "read_prompts",
    "read_source",
    "recorded_sequence",
    "scored_columns",
    "scored_step_columns",
    "sequence_ids",
    "step_columns",
    "steps_of",
    "survey",
    "token_columns",
    "trajectory",
]
