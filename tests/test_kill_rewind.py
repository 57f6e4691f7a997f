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
    assert killed(tmp_path, words, times=2, within=0.6, seed=0) == 2
    whole_again(shell, words, tmp_path)


def killed(folder: Path, words: tuple[str, ...], *, times: int, within: float, seed: int) -> int:
    """Begin the command, go on with it, and kill it within so many seconds each time; how often it was not whole by then."""
    draw, found = random.Random(seed), 0
    for attempt in range(times):
        process = started(folder, *words, "--out", "torn", *(["--resume"] if attempt else []))
        try:
            until(lambda: (folder / "torn.partial").exists(), process)
            time.sleep(draw.uniform(0.0, within))
        finally:
            process.kill()
            process.communicate()
        found += process.returncode == -9 and not (folder / "torn").exists()
    return found


def whole_again(shell, words: tuple[str, ...], folder: Path) -> None:
    """What was killed, resumed, has the tables of the same left alone."""
    assert shell(*words, "--out", "torn", "--resume").returncode == 0
    assert shell(*words, "--out", "alone").returncode == 0
    same_tables(probe.open_run(folder / "torn"), probe.open_run(folder / "alone"))
