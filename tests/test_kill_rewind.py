"""A real `probe rewind` or `importance`, killed at random moments and resumed, has the tables of one left alone."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

import probe
from tests.test_cli_trouble import started, until
from tests.test_rewind import same_tables

WORDS = {
    "rewind": ("--to", "step1", "--append-wait", "--samples", "200", "--max-new", "24"),
    "importance": ("--method", "resampling,rescore", "--samples", "40", "--max-new", "16", "--split", "token"),
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", WORDS)
def test_kill_9_at_random_moments_and_resume(verb: str, shell, tmp_path: Path) -> None:
    assert shell("trace", "Q: how many?", "-n", "8", "--model", "tiny:llama", "--out", "run", "--quiet").returncode == 0
    if verb == "rewind":
        words = (verb, "run", *WORDS[verb], "--split", "token", "--quiet")
    else:
        words = (verb, "run", *WORDS[verb], "--quiet")
    draw, killed = random.Random(0), 0
    for attempt in range(2):
        process = started(tmp_path, *words, "--out", "torn", *(["--resume"] if attempt else []))
        try:
            until(lambda: (tmp_path / "torn.partial").exists(), process)
            time.sleep(draw.uniform(0.0, 0.6))
        finally:
            process.kill()
            process.communicate()
        killed += process.returncode == -9 and not (tmp_path / "torn").exists()
    assert killed == 2
    assert shell(*words, "--out", "torn", "--resume").returncode == 0
    assert shell(*words, "--out", "alone").returncode == 0
    same_tables(probe.open_run(tmp_path / "torn"), probe.open_run(tmp_path / "alone"))
