"""Responses of the OpenAI protocol, as its servers and batches keep them: chat and text completions, with their requests.

Sources: the API reference of OpenAI (chat.completion, text_completion, batch output) and vLLM's protocol, which
adds `reasoning`, `token_ids` and `prompt_token_ids`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from probe.files import FileRow

_OBJECTS = ("chat.completion", "text_completion")
_ALONE = "the response does not say what was asked: give a folder that has the requests too, or a 'request' in each row"


def is_record(row: Mapping[str, Any]) -> bool:
    """Whether it is a response, alone or with its request, or a line of a batch file."""
    return _body(row) is not None or _is_request(row) or ("custom_id" in row and "response" in row)


def rows(found: Iterable[FileRow]) -> Iterator[FileRow]:
    """A row for each response; the lines of requests are taken to those of responses by `custom_id`."""
    lines = list(found)
    asked = {line.value["custom_id"]: line.value["body"] for line in lines if _is_request(line.value)}
    answered = {
        line.value.get("custom_id") for line in lines if isinstance(line.value, Mapping) and not _is_request(line.value)
    }
    for line in lines:
        if _is_request(line.value):
            if line.value["custom_id"] not in answered:
                yield line._replace(value={**_prompt(line.value["body"]), "custom_id": line.value["custom_id"]},
                                    error="the batch has no response to this request")  # fmt: skip
            continue
        if line.error or not isinstance(line.value, Mapping):
            yield line
            continue
        yield _row(line, asked)


def _is_request(row: Any) -> bool:
    """A line of a batch's input file."""
    return isinstance(row, Mapping) and "custom_id" in row and isinstance(row.get("body"), Mapping) and "response" not in row


def _body(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The response itself, wherever a row has it."""
    response = row.get("response")
    inner = response.get("body", response) if isinstance(response, Mapping) else None
    for one in (row, inner):
        if isinstance(one, Mapping) and isinstance(one.get("choices"), (list, tuple)) and one.get("object") in _OBJECTS:
            return one
    return None


def _row(line: FileRow, asked: Mapping[str, Any]) -> FileRow:
    """One response as a row of a problem."""
    record, body = line.value, _body(line.value)
    own = {
        key: value for key, value in record.items()
        if record is not body and key not in ("response", "request", "error", "body", "messages", "prompt", "tools")
    }  # fmt: skip
    if body is None:
        return line._replace(value=own, error=_why(record))
    for name in ("model", "id"):
        own.setdefault({"model": "source_model", "id": "response_id"}[name], body.get(name))
    request = (
        record.get("request") if isinstance(record.get("request"), Mapping) else asked.get(record.get("custom_id"), record)
    )
    request = request.get("body", request) if isinstance(request.get("body", request), Mapping) else request
    choices = [one for one in body["choices"] if isinstance(one, Mapping)]
    if not choices:
        return line._replace(value=own, error="the response has no choices")
    first = min(choices, key=lambda one: one.get("index") or 0)
    left_out = [f"{len(choices) - 1} other choices"] if len(choices) > 1 else []
    made = {**_prompt(request), **_answer(first, _prompt(request), left_out)}
    ids = body.get("prompt_token_ids") or first.get("prompt_token_ids")
    if ids:
        made["prompt_ids"] = ids
    elif not (made.get("messages") or made.get("prompt") is not None or made.get("prompt_ids")):
        return line._replace(value=own, error=_ALONE)
    return line._replace(value={**own, **made, "stop_reason": first.get("finish_reason"), "left_out": left_out})


def _prompt(request: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked: messages with their tools, a text, or ids."""
    if isinstance(request.get("messages"), (list, tuple)):
        tools = {"tools": request["tools"]} if request.get("tools") else {}
        template = request.get("documents")
        return {"messages": list(request["messages"]), **tools, **({"documents": template} if template else {})}
    prompt = request.get("prompt")
    if isinstance(prompt, (list, tuple)) and len(prompt) == 1 and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    if isinstance(prompt, (list, tuple)) and prompt and all(isinstance(one, int) for one in prompt):
        return {"prompt_ids": list(prompt)}
    return {"prompt": prompt} if isinstance(prompt, str) else {}


def _answer(choice: Mapping[str, Any], asked: Mapping[str, Any], left_out: list[str]) -> dict[str, Any]:
    """What was written: ids where the server told them, else a text or an assistant's turn."""
    message = choice.get("message")
    if choice.get("token_ids"):
        return {"completion_ids": choice["token_ids"]}
    if not isinstance(message, Mapping):
        return {"completion": choice.get("text")}
    if message.get("refusal") and not message.get("content"):
        left_out.append("a refusal apart from the text")
    left_out += ["audio"] if message.get("audio") else []
    turn = {key: value for key, value in message.items() if key in ("role", "content", "tool_calls") and value is not None}
    reasoning = next((message[key] for key in ("reasoning", "reasoning_content") if message.get(key)), None)
    turn = {"role": "assistant", "content": "", **turn, **({"reasoning_content": reasoning} if reasoning else {})}
    if "messages" in asked:
        return {"messages": [*asked["messages"], turn]}
    return {"completion": turn["content"]}


def _why(record: Mapping[str, Any]) -> str:
    """Why a line of a batch has no answer, in the words of its server."""
    error, response = record.get("error"), record.get("response")
    body = response.get("body") if isinstance(response, Mapping) else None
    told = error or (body.get("error") if isinstance(body, Mapping) else None)
    text = told.get("message") if isinstance(told, Mapping) else told
    status = response.get("status_code") if isinstance(response, Mapping) else None
    if text:
        return f"the request failed: {' '.join(str(text).split())[:200]}"
    kind = body.get("object") if isinstance(body, Mapping) else None
    return f"the response is no completion (status {status}, object {kind})"
