"""What of a text is not said: special tokens, and what stands in a thinking part. Line breaks stand in for it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

# <|im_end|>, <｜end▁of▁sentence｜>, </s>, <eos>, <end_of_turn>, [/INST]: at most 60 characters, so that no search is long
_SPECIAL = re.compile(
    r"<[|｜][^<>|｜\n]{1,60}[|｜]>|</?s>|<(?:pad|eos|bos|unk|eot|eod|mask|cls|sep|(?:start|end)_of_(?:turn|text"
    r"|utterance|image))>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|s)\]|\[(?:CLS|SEP|PAD|UNK)\]|<unused\d{1,4}>"
)
_NAMES = "think|thinking|thoughts?|reasoning|reflection|scratchpad|seed:think"
_OPENS = re.compile(
    rf"<(?:{_NAMES})>|\[THINK\]|<\|begin_of_thought\|>|<\|START_THINKING\|>|◁think▷|<\|channel>", re.IGNORECASE
)
_CLOSES = re.compile(
    rf"</(?:{_NAMES})>|\[/THINK\]|<\|end_of_thought\|>|<\|END_THINKING\|>|◁/think▷|<channel\|>", re.IGNORECASE
)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w{1,20})[^<\n]{0,40}<\|message\|>")  # gpt-oss: analysis, commentary, final


class Said(NamedTuple):
    """Where a completion speaks, characters [start, end), and whether it ends while it still thinks."""

    start: int
    end: int
    thinking: bool


def opens_thinking(text: str) -> bool:
    """Whether a text, such as a rendered prompt, ends inside a thinking part."""
    return said(text).thinking


def said(text: str, *, opened: bool = False) -> Said:
    """What stands after the last thinking part, up to one that doesn't end. opened: the prompt has begun one."""
    channels = list(_CHANNEL.finditer(text))
    if channels:
        final = channels[-1][1] == "final"
        return Said(channels[-1].end(), len(text) if final else channels[-1].end(), not final)
    closes = [match.end() for match in _CLOSES.finditer(text)]
    start = closes[-1] if closes else 0
    if opened and not closes:
        return Said(0, 0, True)
    again = _OPENS.search(text, start)
    return Said(start, again.start() if again else len(text), again is not None)


def spoken(text: str, *, opened: bool = False, hidden: Iterable[tuple[int, int]] = ()) -> str:
    """The text, as long as it was, with line breaks where it thinks and where special tokens stand.

    hidden: characters of tokens that are known to be special.
    """
    start, end, _ = said(text, opened=opened)
    text = "\n" * start + text[start:end] + "\n" * (len(text) - end)
    for a, b in hidden:
        text = text[:a] + "\n" * (b - a) + text[b:]
    return _SPECIAL.sub(lambda match: "\n" * len(match[0]), text)
