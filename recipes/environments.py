"""A virtual environment for a program that lives beside this project: made once, by pip."""

from __future__ import annotations

import os
import subprocess
import venv
from collections.abc import Sequence
from pathlib import Path


class Unavailable(Exception):
    """A program that cannot be had, or cannot run, on this machine."""


def make_environment(where: Path, packages: Sequence[str], *, without: Sequence[str] = ()) -> Path:
    """Its Python, with these packages and not the others; nothing is done where it was made. Raises `Unavailable`."""
    python, done = where / "bin" / "python", where / "made"
    if done.exists():
        return python
    venv.create(where, with_pip=True, clear=True)
    own = {k: v for k, v in os.environ.items() if k not in ("PIP_CONSTRAINT", "PYTHONPATH")}  # it pins other versions
    asked = [["install", *packages], *([["uninstall", "-y", *without]] if without else [])]
    for words in asked:
        pip = [str(python), "-m", "pip", "-q", "--disable-pip-version-check", *words]
        found = subprocess.run(pip, env=own, capture_output=True, text=True)
        if found.returncode:
            last = (found.stderr.strip().splitlines() or ["pip says nothing"])[-1]
            raise Unavailable(f"{' '.join(packages)} cannot be installed: {last}")
    done.touch()
    return python
