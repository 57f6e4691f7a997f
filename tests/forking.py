"""A process that has imported the libraries once and forks a child for each command line: the imports are most of a test.

The child is a process of its own, with its own directory, environment, standard streams and exit code.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class Forker:
    """Runs `python -m probe WORDS`, without the time that the imports take."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.forking"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, words: tuple[str, ...], *, cwd: Path, stdin: str | bytes | None, scratch: Path, timeout: float):
        """The finished command; `scratch` is an empty folder for its streams."""
        (scratch / "in").write_bytes(stdin.encode() if isinstance(stdin, str) else stdin or b"")
        asked = {"words": words, "cwd": str(cwd), "scratch": str(scratch), "env": dict(os.environ), "timeout": timeout}
        assert self.process.stdin and self.process.stdout
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        code = int(self.process.stdout.readline())
        said, complained = ((scratch / name).read_text() for name in ("out", "err"))
        return subprocess.CompletedProcess(["probe", *words], code, said, complained)

    def close(self) -> None:
        """End it."""
        self.process.communicate()


def become(asked: dict[str, Any]) -> None:
    """Be the command: its streams, directory, environment and words."""
    import signal

    from probe.cli.main import main

    scratch = Path(asked["scratch"])
    for number, (name, flags) in enumerate(
        [("in", os.O_RDONLY), ("out", os.O_CREAT | os.O_WRONLY), ("err", os.O_CREAT | os.O_WRONLY)]
    ):
        os.dup2(os.open(scratch / name, flags), number)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    signal.alarm(int(asked["timeout"]))  # a command that hangs ends by this signal
    sys.stdin, sys.stdout, sys.stderr = (open(n, mode, closefd=False) for n, mode in enumerate("rww"))  # noqa: SIM115
    sys.argv = ["probe", *asked["words"]]
    try:
        main()
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 0)  # taking torch down takes longer than the command


def serve() -> None:
    """Warm up by a command that writes nothing, then fork for each line asked."""
    import contextlib
    import gc
    import io

    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    from probe.cli.main import app

    with contextlib.redirect_stdout(io.StringIO()):
        app(["trace", "warm", "--model", "tiny:llama", "--dry-run"], standalone_mode=False)
    gc.collect()
    gc.freeze()  # what is shared stays shared: a child's collector does not touch it
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            become(json.loads(line))
            raise AssertionError("a command ends by SystemExit")
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
