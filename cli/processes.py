"""One command in several processes of torchrun, each with its part of a model: the first speaks. Imports next to nothing."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

INTERRUPTED = 130  # the exit code of who stopped by Ctrl-C
PATIENCE = 10.0  # seconds in which torchrun ends a process, once another has failed


def is_shared(words: list[str]) -> bool:
    """Whether a command line asks for a model that several processes share."""
    end = words.index("--") if "--" in words else len(words)
    return any(word.partition("=")[0] == "--tp-plan" for word in words[:end])


@contextmanager
def first_alone() -> Iterator[None]:
    """Only the first process speaks. Another that fails waits to be ended, for where the first fails too that has said why;
    if nobody ends it, it speaks."""
    number, said = os.environ.get("RANK", "0"), io.StringIO()
    if number == "0":
        yield
        return
    with Path(os.devnull).open("w") as nowhere:
        try:
            with redirect_stdout(nowhere), redirect_stderr(said):
                yield
        except SystemExit as end:
            if end.code not in (None, 0, INTERRUPTED):
                time.sleep(PATIENCE)
                print(f"process {number}: {said.getvalue()}", file=sys.stderr, end="")
            raise
