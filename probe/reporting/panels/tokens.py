"""The text of a run, token by token. Where a run holds no tokens its text stands there whole."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import pyarrow as pa

from probe.reporting.panels.attribution import sources
from probe.reporting.panels.context import Context, noted
from probe.reporting.panels.given import GivenTokens, given_tokens
from probe.reporting.panels.speculating import DECIDED, verdicts
from probe.reporting.views import Measure, Panel, TokenStrip

# what the columns of `tokens` are called and how they are coloured; a number that is not here is shown under its own name
MEASURES = {
    measure.column: measure
    for measure in (
        Measure("logprob", "log-probability", "nats", high=0.0),
        Measure("prob", "probability", low=0.0, high=1.0),
        Measure("surprisal", "surprisal", "nats", low=0.0),
        Measure("entropy", "entropy", "nats", low=0.0),
        Measure("varentropy", "varentropy", "nats²", low=0.0),
        Measure("rank", "rank (0 is the most probable)", scaling="log", low=0.0),
        Measure("sample_logprob", "log-probability after filters", "nats", high=0.0),
        Measure("kept", "tokens left after filters", "tokens", scaling="log", low=0.0),
        Measure("noise", "noise of the draw", scaling="log", low=0.0),
        Measure("segment", "prompt or completion", scaling="classes"),
        Measure("template", "written by the chat template", scaling="classes"),
    )
}
NOTHING = Measure("segment", "prompt or completion", scaling="classes")  # of a text without numbers
PLACES = {"prompt_id", "branch", "pos", "token_id", "text_start", "text_end", "step", "segment", "token", "run_id"}


def strip(context: Context) -> Iterator[Panel]:
    """The text, coloured by any number that the run has of its tokens, with the most probable tokens at each place."""
    if any(len(context.rows(table, columns=["text_start"])) for table in ("comparison", "segments")):
        return  # theirs stands in its place
    if len(context.tokens):
        yield _of_table(context)
    elif given := given_tokens(context):
        yield _of_ids(context, given)
    else:
        yield _whole_text(context)


def _of_table(context: Context) -> TokenStrip:
    frame = context.tokens.copy()
    frame["shown"] = context.text_of.bytes_in_place_of(frame["token"], frame["token_id"])
    derived = ["shown"]
    listed = any(ids is not None and len(ids) for ids in frame["top_ids"])
    if listed:
        frame["top_tokens"] = context.text_of.of_lists(frame["top_ids"])
        derived.append("top_tokens")
    own = measures_of(frame)
    frame, more = _joined(context, frame)
    return TokenStrip(
        "tokens", "Text", "tokens", frame,
        where=context.where(), derived=(*derived, *(one.column for one in more)),
        measures=(*more, *own) if more else own or (NOTHING,),
        alternatives=("top_tokens", "top_logprobs") if listed else None, shown="shown",
        note=noted(DECIDED if "verdict" in frame else "", context.text_of.note),
    )  # fmt: skip


def _joined(context: Context, frame: pd.DataFrame) -> tuple[pd.DataFrame, tuple[Measure, ...]]:
    """With what other tables say of its positions."""
    found: tuple[Measure, ...] = ()
    for of_positions in (verdicts, sources):
        more, measures = of_positions(context)
        if measures:
            frame = frame.join(more, on="pos", validate="1:1")
            found += measures
    return frame, found


def measures_of(frame: pd.DataFrame) -> tuple[Measure, ...]:
    """Every number and every class of tokens that has a value somewhere, the usual ones first."""
    numbers = [name for name in frame if name not in PLACES and pd.api.types.is_numeric_dtype(frame[name])]
    named = [*(name for name in MEASURES if name in frame), *(name for name in numbers if name not in MEASURES)]
    found = tuple(MEASURES.get(name) or Measure(name, name) for name in named if frame[name].notna().any())
    several = [one for one in found if one.scaling != "classes" or frame[one.column].nunique() > 1]
    return tuple(several)


def _of_ids(context: Context, given: GivenTokens) -> TokenStrip:
    """A text of which the run keeps the ids only, or whose tokens are those of the run it was made from."""
    frame, more = _joined(context, given.frame)
    return TokenStrip(
        "tokens", "Text", "prompts", frame, where={"prompt_id": context.prompt_id}, derived=tuple(frame.columns),
        measures=(*more, *measures_of(given.frame)) or (NOTHING,), shown="shown", note=noted(given.note, context.text_of.note),
    )  # fmt: skip


def _whole_text(context: Context) -> TokenStrip:
    """A text whose tokens the run does not hold, as one."""
    prompt = context.prompt
    text = prompt["rendered"] or prompt["text"] or ""
    flat = [field.name for field in context.run.schema("prompts") if not pa.types.is_nested(field.type)]
    frame = context.rows("prompts", columns=flat).assign(pos=0, token=text)
    note = f"This prompt was not run: {prompt['error']}." if prompt["error"] else "The run holds no tokens of this text."
    numbers = [n for n in ("perplexity", "logprob", "mean_entropy", "n_tokens") if frame[n].notna().any()]
    return TokenStrip(
        "tokens", "Text", "prompts", frame,
        where={"prompt_id": context.prompt_id}, derived=("pos", "token"), note=note,
        measures=tuple(Measure(name, name.replace("_", " ").removeprefix("n ")) for name in numbers),
    )  # fmt: skip
