"""Panels made by hand, and a child process that prints them to a terminal of its own: `python -m tests.drawing SETTINGS`."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import unicodedata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from probe.reporting.views import (
    Axis,
    Bars,
    Grid,
    Lines,
    Listing,
    Measure,
    Panel,
    Patterns,
    SequenceView,
    ShownColumn,
    TokenStrip,
)

ROOT = Path(__file__).parents[1]
TOKENS = [
    "When",
    " Mary",
    " and",
    " 漢字",
    " e\u0301te\u0301",
    " שלום",
    " \u202eabc",
    "\n",
    "\t",
    " \x1b[31mred",
    " क\u094d",
    " gave",
    " a",
]
N, LAYERS = len(TOKENS), 30
CUT = "=== "


def view() -> SequenceView:
    """One picture of each kind over a text with wide, combining, right-to-left and control characters."""
    rng = np.random.default_rng(0)
    cells = pd.DataFrame([(layer, pos) for layer in range(LAYERS) for pos in range(N)], columns=["layer", "pos"])
    cells["effect"], cells["prob"] = rng.uniform(-0.9, 0.9, len(cells)), rng.uniform(size=len(cells))
    cells["rank"], cells["top"] = rng.integers(0, 5000, len(cells)), rng.choice(TOKENS, len(cells))
    cells = cells.drop(index=[5, 6, 40])  # not measured
    few = cells[cells["pos"] < 4]
    layer, token = Axis("layer", "layer", "layer"), Axis("pos", "token", "token")
    effect, prob = (
        Measure("effect", "effect", scaling="diverging", low=-1, high=1),
        Measure("prob", "probability", low=0, high=1),
    )
    surprisal = [np.nan, *-rng.exponential(3, N - 1)]
    text = pd.DataFrame(
        {"pos": range(N), "token": TOKENS, "segment": ["prompt"] * 9 + ["completion"] * 4, "logprob": surprisal}
    )
    steps = pd.DataFrame({"step": range(5), "estimate": [0.8, -0.4, 0.2, np.nan, 0.0], "floor": 0.1})
    steps = steps.assign(ci_low=steps["estimate"] - 0.2, ci_high=steps["estimate"] + 0.1)
    names = {1: "1: 漢字 says", 2: "2: שלום"}
    curve = pd.DataFrame({"strength": np.linspace(-4, 4, 9)}).assign(value=lambda f: f["strength"] ** 2)
    rows = [list(rng.dirichlet(np.ones(query + 1))) for query in range(N)]
    heads = [{"layer": 2, "head": head, "query": q, "keys": None, "weights": w} for head in (0, 1) for q, w in enumerate(rows)]
    panels: list[Panel] = [
        TokenStrip("tokens", "Text", "tokens", text, measures=(Measure("logprob", "log-probability", "nats", high=0.0),)),
        Grid("patch", "Patching", "patches", cells, rows=layer, columns=token, measures=(effect,), upwards=True, note="Note."),
        Grid("lens", "Lens", "lens", few, rows=layer, columns=token, measures=(prob,), upwards=True, text="top"),
        Grid("ranks", "Ranks", "lens", cells, rows=layer, columns=token, measures=(Measure("rank", "rank", scaling="log"),)),
        Bars(
            "steps", "Importance", "importance", steps, axis=Axis("step", "step", "step", names), floor="floor",
            measure=Measure("estimate", "importance", scaling="diverging", band=("ci_low", "ci_high")),
        ),
        Lines("scan", "Scan", "steering", curve, axis=Axis("strength", "strength"), measures=(Measure("value", "effect"),)),
        Patterns("attention", "Attention", "attention", pd.DataFrame(heads), follows={"layer": "layer", "head": "head"}),
        Listing("list", "List", "steps", steps, columns=(ShownColumn("step", "step"), ShownColumn("estimate", "estimate", 2))),
    ]  # fmt: skip
    return SequenceView(0, "When", tuple(panels))


class Cell(NamedTuple):
    """A place on the screen: a character with its marks, its colour and the one behind it; `None` is the terminal's own."""

    text: str
    ink: Any
    paper: Any
    bold: bool


SGR = re.compile(r"\x1b\[([\d;]*)m")


def cells(text: str) -> list[list[Cell]]:
    """What a terminal shows, by Unicode's own tables of widths: of a wide character the second cell is ''."""
    lines: list[list[Cell]] = []
    for raw in text.split("\n"):
        line: list[Cell] = []
        ink = paper = None
        bold = False
        for i, part in enumerate(SGR.split(raw)):
            if i % 2:
                codes = [int(code or 0) for code in part.split(";")]
                while codes:
                    code = codes.pop(0)
                    if code == 0:
                        ink, paper, bold = None, None, False
                    elif code == 1:
                        bold = True
                    elif code in (38, 48):
                        taken = 4 if codes[0] == 2 else 2
                        colour = tuple(codes[1:taken]) if taken == 4 else codes[1]
                        del codes[:taken]
                        ink, paper = (colour, paper) if code == 38 else (ink, colour)
                continue
            for c in part:
                if unicodedata.category(c) in ("Mn", "Me", "Cf"):
                    if line:
                        line[-1] = line[-1]._replace(text=line[-1].text + c)
                    continue
                line.append(Cell(c, ink, paper, bold))
                if unicodedata.east_asian_width(c) in "WF":
                    line.append(Cell("", ink, paper, bold))
        lines.append(line)
    return lines


def plain(line: list[Cell]) -> str:
    """The text of a line."""
    return "".join(cell.text for cell in line)


def printed(settings: list[dict[str, Any]], *, terminal: bool) -> list[dict[str, str]]:
    """What each panel looks like under each setting: `width` of the terminal, and variables of the environment."""
    words = [sys.executable, "-m", "tests.drawing", json.dumps(settings)]
    environment = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLORTERM", "TERM", "COLUMNS")}
    if not terminal:
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        return _parted(done.stdout, len(settings))
    ours, theirs = pty.openpty()
    child = subprocess.Popen(words, cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = read_all(ours)
    assert child.wait() == 0, said
    return _parted(said, len(settings))


def read_all(ours: int) -> str:
    """What a terminal was sent until the other end was closed."""
    said = b""
    while True:
        try:
            piece = os.read(ours, 1 << 16)
        except OSError:  # Linux says so that the other end is closed
            piece = b""
        if not piece:
            os.close(ours)
            return said.decode().replace("\r\n", "\n")
        said += piece


def _parted(text: str, n: int) -> list[dict[str, str]]:
    """Panel -> what was printed of it, by setting."""
    found: list[dict[str, str]] = [{} for _ in range(n)]
    for part in text.split(CUT)[1:]:
        head, _, rest = part.partition("\n")
        number, name = head.split(" ", 1)
        found[int(number)][name] = rest
    return found


def main() -> None:
    """Print every panel under every setting."""
    from probe.cli.pictures import screen, show_panel

    panels, tokens = view().panels, dict(enumerate(TOKENS))
    for number, setting in enumerate(json.loads(sys.argv[1])):
        for name in ("NO_COLOR", "COLORTERM"):
            os.environ.pop(name, None)
        os.environ.update(setting.get("env", {}))
        if sys.stdout.isatty():
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 50, setting["width"], 0, 0))
        for panel in panels:
            print(f"{CUT}{number} {panel.name}")
            show_panel(screen(), panel, tokens)
            sys.stdout.flush()


if __name__ == "__main__":
    main()
