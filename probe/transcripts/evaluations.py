"""Logs of two evaluation programs: Inspect (inspect_ai, `.eval` and `.json`) and lm-eval (`samples_*.jsonl`).

Sources: EvalLog and EvalSample of inspect_ai.log (a sample's `messages`, `output`, `target`, `scores`; an `.eval` is a zip of
`samples/ID_epoch_N.json`); --log_samples of lm-evaluation-harness (`doc`, `arguments`, `resps`, `target`).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from probe.errors import BadPrompt
from probe.files import FileRow

ATTACHED = "attachment://"
_STOPPED = {"max_tokens": "length", "model_length": "length"}


def is_archive(path: Path) -> bool:
    """Whether a file is a zip, as an `.eval` is."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False


def of_archive(path: Path) -> Iterator[FileRow]:
    """The samples of an `.eval`, one after the other."""
    hint = "is it an Inspect log, and whole? inspect log convert --to json writes one that needs no zip"
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.startswith("samples/") and name.endswith(".json")]
            if not names:
                raise BadPrompt(f"'{path}' is a zip without samples", hint=hint)
            header = json.loads(archive.read("header.json")) if "header.json" in archive.namelist() else {}
            for i, name in enumerate(names):
                try:
                    yield _sample(i, json.loads(archive.read(name)), header)
                except ValueError as error:
                    yield FileRow(i, None, f"{name} is not JSON: {error}")
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise BadPrompt(f"cannot read '{path}': {error}", hint=hint) from error


def is_inspect(row: Mapping[str, Any]) -> bool:
    """Whether it is a whole log as JSON."""
    return isinstance(row.get("eval"), Mapping) and isinstance(row.get("samples"), list) and "status" in row


def of_inspect(rows: Iterable[FileRow]) -> Iterator[FileRow]:
    """The samples of logs."""
    number = 0
    for row in rows:
        if row.error or not isinstance(row.value, Mapping) or not is_inspect(row.value):
            yield row._replace(number=number)
            number += 1
            continue
        for sample in row.value["samples"]:
            yield _sample(number, sample, row.value)
            number += 1


def _sample(number: int, sample: Mapping[str, Any], log: Mapping[str, Any]) -> FileRow:
    """A sample: its conversation up to the last turn of the model, which is what was written."""
    about = {"id": sample.get("id"), "epoch": sample.get("epoch"), "metadata": sample.get("metadata") or None}
    about["source_model"] = (log.get("eval") or {}).get("model") or (sample.get("output") or {}).get("model")
    for name, score in (sample.get("scores") or {}).items():
        about[f"score_{name}"] = score.get("value") if isinstance(score, Mapping) else score
    target = sample.get("target")
    target = target[0] if isinstance(target, list) and len(target) == 1 else target
    about = {**about, "expect": target if target not in ("", []) else None, "choices": sample.get("choices") or None}
    attachments = sample.get("attachments") or {}
    left_out: list[str] = []
    messages = [_message(_resolved(one, attachments), left_out) for one in sample.get("messages") or []]
    last = max((i for i, one in enumerate(messages) if one.get("role") == "assistant"), default=None)
    if last is None:
        told = sample.get("error") or {}
        why = told.get("message") if isinstance(told, Mapping) else told
        return FileRow(number, about, f"the sample has no turn of the model{f': {why}' if why else ''}")
    if len(messages) > last + 1:
        left_out.append(f"{len(messages) - last - 1} messages after the model's last turn")
    choices = (sample.get("output") or {}).get("choices") or []
    if len(choices) > 1:
        left_out.append(f"{len(choices) - 1} other choices")
    stopped = choices[0].get("stop_reason") if choices and isinstance(choices[0], Mapping) else None
    stopped = _STOPPED.get(str(stopped), stopped)
    return FileRow(number, {**about, "messages": messages[: last + 1], "stop_reason": stopped, "left_out": left_out})


def _resolved(value: Any, attachments: Mapping[str, str]) -> Any:
    """A value with the long texts that a log keeps apart put back."""
    if isinstance(value, str) and value.startswith(ATTACHED):
        return attachments.get(value.removeprefix(ATTACHED), value)
    if isinstance(value, Mapping):
        return {key: _resolved(one, attachments) for key, one in value.items()}
    return [_resolved(one, attachments) for one in value] if isinstance(value, list) else value


def _message(message: Mapping[str, Any], left_out: list[str]) -> dict[str, Any]:
    """A message as chat templates read it: text, reasoning, tool calls."""
    made = {key: message[key] for key in ("role", "tool_call_id") if message.get(key) is not None}
    content = message.get("content")
    if isinstance(content, list):
        kept, reasoning = [], []
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind == "text":
                kept.append(str(part.get("text") or ""))
            elif kind == "reasoning" and not part.get("redacted"):
                reasoning.append(str(part.get("reasoning") or ""))
            else:
                left_out.append(f"a part of type '{kind}'" if kind != "reasoning" else "reasoning that is not shown")
        content = "".join(kept)
        if reasoning:
            made["reasoning_content"] = "".join(reasoning)
    made["content"] = content if isinstance(content, str) else ""
    if message.get("tool_calls"):
        made["tool_calls"] = [_call(one) for one in message["tool_calls"]]
    return made


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call, in the form that templates know."""
    if isinstance(call.get("function"), Mapping):
        return dict(call)
    function = {"name": call.get("function"), "arguments": call.get("arguments") or {}}
    return {"id": call.get("id"), "type": "function", "function": function}


def is_lm_eval(row: Mapping[str, Any]) -> bool:
    """Whether it is a sample of lm-eval."""
    return {"doc_id", "resps"} <= row.keys() and ("arguments" in row or "doc" in row)


def of_lm_eval(rows: Iterable[FileRow]) -> Iterator[FileRow]:
    """A row for each sample."""
    for row in rows:
        yield row if row.error or not isinstance(row.value, Mapping) else _lm_eval(row)


def _lm_eval(row: FileRow) -> FileRow:
    sample = row.value
    about = {
        key: value for key, value in sample.items()
        if key not in ("arguments", "resps", "target", "doc", "filtered_resps") and not key.endswith("_hash")
    }  # fmt: skip
    about["doc"] = sample.get("doc")
    target = sample.get("target")
    if isinstance(target, str) and "####" in target:  # as GSM8K marks the answer in its solutions
        target = target.rpartition("####")[2].strip()
    about["expect"] = target
    contexts = _contexts(sample.get("arguments"))
    answers = sample.get("resps") or []
    first = answers[0] if answers else None
    texts = first if isinstance(first, list) else [first]
    if not contexts or not all(isinstance(text, str) for text in texts) or not texts:
        return row._replace(value=about, error="the sample has no generation: its task compares log-likelihoods")
    filtered = sample.get("filtered_resps")
    about["answer"] = filtered[0] if isinstance(filtered, list) and filtered else filtered
    left_out = [f"{len(texts) - 1} other choices"] if len(texts) > 1 else []
    # with a chat API the first argument is the messages, as JSON
    name = "messages" if str(contexts[0]).startswith('[{"role"') else "prompt"
    return row._replace(value={**about, name: contexts[0], "completion": texts[0], "left_out": left_out})


def _contexts(arguments: Any) -> list[Any]:
    """The texts that the model was given: the first argument of each request, in the form of today or of before 0.4.3."""
    if isinstance(arguments, Mapping):
        return [one.get("arg_0") for one in arguments.values() if isinstance(one, Mapping)]
    return [one[0] for one in arguments or [] if isinstance(one, (list, tuple)) and one]
