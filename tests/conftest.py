"""What the whole suite shares: no network, one thread a worker, the real default model loaded once."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: two workers share two cores
os.environ["NO_COLOR"] = "1"
os.environ["PROBE_NO_SERVER"] = "1"  # a user's server is no part of a test
os.environ.pop("PROBE_MODEL", None)

import pytest

from tests.forking import Forker


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest first: no worker is left with one of them when the other is done. What is for an accelerator is left out
    where there is none, unless it is asked for: `-m gpu` goes through it on the CPU."""
    for_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if for_gpu and "gpu" not in config.option.markexpr:
        import torch

        if not torch.accelerator.is_available():
            items[:] = [item for item in items if item not in for_gpu]
            config.hook.pytest_deselected(items=for_gpu)
    items.sort(
        key=lambda item: (item.name != "test_console_examples_print_what_they_show", not item.get_closest_marker("slow"))
    )


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct with its real weights."""
    import probe

    return probe.load("smollm2")


@pytest.fixture(params=["torch", "compiled"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test twice: rows of numbers through torch's operations, and through compiled loops."""
    monkeypatch.setattr("probe.kernels.LONG", 0 if request.param == "compiled" else 10**9)


@pytest.fixture(scope="session")
def forker() -> Iterator[Forker]:
    """The process that the commands of `shell` are forked from."""
    started = Forker()
    yield started
    started.close()


@pytest.fixture
def shell(forker: Forker, tmp_path: Path, tmp_path_factory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the real command line in a directory of its own: `shell("trace", "Hello", "--model", "tiny:llama")`."""

    def run(*words: str, stdin: str | bytes | None = None, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        scratch = tmp_path_factory.mktemp("streams")
        return forker.run(words, cwd=tmp_path, stdin=stdin, scratch=scratch, timeout=timeout)

    return run


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that `work` makes when nothing happens to it."""
    from tests.test_store_crash import work

    path = tmp_path_factory.mktemp("undisturbed") / "r"
    work(path, resume=False)
    return path
