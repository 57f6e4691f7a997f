"""What is asked of the processes that share the work of one request."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Any

from probe.errors import BadOption
from probe.requests.options import Option

RAY = "ray"
LOCAL = "local"


def plain_engine(name: str) -> str:
    """An engine as a manifest holds it: the numbers of workers are those of this process."""
    return LOCAL if name == RAY else name


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """How many processes share the work of a request whose engine is `ray`, and how much each is given at once."""

    workers: Annotated[
        int | None,
        Option("Of --engine ray: processes that have the model.", minimum=1, default="as there is room for", stored=False),
    ] = None  # fmt: skip
    shard_size: Annotated[
        int | None,
        Option("Of --engine ray: batches (problems, pairs) that a process is given at once, and that are lost with it.",
               minimum=1, default="by command", stored=False),
    ] = None  # fmt: skip

    def __post_init__(self) -> None:
        getattr(super(), "__post_init__", lambda: None)()  # of the request that has these options
        for name, value in (("workers", self.workers), ("shard-size", self.shard_size)):
            if value is not None and value < 1:
                raise BadOption(f"{name} is {value}", hint="it is at least 1")
            if value is not None and not self.shared:
                raise BadOption(f"--{name} is of --engine ray", hint="--engine ray, or leave it out")
        if self.shared and not installed():
            raise BadOption("--engine ray needs Ray, which is not installed", hint='pip install "mechprobe[ray]"')

    @property
    def shared(self) -> bool:
        """Whether several processes share the work."""
        return getattr(self, "engine", LOCAL) == RAY


def installed() -> bool:
    """Whether Ray can be imported."""
    return find_spec(RAY) is not None


@dataclass(frozen=True, kw_only=True)
class SharedWork(WorkerOptions):
    """Whether one process does the work of a request, or several share it."""

    engine: Annotated[str, Option("local, or ray: many processes, here or on a cluster.", complete="engines", stored=False)] = (
        LOCAL
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine not in (LOCAL, RAY):
            raise BadOption(f"unknown engine '{self.engine}'", hint="local or ray")


def shared(request: Any) -> bool:
    """Whether several processes share the work of a request."""
    return isinstance(request, WorkerOptions) and request.shared
