"""The path of one token: how logits become a choice, stage by stage, here and in other engines' order."""

from probe.sampling.rows import SHOWN, Token, candidate_columns, stage_columns
from probe.sampling.stages import ORDERS, WINDOW, Stage, check_order, race, stages

__all__ = [
    "ORDERS", "SHOWN", "WINDOW", "Stage", "Token", "candidate_columns", "check_order", "race", "stage_columns", "stages",
]  # fmt: skip
