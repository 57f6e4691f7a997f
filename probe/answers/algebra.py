"""What a formula is, by `math-verify`'s parser: in one process of its own, begun when first needed, that may not take long.

A formula's form hangs on the formula alone, so that forms make classes; `verify`, which compares two, is not symmetric and
does not. What takes too long, or is not read the same a second time, has no form.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

SECONDS = 10.0  # for one formula; the ordinary one takes a hundredth
_STARTING = 120.0  # seconds to import a computer algebra system on a busy machine
_FAILURES = 5  # processes that may be lost before formulas stay text
_LONGEST = 200  # characters of a formula
_KNOWN = frozenset((
    "sqrt", "frac", "dfrac", "tfrac", "cfrac", "cdot", "times", "div", "sin", "cos", "tan", "cot", "sec", "csc", "arcsin",
    "arccos", "arctan", "log", "ln", "exp", "pi", "theta", "alpha", "beta", "gamma", "lambda", "mu", "sigma", "phi", "omega",
    "inf", "infty", "le", "leq", "ge", "geq", "ne", "neq", "lt", "gt", "pm", "circ", "left", "right", "binom", "cbrt",
))  # fmt: skip
_SIGNS = re.compile(r"[-\w\s\\{}()\[\].+*/^=<>!|,:]+", re.ASCII)


@lru_cache(1 << 16)
def form(plain: str) -> str | None:
    """A formula's form, as text: terms in order, numbers exact; None for what is none. `plain` has no markup."""
    return _PROCESS.ask(plain, "form", SECONDS) if _is_formula(plain) else None


def simplest(plain: str, *, seconds: float = SECONDS) -> str | None:
    """The form of a formula after `sympy.simplify`: equal formulas that look different mostly get the same one."""
    return _PROCESS.ask(plain, "simplest", seconds) if _is_formula(plain) else None


def _is_formula(plain: str) -> bool:
    """Whether it has an operator, a command, or a number beside a letter, and no words."""
    if len(plain) > _LONGEST or not _SIGNS.fullmatch(plain) or not re.search(r"[-+*/^=<>!\\(]|\A\d+(?:\.\d+)?\s?[a-z]", plain):
        return False
    words = re.findall(r"[a-z]{2,}", plain)
    return all(word in _KNOWN for word in words) and bool(re.search(r"[a-z\d]", plain))


class _Process:
    """One process that reads formulas; a new one where the last was lost, or in a forked child."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._running: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str] = queue.Queue()
        self._lost = 0

    def ask(self, formula: str, level: str, seconds: float) -> str | None:
        with self._lock:
            if self._lost >= _FAILURES:
                return None
            try:
                running = self._running or self._start()
                assert running.stdin is not None, "it was opened with a pipe"
                running.stdin.write(json.dumps([formula, level]) + "\n")
                running.stdin.flush()
                found = json.loads(self._lines.get(timeout=seconds))
            except (OSError, ValueError, queue.Empty):
                self._lost += 1
                self.stop()
                return None
            return found if isinstance(found, str) else None

    def _start(self) -> subprocess.Popen[str]:
        worker = Path(__file__).with_name("algebra_worker.py")
        running = subprocess.Popen(
            [sys.executable, "-P", str(worker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, encoding="utf-8", start_new_session=True,
        )  # fmt: skip
        self._running, self._lines = running, queue.Queue()
        threading.Thread(target=_read, args=(running, self._lines), daemon=True).start()
        self._lines.get(timeout=_STARTING)  # its first line says that it is ready
        return running

    def stop(self) -> None:
        """End the process, if there is one."""
        running, self._running = self._running, None
        if running is not None:
            running.kill()
            running.wait()
            for pipe in (running.stdin, running.stdout):
                if pipe is not None:
                    pipe.close()


def _read(running: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    """Lines of a process, and an empty one at its end."""
    assert running.stdout is not None, "it was opened with a pipe"
    try:
        for line in running.stdout:
            lines.put(line)
    except (OSError, ValueError):
        pass  # closed by stop
    lines.put("")


_PROCESS = _Process()
atexit.register(_PROCESS.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_PROCESS._forget)


def merge(keys: Sequence[str], *, timeout: float = 60.0) -> dict[str, str]:
    """Each key -> the key of its merged class: the first of them. What isn't simplified within `timeout` s stays itself."""
    until = time.monotonic() + timeout
    first: dict[str, str] = {}
    merged: dict[str, str] = {}
    for key in dict.fromkeys(keys):
        left = until - time.monotonic()
        form = simplest(key, seconds=left) if left > 0.05 else None
        merged[key] = first.setdefault(form or key, key)
    return merged
