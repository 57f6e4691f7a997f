"""What a worker is told: the request, the run, the model; and what it answers for a shard. Plain values that can be sent."""

from __future__ import annotations

import pickle
import platform
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from traceback import extract_tb
from typing import Any, NamedTuple

from probe import errors
from probe.errors import BadOption, ProbeError
from probe.language_model import LanguageModel
from probe.requests import Request

SAME = ("files", "tokenizer_sha256", "class", "parameters", "quantize", "adapter", "weights_patch", "dtype")


class Job(NamedTuple):
    """One request, the run that is made of it, and the keywords and the identity of the model that it is made on.

    threads: of a worker, as this process has them: the last digits of a number depend on it. folder: in which paths begin.
    found: what the verb found before the run began, which no worker needs to find again.
    """

    request: Request
    run: Path | str
    model: Mapping[str, Any]
    identity: Mapping[str, Any]
    threads: int
    folder: str
    accelerator: bool
    found: Any = None


class ShardResult(NamedTuple):
    """What a shard came to: done; or that there are `only` so many; or what went wrong. size: how much was in it.

    kind: the name of the `ProbeError` that it was; empty for another exception.
    """

    shard: int
    size: int = 0
    only: int | None = None
    kind: str = ""
    message: str = ""
    hint: str = ""

    @property
    def failed(self) -> bool:
        return bool(self.message)

    def error(self) -> ProbeError:
        """The error that a worker met."""
        return getattr(errors, self.kind, ProbeError)(self.message, hint=self.hint)


def failure(shard: int, error: BaseException) -> ShardResult:
    """What a worker answers where an exception came out of a shard."""
    if isinstance(error, ProbeError):
        return ShardResult(shard, kind=type(error).__name__, message=error.message, hint=error.hint)
    frames = extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return ShardResult(shard, message=f"{type(error).__name__}: {error}"[:500] + where)


def job_of(request: Request, lm: LanguageModel, run: Path | str, found: Any = None) -> Job:
    """found: see `Job`. Raises `BadOption` where what is asked for, or the model, is only in the memory of this process."""
    import torch

    if lm.loaded is None:
        what = "workers load the model by its name, and this one was made in memory"
        raise BadOption(what, hint="save and load it, or --engine local")
    sent = {f.name: _sent(getattr(request, f.name)) for f in fields(request)}
    own: dict[str, Any] = {"progress": None, "out": None, "resume": False, "workers": None}
    own |= {"lm": None} if "lm" in sent else {}
    request = replace(request, **{name: value for name, value in sent.items() if value is not getattr(request, name)}, **own)
    run = run.absolute() if isinstance(run, Path) else run
    threads, accelerator = torch.get_num_threads(), lm.device.type != "cpu"
    job = Job(request, run, lm.loaded, _known(lm), threads, str(Path.cwd()), accelerator, found)
    try:
        pickle.dumps(job)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise BadOption(f"it cannot be sent to another process: {error}", hint="--engine local") from error
    return job


def _sent(value: Any) -> Any:
    """A run as the URL or the folder that it is in; everything else as it is."""
    if not hasattr(value, "run_id"):
        return value
    if value.path is None:
        raise BadOption("workers cannot see a run that is only in memory", hint="give it an --out, or --engine local")
    return value.address if value.address != str(value.path) else Path(value.path).absolute()


def _known(lm: LanguageModel) -> dict[str, Any]:
    return {name: lm.identity.get(name) for name in SAME}


def model_of(job: Job) -> LanguageModel:
    """The model of a job, loaded. Raises `BadModel` for one that is another here."""
    import torch

    from probe.language_model import load

    torch.set_num_threads(job.threads)
    lm = load(**job.model)
    if other := [name for name in SAME if _known(lm)[name] != job.identity[name]]:
        raise errors.BadModel(
            f"'{lm.name}' is another model on {platform.node()} ({', '.join(other)} differ)",
            hint="the same files belong on all machines",
        )
    return lm
