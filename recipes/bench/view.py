"""What a page of a run costs: its size, the time until its text is drawn, frames while it scrolls; beside one HTML table."""

from __future__ import annotations

import html
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import probe
from probe.reporting.page import PageRun, page_html
from probe.reporting.panels import sequence_views

from .trace import text_of

CHROMIUM = "/usr/bin/chromium"
OPTIONS = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update")
SCROLLED, SPEED = 3.0, 3_000  # seconds; px a second, as a wheel that is turned fast

# drawn: the text's first token is in the document, and a frame of the screen has passed since
DRAWN = """selector => new Promise((done) => {
  const look = () => document.querySelector(selector)
    ? requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now())))
    : setTimeout(look, 2);
  look();
})"""
# down, and up again from the end: milliseconds of each frame
SCROLL = """([selector, seconds, speed]) => new Promise((done) => {
  const box = selector ? document.querySelector(selector) : document.scrollingElement;
  const frames = [];
  let begun = null, last = null;
  const step = (now) => {
    begun ??= now;
    if (last !== null) frames.push(now - last);
    last = now;
    if (now - begun >= 1000 * seconds) { done(frames); return; }
    const [way, end] = [speed * (now - begun) / 1000, box.scrollHeight - box.clientHeight];
    box.scrollTop = end - Math.abs(way % (2 * end) - end);
    requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
})"""


class PageTimes(NamedTuple):
    """One opening of a file. drawn: milliseconds from its beginning. frames: milliseconds each, while it scrolls.

    busy: milliseconds that the page's main thread had of a processor in all these frames together.
    """

    drawn: float
    frames: list[float]
    busy: float


def main(model: str, *, repeat: int, quick: bool, only: str | None = None) -> None:
    """Print sizes, medians of the time to draw, and frames a second, of pages and of plain tables of the same tokens."""
    lm = probe.load(model)
    print(f"{lm}")
    with tempfile.TemporaryDirectory() as name:
        for tokens in (100, 300) if quick else (1_000, 5_000):
            files = _written(lm, tokens, Path(name))
            if only in (None, "size"):
                _sizes(files)
            if only in (None, "draw"):
                _drawn(tokens, files, rounds=max(1, repeat))


def _written(lm: probe.LanguageModel, tokens: int, folder: Path) -> dict[str, Path]:
    """A page and a table of the same run of so many tokens, without attention rows."""
    ids = lm.encode(text_of(lm, tokens)).ids[:tokens]
    run = probe.trace(lm, lm.pieces(ids).text)
    begun = time.perf_counter()
    page = page_html([PageRun(run, sequence_views(run))])
    print(f"\n{len(run.tokens):,} tokens; the page was made in {time.perf_counter() - begun:.1f} s")
    files = {"page": folder / f"page-{tokens}.html", "table": folder / f"table-{tokens}.html"}
    files["page"].write_text(page.html, "utf-8")
    files["table"].write_text(_table(run), "utf-8")
    return files


def _table(run: probe.Run) -> str:
    """The rows of `tokens` as an HTML table, as pandas writes it."""
    return f'<!DOCTYPE html><meta charset="utf-8"><title>{html.escape(run.run_id)}</title>{run.tokens.to_html()}'


def _sizes(files: dict[str, Path]) -> None:
    for name, path in files.items():
        print(f"  {name:<8}{path.stat().st_size / 1e6:>8.2f} MB")


def _drawn(tokens: int, files: dict[str, Path], *, rounds: int) -> None:
    where = {"page": ("[data-pos]", ".strip .viewport"), "table": ("td", None)}
    opened: dict[str, list[PageTimes]] = {name: [] for name in files}
    with _browser() as browser:
        for turn in range(rounds + 1):  # the first is for warming up
            for name, path in files.items():
                found = _open(browser, path, *where[name])
                if turn:
                    opened[name].append(found)
    print(f"  {'':<8}{'drawn in':>12}{'target':>10}{'frames/s':>10}{'target':>8}{'slowest':>11}{'over 25 ms':>12}{'busy':>15}")
    for name, times in opened.items():
        frames = [frame for one in times for frame in one.frames]
        wanted = ("2,000 ms", "60") if name == "page" and tokens == 5_000 else ("", "")
        late = sum(frame > 25 for frame in frames) / len(frames)
        drawn = statistics.median(one.drawn for one in times)
        row = f"  {name:<8}{drawn:>9.0f} ms{wanted[0]:>10}{1000 * len(frames) / sum(frames):>10.1f}{wanted[1]:>8}"
        busy = sum(one.busy for one in times) / len(frames)
        print(f"{row}{max(frames):>8.0f} ms{late:>12.1%}{busy:>6.1f} ms/frame")


def _open(browser: Any, path: Path, selector: str, box: str | None) -> PageTimes:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    try:
        page = context.new_page()
        page.goto(path.as_uri(), wait_until="commit")
        drawn = page.evaluate(DRAWN, selector)
        page.wait_for_timeout(500)
        session = context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        before = _busy(session)
        frames = page.evaluate(SCROLL, [box, SCROLLED, SPEED])
        return PageTimes(drawn, frames, _busy(session) - before)
    finally:
        context.close()


def _busy(session: Any) -> float:
    found = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    return 1000 * float(found["TaskDuration"])


@contextmanager
def _browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *OPTIONS])
        try:
            yield browser
        finally:
            browser.close()
