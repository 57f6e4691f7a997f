"""The entry of `probe`: a command goes to the server if there is one, else it runs here. Imports next to nothing itself."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from ..processes import is_shared
from . import sockets
from .conditions import conditions

if TYPE_CHECKING:
    import socket

ALONE = "--no-server"
_STAYING = ("serve", "shell")  # commands that are a server themselves
_PATIENCE = 20.0  # seconds until the server has to have begun: a fork, on a busy machine


def main() -> None:
    """Run the command line: in the server where there is one."""
    if not take_switch(sys.argv) and _is_for_server(sys.argv[1:]):
        connection = sockets.connected(_PATIENCE)
        if connection is not None:
            with connection:
                why = ask(connection)
            if "_PROBE_COMPLETE" not in os.environ:
                print(f"warning: this runs without the server: {why}", file=sys.stderr)
    from probe.cli.main import main as run

    run()


def take_switch(words: list[str]) -> bool:
    """Whether the words, or the environment, say that no server is meant; the word for it is taken out of them."""
    end = words.index("--") if "--" in words else len(words)
    said = ALONE in words[:end]
    words[:end] = [word for word in words[:end] if word != ALONE]
    return said or os.environ.get(sockets.SWITCH, "0") not in ("", "0")


def _is_for_server(words: list[str]) -> bool:
    first = next((word for word in words if not word.startswith("-")), None)
    alone = first in _STAYING or is_shared(words)
    return sys.platform == "linux" and not alone and None not in (sys.stdin, sys.stdout, sys.stderr)


def ask(connection: socket.socket) -> str:
    """Have the server run this command, and end as it ended. Returns only where it was not begun: why not."""
    signals = _Signals()
    try:
        said = _begin(connection)
    except OSError as error:
        said = {"refused": f"it does not answer ({error})"}
    if "process" in said:
        connection.settimeout(None)
        signals.pass_on(said["process"])
        _end(sockets.receive(connection)[0])
    signals.keep()
    return str(said["refused"])


def _begin(connection: socket.socket) -> dict[str, Any]:
    """What the server says to this process's command, directory, environment and streams."""
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        sockets.send(connection, _request(), (0, 1, 2, here))
        said, _ = sockets.receive(connection)
    finally:
        os.close(here)
    return said if said is not None and said.keys() & {"process", "refused"} else {"refused": "it does not answer"}


def _request() -> dict[str, Any]:
    import resource
    import signal

    mask = os.umask(0o077)
    os.umask(mask)
    names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    return {
        "do": "run",
        "words": sys.argv,
        "package": sys.modules["__main__"].__package__,  # by it a usage line says `probe`, or `python -m probe`
        "environment": dict(os.environ),
        "conditions": conditions(),
        "streams": [
            {name: getattr(stream, name) for name in ("encoding", "errors", "line_buffering", "write_through")}
            for stream in (sys.stdin, sys.stdout, sys.stderr)
        ],
        "umask": mask,
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in names},
        "ignored": [int(one) for one in signal.valid_signals() if signal.getsignal(one) is signal.SIG_IGN],
    }


def _end(end: dict[str, int] | None) -> NoReturn:
    """As the command ended: with its code, or by its signal; None if nobody is left who could say."""
    import signal

    if end is None:
        print("error: the server ended, and the command with it", file=sys.stderr)
        os._exit(1)
    if "signal" in end:
        with suppress(OSError):  # SIGKILL has no handler to be taken off
            signal.signal(end["signal"], signal.SIG_DFL)
        os.kill(os.getpid(), end["signal"])
    os._exit(end["code"])


class _Signals:
    """What this process is told goes to the command; until that has begun it waits."""

    def __init__(self) -> None:
        import signal

        self.command: int | None = None
        self.waiting: list[int] = []
        told = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGTSTP, signal.SIGCONT)
        self.before = {one: signal.getsignal(one) for one in told}
        for one, handler in self.before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(one, self._told)

    def _told(self, number: int, frame: object) -> None:
        import signal

        if self.command is None:
            self.waiting.append(number)
            return
        with suppress(ProcessLookupError):
            # one that has no terminal can't be asked to stop, only made to
            os.kill(self.command, signal.SIGSTOP if number == signal.SIGTSTP else number)
        if number == signal.SIGTSTP:
            os.kill(os.getpid(), signal.SIGSTOP)

    def pass_on(self, command: int) -> None:
        """The command has begun."""
        self.command = command
        for number in self.waiting:
            self._told(number, None)

    def keep(self) -> None:
        """There is no command: they are for this process, as before."""
        import signal

        for one, handler in self.before.items():
            signal.signal(one, handler)
        for number in self.waiting:
            os.kill(os.getpid(), number)
