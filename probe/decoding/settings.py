"""How a token is to be chosen, and what a model's own generation settings would have `generate` do. Draws nothing."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from probe.errors import BadOption
from probe.requests import Sampling

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

# settings of generation_config.json that `generate` obeys and nothing here does, with what is the same as unset
_OTHERS: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,), "typical_p": (1.0,), "epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,), "top_h": (),
    "no_repeat_ngram_size": (0,), "bad_words_ids": ([],), "sequence_bias": ({},), "begin_suppress_tokens": ([],),
    "min_length": (0,), "min_new_tokens": (0,), "forced_bos_token_id": (), "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (), "guidance_scale": (1, 1.0), "watermarking_config": (), "penalty_alpha": (0.0,),
    "dola_layers": (), "diversity_penalty": (0.0,), "constraints": (), "force_words_ids": (), "max_time": (),
}  # fmt: skip
_WARPERS = ("temperature", "top_k", "top_p", "min_p")
TOP_K = 50  # what `generate` takes where it samples and no top-k is set (transformers 5.24)


def processors(sampling: Sampling) -> LogitsProcessorList:
    """Hugging Face's processors in its order: penalty, suppressed tokens, temperature, top-k, top-p, min-p.

    They say what `choose` draws from, stage by stage; it does not sort all tokens for that.
    """
    found = LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        found.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.suppress:
        found.append(SuppressTokensLogitsProcessor(list(sampling.suppress)))
    if sampling.temperature not in (0.0, 1.0):
        found.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k is not None:
        found.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None and sampling.top_p < 1.0:
        found.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        found.append(MinPLogitsWarper(sampling.min_p))
    return found


def sampling_for(
    lm: LanguageModel | None, *, generation_config: str = "none", temperature: float | None = None, top_k: int | None = None,
    top_p: float | None = None, min_p: float | None = None, repetition_penalty: float | None = None,
    stop: tuple[str, ...] = (), seed: int = 0,
) -> Sampling:  # fmt: skip
    """A sampling of these settings, over greedy ones, or (`model`) over those of the model's generation_config.json.

    Raises `BadOption` for a setting of the model's that is not known how to apply.
    """
    given = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty,
        "stop": stop or None,
    }  # fmt: skip
    own: dict[str, Any] = {}
    if generation_config not in ("none", "model"):
        raise BadOption(f"unknown generation config '{generation_config}'", hint="none or model")
    if generation_config == "model":
        assert lm is not None, "whose settings?"
        if others := _others(lm):
            raise BadOption(
                f"generation_config.json of '{lm.name}' sets what probe does not apply: {_said(others)}",
                hint="leave out --generation-config model, and give the other settings as options",
            )
        own = _sampling(lm)
    chosen = {name: value for name, value in given.items() if value is not None}
    if chosen.get("temperature") == 0.0:  # asked for greedy: the model's filters have no part in it
        own = {name: value for name, value in own.items() if name not in _WARPERS}
    return Sampling(**{**own, **chosen}, seed=seed)


def differences(lm: LanguageModel, sampling: Sampling) -> list[str]:
    """What is to be said of a generation: the settings of the model by which `generate` would draw or stop otherwise."""
    own, plain = _sampling(lm), Sampling()
    if not own.get("temperature") and sampling.temperature:  # greedy is what nobody asked for, not a setting
        own.pop("temperature", None)
    found = {
        f.name: own[f.name] for f in fields(Sampling)
        if f.name in own and own[f.name] != getattr(sampling, f.name) and own[f.name] != getattr(plain, f.name)
    }  # fmt: skip
    found |= _others(lm)
    if not found:
        return []
    return [
        f"generation_config.json of {lm.name} has settings that generate would use and this run does not: {_said(found)}; "
        "--generation-config model applies them where it can"
    ]


def _sampling(lm: LanguageModel) -> dict[str, Any]:
    """Fields of `Sampling` as the model's generation config sets them."""
    config = _config(lm)
    own: dict[str, Any] = {}
    if config.get("do_sample"):
        top_k = config.get("top_k", TOP_K)
        own = {"temperature": float(config.get("temperature", 1.0)), "top_k": top_k or None}
        own |= {name: config[name] for name, off in (("top_p", 1.0), ("min_p", 0.0)) if config.get(name, off) != off}
    if config.get("repetition_penalty") not in (None, 1.0):
        own["repetition_penalty"] = float(config["repetition_penalty"])
    if config.get("suppress_tokens"):
        own["suppress"] = tuple(int(i) for i in config["suppress_tokens"])
    if config.get("stop_strings"):
        stop = config["stop_strings"]
        own["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    return own


def _others(lm: LanguageModel) -> dict[str, Any]:
    config = _config(lm)
    return {name: config[name] for name, off in _OTHERS.items() if config.get(name) is not None and config[name] not in off}


def _config(lm: LanguageModel) -> dict[str, Any]:
    """What is set in the model's generation config."""
    config = getattr(lm.model, "generation_config", None)
    return {} if config is None else {k: v for k, v in config.to_dict().items() if v is not None}


def _said(settings: dict[str, Any]) -> str:
    names = {"suppress": "suppress_tokens", "stop": "stop_strings"}
    texts = [f"{names.get(name, name)}={list(v) if isinstance(v, tuple) else v}" for name, v in settings.items()]
    return ", ".join(text if len(text) <= 60 else f"{text[:57]}…" for text in texts)
