"""The text of a run, token by token. Where a run holds no tokens its text stands there whole."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from probe.reporting.panels.context import Context
from probe.reporting.views import Measure, Panel, TokenStrip

# what the columns of `tokens` are called and how they are coloured; a number that is not here is shown under its own name
MEASURES = {
    measure.column: measure
    for measure in (
        Measure("logprob", "log-probability", "nats", high=0.0),
        Measure("prob", "probability", low=0.0, high=1.0),
        Measure("surprisal", "surprisal (-log-probability)", "nats", low=0.0),
        Measure("entropy", "entropy of the distribution it comes from", "nats", low=0.0),
        Measure("varentropy", "varentropy (variance of the surprisal)", "nats²", low=0.0),
        Measure("rank", "rank (0 is the most probable)", scaling="log", low=0.0),
        Measure("sample_logprob", "log-probability as the sampler saw it, after temperature and filters", "nats", high=0.0),
        Measure("kept", "tokens that the filters left to the sampler", "tokens", scaling="log", low=0.0),
        Measure("noise", "noise of the draw (exponential; the least noise / probability wins)", scaling="log", low=0.0),
        Measure("segment", "prompt or completion", scaling="classes"),
        Measure("template", "written by the chat template", scaling="classes"),
    )
}
PLACES = {"prompt_id", "branch", "pos", "token_id", "text_start", "text_end", "step", "segment", "token", "run_id"}


def strip(context: Context) -> Iterator[Panel]:
    """The text, coloured by any number that the run has of its tokens, with the most probable tokens at each place."""
    if not len(context.tokens):
        yield _whole_text(context)
        return
    frame = context.tokens.copy()
    frame["shown"] = _shown(context, frame)
    listed = bool(frame["top_ids"].notna().any())
    if listed:
        frame["top_tokens"] = context.text_of.of_lists(frame["top_ids"])
    yield TokenStrip(
        "tokens", "Text", "tokens", frame,
        where=context.where(), derived=("shown", "top_tokens") if listed else ("shown",), measures=measures_of(frame),
        alternatives=("top_tokens", "top_logprobs") if listed else None, shown="shown", note=context.text_of.note,
    )  # fmt: skip


def measures_of(frame: pd.DataFrame) -> tuple[Measure, ...]:
    """Every number and every class of tokens that has a value somewhere, the usual ones first."""
    numbers = [name for name in frame if name not in PLACES and pd.api.types.is_numeric_dtype(frame[name])]
    named = [*(name for name in MEASURES if name in frame), *(name for name in numbers if name not in MEASURES)]
    found = tuple(MEASURES.get(name) or Measure(name, name) for name in named if frame[name].notna().any())
    several = [one for one in found if one.scaling != "classes" or frame[one.column].nunique() > 1]
    return tuple(several) or (Measure("segment", "prompt or completion", scaling="classes"),)


def _shown(context: Context, frame: pd.DataFrame) -> list[str | None]:
    """The bytes of tokens that hold a part of a character, whose text is empty or lost; None for all others."""
    return [
        None if token and token.isascii() else context.text_of.bytes_of(token_id)
        for token, token_id in zip(frame["token"], frame["token_id"], strict=True)
    ]


def _whole_text(context: Context) -> TokenStrip:
    """A text whose tokens the run does not hold, as one."""
    prompt = context.prompt
    text = prompt["rendered"] or prompt["text"] or ""
    frame = context.rows("prompts").assign(pos=0, token=text)
    note = f"This prompt was not run: {prompt['error']}." if prompt["error"] else "The run holds no tokens of this text."
    numbers = [n for n in ("perplexity", "logprob", "mean_entropy", "n_tokens") if frame[n].notna().any()]
    return TokenStrip(
        "tokens", "Text", "prompts", frame,
        where={"prompt_id": context.prompt_id}, derived=("pos", "token"), note=note,
        measures=tuple(Measure(name, name.replace("_", " ").removeprefix("n ")) for name in numbers),
    )  # fmt: skip
