"""The completions protocol, with prompts and answers in token ids: what is asked, and what the answer holds. Sends nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from probe.decoding.noise import keys
from probe.errors import BadOption, EngineError
from probe.requests import Sampling
from probe.serving.client import Json

PATH = "/v1/completions"
NEVER = -100.0  # a bias of logits, the lowest that servers take: e^-100 of a probability is none in float32
COLDEST = 0.01  # vLLM takes a lower temperature for this one
_ID = "token_id:"  # what vLLM writes in the place of a token's text when it is asked for ids


class Served(NamedTuple):
    """What a server says that it serves. kind: whose server it is (`vllm`, `sglang`); context: tokens of the longest text."""

    kind: str
    model: str
    version: str | None = None
    context: int | None = None


class Reply(NamedTuple):
    """One completion. finish: why it ended, in the server's words; ended_by: the token or text that it names as the reason.

    logprobs: of the ids, nats; prompt_logprobs: of the prompt's, whose first has none. None where it gives none.
    """

    ids: list[int]
    logprobs: list[float] | None
    finish: str
    ended_by: int | str | None
    prompt_logprobs: list[float | None] | None


def request_seed(seed: int, sample: int, bits: int = 63) -> int:
    """The noise's address as a server's `seed`: not negative, below 2^bits.

    Every bit depends on both: where the server's generator looks at few of them (torch on a CPU: the lowest 32), it still gets
    another stream for another address.
    """
    high, low = (int(half) & 0xFFFFFFFF for half in keys(seed, [sample], [0], torch.device("cpu")).flatten())
    return (high << 32 | low) & ((1 << bits) - 1)


def body_of(
    prefix: Sequence[int], sampling: Sampling, served: Served, *, max_tokens: int, seed: int, eos: Collection[int],
    logprobs: bool = True, stops: bool = True,
) -> Json:  # fmt: skip
    """A request for one completion. Every setting is said, since servers have their own defaults.

    eos: the ids that end a text are ours, not those of the server's files (SGLang then would not hear of ours either).
    stops: whether it is told the stop texts.
    """
    found: Json = {
        "model": served.model, "prompt": list(prefix), "max_tokens": max_tokens, "n": 1, "seed": seed,
        "temperature": sampling.temperature, "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
        "top_k": -1 if sampling.top_k is None else sampling.top_k, "min_p": sampling.min_p or 0.0,
        "repetition_penalty": sampling.repetition_penalty, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        "stop_token_ids": sorted(eos), "ignore_eos": served.kind == "vllm", "skip_special_tokens": False,
        "return_token_ids": True, "return_tokens_as_token_ids": True,
    }  # fmt: skip
    if logprobs:
        found["logprobs"] = 0
    if sampling.suppress:
        found["logit_bias"] = {str(token): NEVER for token in sampling.suppress}
    if sampling.stop and stops:
        found |= {"stop": list(sampling.stop), "include_stop_str_in_output": True}
    return found


def scoring_body(ids: Sequence[int], served: Served, *, echo: bool = False) -> Json:
    """A request for the log-probs of a text's own tokens; echo: in OpenAI's way, not vLLM's."""
    found = body_of(ids, Sampling(), served, max_tokens=1, seed=0, eos=(), logprobs=echo)
    return found | ({"echo": True} if echo else {"prompt_logprobs": 0})


def check_sampling(sampling: Sampling) -> None:
    """Raises `BadOption` for settings that no server can be told."""
    if 0 < sampling.temperature < COLDEST:
        raise BadOption(
            f"a server takes temperature {sampling.temperature:g} for {COLDEST:g}",
            hint="temperature 0 is greedy; or --engine local",
        )


def order_remarks(sampling: Sampling, server: str) -> list[str]:
    """What is to be said of filters that a server applies in another order than Hugging Face (METHODS M18).

    vLLM has min-p before top-k and top-p: only where top-p shares out another mass does that change anything. Others are not
    known to us: any two filters may.
    """
    names = {"top-k": sampling.top_k is not None, "top-p": (sampling.top_p or 1.0) < 1.0, "min-p": bool(sampling.min_p)}
    several = [name for name, at_work in names.items() if at_work]
    if server == "vllm":
        if not (names["top-p"] and names["min-p"]):
            return []
        return ["vLLM applies min-p before top-p, this program after it: the server keeps fewer tokens, another distribution"]
    if len(several) < 2:
        return []
    return [f"in which order the server applies {', '.join(several)} is not known: it may draw from another distribution"]


def read_reply(found: Mapping[str, Any], prefix: Sequence[int], *, most: int, n_ids: int | None) -> Reply:
    """What an answer holds, checked against what was asked.

    Raises `EngineError` where ids are missing, too many, outside the vocabulary, or follow another prompt.
    """
    choices = found.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise EngineError("the server answers with no completion", hint="is it an OpenAI-like completions server?")
    choice: Mapping[str, Any] = choices[0]
    _check_prompt(found, choice, prefix)
    given: Mapping[str, Any] = choice.get("logprobs") or {}
    ids = _ids(choice, given)
    strange = next((i for i in ids if i < 0 or (n_ids is not None and i >= n_ids)), None)
    if strange is not None:
        raise EngineError(
            f"the server drew token id {strange:,}, and the model has {n_ids or 0:,}", hint="it serves another vocabulary"
        )
    if len(ids) > most:
        raise EngineError(f"the server drew {len(ids)} tokens where {most} were asked for", hint="it cannot be used here")
    values = given.get("token_logprobs")
    fits = isinstance(values, list) and len(values) == len(ids) and all(isinstance(v, int | float) for v in values)
    ended_by = choice.get("stop_reason", choice.get("matched_stop"))
    return Reply(
        ids, [float(v) for v in values] if fits and values is not None else None, str(choice.get("finish_reason")), ended_by,
        _of_prompt(choice.get("prompt_logprobs"), prefix),
    )  # fmt: skip


def prompt_logprobs(found: Mapping[str, Any], ids: Sequence[int], *, echo: bool) -> list[float | None] | None:
    """The log-probs of a text's own tokens in the answer to `scoring_body`, the first None; None where they are not there."""
    choice = found["choices"][0]
    if not echo:
        return _of_prompt(choice.get("prompt_logprobs"), ids)
    given = (choice.get("logprobs") or {}).get("token_logprobs")
    if not isinstance(given, list) or len(given) < len(ids) or any(v is None for v in given[1 : len(ids)]):
        return None
    return [None, *(float(v) for v in given[1 : len(ids)])]


def _check_prompt(found: Mapping[str, Any], choice: Mapping[str, Any], prefix: Sequence[int]) -> None:
    """Raises `EngineError` where the server says that it read another prompt than it was sent."""
    read = choice.get("prompt_token_ids", found.get("prompt_token_ids"))
    n = (found.get("usage") or {}).get("prompt_tokens")
    if read is not None:
        same, n = list(read) == list(prefix), len(read)
    else:
        same = n is None or n == len(prefix)
    if not same:
        raise EngineError(
            f"the server read {n} tokens that are not the {len(prefix)} it was sent", hint="it must take prompts as token ids"
        )


def _ids(choice: Mapping[str, Any], logprobs: Mapping[str, Any]) -> list[int]:
    ids = choice.get("token_ids")
    if isinstance(ids, list) and all(isinstance(i, int) for i in ids):
        return list(ids)
    tokens = logprobs.get("tokens")
    if isinstance(tokens, list) and all(str(t).startswith(_ID) and str(t)[len(_ID) :].isdigit() for t in tokens):
        return [int(str(t)[len(_ID) :]) for t in tokens]
    raise EngineError(
        "the server returns text without token ids, and text can be cut into tokens in several ways",
        hint="vLLM and newer SGLang return them (return_token_ids); or --engine local",
    )


def _of_prompt(given: Any, ids: Sequence[int]) -> list[float | None] | None:
    """vLLM's `prompt_logprobs`: for each token of the prompt a mapping from ids, as texts, to log-probs."""
    if not isinstance(given, list) or len(given) != len(ids):
        return None
    values: list[Any] = [(entry or {}).get(str(i)) for entry, i in zip(given[1:], ids[1:], strict=True)]
    if any(not isinstance(v, dict) or "logprob" not in v for v in values):
        return None
    return [None, *(float(v["logprob"]) for v in values)]
