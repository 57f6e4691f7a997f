"""The verb `look`: reads a text, asks each kind of finding, ranks what stands out. Knows the order of things, no numbers."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from probe import store as stores
from probe.errors import BadEdit, BadOption, SiteAbsent
from probe.language_model.spreading import check_whole
from probe.lensing import run_lens
from probe.looking.causes import leaning, silenced
from probe.looking.findings import Finding, ranked, rows
from probe.looking.stream import massive, read_stream, sinks
from probe.looking.subject import AnswerPair, Subject
from probe.looking.text import surprises, uncertain
from probe.looking.writers import settled, writers
from probe.requests import Lens, Look, public
from probe.running import Running, running
from probe.sites import parse_where
from probe.targets import NO_SETS, contrast_after
from probe.texts import TokenSequence, read_source

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

READ = ("prompts", "tokens", "lens", "lens_positions")  # tables of the lens that the run keeps


def run_look(lm: LanguageModel | None, request: Look) -> stores.Run:
    """A first look at a text: facts that stand out against their controls, ranked, each with the command that shows more.

    What the model says after one position: which tokens it leans on (cut out of all later attention), what the strongest
    head and MLP do to it (held at their means), which parts wrote it (exactly), from which layer on it stands; then
    surprising and uncertain tokens, massive activations, heads that rest on the first token. A fact that does not stand
    out is not there.

    source: as in `lens`. Tables: `findings`, `heads`, `lens`, `lens_positions`, `tokens`, `prompts`. Raises `BadPrompt`,
    `BadPlace`, `BadOption`, `RunError`, `NonFinite`.
    """
    lm, sequence = read_source(lm, request.source, request)
    check_whole(lm, "attribution")
    position = _position(sequence, request.position)
    resolved = {"source_run": sequence.run.run_id if sequence.run else None, "ids": sequence.ids, "pos": position}
    with running(request, lm, word=sequence.tokens[position].strip(), resolved=resolved) as run:
        if run.writer.whole:
            return run.writer.whole
        return _looked(lm, sequence, position, request, run)


look = public(run_look, Look)


def plan_look(lm: LanguageModel | None, request: Look) -> dict[str, Any]:
    """What `look` would compute and write. Runs nothing."""
    lm, sequence = read_source(lm, request.source, request)
    n, layers = _position(sequence, request.position) + 1, lm.anatomy.n_layers
    return {
        "model": lm.name, "tokens": n, "read_passes": 3 + min(n, 64) + 2 * (request.controls + 1),
        "tables": {"findings": {"rows": 20, "bytes": 6000}, "lens": {"rows": n * layers, "bytes": 100 * n * layers}},
    }  # fmt: skip


def _position(sequence: TokenSequence, text: str) -> int:
    found = sequence.positions(parse_where(text))
    if len(found) != 1:
        raise BadOption(f"'{text}' is {len(found)} positions", hint="a look is at what follows one token")
    return found[0]


def _looked(lm: LanguageModel, sequence: TokenSequence, position: int, request: Look, run: Running) -> stores.Run:
    """Ask for every kind of finding; the whole run."""
    seen = run_lens(lm, _lens(request))
    choice = _choice(lm, sequence, position, request, seen)
    subject = Subject(lm, sequence, position, choice, _where(lm, request, run), request.seed, request.controls)
    stream = read_stream(subject)
    wrote: list[Finding] = []

    def written() -> list[Finding]:
        wrote.extend(writers(subject))
        return wrote

    asked: tuple[tuple[str, Callable[[], list[Finding]]], ...] = (
        ("what wrote it", written),
        ("where it settles", lambda: settled(subject, seen.lens_positions, seen.lens)),
        ("what it leans on", lambda: leaning(subject)),
        ("what its writers do", lambda: silenced(subject, wrote)),
        ("the text", lambda: [*surprises(subject, seen.tokens), *uncertain(subject, seen.tokens)]),
        ("the stream", lambda: [*massive(subject, stream), *sinks(subject, stream)]),
    )
    found: list[Finding] = []
    for done, (what, ask) in enumerate(asked):
        run.report(what, done, len(asked))
        try:
            found += ask()
        except (SiteAbsent, BadEdit) as error:
            run.warn(f"not looked at: {what}: {error.message}")
    run.report("looking", len(asked), len(asked))
    run.warn(*seen.manifest["warnings"], *stream.notes)
    found = ranked(found)
    with run.writer.unit("look", again=True):
        for name in READ:
            run.writer.write(name, seen.table_arrow(name).drop_columns("run_id"))
        _keep(run, sequence, stream.heads, found)
    return run.finish(_summary(subject, found), seed=request.seed, parent=sequence.parent)


def _lens(request: Look) -> Lens:
    """The lens over the same text."""
    return Lens(
        request.source, prompt_id=request.prompt_id, branch=request.branch, split=request.split, chat=request.chat,
        system=request.system, template_options=request.template_options, allow_template_loss=request.allow_template_loss,
        other_model=request.other_model,
    )  # fmt: skip


def _choice(lm: LanguageModel, sequence: TokenSequence, position: int, request: Look, seen: stores.Run) -> AnswerPair:
    """The answer and its rival: those that were asked for, else the model's two most probable tokens."""
    last = seen.lens[(seen.lens["layer"] == lm.anatomy.n_layers - 1) & (seen.lens["pos"] == position)].iloc[0]
    top = [int(token) for token in last["top_ids"]]
    if request.answer is None:
        return AnswerPair(top[0], top[1])
    found, _ = contrast_after(lm, NO_SETS, request.answer, request.against, after=sequence.ids[: position + 1])
    assert found is not None, "there is an answer"
    one = found.answer.token
    return AnswerPair(one, next(token for token in top if token != one) if found.against is None else found.against.token)


def _where(lm: LanguageModel, request: Look, run: Running) -> str:
    """The text as a command takes it: this run, or, where that is in memory alone, what it was made from."""
    path = run.writer.address or getattr(stores.run_of(request.source), "address", None)
    return shlex.quote(str(path)) if path else f"{shlex.quote(str(request.source))} --model {shlex.quote(lm.name)}"


def _keep(run: Running, sequence: TokenSequence, heads: dict[int, Any], found: list[Finding]) -> None:
    key = {"prompt_id": sequence.prompt.prompt_id, "branch": sequence.branch}
    for layer, columns in heads.items():
        own = {name: np.asarray(values)[0] for name, values in columns.items()}
        run.write("heads", {**key, "layer": layer, "head": np.arange(len(own["rows"])), **own})
    if found:
        told = rows(found)
        run.write("findings", {"prompt_id": key["prompt_id"], **{name: [row[name] for row in told] for name in told[0]}})


def _summary(subject: Subject, found: list[Finding]) -> dict[str, Any]:
    lm, (answer, against) = subject.lm, subject.choice
    return {
        "tokens": len(subject.sequence.ids), "pos": subject.position,
        "token": lm.label(subject.sequence.ids[subject.position], subject.sequence.tokens[subject.position]),
        "answer": lm.token_text(answer), "against": lm.token_text(against), "findings": rows(found),
    }  # fmt: skip
