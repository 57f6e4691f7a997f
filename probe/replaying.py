"""A run made once more from its manifest: what it was asked for is all that decides its tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe import store as stores
from probe.errors import RunError
from probe.requests import FROM_TABLE, REQUESTS, Request
from probe.texts import FOR_TEMPLATES, GivenCompletion, Prompt, parsed

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


def request_of(run: stores.Run) -> Request:
    """The request that a run was made of. Raises `RunError` for a command that is none or an argument that is not known."""
    kind = REQUESTS.get(run.command)
    if kind is None:
        raise RunError(f"'{run.command}' is no command that can be run again", hint=f"those are: {', '.join(REQUESTS)}")
    arguments = dict(run.manifest["arguments"])
    for name, value in arguments.items():
        if value == FROM_TABLE:
            arguments[name] = [_prompt_in(run, row) for row in run.scan("prompts").to_pylist()]
    return kind.from_arguments(arguments)


def replay(lm: LanguageModel, run: stores.Run, *, out: str | Path | None = None) -> stores.Run:
    """The run made once more, by its manifest; its tables are those of the first. Raises as `request_of` and the verb do."""
    request = replace(request_of(run), out=out)
    function = request.function()
    if len(signature(function).parameters) == 1:  # the model is one of the request's fields
        return function(request.on(lm))
    return function(lm, request)


def _prompt_in(run: stores.Run, row: Mapping[str, Any]) -> Any:
    """A prompt as the run has it: messages are JSON in the table `prompts`, and were rendered; a transcript's ids are in
    `tokens`."""
    messages = row["text"].startswith("[") and row["rendered"] not in (None, row["text"])
    content = json.loads(row["text"]) if messages else row["text"]
    beside = {name: parsed(row[name]) for name in FOR_TEMPLATES if row.get(name)}
    error = row["error"] if not row["text"] else ""
    columns, given = {name: row[name] for name in run.extra("prompts")}, None
    if row["left_out"] is not None:
        ids = run.scan("tokens", columns=["pos", "token_id"], prompt_id=row["prompt_id"], branch=0).sort_by("pos")["token_id"]
        n, found = row["n_tokens"], ids.to_pylist()
        turn = messages and content[-1]["role"] == "assistant"
        left_out = [one for one in row["left_out"].split("; ") if one]
        given = GivenCompletion(None, found[n:], found[:n], row["stop_reason"], left_out, turn)
    return Prompt(row["prompt_id"], content, error, row["expect"], row["choices"], beside, columns, given)
