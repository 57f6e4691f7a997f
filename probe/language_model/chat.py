"""Messages through a chat template, in bounded time, and whether what they say stands in what it writes. Knows no ids."""

from __future__ import annotations

import inspect
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from probe.errors import BadOption, BadPrompt
from probe.language_model.messages import SYSTEM, Message, Rendering, alike, as_parts, checked, joined
from probe.requests import ChatOptions

SECONDS = 10.0  # a template takes about a millisecond
OWN = ("tools", "documents")  # arguments of apply_chat_template that templates read


class _Endless(BaseException):
    """A template that does not end. No `Exception`: nothing between it and us may catch it."""


def render(
    tokenizer: Any, messages: Sequence[Mapping[str, Any]], options: ChatOptions, *, awaited: bool, name: str,
    beside: Mapping[str, Any] | None = None,
) -> Rendering:  # fmt: skip
    """Messages through the tokenizer's template. awaited: with the words that open an answer. beside: `tools` and `documents`.

    Contents given as parts are joined; a template that reads nothing but parts gets them so.
    Raises `BadOption` for an option that the template does not read, `BadPrompt` where it refuses the messages, fails, does
    not end, or leaves out a text that a message holds (unless the loss is allowed).
    """
    check_options(tokenizer, options.variables, name)
    plain = [joined(i, message) for i, message in enumerate(messages)]
    beside = beside or {}
    variables = {**options.variables, **beside}

    def attempt(form: Callable[[Message], Message]) -> tuple[Rendering, list[str]]:
        found, lost = checked(_writer(tokenizer, variables, awaited, name), plain, form, name)
        given = [form(message) for message in plain]
        without = {one: {key: value for key, value in variables.items() if key != one} for one in beside}
        unread = [one for one, rest in without.items() if _writes(tokenizer, rest, awaited, name, given) == found.text]
        return found, [*lost, *(f"does not write the {one} beside the messages" for one in unread)]

    first: Rendering | BadPrompt
    try:
        first, lost = attempt(alike)
        if not lost:
            return first
    except BadPrompt as error:
        first, lost = error, []
    with suppress(BadPrompt):
        second, still = attempt(as_parts)
        if not still:
            return second
    if isinstance(first, BadPrompt):
        raise first
    if not options.allow_template_loss:
        kind = BadOption if options.system is not None and lost[0].startswith(SYSTEM) else BadPrompt
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


def _writes(
    tokenizer: Any, variables: Mapping[str, Any], awaited: bool, name: str, messages: list[Message]
) -> str | None:  # fmt: skip
    """What the template makes of messages; None where it refuses them."""
    with suppress(BadPrompt):
        return _writer(tokenizer, variables, awaited, name)(messages)
    return None


def _writer(tokenizer: Any, variables: Mapping[str, Any], awaited: bool, name: str) -> Callable[[list[Message]], str]:
    """Messages -> text, where all that a template can do wrong is a `BadPrompt` of one line."""
    from jinja2 import TemplateError

    def write(messages: list[Message]) -> str:
        try:
            with _bounded(SECONDS):
                return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=awaited, **variables))
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
