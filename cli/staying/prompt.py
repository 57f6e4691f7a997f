"""The prompt of `probe shell`: each line runs in a fork of this process; readline completes it, and remembers it."""

from __future__ import annotations

import io
import os
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

from ..printing import complain
from . import sockets
from .becoming import finish
from .sources import fingerprint

ASK = "probe> "
LEAVE = ("exit", "quit")
_REMEMBERED = 1000  # lines
_GOES_ON = ("/", "=", ":", "@", ".", ",")  # a value that ends so is a beginning


class CommandPrompt:
    """Reads lines, and runs each as the words of a command line by `run`."""

    def __init__(self, run: Callable[..., object], *, history: Path) -> None:
        self.run, self.history = run, history
        self.process, self.sources = os.getpid(), fingerprint()
        self.ending: list[int] = []  # forks that have said how they ended, and are being taken down
        self.found: list[str] = []

    def talk(self) -> int:
        """Until the user leaves. The exit code of the last command."""
        code = 0
        for line in self._lines():
            try:
                words = shlex.split(line)
            except ValueError:
                complain("a quotation in that line is not closed", "a word with spaces stands between two quotes")
                code = 2
                continue
            if words[:1] == ["probe"]:
                del words[0]
            if words and words[0] in LEAVE:
                break
            if words and not words[0].startswith("#"):
                code = self._done(words)
        return code

    def _lines(self) -> Iterator[str]:
        """What the user types, or what comes through a pipe."""
        if not sys.stdin.isatty():
            yield from sys.stdin
            return
        with self._remembering():
            while True:
                try:
                    yield input(ASK)
                except EOFError:
                    print()
                    return
                except KeyboardInterrupt:
                    print()

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        """Lines of earlier shells can be called back, and words completed; where Python was built without readline, neither."""
        try:
            import readline
        except ImportError:
            yield
            return
        with suppress(OSError):
            readline.read_history_file(self.history)
        readline.set_history_length(_REMEMBERED)
        readline.set_completer_delims(" \t")
        readline.set_completer(self._complete)
        readline.parse_and_bind("tab: complete")
        try:
            yield
        finally:
            if os.getpid() == self.process:
                with suppress(OSError):
                    self.history.parent.mkdir(parents=True, exist_ok=True)
                    self.history.touch(0o600)
                    readline.write_history_file(self.history)

    def _complete(self, begun: str, nth: int) -> str | None:
        """What readline asks: the nth value that the word can be."""
        import readline

        if nth == 0:
            self.found = completions(self.run, readline.get_line_buffer()[: readline.get_endidx()], begun)
        return self.found[nth] if nth < len(self.found) else None

    def _done(self, words: Sequence[str]) -> int:
        """The exit code of a command, as a shell says it: of a signal, 128 and its number."""
        self.ending = [one for one in self.ending if not os.waitpid(one, os.WNOHANG)[0]]
        if fingerprint() != self.sources:
            complain("probe, or a package, has changed since this shell was started", "leave it, and start another")
            return 1
        told, tells = socket.socketpair()
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command
        process = os.fork()
        if process == 0:
            told.close()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._become(words)
            finish(self.run, tells)
            sys.exit(0)
        tells.close()
        with told:
            end, _ = sockets.receive(told)
        if end is None:
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            end = {"signal": -code} if code < 0 else {"code": code}
        else:
            self.ending.append(process)
        signal.signal(signal.SIGINT, before)
        return end["code"] if "code" in end else 128 + end["signal"]

    def _become(self, words: Sequence[str]) -> None:
        sys.argv[1:] = words
        if not sys.stdin.isatty():  # the lines that follow are none of the command's
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            sys.stdin = open(0, closefd=False)  # noqa: SIM115


def completions(run: Callable[..., object], line: str, begun: str) -> list[str]:
    """What the last word of a line can be, asked for as bash asks the command line; paths where that knows of nothing."""
    words = line if line.startswith("probe ") else f"probe {line}"
    asked = {"_PROBE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - bool(begun))}
    before = dict(os.environ)
    said = io.StringIO()
    os.environ.update(asked)
    try:
        with redirect_stdout(said), suppress(SystemExit):
            run([], prog_name="probe")
    finally:
        os.environ.clear()
        os.environ.update(before)
    found = [value for value in said.getvalue().splitlines() if value and value.startswith(begun)]
    if not found and not begun.startswith("-"):
        found = _paths(begun)
    whole = len(found) == 1 and not found[0].endswith(_GOES_ON)
    return [f"{found[0]} "] if whole else found


def _paths(begun: str) -> list[str]:
    folder = begun[: len(begun) - len(begun.rpartition("/")[2])]
    try:
        inside = sorted(Path(folder or ".").expanduser().iterdir())
    except OSError:
        return []
    paths = [f"{folder}{one.name}{'/' * one.is_dir()}" for one in inside]
    return [path for path in paths if path.startswith(begun)]
