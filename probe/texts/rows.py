"""One row of a file as a problem: its prompt, the answer that is expected, its options, and what else the row says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from probe.files import FileRow
from probe.texts.file_columns import text_of

NAMES = ("messages", "prompt")  # the first that has a value is read
WRITTEN = ("completion", "completion_ids", "prompt_ids")  # what is the generation of a transcript
GIVEN = (*WRITTEN, "stop_reason", "finish_reason", "left_out")
FOR_TEMPLATES = ("tools", "documents")  # what stands beside messages for a template to write
Messages = list[dict[str, Any]]


class GivenCompletion(NamedTuple):
    """What was written after a prompt, by whom it may be: a text, ids, or the last of the prompt's messages (`turn`).

    prompt_ids: the ids that were read before it. left_out: what of the record it came from is not here.
    """

    text: str | None = None
    ids: Sequence[int] | None = None
    prompt_ids: Sequence[int] | None = None
    stop_reason: str | None = None
    left_out: Sequence[str] = ()
    turn: bool = False


class Prompt(NamedTuple):
    """One input: `content` is a text or chat messages; `error` says why it could not even be read.

    expect: its right answer. choices: the options it gives. beside: `tools` and `documents`, for the chat template.
    columns: what else its row in a file says, each value as its column in the table `prompts` holds it.
    given: the generation that came with it.
    """

    prompt_id: int
    content: str | Messages
    error: str = ""
    expect: str | None = None
    choices: Sequence[str] | None = None
    beside: Mapping[str, Any] = MappingProxyType({})
    columns: Mapping[str, Any] = MappingProxyType({})
    given: GivenCompletion | None = None

    @property
    def text(self) -> str:
        """The prompt as given: messages as JSON; what no UTF-8 can hold (half a surrogate pair) is escaped."""
        return text_of(self.content)


def prompt_in(row: FileRow, names: Sequence[str], expect_column: str | None, *, transcripts: bool = False) -> Prompt:
    """The problem of a row, or why it holds none. names: of columns of which the first with a value is the prompt.

    transcripts: what was written after the prompt is its generation, not a column of the file.
    """
    value = row.value
    if row.error:
        told = value if isinstance(value, Mapping) else {}
        rest = {key: one for key, one in told.items() if key not in (*names, *GIVEN)}
        return _with_answers(Prompt(row.number, "", row.error), rest, expect_column)
    if isinstance(value, str) or is_chat(value):
        return of_turn(prompt_of(row.number, value)) if transcripts else prompt_of(row.number, value)
    if not isinstance(value, Mapping):
        return Prompt(row.number, "", f"no column {named(names)} (found: {type(value).__name__})")
    if transcripts and any(value.get(name) is not None for name in WRITTEN):
        return _with_given(row.number, value, names, expect_column)
    if value.keys().isdisjoint(names):
        found = ", ".join(map(str, value))
        return Prompt(row.number, "", f"no column {named(names)} (found: {found})", columns=value)
    name = next((name for name in names if value.get(name) is not None), names[-1])
    content = messages_in(value.get(name)) if name != "prompt" else value.get(name)
    rest = {key: one for key, one in value.items() if key != name and not (key in names and one is None)}
    if name == "messages" and isinstance(content, str):
        what = "the messages are no JSON list of messages with 'role' and 'content'"
        return Prompt(row.number, "", what, columns={**rest, "messages": content})
    prompt = _with_answers(prompt_of(row.number, content), rest, expect_column)
    return of_turn(prompt) if transcripts else prompt


def of_turn(prompt: Prompt) -> Prompt:
    """The prompt, of which the assistant's last turn is what was written after it."""
    if isinstance(prompt.content, str) or prompt.content[-1]["role"] != "assistant" or prompt.error:
        return prompt
    rest = dict(prompt.columns)
    error = "" if len(prompt.content) > 1 else "the conversation begins with the answer: nothing was asked"
    return prompt._replace(given=_given(rest)._replace(turn=True), columns=rest, error=error)


def _with_given(number: int, value: Mapping[str, Any], names: Sequence[str], expect_column: str | None) -> Prompt:
    """The problem of a row that says what was written after its prompt."""
    rest = dict(value)
    found = {name: rest.pop(name, None) for name in WRITTEN}
    try:
        ids, prompt_ids = (_ids(name, found[name]) for name in ("completion_ids", "prompt_ids"))
    except ValueError as error:
        return Prompt(number, "", str(error), columns={key: one for key, one in rest.items() if key not in names})
    text = found["completion"]
    name = next((name for name in names if rest.get(name) is not None), None)
    content = "" if name is None else rest[name]
    content = messages_in(content) if name != "prompt" else content
    rest = {key: one for key, one in rest.items() if key != name and not (key in names and one is None)}
    given = _given(rest)._replace(text=text, ids=ids, prompt_ids=prompt_ids)
    prompt = _with_answers(prompt_of(number, content), rest, expect_column)
    if name is None and prompt_ids is None:
        return prompt._replace(error=f"there is a completion and no prompt: no column {named(names)} or 'prompt_ids'")
    if text is not None and not isinstance(text, str):
        return prompt._replace(error=f"a completion is a text, not {type(text).__name__}")
    if text is None and ids is None:  # ids of the prompt alone
        turned = of_turn(prompt)
        if turned.given is None:
            return prompt if name is not None else prompt._replace(error="'prompt_ids' without a completion")
        given = given._replace(turn=True)
    return prompt._replace(given=given)


def _given(rest: dict[str, Any]) -> GivenCompletion:
    """What a row says of how its completion came about; taken out of the row."""
    stopped, finish, left_out = (rest.pop(name, None) for name in ("stop_reason", "finish_reason", "left_out"))
    reason = stopped if isinstance(stopped, str) else finish
    left_out = [left_out] if isinstance(left_out, str) and left_out else left_out
    return GivenCompletion(
        stop_reason=reason if isinstance(reason, str) else None,
        left_out=[text_of(one) for one in left_out] if isinstance(left_out, (list, tuple)) else [],
    )


def _ids(name: str, given: Any) -> list[int] | None:
    """Token ids, also as JSON text. Raises `ValueError`."""
    found = parsed(given) if isinstance(given, str) else given
    if found in (None, ""):
        return None
    if not isinstance(found, (list, tuple)) or not all(isinstance(one, int) for one in found):
        raise ValueError(f"'{name}' is no list of token ids")
    return list(found)


def _with_answers(prompt: Prompt, rest: dict[str, Any], expect_column: str | None) -> Prompt:
    """The prompt with what its row says beside it."""
    error = prompt.error
    expected = rest.get(expect_column) if expect_column is not None else rest.pop("expect", None)
    choices = None
    if rest.get("choices") not in (None, ""):
        choices = _choices(rest["choices"])
        if choices is None:
            error = error or f"the choices are no list of texts: {text_of(rest['choices'])[:80]}"
    if choices is not None or rest.get("choices") in (None, ""):
        rest.pop("choices", None)
    beside = {}
    for name in FOR_TEMPLATES:
        given = rest.get(name)
        if given not in (None, "", [], ()):
            beside[name] = parsed(given) if isinstance(given, str) else given
            rest[name] = text_of(given)  # as JSON: a struct of all rows would give every tool every other's fields
    expect = None if expected in (None, "") else text_of(expected)
    return prompt._replace(error=error, expect=expect, choices=choices, beside=beside, columns=rest)


def _choices(given: Any) -> list[str] | None:
    """Options as texts: of a list, of JSON text that is one, or of a mapping whose `text` is one; None for all else."""
    found = parsed(given) if isinstance(given, str) else given
    if isinstance(found, Mapping):
        found = found.get("text")
    if not isinstance(found, (list, tuple)) or not found or any(one is None for one in found):
        return None
    return [text_of(one) for one in found]


def named(names: Sequence[str]) -> str:
    """The columns, for a sentence."""
    return " or ".join(f"'{name}'" for name in names)


def parsed(text: str) -> Any:
    """What a text means as JSON; the text itself where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def messages_in(content: Any) -> Any:
    """What a column holds; messages that it holds as JSON text, as a CSV must, are messages."""
    if not isinstance(content, str) or content.lstrip()[:1] != "[":
        return content
    found = parsed(content)
    return found if is_chat(found) else content


def prompt_of(i: int, content: Any) -> Prompt:
    """A text or messages as a prompt; anything else is one that cannot be run."""
    if isinstance(content, str):
        return Prompt(i, content)
    if is_chat(content):
        return Prompt(i, [{str(k): v for k, v in message.items() if v is not None} for message in content])
    return Prompt(i, "", f"a prompt is a text or a list of messages with 'role' and 'content', not {type(content).__name__}")


def is_chat(content: Any) -> bool:
    """Whether it is a list of chat messages."""
    return (
        isinstance(content, Sequence)
        and not isinstance(content, str)
        and len(content) > 0
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in content)
        and all(m.keys() & {"content", "tool_calls"} for m in content)
    )
