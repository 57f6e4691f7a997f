"""Finds the answer in a text: by rules, the last match of the strongest rule wins; what is markup or thinking is not read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from probe.answers import choosing, reading, saying
from probe.answers.canonical import canonical
from probe.answers.saying import AnswerSpan
from probe.errors import BadOption
from probe.patterns import Pattern

# <|im_end|>, <｜end▁of▁sentence｜>, </s>, <eos>, <end_of_turn>, [/INST]: at most 60 characters, so that no search is long
_SPECIAL = re.compile(
    r"<[|｜][^<>|｜\n]{1,60}[|｜]>|</?s>|<(?:pad|eos|bos|unk|eot|eod|mask|cls|sep|(?:start|end)_of_(?:turn|text"
    r"|utterance|image))>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|s)\]|\[(?:CLS|SEP|PAD|UNK)\]|<unused\d{1,4}>"
)
_NAMES = "think|thinking|thoughts?|reasoning|reflection|scratchpad|seed:think"
_OPENS = re.compile(rf"<(?:{_NAMES})>|\[THINK\]|<\|begin_of_thought\|>|<\|START_THINKING\|>|◁think▷|<\|channel>", re.IGNORECASE)
_CLOSES = re.compile(rf"</(?:{_NAMES})>|\[/THINK\]|<\|end_of_thought\|>|<\|END_THINKING\|>|◁/think▷|<channel\|>", re.IGNORECASE)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w{1,20})[^<\n]{0,40}<\|message\|>")  # gpt-oss: analysis, commentary, final


class Speech(NamedTuple):
    """Where a completion speaks, characters [start, end), and whether it ends while it still thinks."""

    start: int
    end: int
    thinking: bool


def opens_thinking(text: str) -> bool:
    """Whether a text, such as a rendered prompt, ends inside a thinking part."""
    return speech(text).thinking


def speech(text: str, *, opened: bool = False) -> Speech:
    """What stands after the last thinking part, up to one that doesn't end. opened: the prompt has begun one."""
    channels = list(_CHANNEL.finditer(text))
    if channels:
        final = channels[-1][1] == "final"
        return Speech(channels[-1].end(), len(text) if final else channels[-1].end(), not final)
    closes = [match.end() for match in _CLOSES.finditer(text)]
    start = closes[-1] if closes else 0
    if opened and not closes:
        return Speech(0, 0, True)
    again = _OPENS.search(text, start)
    return Speech(start, again.start() if again else len(text), again is not None)


def spoken(text: str, *, opened: bool = False, hidden: Iterable[tuple[int, int]] = ()) -> str:
    """The text, as long as it was, with line breaks where it thinks and where special tokens stand.

    hidden: characters of tokens that are known to be special.
    """
    start, end, _ = speech(text, opened=opened)
    text = "\n" * start + text[start:end] + "\n" * (len(text) - end)
    for a, b in hidden:
        text = text[:a] + "\n" * (b - a) + text[b:]
    return _SPECIAL.sub(lambda match: "\n" * len(match[0]), text)


NONE, TRUNCATED = "<none>", "<truncated>"
HOWS = ("auto", "last-number", "boxed", "choice", "yes-no", "regex=PATTERN")


class Answer(NamedTuple):
    """An answer: its class `key`, its `text` as written, characters [start, end), and the `rule` that found it.

    confidence: `high` where the text marks it as its answer, `medium` where it had to be read out of a longer clause or a
    correction, `low` where nothing marks it; empty if there is none.
    """

    key: str
    text: str
    start: int
    end: int
    rule: str
    confidence: str


class Candidate(NamedTuple):
    """One match of one rule, and whether it is the one that `extract` chose."""

    rule: str
    text: str
    key: str
    start: int
    end: int
    confidence: str
    chosen: bool


Finder = Callable[[str], Iterator[AnswerSpan]]


def extract(text: str, how: str = "auto", *, thinking: bool = False, hidden: Iterable[tuple[int, int]] = ()) -> Answer:
    """The answer that a text gives; key `<none>` if it gives none.

    how: `auto` (a \\boxed{}, else <answer>, else what follows "answer is", else what follows ####, else the last number, else
    a text that is nothing but a letter or yes or no), `last-number`, `boxed`, `choice` (a letter A to J), `yes-no`, or
    `regex=PATTERN` (its first group, or all of it). The last match wins.
    thinking: the prompt has opened a thinking part. What is thought is no answer; nor are special tokens, which are known by
    their shape (<|im_end|>, </s>), and by `hidden`, their characters.
    Raises `BadOption` for another `how`, or a pattern that is none or takes too long.
    """
    bare = spoken(text, opened=thinking, hidden=hidden)
    for rule, find in _rules(how):
        found = list(find(bare))
        if found:
            start, end, confidence = found[-1]
            return Answer(_key(rule, bare[start:end]), text[start:end], start, end, rule, confidence)
    return Answer(NONE, "", 0, 0, "", "")


def explain(text: str, how: str = "auto", *, thinking: bool = False) -> list[Candidate]:
    """Every match of every rule that `how` tries, strongest rule first."""
    chosen = extract(text, how, thinking=thinking)
    bare = spoken(text, opened=thinking)
    return [
        Candidate(rule, text[a:b], _key(rule, bare[a:b]), a, b, sure, (rule, a, b) == (chosen.rule, chosen.start, chosen.end))
        for rule, find in _rules(how)
        for a, b, sure in find(bare)
    ]


def key(written: str, how: str = "auto") -> str:
    """The class of an answer that is given by itself, as an expectation or a candidate: read as a box's content would be."""
    if how in ("choice", "yes-no") and (found := extract(written, how)).key != NONE:
        return found.key
    bare = spoken(written)
    if how in ("auto", "boxed", "last-number"):
        found = extract(written, "boxed")
        if found.key != NONE:
            return found.key
        start, end = reading.content(bare, 0, len(bare))
        bare = bare[start:end]
    return canonical(bare)


def _rules(how: str) -> list[tuple[str, Finder]]:
    if how == "auto":
        return [
            ("boxed", saying.boxed), ("answer tag", saying.tagged), ("answer is", saying.said), ("####", saying.hashed),
            ("last-number", saying.last), ("alone", saying.alone),
        ]  # fmt: skip
    if how.startswith("regex="):
        return [("regex", _pattern(how.removeprefix("regex=")))]
    known: dict[str, Finder] = {
        "last-number": _numbers, "boxed": saying.boxed, "choice": choosing.letters, "yes-no": choosing.yes_no,
    }  # fmt: skip
    if how not in known:
        raise BadOption(f"unknown way to find answers '{how}'", hint=f"{', '.join(HOWS[:-1])} or {HOWS[-1]}")
    return [(how, known[how])]


def _key(rule: str, text: str) -> str:
    return {"choice": choosing.letter, "yes-no": choosing.word}.get(rule, canonical)(text)


def _numbers(text: str) -> Iterator[AnswerSpan]:
    for start, end in reading.numbers(text):
        yield AnswerSpan(start, end, "low")


def _pattern(pattern: str) -> Finder:
    compiled = Pattern(pattern, hint="write regex=PATTERN")

    def find(text: str) -> Iterator[AnswerSpan]:
        return (AnswerSpan(*span, "high") for span in compiled.groups(text) if span[0] < span[1])

    return find
