"""`probe serve`: models stay loaded, and every command finds them by itself."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from probe.errors import BadOption, ProbeError
from probe.requests import Option

from .command import with_options
from .groups import Output, PlacementOptions, load

_UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Staying:
    """Which models stay loaded, and for how long."""

    model: Annotated[
        tuple[str, ...],
        Option(
            "Alias, Hugging Face id, local directory, .gguf file, or tiny:FAMILY; repeatable.", ("--model", "-m"),
            shell=list[str] | None, default="$PROBE_MODEL, or smollm2", complete="models",
        ),
    ] = ()  # fmt: skip
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
    """Keep models loaded, so that no command waits for imports and weights: each finds the server by itself."""
    if sys.platform != "linux":
        raise ProbeError("probe serve needs Linux", hint="every command runs without it")
    if there.status or there.stop:
        _ask("stop" if there.stop else "status", as_json=output.as_json)
        return
    patience = staying.patience
    from probe.language_model.names import default_name

    from .staying.server import Server
    from .staying.warming import warmed

    run = context.find_root().command
    server = Server(run, idle=patience)
    names = staying.model or (default_name(),)
    options = ("--device", placement.device, "--dtype", placement.dtype)
    server.models = warmed(lambda: _load(names, placement), options, run)
    server.listen()
    typer.echo(f"{', '.join(_shown(one) for one in server.models)}: commands find it at {server.address}")
    typer.echo(f"it ends {_ending(staying.idle)}by Ctrl-C or probe serve --stop")
    sys.stdout.flush()
    if server.serve():
        typer.echo(f"nothing came for {staying.idle}: the server has ended")


def _load(names: Sequence[str], placement: PlacementOptions) -> None:
    """The models, on the CPU. Raises `BadOption` for an accelerator."""
    from probe.language_model.names import place

    if place(device=placement.device, dtype=placement.dtype).device_map is not None:
        raise BadOption("a model on an accelerator can't be shared with a command", hint="--device cpu, for commands with it")
    for name in names:
        load(name, placement)


def _ending(idle: str) -> str:
    return "" if idle == "never" else f"after {idle} without a command, "


def _shown(model: dict[str, Any]) -> str:
    return f"{model['name']} ({model['dtype']}, {model['device']})"


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
        shown = ", ".join(map(_shown, value)) if name == "models" else value
        typer.echo(f"{name}: {shown}")
