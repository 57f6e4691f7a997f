"""Outcomes that others give to what was drawn: asked for once, kept in the run, and put in place of those that were read.

Draws nothing, and may be gone through again after more was drawn: what has a label is not asked about.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from probe.labelling.completions import completions
from probe.outcomes import UNLABELLED
from probe.outcomes.judging import Judgement, judge_identity, judgements
from probe.outcomes.labels import Place, read_labels
from probe.requests import OutcomeOptions

if TYPE_CHECKING:
    from probe.running import Running
    from probe.store import Run, Writer

TOGETHER, SECONDS = 64, 1.0  # labels that are kept at once, and how long one waits for others


def labellers(options: OutcomeOptions) -> dict[str, Any]:
    """Who gives outcomes, for the manifest's `resolved`: a resume must have the same. Raises `BadJudge`, `BadOption`."""
    found: dict[str, Any] = {}
    if options.judge is not None:
        found["judge"] = judge_identity(options.judge)
    if options.labels is not None:
        found["labels_sha256"] = read_labels(Path(options.labels)).sha256
    return found


def label(run: Running, options: OutcomeOptions, *, tokens_of: Run | None = None) -> set[str]:
    """Have what was drawn labelled as the options say, and put the labels into `branches`; the outcomes that were given.

    tokens_of: the run that has the tokens, where it is another. Raises `BadJudge`: what was said before it is kept, and
    `BadOption` for labels that are of other continuations.
    """
    writer = run.writer
    if writer.whole is None:
        if options.labels is not None and not writer.done("labels"):
            _from_file(run, Path(options.labels))
        if options.judge is not None:
            _from_judge(run, options, tokens_of)
    if not options.labelled:
        return set()
    given = _given(writer)
    if writer.whole is None:
        source = "judge" if options.judge is not None else "file"
        writer.amend("branches", lambda rows: _labelled(rows, given, source))
    return {one.outcome for one in given.values()}


def counted(run: Running, options: OutcomeOptions, prompt_id: int, given: set[str]) -> tuple[str, str | None]:
    """The class that is counted of a problem that was labelled, the right one or else that of its original; the right one."""
    rows = run.writer.read("branches", prompt_id=prompt_id)
    (prompt,) = run.writer.read("prompts", prompt_id=prompt_id).to_pylist()
    expected = options.expected(prompt["expect"], known=given)
    own = [row["outcome"] for row in rows.select(["arm", "outcome"]).to_pylist() if row["arm"] == "original"]
    return expected or (own[0] if own else UNLABELLED), expected


def _from_file(run: Running, path: Path) -> None:
    found, said = read_labels(path).of(_places(run.writer))
    run.warn(*said)
    with run.writer.unit("labels"):
        _write(run, list(found.items()), "file")


def _from_judge(run: Running, options: OutcomeOptions, tokens_of: Run | None) -> None:
    """Ask about all that has no label; answers are kept a few at a time, and in any case those that came before an error."""
    known = set(_given(run.writer))
    places = sorted(set(_places(run.writer)) - known)
    waiting: list[tuple[Place, Judgement]] = []
    since = time.monotonic()

    def keep() -> None:
        nonlocal since
        if waiting:
            with run.writer.unit("judged-{}-{}".format(*waiting[0][0])):
                _write(run, waiting, "judge")
            waiting.clear()
        since = time.monotonic()

    assert options.judge is not None, "there is a judge"
    asked = judgements(options.judge, _questions(run.writer, places, options, tokens_of), timeout=options.judge_timeout)
    try:
        for done, one in enumerate(zip(places, asked, strict=True), 1):
            waiting.append(one)
            run.report("judging", done, len(places))
            if len(waiting) >= TOGETHER or time.monotonic() - since > SECONDS:
                keep()
    finally:
        asked.close()
        keep()


def _questions(writer: Writer, places: list[Place], options: OutcomeOptions, tokens_of: Run | None) -> Iterator[dict[str, Any]]:
    """What a judge is told of each continuation, one prompt at a time."""
    prompts = {row["prompt_id"]: row for row in writer.read("prompts").select(["prompt_id", "text", "expect"]).to_pylist()}
    for prompt, own in groupby(places, key=itemgetter(0)):
        wanted = {branch for _, branch in own}
        branches = writer.read("branches", prompt_id=prompt)
        tokens = writer.read("tokens", prompt_id=prompt) if tokens_of is None else tokens_of.scan("tokens", prompt_id=prompt)
        about = prompts[prompt]
        for row, _, completion, _ in completions(branches, tokens):
            if row["branch"] in wanted:
                yield {
                    "prompt_id": prompt, "branch": row["branch"], "prompt": about["text"], "completion": completion,
                    "answer": row["answer"], "expect": options.expect if about["expect"] is None else about["expect"],
                    "stop_reason": row["stop_reason"],
                }  # fmt: skip


def _places(writer: Writer) -> list[Place]:
    found: list[Place] = []
    for piece in writer.batches("branches", ["prompt_id", "branch"]):
        found += zip(piece["prompt_id"].to_pylist(), piece["branch"].to_pylist(), strict=True)
    return found


def _write(run: Running, labels: list[tuple[Place, Judgement]], source: str) -> None:
    run.write("labels", {
        "prompt_id": [prompt for (prompt, _), _ in labels], "branch": [branch for (_, branch), _ in labels],
        "outcome": [one.outcome for _, one in labels], "source": [source] * len(labels),
        "more": [json.dumps(one.more, ensure_ascii=False, default=str) if one.more else None for _, one in labels],
    })  # fmt: skip


def _given(writer: Writer) -> dict[Place, Judgement]:
    rows = writer.read("labels").select(["prompt_id", "branch", "outcome", "more"]).to_pylist()
    return {(r["prompt_id"], r["branch"]): Judgement(r["outcome"], json.loads(r["more"] or "{}")) for r in rows}


def _labelled(rows: pa.Table, given: dict[Place, Judgement], source: str) -> pa.Table:
    """Rows of `branches` with the outcomes that were given; `answer` and `confidence` too, where they were said as texts."""
    places = list(zip(rows["prompt_id"].to_pylist(), rows["branch"].to_pylist(), strict=True))
    found = [given.get(place) for place in places]
    columns = {
        "outcome": [one.outcome if one else UNLABELLED for one in found], "rule": [source if one else None for one in found],
        "confidence": [_text(one, "confidence") for one in found],
        "answer": [_text(one, "answer") or old for one, old in zip(found, rows["answer"].to_pylist(), strict=True)],
    }  # fmt: skip
    for name, values in columns.items():
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, rows.schema.field(at), pa.array(values, pa.string()).cast(rows.schema.field(at).type))
    return rows


def _text(one: Judgement | None, name: str) -> str | None:
    said = one.more.get(name) if one else None
    return said if isinstance(said, str) and said else None
