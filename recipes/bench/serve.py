"""What a server saves: a short command from nothing, and the same command in a server that has the model; each a process. And
whether it grows with the commands that it runs."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from .measure import resident

TEXT = "The capital of France is"
COMMANDS = {"trace": ("trace", TEXT), "lens": ("lens", TEXT), "look": ("look", TEXT)}
TARGET = 8.0  # from nothing, over in the server
GROWTH = 200  # commands after which the server's memory is to be what it was
# of many verbs, each with what those before it have left; two fail
SESSION = (
    ("trace", "One. Two. Three.", "--generate", "8", "--split", "token", "--out", "first"), ("lens", "first"),
    ("look", "first"), ("heads", "first", "--sequences", "0"), ("steps", "first"), ("view", "first"), ("runs", "show", "first"),
    ("attribute", "2 + 3 =", "--answer", "5", "--against", "6"), ("weights", "--what", "heads"), ("runs", "ls", "."),
    ("patch", "--clean", "2 + 3 =", "--corrupt", "2 + 4 =", "--answer", "5", "--against", "6"), ("models", "sites"),
    ("rewind", "first", "--split", "token", "--to", "50%", "--delete", "--samples", "3", "--max-new", "6"),
    ("importance", "first", "--split", "token", "--method", "rescore"), ("tables", "tokens"), ("trace", "--nonsense"),
    ("speculate", "1, 2, 3, 1, 2,", "--draft", "ngram", "--generate", "8"), ("trace", "Hello", "--out", "first"),
    ("trace", "Hello", "--model", "tiny:gpt2"), ("help", "rewind"),
)  # fmt: skip
_BEGIN = "import sys; sys.argv[0] = 'probe'; from probe.cli.staying.client import main; main()"


class Spent(NamedTuple):
    """Seconds of one command: on the clock, and of a processor (its client's too)."""

    wall: float
    cpu: float


def main(model: str, *, repeat: int, quick: bool, only: str | None = None) -> None:
    """Print the seconds of each command both ways, in turn, and their ratio, medians over the rounds; then what the server
    holds after many commands of all kinds. only: one of the commands, or growth."""
    with TemporaryDirectory(prefix="probe-bench-", dir="/tmp") as folder, serving(model, folder) as server:
        print(f"{model}: a command from nothing, and in a server\n")
        print(f"  {'':<8}{'from nothing':>14}{'of cpu':>8}{'in a server':>14}{'of cpu':>8}{'ratio':>8}{'target':>8}")
        for name, words in COMMANDS.items():
            if only in (None, name):
                whole = (*words, "--model", model, "--out", "run")
                rounds = [(timed(folder, whole, None), timed(folder, whole, server)) for _ in range(1 if quick else repeat)]
                show(name, rounds)
        if only in (None, "growth"):
            growth(model, folder, server, len(SESSION) if quick else GROWTH)


def growth(model: str, folder: str, server: int, commands: int) -> None:
    """Print the server's resident memory and open files before the first command, and after each round of all kinds; and how
    many commands have failed."""
    print(f"\n  {'commands':>8}{'resident MB':>13}{'files':>7}{'failed':>8}")
    env, done = {**os.environ, "XDG_RUNTIME_DIR": folder, "PROBE_NO_SERVER": "0", "PROBE_MODEL": model}, 0
    process, failed = Path(f"/proc/{server}"), 0
    while True:
        files = len(list((process / "fd").iterdir()))
        print(f"  {done:>8}{resident(process) / 1e6:>13.1f}{files:>7}{failed:>8}", flush=True)
        if done >= commands:
            return
        with TemporaryDirectory(dir=folder) as cwd:
            for words in SESSION:
                told = subprocess.run([sys.executable, "-c", _BEGIN, *words], cwd=cwd, env=env, capture_output=True)
                failed += told.returncode != 0
        done += len(SESSION)


def show(name: str, rounds: list[tuple[Spent, Spent]]) -> None:
    """A line of medians."""
    costs = [statistics.median(value) for side in zip(*rounds, strict=True) for value in zip(*side, strict=True)]
    ratio = statistics.median(alone.wall / served.wall for alone, served in rounds)
    print(f"  {name:<8}{costs[0]:>14.2f}{costs[1]:>8.2f}{costs[2]:>14.2f}{costs[3]:>8.2f}{ratio:>8.1f}{TARGET:>8.0f}")


@contextmanager
def serving(model: str, folder: str) -> Iterator[int]:
    """The process of a server of its own; it listens when this is entered."""
    env = {**os.environ, "XDG_RUNTIME_DIR": folder}
    words = [sys.executable, "-m", "probe", "serve", "--model", model, "--idle", "never"]
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = server.stdout.readline()
        try:
            assert "commands find it" in said, "the server does not listen"
            yield server.pid
        finally:
            server.terminate()


def timed(folder: str, words: tuple[str, ...], server: int | None) -> Spent:
    """What a command costs; in the server if there is one, else from nothing."""
    env = {**os.environ, "XDG_RUNTIME_DIR": folder, "PROBE_NO_SERVER": "0" if server else "1"}
    with TemporaryDirectory(dir=folder) as cwd:
        worked, begun = _worked(server), time.perf_counter()
        subprocess.run([sys.executable, "-c", _BEGIN, *words], cwd=cwd, env=env, stdout=subprocess.DEVNULL, check=True)
        wall = time.perf_counter() - begun
        return Spent(wall, _worked(server) - worked)


def _worked(server: int | None) -> float:
    """Seconds of a processor of all commands up to now, and of the server when its forks have ended."""
    ours = os.times().children_user + os.times().children_system
    if server is None:
        return ours
    process = Path(f"/proc/{server}")
    while (process / f"task/{server}/children").read_text():
        time.sleep(0.01)
    ticks = map(int, (process / "stat").read_text().rpartition(")")[2].split()[11:15])
    return ours + sum(ticks) / os.sysconf("SC_CLK_TCK")
