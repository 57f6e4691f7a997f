"""A generation that somebody else made, as ids after its prompt: from ids, from a text, or from an assistant's turn."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from probe.errors import BadPrompt, ProbeError
from probe.language_model.messages import joined, locate, parts_of, reasoning_of
from probe.requests import ChatOptions
from probe.texts.rows import GivenCompletion, Prompt
from probe.texts.sequences import Given, TokenSequence

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

_OPEN = re.compile(r"<think>\s*\Z")  # a template that has the answer begin with its reasoning


class PromptIds(NamedTuple):
    """A prompt as ids: its text, the characters of its messages there (None without a chat), and notes."""

    ids: list[int]
    text: str
    message_spans: list[tuple[int, int]] | None
    notes: list[str]


def with_given(lm: LanguageModel, prompt: Prompt, options: ChatOptions, before: PromptIds | None) -> TokenSequence:
    """The prompt and, after it, the generation that came with it.

    before: the prompt as ids, where its text is known. A text's ids are those that it has when it is encoded together with the
    prompt, if that leaves the prompt's own as they are. Raises `BadPrompt` where nothing was written, or ids are no tokens.
    """
    given = prompt.given
    assert given is not None, "a prompt without a generation has nothing to be put after it"
    left_out = list(given.left_out)
    if before is None or given.prompt_ids is not None:
        before = _of_ids(lm, given, before, left_out)
    if given.ids is not None:
        ids, text = _checked(lm, given.ids, "completion_ids"), given.text
    else:
        text = given.text if given.text is not None else _turn(lm, prompt, options, before, left_out)
        ids = _encoded(lm, before, text, left_out)
    if not ids:
        raise BadPrompt("nothing was written after the prompt", hint="leave the row out, or let the model go on: --generate")
    n = len(before.ids)
    pieces = lm.pieces([*before.ids, *ids])
    if given.ids is not None and text is not None and text.strip() not in pieces.text:
        left_out.append("the completion's text: the ids say something else")
    if not prompt.content:
        prompt = prompt._replace(content=before.text)
    return TokenSequence(
        prompt, before.text, [*before.ids, *ids], n, message_spans=before.message_spans, notes=before.notes,
        given=Given(_stop_reason(lm, given, ids), _differs_at(lm, before, given, ids, pieces.text), tuple(left_out)),
    )  # fmt: skip


def _of_ids(lm: LanguageModel, given: GivenCompletion, before: PromptIds | None, left_out: list[str]) -> PromptIds:
    """The prompt whose ids came with it."""
    if given.prompt_ids is None:
        raise BadPrompt("there is a completion and no prompt", hint="give 'prompt', 'messages' or 'prompt_ids' beside it")
    ids = _checked(lm, given.prompt_ids, "prompt_ids")
    if not ids:
        raise BadPrompt("prompt_ids is empty", hint="leave it out, and give the prompt as text")
    text = lm.pieces(ids).text
    if before is None:
        return PromptIds(ids, text, None, [])
    if before.ids == ids:
        return before
    if before.text.strip() not in text:  # another template or system message: the ids are what was read
        left_out.append("the prompt's text: the ids say something else")
    return PromptIds(ids, text, before.message_spans, before.notes)


def _checked(lm: LanguageModel, ids: Sequence[Any], name: str) -> list[int]:
    found = [i if isinstance(i, int) and not isinstance(i, bool) else -1 for i in ids]
    if min(found, default=0) < 0:
        raise BadPrompt(f"'{name}' holds something that is no token id", hint="token ids are numbers from 0")
    if (missing := lm.lacks(found)) is not None:
        raise BadPrompt(
            f"'{name}' holds {missing:,}, and the embedding of '{lm.name}' has {lm.n_ids:,} rows",
            hint="are the ids of another model? give the text in their place",
        )
    return found


def _encoded(lm: LanguageModel, before: PromptIds, text: str, left_out: list[str]) -> list[int]:
    """The ids of a text after the prompt."""
    whole = _ids(lm, before, before.text + text)
    n = len(before.ids)
    if whole[:n] == before.ids:
        return whole[n:]
    left_out.append("tokens across the end of the prompt: the completion was encoded apart from it")
    return lm.ids_of(text)


def _ids(lm: LanguageModel, before: PromptIds, text: str) -> list[int]:
    """As the prompt's own ids were made: what a template wrote gets nothing added."""
    return lm.encode(text).ids if before.message_spans is None else lm.ids_of(text)


def _differs_at(
    lm: LanguageModel, before: PromptIds, given: GivenCompletion, ids: list[int], text: str
) -> int | None:  # fmt: skip
    """Where the ids that were given are not those that their text has."""
    if given.ids is None and given.prompt_ids is None:
        return None
    found = [*before.ids, *ids]
    own = _ids(lm, before, text)
    if own == found:
        return None
    return next((i for i, (a, b) in enumerate(zip(own, found, strict=False)) if a != b), min(len(own), len(found)))


def _stop_reason(lm: LanguageModel, given: GivenCompletion, ids: list[int]) -> str | None:
    """As it was given, in our words: a server's `stop` is the end token where that is the last one."""
    if given.stop_reason in (None, "", "stop") and ids[-1] in lm.eos_ids:
        return "eos"
    return given.stop_reason or None


def _turn(lm: LanguageModel, prompt: Prompt, options: ChatOptions, before: PromptIds, left_out: list[str]) -> str:
    """What the model wrote to make an assistant's turn: what the template writes after the prompt, to the end of the turn."""
    assert isinstance(prompt.content, list), "a turn is of a conversation"
    message = prompt.content[-1]
    allowing = ChatOptions(chat=True, system=options.system, template_options=options.variables, allow_template_loss=True)
    try:
        whole = lm.render(prompt.content, allowing, add_generation_prompt=False, beside=prompt.beside).text
    except ProbeError:
        whole = ""
    rest = whole[len(before.text) :] if whole.startswith(before.text) else ""
    parts = [part for part in parts_of(0, joined(0, message)) if part.text.strip()]
    spans = locate([part.text for part in parts], rest)
    if any(span is None for part, span in zip(parts, spans, strict=True) if part.kind != "tool call") or not rest:
        return _written(message, before.text, left_out)
    if any(span is None for span in spans):
        left_out.append("tool calls")
    end = max((span[1] for span in spans if span is not None), default=0)
    return rest[:end] + _closing(lm, rest[end:], calls=bool(message.get("tool_calls")), given=prompt.given)


def _closing(lm: LanguageModel, tail: str, *, calls: bool, given: GivenCompletion | None) -> str:
    """What of a template's words after a turn the model wrote itself: up to its end token, unless it was cut short."""
    if given is not None and given.stop_reason == "length" and not calls:
        return ""
    ends = [at + len(token) for token in lm.end_texts if (at := tail.find(token)) >= 0]
    return tail[: min(ends)] if ends else ""


def _written(message: Mapping[str, Any], before: str, left_out: list[str]) -> str:
    """A turn in the words of the message, where the template writes it another way than the model did."""
    plain, thinking = joined(0, message), reasoning_of(message)
    content = str(plain.get("content") or "")
    opened = _OPEN.search(before) is not None
    if message.get("tool_calls"):
        left_out.append("tool calls")
    if thinking is None:
        return re.sub(r"\A\s*<think>\n?", "", content) if opened else content
    left_out.append("how the template writes reasoning: it stands between <think> and </think>")
    start = "" if opened else "<think>\n"
    return f"{start}{thinking.strip()}\n</think>\n\n{content}"
