"""What the whole suite shares: no network, one thread a worker, the real default model loaded once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: two workers share two cores
os.environ["NO_COLOR"] = "1"
os.environ.pop("PROBE_MODEL", None)

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct with its real weights."""
    import probe

    return probe.load("smollm2")


@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the real command line in a directory of its own: `shell("trace", "Hello", model="tiny:llama")`."""

    def run(
        *words: str, stdin: str | None = None, timeout: float = 240, **env: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cli.main", *words],
            cwd=tmp_path, input=stdin, capture_output=True, text=True, timeout=timeout,
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        )  # fmt: skip

    return run
