"""What the server does before it listens: it imports, loads models and has each read a text, so that no fork needs to."""

from __future__ import annotations

import gc
import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import probe

TEXT = "A text that the server reads once, so that no command is the first."
COMMANDS = ("trace", "look")  # of which most others are made
ON_FIRST_USE = ("scipy.stats", "scipy.optimize.elementwise", "rich.table")  # what verbs import late, and most of them


def warmed(load: Callable[[], object], options: Sequence[str], run: Callable[..., Any]) -> list[dict[str, Any]]:
    """Have `load` load models, which stay, and each of them read a text; what the models are.

    All of it is done in a thread that has ended afterwards (see the package). options: the command line's, by which a command
    finds the same models. run: the whole command line. Raises as `load`.
    """
    from probe.language_model.keeping import staying

    failed: list[BaseException] = []
    models: list[dict[str, Any]] = []

    def work() -> None:
        try:
            with staying() as kept, _unseen():
                _import_all()
                load()
                for lm in [one.lm for one in kept]:
                    models.append({key: lm.identity[key] for key in ("name", "revision", "dtype", "device")})
                    _use(lm.name, options, run)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    from transformers.utils import logging

    logging.warning_once.cache_clear()  # nobody has seen what was said meanwhile
    gc.collect()
    gc.freeze()  # a fork's collector does not touch, and so does not copy, what it shares
    return models


def _import_all() -> None:
    """The verbs, and the libraries that they leave to their first use."""
    for name in probe.__all__:
        getattr(probe, name)
    for name in ON_FIRST_USE:
        import_module(name)


def _use(model: str, options: Sequence[str], run: Callable[..., Any]) -> None:
    """Short commands with a model, of which nothing is left. What they fail at, the user's will tell."""
    with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        for name in COMMANDS:
            with suppress(SystemExit):
                run([name, TEXT, "--model", model, *options, "--out", str(Path(folder) / name)])


@contextmanager
def _unseen() -> Iterator[None]:
    """Settings of libraries meanwhile: tokenizers begin no threads, of which each fork would warn; CUDA is asked for without
    being begun, or no fork could."""
    settings = {"TOKENIZERS_PARALLELISM": "false", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
