"""Pairs of texts, a clean and a corrupt one, and the answers that are followed. Knows tokens, not activations."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from probe.errors import BadOption, BadPrompt
from probe.files import read_rows
from probe.interventions.parsing import check_run, prompts_of
from probe.requests import ChatOptions
from probe.requests.answering import AnswerOptions
from probe.spans import Step
from probe.store import Run, run_of
from probe.targets import NO_SETS, Contrast, contrast_after

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

RAW = ChatOptions()
ALIGNMENTS = ("left", "right", "ends")
COLUMNS = ("clean", "corrupt", "answer", "against")


class PairTexts(NamedTuple):
    """A pair as it is asked for: texts, or runs in their place, and the answers as text."""

    clean: Any
    corrupt: Any
    answer: str | None
    against: str | None = None


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
    lm: LanguageModel, words: PairTexts, *, align: str | None = None, chat: ChatOptions = RAW, sets: AnswerOptions = NO_SETS
) -> Pair:
    """Tokens, alignment and target of a pair. Raises `BadPrompt` or `BadOption` for one that says nothing."""
    (clean, said), (corrupt, more) = (_read(lm, given, chat) for given in words[:2])
    for name, ids in (("clean", clean), ("corrupt", corrupt)):
        if not ids:
            raise BadPrompt(f"the {name} text is empty", hint="give it some tokens")
        _check_length(lm, name, ids)
    target, notes = contrast_after(lm, sets, words.answer, words.against, after=clean)
    if target is None:
        raise BadOption("no answer is named", hint="give --answer ' Mary', or --answer-set ' 57| 58'")
    with suppress(BadOption):
        other, _ = contrast_after(lm, sets, words.answer, words.against, after=corrupt)
        if other is not None and other != target:
            notes.append(f"after the corrupt text, the answers begin with {other.names}: those after the clean text are used")
    return pair_of(
        clean, corrupt, target, align=align, names=(_name(words.clean), _name(words.corrupt)),
        notes=tuple(dict.fromkeys([*said, *more, *notes])),
    )  # fmt: skip


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


def _read(lm: LanguageModel, given: Any, chat: ChatOptions) -> tuple[tuple[int, ...], list[str]]:
    """The tokens, and what is to be said of them: of a text, of a run (its one prompt and what it generated), or of a text
    that is the path of a run."""
    run = run_of(given)
    if run is not None:
        check_run(lm, run, _name(given))
        recorded = "activations" in run.tables
        prompts = prompts_of(run) if recorded else run.scan("prompts", columns=["prompt_id"])["prompt_id"].to_pylist()
        if len(prompts) != 1:
            raise BadOption(f"'{_name(given)}' has {len(prompts)} prompts", hint="give a run of one prompt")
        rows = run.scan("tokens", columns=["pos", "token_id"], prompt_id=prompts[0], branch=0).sort_by("pos")
        return tuple(int(i) for i in rows["token_id"].to_pylist()), []
    if chat.chat:
        rendered = lm.render(given, chat)
        return tuple(rendered.ids), rendered.notes
    if chat.template_options:
        raise BadOption("template options need the chat template", hint="add --chat")
    return tuple(lm.encode(given).ids), []


def _name(given: Any) -> str:
    return f"run {given.run_id}" if isinstance(given, Run) else str(given)


def _check_length(lm: LanguageModel, name: str, ids: Sequence[int]) -> None:
    if lm.context_length is not None and len(ids) > lm.context_length:
        raise BadPrompt(
            f"the {name} text has {len(ids):,} tokens, and the context of {lm.name} holds {lm.context_length:,}",
            hint="shorten it",
        )


def read_pairs(path: Path, *, answered: bool = True) -> list[PairTexts]:
    """Pairs of a file of rows with columns clean, corrupt, answer and, if there is one, against; see `files.read_rows`.
    answered: every row needs an answer.

    Raises `BadPrompt` for a file or a row that cannot be read.
    """
    kind, found = read_rows(path, columns=COLUMNS, origin=str(path))
    if kind == "txt":
        raise BadPrompt(f"'{path}' is no file of pairs", hint="a .jsonl or .csv with clean, corrupt, answer, against")
    if not (rows := list(found)):
        raise BadPrompt(f"no pair in '{path}'", hint=f"columns {', '.join(COLUMNS)}, and at least one row")
    torn = next((row for row in rows if row.error), None)
    if torn is not None:
        raise BadPrompt(f"line {torn.number + 1} of '{path}' is {torn.error}", hint="one object a line")
    return [_words(row.value, f"row {row.number + 1} of '{path}'", COLUMNS[: 3 if answered else 2]) for row in rows]


def _words(row: Any, where: str, needed: Sequence[str]) -> PairTexts:
    found = row if isinstance(row, dict) else {}
    missing = [name for name in needed if not isinstance(found.get(name), str) or not found[name]]
    if missing:
        raise BadPrompt(f"{where} has no text for {', '.join(missing)}", hint=f"columns {', '.join(COLUMNS)}")
    against = found.get("against") or None
    if against is not None and not isinstance(against, str):
        raise BadPrompt(f"{where}: 'against' is not a text", hint="write it in quotes")
    return PairTexts(found["clean"], found["corrupt"], found.get("answer") or None, against)
