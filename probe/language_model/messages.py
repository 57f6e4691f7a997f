"""What messages say, and where it stands in what a chat template wrote, white space aside. Knows characters only."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from probe.errors import BadPrompt

OPEN, CLOSE = "\uf8e0{}\uf8e1", "\uf8e2{}\uf8e3"  # private characters: put around a text to see where it comes out
REASONING = ("reasoning_content", "reasoning", "thinking")
SYSTEM = "drops the system message"
Message = dict[str, Any]
Span = tuple[int, int]


class Rendering(NamedTuple):
    """What a template wrote, where in it the messages' texts stand, and notes."""

    text: str
    spans: list[Span]
    notes: list[str]


class TextPart(NamedTuple):
    """A text that a message holds, and how a sentence names it."""

    message: int
    role: str
    text: str
    kind: str = "content"

    def __str__(self) -> str:
        return f"message {self.message} ({self.role}{'' if self.kind == 'content' else f', {self.kind}'})"


def locate(texts: Sequence[str], inside: str, *, taken: Sequence[Span] = ()) -> list[Span | None]:
    """Returns the characters of `inside` that each text stands on, none on another's or on `taken`; None where it does not.

    Longer texts choose first. A text may stand as JSON writes it. An empty text stands nowhere.
    """
    where = [i for i, character in enumerate(inside) if not character.isspace()]
    bare = "".join(inside[i] for i in where)
    held = [any(low <= i < high for low, high in taken) for i in where]
    found: list[Span | None] = [None] * len(texts)
    for n in sorted(range(len(texts)), key=lambda n: (-len(texts[n]), n)):
        for form in _forms(texts[n]):
            words = "".join(form.split())
            at = _free(words, bare, held)
            if at is not None:
                held[at : at + len(words)] = [True] * len(words)
                found[n] = (where[at], where[at + len(words) - 1] + 1)
                break
    return found


def _forms(text: str) -> dict[str, None]:
    """A text as it is, as JSON writes it, and as JSON writes that."""
    once = [json.dumps(text, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True)]
    return dict.fromkeys((text, *once, *(json.dumps(form, ensure_ascii=False)[1:-1] for form in once)))


def _free(words: str, bare: str, held: list[bool]) -> int | None:
    """The first place of words in the bare text that nobody holds."""
    at = bare.find(words) if words else -1
    while at >= 0:
        if not any(held[at : at + len(words)]):
            return at
        at = bare.find(words, at + 1)
    return None


def joined(i: int, message: Mapping[str, Any]) -> Message:
    """A message whose content is one text, parts put together as they are, and its reasoning under every name for it."""
    message = _reasoned(message)
    content = message.get("content")
    if not isinstance(content, list | tuple):
        if content is not None and not isinstance(content, str):
            raise BadPrompt(f"not a message: {dict(message)}", hint="its content is a text, or a list of parts of text")
        return dict(message)
    texts = []
    for part in content:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise BadPrompt(f"message {i} has a part of type '{kind}'", hint="only parts of text can be read")
        texts.append(text)
    return {**message, "content": "".join(texts)}


def reasoning_of(message: Mapping[str, Any]) -> str | None:
    """The reasoning of a message, under whichever name it has it: beside its content, or as a part of it."""
    for name in REASONING:
        if isinstance(message.get(name), str) and message[name].strip():
            return str(message[name])
    content = message.get("content")
    parts = content if isinstance(content, list | tuple) else ()
    texts = [text for part in parts if (text := _thought(part)) is not None]
    return "".join(texts) or None


def _thought(part: Any) -> str | None:
    """The text of a part of a content that is reasoning."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get(kind) if kind in REASONING else None
    return text if isinstance(text, str) else None


def _reasoned(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message whose reasoning stands beside its content: templates read it there, one under this name, one under that."""
    reasoning, content = reasoning_of(message), message.get("content")
    if reasoning is None:
        return message
    if isinstance(content, list | tuple):
        content = [part for part in content if _thought(part) is None]
    return {**message, "content": content, **dict.fromkeys(REASONING, reasoning)}


def alike(message: Message) -> Message:
    return message


def as_parts(message: Message) -> Message:
    content = message.get("content")
    return message if content is None else {**message, "content": [{"type": "text", "text": content}]}


def checked(
    write: Callable[[list[Message]], str], messages: list[Message], form: Callable[[Message], Message], name: str
) -> tuple[Rendering, list[str]]:
    """The rendering of messages in that form, and what of them it leaves out."""
    text = write([form(message) for message in messages])
    parts = [part for i, message in enumerate(messages) for part in parts_of(i, message)]
    asked = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=0)
    try:
        marked = write([form(_marked(i, message)) for i, message in enumerate(messages)])
    except BadPrompt:
        marked = None  # it reads what the messages say, and does not know these
    spans, gone = _places(parts, text, marked)
    changed = [
        part for part, span in zip(parts, spans, strict=True)
        if span and part.text not in text and "".join(part.text.split()) == "".join(text[slice(*span)].split())
    ]  # fmt: skip
    notes = [f"the chat template of '{name}' changes the white space of {changed[0]}"] if changed else []
    earlier = {n for n in gone if parts[n].kind == "reasoning" and parts[n].message < asked}  # templates drop it by design
    notes += [f"the chat template of '{name}' leaves out the reasoning of earlier turns"] if earlier else []
    gone -= earlier
    held = [span for span in spans if span is not None]
    lines = [line for n in gone for line in parts[n].text.splitlines()]
    held += [span for span in locate(lines, text, taken=held) if span is not None]
    return Rendering(text, held, notes), [_missing(parts[n], text) for n in sorted(gone)]


def _places(parts: list[TextPart], text: str, marked: str | None) -> tuple[list[Span | None], set[int]]:
    """Where each part stands, by its marks where the template left them alone, else by its words; and which are lost."""
    spans: list[Span | None] = [None] * len(parts)
    gone: set[int] = set()
    exact = marked is not None and re.sub("[\uf8e0\uf8e2]\\d+[\uf8e1\uf8e3]", "", marked) == text
    for n, part in enumerate(parts):
        marks = OPEN.format(part.message), CLOSE.format(part.message)
        if marked is None or part.kind != "content" or not part.text.strip():
            continue
        if not any(mark in marked for mark in marks):
            gone.add(n)
        elif exact and all(marked.count(mark) == 1 for mark in marks):
            low, high = (len(re.sub("[\uf8e0\uf8e2]\\d+[\uf8e1\uf8e3]", "", marked[: marked.index(m)])) for m in marks)
            if text[low:high] == part.text.strip():
                spans[n] = (low, high)
    rest = [n for n in range(len(parts)) if spans[n] is None and n not in gone and parts[n].text.strip()]
    for n, span in zip(rest, locate([parts[n].text for n in rest], text, taken=[s for s in spans if s]), strict=True):
        spans[n] = span
        if span is None:
            gone.add(n)
    return spans, gone


def _missing(part: TextPart, text: str) -> str:
    """Which lines of a part are gone, as a predicate of the template."""
    lines = part.text.strip().splitlines()
    absent = [i for i, line in enumerate(lines) if line.strip() and line.strip() not in text]
    if absent:
        lines = lines[absent[0] : absent[-1] + 1]
    words = " ".join(" ".join(lines).split())
    shown = words if len(words) <= 80 else f"{words[:77]}..."
    if part.role == "system" and part.kind == "content":
        return f"{SYSTEM}: {shown!r}"
    return f"leaves out a part of {part}: {shown!r}"


def parts_of(i: int, message: Message) -> Iterator[TextPart]:
    """The texts of a message: what it says, its reasoning, and what its tool calls are given."""
    role = message["role"]
    if isinstance(message.get("content"), str):
        yield TextPart(i, role, message["content"])
    for text in dict.fromkeys(message[key] for key in REASONING if isinstance(message.get(key), str)):
        yield TextPart(i, role, text, "reasoning")
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list | tuple) else ():
        function = call.get("function", call) if isinstance(call, Mapping) else {}
        yield from (TextPart(i, role, text, "tool call") for text in _leaves([function.get("name"), function.get("arguments")]))


def _leaves(value: Any) -> Iterator[str]:
    """The texts inside a JSON value; of a JSON text, those inside what it means."""
    if isinstance(value, str):
        inner = None
        if value[:1] in ("{", "["):
            try:
                inner = json.loads(value)
            except ValueError:
                inner = None
        yield from _leaves(inner) if inner is not None else (value,)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)


def _marked(i: int, message: Message) -> Message:
    """A message whose text stands between marks; white space around it stays outside."""
    content = message.get("content")
    if not isinstance(content, str) or not content.strip():
        return message
    inner = content.strip()
    before, _, after = content.partition(inner)
    return {**message, "content": f"{before}{OPEN.format(i)}{inner}{CLOSE.format(i)}{after}"}
