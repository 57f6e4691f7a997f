"""`python -m recipes.manual.screenshots FOLDER`: the pictures of the README, of pages of runs in a folder.

Runs that are not there are made, by the commands that stand here. Needs Chromium (`apt-get install chromium`) and the extra
`mechprobe[test]`.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .generated import HERE

PICTURES = HERE / "pictures"
LARGEST = 150_000  # bytes
STORY = "When Mary and John went to the store, John gave a drink to"
OTHER = "When Mary and John went to the store, Mary gave a drink to"
PROBLEM = "Tom has 3 apples and buys 4 more. How many apples does he have? Think step by step."

# run -> the command that makes it, in the order in which they come from each other
COMMANDS = {
    "trace-chat": ["trace", PROBLEM, "--chat", "-n", "120", "--temperature", "0.7", "--top-p", "0.9"],
    "trace-full": ["trace", STORY, "-n", "12", "--attention", "full", "--lens", "--capture", "resid_post@all"],
    "rewind": ["rewind", "trace-chat", "--to", "step1", "--numbers", "--samples", "16", "--max-new", "60"],
    "importance": [
        "importance", "trace-chat", "--method", "rescore,suppression,early-answer,resampling", "--samples", "6",
        "--max-new", "60", "--split", "line",
    ],
    "patch": [
        "patch", "--clean", STORY, "--corrupt", OTHER, "--answer", " Mary", "--against", " John",
        "--layers", "0,6,12,18,20,22,24,26,29",
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A part of a page. panels: what is seen, one under another; none: the whole window. where: the cursor."""

    name: str
    run: str
    said: str
    panels: tuple[str, ...] = ()
    where: str = ""
    size: tuple[int, int] = (1180, 780)
    dark: bool = False


ALL = (
    Picture("trace", "trace-full", "A run as it opens: its text by log-probability, and what else could have come.",
            where="#t=14&l=12&h=3"),
    Picture("lens", "trace-full", "What each layer would say next.", ("lens",), "#t=14&l=24"),
    Picture("pattern", "trace-full", "What a head looks at; a click on the map of all heads opens it.", ("patterns",),
            "#t=14&l=5&h=1"),
    Picture("patch", "patch", "Which layer carries the name, and at which word.", ("patch-resid-pre-pos",)),
    Picture("rewind", "rewind", "One changed step: the answers of both arms.", ("outcomes",), dark=True),
    Picture("importance", "importance", "What each step of a chain is worth, by four methods.", ("importance",)),
)  # fmt: skip


def made(folder: Path, run: str) -> Path:
    """The folder of a run, made if it is not there."""
    words = COMMANDS[run]
    if words[0] in ("rewind", "importance"):
        made(folder, words[1])
    if not (folder / run).is_dir():
        subprocess.run([sys.executable, "-m", "probe", *words, "--out", run], cwd=folder, check=True)
    return folder / run


def taken(browser: Any, page: Path, picture: Picture) -> bytes:
    """The picture as PNG of at most 256 colours."""
    from PIL import Image

    width, height = picture.size
    tall = height if not picture.panels else 3000  # all that is wanted is drawn, none of it scrolled away
    context = browser.new_context(
        offline=True, viewport={"width": width, "height": tall}, color_scheme="dark" if picture.dark else "light"
    )
    seen = context.new_page()
    seen.goto(page.resolve().as_uri() + picture.where)
    seen.locator("html[data-ready=yes]").wait_for(state="attached")
    for name in picture.panels:
        seen.locator(f"[data-panel='{name}']").scroll_into_view_if_needed()
    seen.wait_for_timeout(1500)
    if picture.panels:
        boxes = [seen.locator(f"[data-panel='{name}']").bounding_box() for name in picture.panels]
        left, top = min(b["x"] for b in boxes), min(b["y"] for b in boxes)
        right, low = max(b["x"] + b["width"] for b in boxes), max(b["y"] + b["height"] for b in boxes)
        png = seen.screenshot(clip={"x": left, "y": top, "width": right - left, "height": low - top})
    else:
        png = seen.screenshot()
    context.close()
    few = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(few, "PNG", optimize=True)
    return few.getvalue()


def main() -> None:
    """Take all of them anew, and say how large each is."""
    from playwright.sync_api import sync_playwright

    import probe

    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    PICTURES.mkdir(exist_ok=True)
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("needs chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for picture in ALL:
            if sys.argv[2:] and picture.name not in sys.argv[2:]:
                continue
            page = PICTURES / f"{picture.name}.html"
            probe.view(made(folder, picture.run), out=page)
            png = taken(browser, page, picture)
            page.unlink()
            (PICTURES / f"{picture.name}.png").write_bytes(png)
            print(f"{picture.name}.png: {len(png):,} bytes" + (", too large" if len(png) > LARGEST else ""))
        browser.close()


if __name__ == "__main__":
    main()
