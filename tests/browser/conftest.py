"""One Chromium a worker, runs that are made once, and pages that open with the network off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .looking import ARGUMENTS, Opened
from .making import Maker
from .needed import program


@pytest.fixture(scope="session")
def chromium():
    """Debian's Chromium: no browser is downloaded."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: the extra [test]")
    path = program("chromium", "chromium-browser", "google-chrome")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """One for all workers."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    return shared / "runs"


@pytest.fixture(scope="session")
def tiny(folder: Path) -> Maker:
    return Maker(folder, "tiny:llama")


@pytest.fixture(scope="session")
def smol(folder: Path) -> Maker:
    return Maker(folder, "smollm2")


@pytest.fixture
def look(chromium) -> Iterator[Callable[..., Opened]]:
    """Opens a page: `look(path)`. Whatever a test does with it: no request, no complaint in the console."""
    contexts, seen = [], []

    def open_page(path: Path, *, where: str = "", ready: bool = True, **options: object) -> Opened:
        context = chromium.new_context(offline=True, accept_downloads=True, **options)
        contexts.append(context)
        seen.append(Opened.at(context, path, where=where, ready=ready))
        return seen[-1]

    yield open_page
    for context in contexts:
        context.close()
    for opened in seen:
        assert opened.asked == []
        assert opened.complaints == []
