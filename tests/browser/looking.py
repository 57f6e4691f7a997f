"""A page that is open in a browser: what it asked of the network, what it complained of, and what its parts show."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from playwright.sync_api import BrowserContext, Locator, Page

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

TWO_FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 0))))"


@dataclass
class Opened:
    """asked: addresses that the page wanted, but for its own file and its downloads. complaints: what its console has."""

    page: Page
    path: Path
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @classmethod
    def at(cls, context: BrowserContext, path: Path, *, where: str = "", ready: bool = True) -> Opened:
        """A file, by double click: its address is file://, and there is no network. where: '#t=5'."""
        page = context.new_page()
        opened = cls(page, path)
        own = path.resolve().as_uri()
        page.on("request", lambda one: opened._ask(one.url, own))
        page.on("console", lambda said: opened.complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: opened.complaints.append(str(error)))
        page.goto(own + where)
        if ready:
            opened.wait()
        return opened

    def _ask(self, url: str, own: str) -> None:
        if url.partition("#")[0] != own and not url.startswith("blob:"):
            self.asked.append(url)

    def wait(self) -> None:
        """Until the first panels are drawn."""
        self.page.locator("html[data-ready=yes]").wait_for(state="attached", timeout=20_000)
        self.settle()

    def settle(self) -> None:
        """Until what was asked for is drawn: two frames. (Functions, not texts: the page allows no eval.)"""
        self.page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 0))))"
        )

    @cached_property
    def content(self) -> dict[str, Any]:
        """The JSON in the page."""
        return json.loads(self.page.evaluate("() => document.getElementById('page').textContent"))

    @property
    def names(self) -> list[str]:
        """Names of the panels that stand on the page now, in their order."""
        return self.page.eval_on_selector_all("[data-panel]", "all => all.map(one => one.dataset.panel)")

    def panel(self, name: str, run: int | None = None) -> Locator:
        of = "" if run is None else f"[data-run='{run}']"
        return self.page.locator(f"section[data-panel='{name}']{of}")

    def readout(self, name: str) -> str:
        """What the panel says of the place of the cursor; it has been scrolled to, so it is drawn."""
        self.show(name)
        return self.panel(name).locator(".readout").first.inner_text().strip()

    def show(self, name: str) -> Locator:
        """The panel, in view and drawn."""
        found = self.panel(name).first
        found.scroll_into_view_if_needed()
        found.locator(".waiting").wait_for(state="detached", timeout=20_000)
        self.settle()
        return found

    def file(self, name: str, kind: str) -> bytes:
        """What a panel's button downloads: 'csv', 'png' or 'svg'."""
        with self.page.expect_download() as waited:
            self.show(name).locator(f"button[name={kind}]").click()
        assert waited.value.suggested_filename.endswith(f"{name}.{kind}".replace("->", "-to-").replace(">", "-to-")), (
            waited.value.suggested_filename
        )
        return Path(waited.value.path()).read_bytes()

    def csv(self, name: str) -> pd.DataFrame:
        return pd.read_csv(io.BytesIO(self.file(name, "csv")), keep_default_na=False, dtype=str, encoding="utf-8")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    def cursor(self) -> dict[str, int]:
        """The cursor, from the page's address."""
        hash = self.page.evaluate("() => location.hash.slice(1)")
        return {name: int(value) for name, _, value in (part.partition("=") for part in hash.split("&")) if value}


def painted(png: bytes) -> float:
    """The share of an image's pixels that are not as its corner is: the background's colour."""
    with Image.open(io.BytesIO(png)) as image:
        pixels = np.asarray(image.convert("RGBA"), dtype=np.uint8).reshape(-1, 4).view(np.uint32)[:, 0]
    return float((pixels != pixels[0]).mean())
