"""Pairs of texts, a clean and a corrupt one, and the answers that are followed. Knows tokens, not activations."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from probe.decoding.teacher_forced import check_beginnings
from probe.errors import BadOption, BadPrompt
from probe.files import read_rows
from probe.interventions.parsing import check_run, prompts_of
from probe.requests import ChatOptions, PatchSweep
from probe.requests.answering import AnswerOptions
from probe.sites import parse_where
from probe.spans import Step, of_other_texts, steps_from
from probe.store import Run, run_of
from probe.targets import Contrast, contrast_after
from probe.texts import arguments_of, sequence_ids

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

RAW = ChatOptions()
ALIGNMENTS = ("left", "right", "ends")
COLUMNS = ("clean", "corrupt", "answer", "against", "answer_set", "against_set")
LAST = "last"


class PairTexts(NamedTuple):
    """A pair as it is asked for: texts, or runs in their place, and each answer as text or as a set of tokens."""

    clean: Any
    corrupt: Any
    answer: str | None = None
    against: str | None = None
    answer_set: str | None = None
    against_set: str | None = None

    @property
    def sets(self) -> AnswerOptions:
        """The answers that are sets."""
        return AnswerOptions(answer_set=self.answer_set, against_set=self.against_set)

    def completed(self, request: PatchSweep) -> PairTexts:
        """The same; an answer that it does not name is the request's."""
        found = self
        if not (self.answer or self.answer_set):
            found = found._replace(answer=request.answer, answer_set=request.answer_set)
        if not (self.against or self.against_set):
            found = found._replace(against=request.against, against_set=request.against_set)
        return found


class _Text(NamedTuple):
    """A text as tokens, its steps as a run of it was cut, and what is to be said of it."""

    ids: tuple[int, ...]
    n_prompt: int
    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """Two texts as tokens. `places` are (position in clean, position in corrupt) that mean the same, ascending; `first` is
    the first position where the texts differ; `steps` are token spans in the clean text, for positions such as step3."""

    clean: tuple[int, ...]
    corrupt: tuple[int, ...]
    target: Contrast
    places: tuple[tuple[int, int], ...]
    first: int
    names: tuple[str, str]  # texts, for the table `prompts`
    notes: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()

    @property
    def answers(self) -> tuple[str, str | None]:
        """What is followed, as it is shown."""
        return self.target.names

    @property
    def differing(self) -> list[tuple[int, int]]:
        """The places whose tokens differ."""
        return [(a, b) for a, b in self.places if self.clean[a] != self.corrupt[b]]

    @property
    def clean_steps(self) -> tuple[tuple[int, int], ...]:
        """The steps as spans of the clean text."""
        return tuple((step.start, step.end) for step in self.steps)

    @property
    def corrupt_steps(self) -> tuple[tuple[int, int], ...]:
        """The steps as spans of the corrupt text: of the places there that are aligned with the step's; (0, 0) if none is."""
        there = [[b for a, b in self.places if start <= a < end] for start, end in self.clean_steps]
        return tuple((found[0], found[-1] + 1) if found else (0, 0) for found in there)

    def base(self, direction: str) -> tuple[int, ...]:
        """The tokens that are patched: denoising goes into the corrupt text, noising into the clean one."""
        return self.corrupt if direction == "denoise" else self.clean

    def longest(self, direction: str) -> int:
        """Tokens of the base with the longest of what is given after it."""
        return len(self.base(direction)) + max(map(len, self.target.tails))

    def source(self, direction: str) -> tuple[int, ...]:
        """The tokens that patches come from."""
        return self.clean if direction == "denoise" else self.corrupt

    def origins(self, direction: str) -> dict[int, int]:
        """Position in the base -> position in the source, of those that are aligned."""
        return {b: a for a, b in self.places} if direction == "denoise" else dict(self.places)

    def reached(self, direction: str) -> int:
        """The first position of the base where the source can have another value, by causality: from where the texts differ
        on, or where what is aligned stands elsewhere. As many as there are tokens where that is nowhere."""
        moved = (p for p, q in self.origins(direction).items() if p >= self.first or p != q)
        return min(moved, default=len(self.base(direction)))


def make_pair(
    lm: LanguageModel, words: PairTexts, *, align: str | None = None, chat: ChatOptions = RAW, whole: bool = False,
    measure_at: str = LAST,
) -> Pair:  # fmt: skip
    """Tokens, alignment and target of a pair. Raises `BadPrompt` or `BadOption` for one that says nothing.

    whole: all tokens of an answer are followed. measure_at: a position of the clean text, of a step its last; both texts end
    there, for what comes later changes nothing that is measured.
    """
    texts = [_read(lm, given, chat) for given in words[:2]]
    for name, text in zip(("clean", "corrupt"), texts, strict=True):
        if not text.ids:
            raise BadPrompt(f"the {name} text is empty", hint="give it some tokens")
    clean, corrupt = _cut(lm, texts[0], texts[1], align, measure_at)
    target, notes = contrast_after(lm, words.sets, words.answer, words.against, after=clean, whole=whole)
    if target is None:
        raise BadOption("no answer is named", hint="give --answer ' Mary', or --answer-set ' 57| 58'")
    for name, ids in (("clean", clean), ("corrupt", corrupt)):
        _check_length(lm, name, len(ids) + max(map(len, target.tails)))
    if any(target.tails) or len(clean) < len(texts[0].ids):
        check_beginnings(lm)
    with suppress(BadOption):
        other, _ = contrast_after(lm, words.sets, words.answer, words.against, after=corrupt, whole=whole)
        if other is not None and other != target:
            what = "the answers are other tokens" if whole else f"the answers begin with {other.names}"
            notes.append(f"after the corrupt text, {what}: those after the clean text are used")
    return pair_of(
        clean, corrupt, target, align=align, names=(_name(words.clean), _name(words.corrupt)),
        notes=tuple(dict.fromkeys([*texts[0].notes, *texts[1].notes, *notes])),
        steps=tuple(step for step in texts[0].steps if step.end <= len(clean)),
    )  # fmt: skip


def _cut(
    lm: LanguageModel, clean: _Text, corrupt: _Text, align: str | None, measure_at: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Both texts up to where they are measured. Raises `OutOfRange` or `BadPlace` for a position that the clean text has not,
    `BadOption` for one that has none like it in the corrupt text, or before which the texts are the same."""
    where = parse_where(measure_at)
    if str(where) == LAST:
        return clean.ids, corrupt.ids
    spans = [(step.start, step.end) for step in clean.steps]
    tokens = lm.pieces(clean.ids).tokens
    last = where.one(len(clean.ids), clean.n_prompt, steps=spans, tokens=tokens)
    other = dict(aligned(clean.ids, corrupt.ids, align)).get(last)
    if other is None:
        raise BadOption(f"the corrupt text has no position like {last} of the clean one", hint="see --align")
    found = clean.ids[: last + 1], corrupt.ids[: other + 1]
    if found[0] == found[1]:
        raise BadOption(f"up to {measure_at}, both texts are the same", hint="--measure-at takes a position after they differ")
    return found


def pair_of(
    clean: tuple[int, ...], corrupt: tuple[int, ...], target: Contrast, *,
    align: str | None, names: tuple[str, str], notes: tuple[str, ...] = (), steps: tuple[Step, ...] = (),
) -> Pair:  # fmt: skip
    """The pair of two sequences of tokens. Raises `BadPrompt` where they are the same, `BadOption` as `aligned` does."""
    if clean == corrupt:
        raise BadPrompt("the clean and the corrupt text are the same tokens", hint="change what the answer depends on")
    places = aligned(clean, corrupt, align)
    return Pair(clean, corrupt, target, places, common(clean, corrupt), names, notes, steps)


def aligned(clean: Sequence[int], corrupt: Sequence[int], align: str | None) -> tuple[tuple[int, int], ...]:
    """Which positions mean the same. `left`: counted from the first token; `right`: from the last; `ends`: the tokens that
    both begin with and those that both end with, and what lies between where it is of one length.

    Texts of one length need no word for it. Raises `BadOption` where the lengths differ and `align` is None.
    """
    n, m = len(clean), len(corrupt)
    if align is not None and align not in ALIGNMENTS:
        raise BadOption(f"unknown alignment '{align}'", hint=", ".join(ALIGNMENTS))
    if n == m:
        return tuple((i, i) for i in range(n))
    if align is None:
        raise BadOption(
            f"the clean text has {n} tokens and the corrupt one {m}",
            hint="make them of one length, or say which positions mean the same: --align left, right or ends",
        )
    if align == "left":
        return tuple((i, i) for i in range(min(n, m)))
    if align == "right":
        return tuple((n - i, m - i) for i in range(min(n, m), 0, -1))
    begin = common(clean, corrupt)
    end = min(common(clean[::-1], corrupt[::-1]), n - begin, m - begin)
    return (*((i, i) for i in range(begin)), *((n - i, m - i) for i in range(end, 0, -1)))


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _read(lm: LanguageModel, given: Any, chat: ChatOptions) -> _Text:
    """Of a text, of a run (its one prompt and what it generated), or of a text that is the path of a run."""
    run = run_of(given)
    if run is not None:
        check_run(lm, run, _name(given))
        recorded = "activations" in run.tables
        prompts = prompts_of(run) if recorded else run.scan("prompts", columns=["prompt_id"])["prompt_id"].to_pylist()
        if len(prompts) != 1:
            raise BadOption(f"'{_name(given)}' has {len(prompts)} prompts", hint="give a run of one prompt")
        ids, n_prompt = sequence_ids(run, prompts[0], 0)
        steps: list[Step] = []
        if len(ids) > n_prompt:
            pieces, split = lm.pieces(ids), str(arguments_of(run).get("split") or "sentence")
            steps = steps_from(pieces.text, pieces.offsets, n_prompt, of_other_texts(split))
        return _Text(tuple(ids), n_prompt, tuple(steps))
    if chat.chat:
        rendered = lm.render(given, chat)
        return _Text(tuple(rendered.ids), len(rendered.ids), notes=tuple(rendered.notes))
    if chat.template_options:
        raise BadOption("template options need the chat template", hint="add --chat")
    ids = lm.encode(given).ids
    return _Text(tuple(ids), len(ids))


def _name(given: Any) -> str:
    return f"run {given.run_id}" if isinstance(given, Run) else str(given)


def _check_length(lm: LanguageModel, name: str, n: int) -> None:
    """n: with what is given after it."""
    if lm.context_length is not None and n > lm.context_length:
        raise BadPrompt(
            f"the {name} text has {n:,} tokens, and the context of {lm.name} holds {lm.context_length:,}", hint="shorten it"
        )


def read_pairs(path: Path, *, answered: bool = True) -> list[PairTexts]:
    """Pairs of a file of rows with columns clean, corrupt, answer or answer_set and, if there is one, against or against_set;
    see `files.read_rows`. answered: every row needs an answer.

    Raises `BadPrompt` for a file or a row that cannot be read.
    """
    kind, found = read_rows(path, columns=COLUMNS, origin=str(path))
    if kind == "txt":
        raise BadPrompt(f"'{path}' is no file of pairs", hint=f"a .jsonl or .csv with {', '.join(COLUMNS[:4])}")
    if not (rows := list(found)):
        raise BadPrompt(f"no pair in '{path}'", hint=f"columns {', '.join(COLUMNS[:4])}, and at least one row")
    torn = next((row for row in rows if row.error), None)
    if torn is not None:
        raise BadPrompt(f"line {torn.number + 1} of '{path}' is {torn.error}", hint="one object a line")
    return [_words(row.value, f"row {row.number + 1} of '{path}'", answered=answered) for row in rows]


def _words(row: Any, where: str, *, answered: bool) -> PairTexts:
    found = {name: value for name, value in (row if isinstance(row, dict) else {}).items() if value not in (None, "")}
    needed = [*COLUMNS[:2], *(["answer"] if answered and "answer_set" not in found else [])]
    if missing := [name for name in needed if name not in found]:
        raise BadPrompt(f"{where} has no text for {', '.join(missing)}", hint=f"columns {', '.join(COLUMNS)}")
    for name in COLUMNS:
        if not isinstance(found.get(name, ""), str):
            raise BadPrompt(f"{where}: '{name}' is not a text", hint="write it in quotes")
        if name.endswith("_set") and name in found and name.removesuffix("_set") in found:
            raise BadPrompt(f"{where} has both {name.removesuffix('_set')} and {name}", hint="leave one of them empty")
    return PairTexts(**{name: found.get(name) for name in COLUMNS})
