"""How single tokens were chosen, and how likely answers are that were given."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from probe.reporting.panels.context import Context, noted
from probe.reporting.views import Axis, Bars, Listing, Measure, Panel, ShownColumn

FIRST = 8  # tokens that a stage took out, named in its row


def explained(context: Context) -> Iterator[Panel]:
    """The stages of each explained token, and the tokens that could have been chosen in its place."""
    stages = context.sequence_rows("stages")
    candidates = context.sequence_rows("candidates")
    if len(stages):
        stages["token"] = [context.text_of(one) for one in stages["token_id"]]
        stages["first_removed"] = [_named(context, ids) for ids in stages["removed_ids"]]
        yield Listing(
            "stages", "How tokens were chosen, stage by stage", "stages", stages,
            where=context.where(), derived=("token", "first_removed"),
            columns=(
                ShownColumn("pos", "position", cursor="token"), ShownColumn("token", "token"),
                ShownColumn("order", "order of stages"), ShownColumn("name", "stage"), ShownColumn("setting", "setting", 3),
                ShownColumn("kept", "tokens left"), ShownColumn("removed", "taken out"),
                ShownColumn("kept_mass", "mass kept of the stage before", 3), ShownColumn("raw_mass", "mass by the model", 3),
                ShownColumn("entropy", "entropy, nats", 3), ShownColumn("rank", "rank of the token"),
                ShownColumn("prob", "probability of the token", 3), ShownColumn("first_removed", "best that were taken out"),
            ),
            note=noted(
                "Order 'hf' is what happened; others are what an engine with that order would have done.", context.text_of.note
            ),
        )  # fmt: skip
    if len(candidates):
        candidates = candidates.sort_values(["pos", "order", "rank"], kind="stable", ignore_index=True)
        candidates["candidate"] = [
            f"{rank} {token}" for rank, token in zip(candidates["rank"], candidates["token"], strict=True)
        ]
        yield Bars(
            "candidates", "Tokens that could have been chosen", "candidates", candidates,
            where=context.where(), derived=("candidate",), follows={"token": "pos"},
            axis=Axis("candidate", "rank by the model, token"),
            measure=Measure("final_prob", "probability after all stages", low=0.0, high=1.0),
            facet="order",
            note="Of one explained token. A bar of 0: a stage took the token out.",
        )  # fmt: skip
        yield Listing(
            "candidate-list", "Tokens that could have been chosen, one by one", "candidates", candidates,
            where=context.where(), derived=("candidate",), follows={"token": "pos"},
            columns=(
                ShownColumn("pos", "position", cursor="token"), ShownColumn("order", "order of stages"),
                ShownColumn("rank", "rank by the model"), ShownColumn("token", "token"),
                ShownColumn("raw_prob", "probability by the model", 4), ShownColumn("final_prob", "after all stages", 4),
                ShownColumn("removed_by", "taken out by"), ShownColumn("noise", "noise", 4),
                ShownColumn("race", "noise / probability", 4), ShownColumn("actual", "stands in the text"),
                ShownColumn("chosen", "wins: the least noise / probability"),
            ),
        )  # fmt: skip


def _named(context: Context, ids: list[int] | None) -> str:
    """The best of the tokens that a stage took out, and how many more it lists."""
    found = [] if ids is None else list(ids)
    names = ", ".join(repr(context.text_of(one)) for one in found[:FIRST])
    return names + (", …" if len(found) > FIRST else "")


def answers(context: Context) -> Iterator[Panel]:
    """Answers that were given, scored as what follows the prompt."""
    frame = context.rows("answers")
    if not len(frame):
        return
    frame["name"] = frame["lead"].fillna("") + frame["text"].fillna("")
    calibrated = bool(frame["calibrated"].notna().any())
    measure = (
        Measure("calibrated", "log-probability less that after a neutral prompt", "nats", scaling="diverging")
        if calibrated
        else Measure("logprob", "log-probability of the answer", "nats", high=0.0)
    )
    yield Bars(
        "answers", "Answers that were given", "answers", frame, where={"prompt_id": context.prompt_id}, derived=("name",),
        axis=Axis("answer", "answer", labels=_labels(frame)), measure=measure,
        note="Nearer to 0 is more probable." if not calibrated else "Above 0: the prompt makes the answer more probable.",
    )  # fmt: skip
    names = {
        "logprob": "log-prob, nats", "before": "of the prompt's end, nats", "per_token": "nats a token",
        "per_character": "nats a character", "per_byte": "nats a byte", "prior": "after a neutral prompt, nats",
        "calibrated": "calibrated, nats",
    }  # fmt: skip
    shown = [name for name in names if frame[name].notna().any()]
    yield Listing(
        "answer-list", "Answers that were given, one by one", "answers", frame,
        where={"prompt_id": context.prompt_id}, derived=("name",),
        columns=(
            ShownColumn("answer", "answer"), ShownColumn("text", "text"), ShownColumn("correct", "right"),
            *(ShownColumn(name, names[name], 3) for name in shown), ShownColumn("error", "not scored because"),
        ),
    )  # fmt: skip


def _labels(frame: pd.DataFrame) -> dict[int, str]:
    return {int(number): str(name) for number, name in zip(frame["answer"], frame["name"], strict=True)}
