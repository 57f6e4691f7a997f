"""The server: one thread that forks a process for each connection, tells a client how its command ended, and ends when idle."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from probe.errors import ProbeError

from . import sockets
from .becoming import GONE, become, finish
from .conditions import conditions, difference
from .sources import fingerprint

_PATIENCE = 20.0  # seconds that a client has to say what it wants
_LONGEST = 100  # bytes of a socket's path: what Linux takes, and a little less


class Server:
    """Runs commands by `run`, until it has been idle for so many seconds. It is there when it `listen`s; that nothing is to
    change from now on, and that it is the only one, it sees to when it is made."""

    def __init__(self, run: Callable[[], object], *, idle: float | None) -> None:
        self.run, self.idle = run, idle
        self.models: list[dict[str, Any]] = []
        self.began = time.time()
        self.process = os.getpid()
        self.conditions, self.sources = conditions(), fingerprint()
        # process of a command: the connection of its client, None once that has gone
        self.running: dict[int, socket.socket | None] = {}
        self.used = time.monotonic()
        self.ends = False
        self.address = sockets.address()
        self.lock = _locked(self.address)
        self.wakes, self.wake = socket.socketpair()

    def listen(self) -> None:
        """Take the socket's place: whoever had it before has died, or the lock would not be ours."""
        self.address.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            self.listener.bind(str(self.address))
        finally:
            os.umask(mask)
        self.listener.listen(64)
        self.used = time.monotonic()
        for end in (self.wakes, self.wake):
            end.setblocking(False)
        signal.set_wakeup_fd(self.wake.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._end)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> bool:
        """Until it is told to end, or nobody has come for long: true where that is why. In a fork it ends with the command."""
        try:
            while not self.ends or self.running:
                if not self._wait():
                    return True
            return False
        finally:
            if os.getpid() == self.process:
                self._close()

    def _wait(self) -> bool:
        """Take what happens next; false if nothing has for as long as the server waits."""
        poll = select.poll()
        poll.register(self.wakes, select.POLLIN)
        if not self.ends:
            poll.register(self.listener, select.POLLIN)
        for connection in filter(None, self.running.values()):
            poll.register(connection, 0)  # only that the client has gone
        left = None
        if self.idle is not None and not self.running:
            left = max(self.used + self.idle - time.monotonic(), 0)
        happened = {number for number, _ in poll.poll(None if left is None else left * 1000 + 1)}
        if not happened:
            return False
        with suppress(BlockingIOError):
            self.wakes.recv(4096)
        self._leave({process for process, one in self.running.items() if one is not None and one.fileno() in happened})
        self._reap()
        if not self.ends and self.listener.fileno() in happened:
            self._take()
        return True

    def _leave(self, processes: set[int]) -> None:
        """Tell commands that their clients have gone; none has been waited for yet: each number is its own."""
        for process in processes:
            os.kill(process, GONE)
            os.kill(process, signal.SIGCONT)
            if (connection := self.running[process]) is not None:
                connection.close()
            self.running[process] = None

    def _end(self, number: int, frame: object) -> None:
        """No more commands; those that run go on. Told again, leave them alone."""
        if self.ends:
            self.running.clear()
        self.ends = True
        with suppress(OSError):
            self.address.unlink(missing_ok=True)

    def _reap(self) -> None:
        """Tell the clients of forks that have ended how they did, if they could not say it themselves."""
        for process, connection in list(self.running.items()):
            found, status = os.waitpid(process, os.WNOHANG)
            if not found:
                continue
            code = os.waitstatus_to_exitcode(status)
            if connection is not None:
                with suppress(OSError):
                    sockets.send(connection, {"signal": -code} if code < 0 else {"code": code})
                connection.close()
            del self.running[process]
            self.used = time.monotonic()

    def _take(self) -> None:
        connection, _ = self.listener.accept()
        try:
            process = os.fork()
        except OSError:  # no room for another process: the client finds that nobody answers
            connection.close()
            return
        if process:
            self.running[process] = connection
            return
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.setsid()  # the terminal that the server was started in is none of the command's
        os.close(self.lock)
        for one in (self.listener, self.wakes, self.wake, *filter(None, self.running.values())):
            one.close()
        self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        """Do, in a fork, what a client asks, and end."""
        connection.settimeout(_PATIENCE)
        try:
            asked, files = sockets.receive(connection, 4) if sockets.peer(connection) == os.getuid() else (None, [])
            if asked is not None and asked["do"] == "run":
                why = self._refusal(asked) or become(asked, files)
                sockets.send(connection, {"refused": why} if why else {"process": os.getpid()})
                connection.settimeout(None)
                if why is None:
                    finish(self.run, connection)
                    sys.exit(0)
            elif asked is not None:
                if asked["do"] == "stop":  # first: who has its answer goes, and a fork whose client has gone is ended
                    os.kill(self.process, signal.SIGTERM)
                sockets.send(connection, self._state())
        except OSError:
            pass  # the client has gone
        os._exit(0)

    def _state(self) -> dict[str, Any]:
        """What a client is told of the server."""
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.began))
        return {
            "process": self.process, "socket": str(self.address), "since": began, "models": self.models,
            "running": len(self.running),
        }  # fmt: skip

    def _refusal(self, asked: dict[str, Any]) -> str | None:
        """Why a client's command would not do here what it does by itself, if it would not."""
        if fingerprint() != self.sources:
            print("warning: probe, or a package, has changed: the server ends", file=sys.stderr, flush=True)
            os.kill(self.process, signal.SIGTERM)
            return "probe, or a package, has changed since it was started; probe serve starts another"
        if name := difference(self.conditions, asked["conditions"]):
            return f"it was started with another {name}"
        return None

    def _close(self) -> None:
        with suppress(OSError):
            self.address.unlink(missing_ok=True)
        self.listener.close()
        os.close(self.lock)


def _locked(address: Path) -> int:
    """The lock of the one server of this installation, held while this process lives. Raises `ProbeError` if another has it."""
    if len(os.fsencode(address)) > _LONGEST:
        raise ProbeError(f"'{address}' is too long for a socket", hint="set XDG_RUNTIME_DIR to a short path")
    try:
        address.parent.mkdir(0o700, exist_ok=True)
        lock = os.open(address.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        hint = "set XDG_RUNTIME_DIR to a folder of yours"
        raise ProbeError(f"cannot listen in '{address.parent}': {error.strerror}", hint=hint) from error
    if not sockets.is_private(address.parent):
        hint = "remove it, or set XDG_RUNTIME_DIR to a folder of yours"
        raise ProbeError(f"'{address.parent}' is not a folder that only you can read", hint=hint)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        hint = "probe serve --status tells of it, probe serve --stop ends it"
        raise ProbeError("a server is there already", hint=hint) from error
    return lock
