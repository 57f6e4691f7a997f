"""What a shell completes: the values of options and arguments, by the kinds that `Option.complete` gives. Loads no model.

A value ends where the shell says that a word ends: bash ends one at `:`, `=` and `@` too, unless `COMP_WORDBREAKS` is told.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

RUNS = Path("runs")
FAMILIES = ("llama", "gpt2", "qwen2", "gemma2", "mamba")  # of tiny models: a few of all that transformers knows
WORDS: dict[str, tuple[str, ...]] = {
    "attention": ("none", "heads", "summary", "topk:8", "full"),
    "attention_kinds": ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"),
    "devices": ("auto", "cpu", "cuda", "mps"),
    "dtypes": ("auto", "float32", "bfloat16", "float16"),
    "engines": ("local", "ray"),
    "formats": ("csv", "jsonl", "parquet", "safetensors"),
    "inputs": ("txt", "jsonl", "json", "csv", "tsv", "parquet"),
    "metrics": ("logit-diff", "logprob", "prob", "kl"),
    "orders": ("hf", "vllm", "llamacpp", "all"),
    "patching": ("exact", "attribution"),
    "settings": ("none", "model"),
    "splits": ("sentence", "line", "paragraph", "token", "regex:", "spans:"),
    "stores": ("exact", "bf16"),
}
"""Options that take one of a few words."""


def completed(kind: str) -> Callable[..., list[str]]:
    """What typer calls for the values of one kind; it keeps those that begin as the word that was begun."""

    def values(ctx: typer.Context, args: list[str], incomplete: str) -> list[str]:
        with suppress(OSError, ValueError):  # a shell is told nothing rather than something wrong
            return sorted(dict.fromkeys(WORDS[kind] if kind in WORDS else FOUND[kind](ctx, incomplete)))
        return []

    return values


def _models(_: Any, begun: str) -> Iterable[str]:
    """Aliases, models that probe converted, those in the Hugging Face cache, and those in the folder that was begun."""
    from probe.language_model.home import made_here
    from probe.language_model.hub import cached_models
    from probe.language_model.names import ALIASES, TINY

    yield from (*ALIASES, *made_here(), *(f"{TINY}{family}" for family in FAMILIES))
    yield from (repo for repo in cached_models() if repo not in ALIASES.values())
    for path in _beside(begun):
        if path.suffix == ".gguf" or (path / "config.json").is_file():
            yield _written(path, begun)


def _runs(_: Any, begun: str) -> Iterable[str]:
    """Runs in the folder that was begun, and those under `runs`."""
    for path in [*_beside(begun), *(_inside(RUNS) if not begun or str(RUNS).startswith(begun) else ())]:
        if (path / "manifest.json").is_file():
            yield _written(path, begun)


def _beside(begun: str) -> list[Path]:
    """What is in the folder of a path that was begun."""
    return _inside(Path(begun) if begun.endswith("/") else Path(begun).parent)


def _inside(folder: Path) -> list[Path]:
    return [path for path in folder.expanduser().iterdir() if not path.name.startswith(".")] if folder.is_dir() else []


def _written(path: Path, begun: str) -> str:
    """A path as it was begun: with its ./, if it has one."""
    return f"./{path}" if begun.startswith("./") else str(path)


def _places(_: Any, begun: str) -> Iterable[str]:
    """Sites, each of all layers where it has layers; after a comma too. After a layer's dot the letter of its neurons or
    experts, where a site has any."""
    from probe.sites import SITES

    before, comma, place = begun.rpartition(",")
    name, at, layers = place.partition("@")
    if at and "." in layers and name in SITES:
        unit = SITES[name].unit
        yield from [f"{before}{comma}{name}@{layers.partition('.')[0]}.{unit[0]}"] if unit else []
        return
    for site in SITES.values():
        yield from (f"{before}{comma}{site.name}", *([f"{before}{comma}{site.name}@all"] if site.per_layer else []))


def _edits(ctx: Any, begun: str) -> Iterable[str]:
    """Places that can be changed, then the operations."""
    from probe.registries.edit_operations import OPERATIONS
    from probe.sites import SITES

    place, equals, _ = begun.partition("=")
    site = SITES.get(place.partition("@")[0])
    if equals:
        fit = [one for one in OPERATIONS.values() if site is None or one.use in site.uses]
        return [f"{place}={one.name}{':' * (one.least > 0)}" for one in fit]
    changed = {site.name for site in SITES.values() if site.uses}
    return [value for value in _places(ctx, begun) if value.partition("@")[0] in changed]


def _methods(_: Any, begun: str) -> Iterable[str]:
    """Methods of `importance`, several with commas."""
    from probe.registries.importance_methods import METHODS

    before, comma, _ = begun.rpartition(",")
    return [f"{before}{comma}{name}" for name in METHODS] + ["all"] * (not comma)


def _answers(*_: Any) -> Iterable[str]:
    from probe.answers.extraction import HOWS

    return [how.replace("PATTERN", "") for how in HOWS]


def _steps(*_: Any) -> Iterable[str]:
    """Those of the run that stands before, and all. (The parser has not read it: it waits for this option's value.)"""
    import pyarrow.parquet as pq

    words = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
    for word in shlex.split(words):
        if (file := Path(word) / "steps.parquet").is_file():
            steps = pq.read_table(file, columns=["step"], use_threads=False)["step"].unique()
            return [*(f"step{n}" for n in steps.to_pylist()), "all"]
    return ["all"]


def _tables(ctx: Any, _: str) -> Iterable[str]:
    """Those of the run that stands before, or all that there can be."""
    if (run := ctx.params.get("run")) is not None:
        return list(json.loads((Path(run) / "manifest.json").read_text())["tables"])
    from probe.tables import TABLES

    return list(TABLES)


def _commands(*_: Any) -> Iterable[str]:
    from probe.requests import REQUESTS

    return REQUESTS


def _tagger_languages(*_: Any) -> Iterable[str]:
    from probe.registries.tagger_languages import LANGUAGES

    return LANGUAGES


def _quantizations(*_: Any) -> Iterable[str]:
    from probe.registries.quantizations import QUANTIZATIONS

    return QUANTIZATIONS


def _head_sorts(*_: Any) -> Iterable[str]:
    from probe.registries.head_kinds import SORTS

    return SORTS


def _recipes(_: Any, begun: str) -> Iterable[str]:
    """Those that come with probe, and folders like them; as `reproducing.list_recipes`, which waits for NumPy."""
    from importlib.resources import files

    for path in Path(str(files("probe.recipes"))).glob("*/expected.json"):
        if json.loads(path.read_text(encoding="utf-8")).get("question"):
            yield path.parent.name.replace("_", "-")
    yield from (_written(path, begun) for path in _beside(begun) if (path / "expected.json").is_file())


def _orders_of_runs(*_: Any) -> Iterable[str]:
    from probe.store.listing import SORTED

    return [*SORTED, *(f"-{name}" for name in SORTED)]


FOUND: dict[str, Callable[[Any, str], Iterable[str]]] = {
    "answers": _answers, "commands": _commands, "edits": _edits, "head_sorts": _head_sorts, "methods": _methods,
    "models": _models, "places": _places, "quantizations": _quantizations, "recipes": _recipes, "runs": _runs,
    "sorts": _orders_of_runs, "steps": _steps, "tables": _tables, "tagger_languages": _tagger_languages,
}  # fmt: skip
"""Kinds of values that are looked up."""
