"""What the tests of the page need besides Python. Where it is not there they are skipped and say why; in the gate they fail."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

REQUIRED = os.environ.get("PROBE_BROWSER_TESTS") == "required"  # .ci/run sets it


def without(reason: str) -> NoReturn:
    """End a test that cannot be made here."""
    if REQUIRED:
        pytest.fail(reason)
    pytest.skip(reason)


def program(*names: str) -> str:
    """The path of a program that has one of these names."""
    for name in names:
        if path := shutil.which(name):
            return path
    without(f"needs {names[0]}: apt-get install {names[0]}")
