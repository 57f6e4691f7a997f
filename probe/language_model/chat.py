"""Messages through a chat template, in bounded time, and whether what they say stands in what it writes. Knows no ids."""

from __future__ import annotations

import inspect
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from probe.errors import BadOption, BadPrompt
from probe.language_model.standing import Span, find
from probe.requests import ChatOptions

SECONDS = 10.0  # a template takes about a millisecond
OPEN, CLOSE = "\uf8e0{}\uf8e1", "\uf8e2{}\uf8e3"  # private characters: put around a text to see where it comes out
REASONING = ("reasoning_content", "reasoning", "thinking")
SYSTEM = "drops the system message"
OWN = ("tools", "documents")  # arguments of apply_chat_template that templates read
Message = dict[str, Any]


class Chat(NamedTuple):
    """How prompts become a conversation: whether a plain text goes through the template too, with which system message,
    which variables of the template are set, and whether it may leave out something that was said."""

    apply: bool = False
    system: str | None = None
    options: Mapping[str, Any] = {}
    allow_loss: bool = False

    @classmethod
    def of(cls, options: ChatOptions) -> Chat:
        """From the options of a request."""
        variables = options.template_options or {}
        assert isinstance(variables, Mapping), "check_chat() comes first"
        return cls(options.chat, options.system, variables, options.allow_template_loss)

    def check(self) -> None:
        """Raises `BadOption` for a system message without a conversation."""
        if self.system is not None and not self.apply:
            raise BadOption("a system message needs the chat template", hint="add --chat")

    def arguments(self) -> dict[str, Any]:
        """As the manifest's `arguments` hold it."""
        return {
            "chat": self.apply, "system": self.system, "template_options": dict(self.options),
            "allow_template_loss": self.allow_loss,
        }  # fmt: skip


class Rendering(NamedTuple):
    """What a template wrote, where in it the messages' texts stand, and what is to be said about it."""

    text: str
    said: list[Span]
    notes: list[str]


class _Part(NamedTuple):
    """A text that a message holds, and how a sentence names it."""

    message: int
    role: str
    text: str
    kind: str = "content"

    def __str__(self) -> str:
        return f"message {self.message} ({self.role}{'' if self.kind == 'content' else f', {self.kind}'})"


class _Endless(BaseException):
    """A template that does not end. No `Exception`: nothing between it and us may catch it."""


def render(tokenizer: Any, messages: Sequence[Mapping[str, Any]], chat: Chat, *, awaited: bool, name: str) -> Rendering:
    """Messages through the tokenizer's template. awaited: with the words that open an answer.

    Contents given as parts are joined; a template that reads nothing but parts gets them so.
    Raises `BadOption` for an option that the template does not read, `BadPrompt` where it refuses the messages, fails, does
    not end, or leaves out a text that a message holds (unless the loss is allowed).
    """
    check_options(tokenizer, chat.options, name)
    plain = [joined(i, message) for i, message in enumerate(messages)]
    write = _writer(tokenizer, chat, awaited, name)
    first: Rendering | BadPrompt
    try:
        first, lost = _checked(write, plain, _alike, name)
        if not lost:
            return first
    except BadPrompt as error:
        first, lost = error, []
    with suppress(BadPrompt):
        second, still = _checked(write, plain, _as_parts, name)
        if not still:
            return second
    if isinstance(first, BadPrompt):
        raise first
    if not chat.allow_loss:
        kind = BadOption if chat.system is not None and lost[0].startswith(SYSTEM) else BadPrompt
        raise kind(
            f"the chat template of '{name}' {lost[0]}",
            hint="--allow-template-loss goes on without it; --template-option may make the template keep it",
        )
    return first._replace(notes=[*first.notes, *(f"the chat template of '{name}' {what}" for what in lost)])


def check_options(tokenizer: Any, options: Mapping[str, Any], name: str) -> None:
    """Raises `BadOption` for a variable that the template does not read: it could have no effect."""
    taken = set(inspect.signature(tokenizer.apply_chat_template).parameters) - set(OWN)
    for option in options:
        if option in taken or option in ("messages", "kwargs"):
            raise BadOption(f"'{option}' is no option of a chat template", hint="see --chat, --system and --model")
        if not re.search(rf"\b{re.escape(option)}\b", str(tokenizer.chat_template)):
            raise BadOption(f"the chat template of '{name}' does not read '{option}'", hint="is it spelt as there?")


def joined(i: int, message: Mapping[str, Any]) -> Message:
    """A message whose content is one text, parts put together as they are."""
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


def _alike(message: Message) -> Message:
    return message


def _as_parts(message: Message) -> Message:
    content = message.get("content")
    return message if content is None else {**message, "content": [{"type": "text", "text": content}]}


def _checked(
    write: Callable[[list[Message]], str], messages: list[Message], form: Callable[[Message], Message], name: str
) -> tuple[Rendering, list[str]]:
    """The rendering of messages in that form, and what of them it leaves out."""
    text = write([form(message) for message in messages])
    parts = [part for i, message in enumerate(messages) for part in _parts(i, message)]
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
    held = [span for span in spans if span is not None]
    lines = [line for n in gone for line in parts[n].text.splitlines()]
    held += [span for span in find(lines, text, taken=held) if span is not None]
    return Rendering(text, held, notes), [_missing(parts[n], text) for n in sorted(gone)]


def _places(parts: list[_Part], text: str, marked: str | None) -> tuple[list[Span | None], set[int]]:
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
    for n, span in zip(rest, find([parts[n].text for n in rest], text, taken=[s for s in spans if s]), strict=True):
        spans[n] = span
        if span is None:
            gone.add(n)
    return spans, gone


def _missing(part: _Part, text: str) -> str:
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


def _parts(i: int, message: Message) -> Iterator[_Part]:
    """The texts of a message: what it says, its reasoning, and what its tool calls are given."""
    role = message["role"]
    if isinstance(message.get("content"), str):
        yield _Part(i, role, message["content"])
    for text in dict.fromkeys(message[key] for key in REASONING if isinstance(message.get(key), str)):
        yield _Part(i, role, text, "reasoning")
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list | tuple) else ():
        function = call.get("function", call) if isinstance(call, Mapping) else {}
        yield from (
            _Part(i, role, text, "tool call") for text in _leaves([function.get("name"), function.get("arguments")])
        )


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


def _writer(tokenizer: Any, chat: Chat, awaited: bool, name: str) -> Callable[[list[Message]], str]:
    """Messages -> text, where all that a template can do wrong is a `BadPrompt` of one line."""
    from jinja2 import TemplateError

    def write(messages: list[Message]) -> str:
        try:
            with _bounded(SECONDS):
                return str(
                    tokenizer.apply_chat_template(
                        messages, tokenize=False, add_generation_prompt=awaited, **chat.options
                    )
                )
        except _Endless as error:
            raise BadOption(  # not of one prompt: it would take as long for each
                f"the chat template of '{name}' does not end within {SECONDS:g} s", hint="give the prompt raw"
            ) from error
        except Exception as error:  # a template is a program of somebody else's: anything can come out of it
            refused = isinstance(error, TemplateError | KeyError | TypeError | ValueError)
            what = "refuses these messages" if refused else f"fails ({type(error).__name__})"
            raise BadPrompt(
                f"the chat template of '{name}' {what}: {' '.join(str(error).split())[:300]}",
                hint="some templates know no system role, or want user and assistant in turns",
            ) from error

    return write


@contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    """What runs inside is stopped at a line of Python after so long, in any thread. Raises `_Endless`."""
    end = time.monotonic() + seconds

    def watch(frame: Any, event: str, argument: Any) -> Any:
        if time.monotonic() > end:
            raise _Endless
        return watch if frame.f_code.co_filename == "<template>" else None

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)
