"""`probe serve`: models stay loaded, and every command finds them by itself."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from probe.errors import BadOption, ProbeError
from probe.requests import Option

from .command import with_options
from .groups import Output, PlacementOptions, load

_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class StayingModels:
    """Which models stay loaded."""

    model: Annotated[
        tuple[str, ...],
        Option(
            "Alias, Hugging Face id, local directory, .gguf file, or tiny:FAMILY; repeatable.", ("--model", "-m"),
            shell=list[str] | None, default="$PROBE_MODEL, or smollm2", complete="models",
        ),
    ] = ()  # fmt: skip


@dataclass(frozen=True)
class Staying(StayingModels):
    """Which models stay loaded, and for how long."""

    idle: Annotated[str, Option("End after so long without a command: 90s, 30m, 2h, or never.")] = "30m"

    @property
    def patience(self) -> float | None:
        """Seconds that the server waits for a command; None for ever. Raises `BadOption`."""
        if self.idle == "never":
            return None
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", self.idle)
        if found is None or not float(found[1]):
            raise BadOption(f"'{self.idle}' is no time to wait", hint="90s, 30m, 2h, or never")
        return float(found[1]) * _UNITS[found[2]]


@dataclass(frozen=True)
class There:
    """What is asked of a server that is there."""

    status: Annotated[bool, Option("Tell of the server that is there.", ("--status",))] = False
    stop: Annotated[bool, Option("End the server that is there; commands at work go on to their end.", ("--stop",))] = False


@with_options
def command(context: typer.Context, staying: Staying, placement: PlacementOptions, there: There, output: Output) -> None:
    """Keep models loaded, so that no command waits for imports and weights: each finds the server by itself.

    Another model than those (or another --dtype, an --adapter) is loaded by each command that asks for it."""
    check_system("serve")
    if there.status or there.stop:
        _ask("stop" if there.stop else "status", as_json=output.as_json)
        return
    patience = staying.patience
    from .staying.server import Server

    server = Server(context.find_root().command, idle=patience)
    server.models = warmed_up(context, staying, placement)
    server.listen()
    typer.echo(f"{in_words(server.models)}: commands find it at {server.address}")
    typer.echo(f"it ends {_ending(staying.idle)}by Ctrl-C or probe serve --stop")
    sys.stdout.flush()
    if server.serve():
        typer.echo(f"nothing came for {staying.idle}: the server has ended")


def check_system(name: str) -> None:
    """Raises `ProbeError` where processes can't be forked as this takes it."""
    if sys.platform != "linux":
        raise ProbeError(f"probe {name} needs Linux", hint="every other command runs without it")


def warmed_up(context: typer.Context, staying: StayingModels, placement: PlacementOptions) -> list[dict[str, Any]]:
    """Load the models and have them read a text; what they are. Raises `BadOption` for an accelerator."""
    from probe.language_model.names import default_name, place

    from .staying.warming import warmed

    def load_all() -> None:
        if place(device=placement.device, dtype=placement.dtype).device_map is not None:
            raise BadOption(
                "a model on an accelerator can't be shared with a command", hint="--device cpu, for commands with it"
            )
        for name in staying.model or (default_name(),):
            load(name, placement)

    options = ("--device", placement.device, "--dtype", placement.dtype)
    return warmed(load_all, options, context.find_root().command)


def in_words(models: Sequence[Mapping[str, Any]]) -> str:
    """Names of models, with how they are loaded."""
    return ", ".join(f"{model['name']} ({model['dtype']}, {model['device']})" for model in models)


def _ending(idle: str) -> str:
    return "" if idle == "never" else f"after {idle} without a command, "


def _ask(what: str, *, as_json: bool) -> None:
    """Show what the server that is there says of itself; for `stop` it ends then."""
    from .staying import sockets
    from .terminal import show_document

    connection = sockets.connected(10)
    if connection is None:
        raise ProbeError("no server is there", hint="probe serve starts one")
    with connection:
        sockets.send(connection, {"do": what})
        said, _ = sockets.receive(connection)
    if said is None:
        raise ProbeError("the server does not answer", hint="end it by its process, and start another")
    if as_json:
        show_document({"command": "serve", "summary": said})
        return
    for name, value in said.items():
        typer.echo(f"{name}: {in_words(value) if name == 'models' else value}")
