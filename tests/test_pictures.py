"""Pictures in a terminal show the numbers of their panels: colours by an independent scale, in columns that stay columns."""

from __future__ import annotations

import fcntl
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probe.reporting import colours
from tests.drawing import LAYERS, ROOT, SGR, N, cells, plain, printed, read_all, view

TRUE, FEW = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}, {"TERM": "xterm-256color"}
SETTINGS: dict[str, dict[str, Any]] = {
    "80": {"width": 80, "env": TRUE},
    "120": {"width": 120, "env": TRUE},
    "200": {"width": 200, "env": TRUE},
    "few": {"width": 80, "env": FEW},
    "none": {"width": 80, "env": {**TRUE, "NO_COLOR": "1"}},
    "dumb": {"width": 80, "env": {"TERM": "dumb"}},
}
COLOURED = ["80", "120", "200", "few"]
PANELS = {panel.name: panel for panel in view().panels}
CUBE = (0, 95, 135, 175, 215, 255)


@pytest.fixture(scope="module")
def shown() -> dict[str, dict[str, str]]:
    """Setting -> panel -> what a terminal was sent; `pipe` too."""
    found = {}
    for few in (True, False):  # a process has one terminal: rich keeps the codes of a style for the first
        own = {name: setting for name, setting in SETTINGS.items() if (name == "few") == few}
        found |= dict(zip(own, printed(list(own.values()), terminal=True), strict=True))
    return {**found, "pipe": printed([{}], terminal=False)[0]}


def between(steps: tuple[str, ...], place: float) -> tuple[int, ...]:
    """The colour at a place from 0 to 1, by hand: the mean of the two steps beside it, weighted."""
    at = min(max(place, 0.0), 1.0) * (len(steps) - 1)
    below = min(int(at), len(steps) - 2)
    ends = [[int(steps[i][k : k + 2], 16) for k in (1, 3, 5)] for i in (below, below + 1)]
    return tuple(round(a + (b - a) * (at - below)) for a, b in zip(*ends, strict=True))


def of_number(n: int) -> tuple[int, ...]:
    """The colour that xterm has under a number from 16 to 255."""
    if n >= 232:
        return (8 + 10 * (n - 232),) * 3
    return CUBE[(n - 16) // 36], CUBE[(n - 16) // 6 % 6], CUBE[(n - 16) % 6]


def same(colour: Any, wanted: tuple[int, ...], setting: str) -> bool:
    """The colour itself; of 256 one as light as it (CIE L*, of 100), of the same hue where it has one."""
    if colour is None:
        return False
    if setting != "few":
        return max(abs(a - b) for a, b in zip(colour, wanted, strict=True)) <= 1
    shown = of_number(colour)
    hue = max(wanted) - min(wanted) < 60 or wanted.index(max(wanted)) in [i for i in range(3) if shown[i] == max(shown)]
    return hue and abs(lightness(shown) - lightness(wanted)) < 12


def lightness(colour: tuple[int, ...]) -> float:
    """L* of CIELAB, from 0 to 100."""
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    y = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


def blocks(text: str, rows: int, columns: int) -> dict[tuple[int, int], Any]:
    """(row, column) -> colour or None of a map in half blocks, read from the screen as an eye reads it.

    Where columns begin is read from the numbers above them; each half of a line is the row of the label on its side.
    """
    lines = cells(text)
    top = next(i for i, line in enumerate(lines) if re.fullmatch(r"[a-z]* +0( +\d+)+", plain(line)))
    ticks = [(m.start(), int(m.group())) for m in re.finditer(r"\d+", plain(lines[top]))]
    assert [number for _, number in ticks] == list(range(0, columns, ticks[1][1])), "numbers of columns are told apart"
    start, cell = ticks[0][0], (ticks[1][0] - ticks[0][0]) // ticks[1][1]
    assert all(at == start + number * cell for at, number in ticks)
    found = {}
    for i in range(0, rows, 2):
        line = lines[top + 1 + i // 2]
        assert plain(line).startswith(f"{i} "), "the upper row's label is on the left"
        if i + 1 < rows:
            assert plain(line[start + columns * cell + 1 :]).startswith(f"{i + 1} "), "the lower row's is on the right"
        for j in range(columns):
            for one in line[start + j * cell : start + (j + 1) * cell]:
                assert one.text in "▀▄ "
                upper, lower = {"▀": (one.ink, one.paper), "▄": (None, one.ink), " ": (None, None)}[one.text]
                assert found.setdefault((i, j), upper) == upper
                if i + 1 < rows:
                    assert found.setdefault((i + 1, j), lower) == lower
    return found


@pytest.mark.parametrize("setting", COLOURED)
@pytest.mark.parametrize("name", ["patch", "ranks", "attention"])
def test_cells_have_the_colours_of_their_values(shown: dict[str, dict[str, str]], setting: str, name: str) -> None:
    frame, wanted = PANELS[name].frame, {}
    for row in frame.itertuples():
        if name == "patch":
            wanted[row.pos, row.layer] = between(colours.DIVERGING, (row.effect + 1) / 2)
        elif name == "ranks":
            low, high = (math.log1p(end) for end in (frame["rank"].min(), frame["rank"].max()))
            wanted[row.pos, row.layer] = between(colours.SEQUENTIAL, (math.log1p(row.rank) - low) / (high - low))
        elif row.head == 0:
            most = max(max(w) for w in frame["weights"])
            wanted |= {(row.query, key): between(colours.SEQUENTIAL, w / most) for key, w in enumerate(row.weights)}
    found = blocks(shown[setting][name], N, N if name == "attention" else LAYERS)
    assert {place for place, colour in found.items() if colour is not None} == set(wanted), "what has no row is blank"
    assert all(same(found[place], colour, setting) for place, colour in wanted.items())


@pytest.mark.parametrize("setting", COLOURED)
def test_texts_stand_on_their_colours(shown: dict[str, dict[str, str]], setting: str) -> None:
    frame = PANELS["lens"].frame
    lines = cells(shown[setting]["lens"])
    head = next(i for i, line in enumerate(lines) if '0 "When"' in plain(line))
    starts = [plain_index(lines[head], f'{pos} "') for pos in range(4)]
    assert len({b - a for a, b in pairwise(starts)}) == 1
    for k, layer in enumerate(reversed(range(LAYERS))):
        line = lines[head + 1 + k]
        assert plain(line).startswith(f"{layer} ") or plain(line).startswith(f"{layer}  ")
        for pos, start in enumerate(starts):
            own = frame[(frame["layer"] == layer) & (frame["pos"] == pos)]
            if own.empty:
                continue
            top, prob = own["top"].iloc[0], own["prob"].iloc[0]
            assert same(line[start].paper, between(colours.SEQUENTIAL, prob), setting)
            assert line[start].text == '"'
            if top.isascii() and top.isprintable():
                assert plain(line[start:]).startswith(f'"{top}"')


def plain_index(line: list[Any], text: str) -> int:
    """The cell in which a text begins."""
    return next(i for i in range(len(line)) if plain(line[i:]).startswith(text))


@pytest.mark.parametrize("setting", [*SETTINGS, "pipe"])
def test_nothing_in_a_text_moves_or_turns_anything(shown: dict[str, dict[str, str]], setting: str) -> None:
    """Only colours are sent; marks of direction are ours: each ends what stands behind a word from right to left."""
    for name, text in shown[setting].items():
        rest = SGR.sub("", text)
        assert "\x1b" not in rest, name
        if setting in ("none", "dumb", "pipe"):
            assert not any(code in text for code in ("38;", "48;")), name
        bare = rest.replace("\u200e", "")
        bare = bare if name != "tokens" or setting in COLOURED else bare.replace("\t", "")
        assert not [c for c in bare if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")], name
        if setting == "pipe":
            assert rest.replace("\u200e", "") == text, "no escapes and no marks"
        elif name != "tokens":
            for line in rest.split("\n"):
                for word in re.finditer(r"[\u0590-\u05ff]+", line):
                    assert "\u200e" in line[word.end() :], (name, line)
    assert "\\u202e" in shown[setting]["tokens"] and "\\x1b[31m" in shown[setting]["tokens"]


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_line_is_longer_than_the_screen(shown: dict[str, dict[str, str]], setting: str) -> None:
    for name, text in shown[setting].items():
        if name != "tokens" or setting in COLOURED:
            assert max(len(line) for line in cells(text)) <= SETTINGS[setting]["width"], name


@pytest.mark.parametrize("setting", ["pipe", "none", "dumb"])
def test_without_colours_a_map_is_its_numbers(shown: dict[str, dict[str, str]], setting: str) -> None:
    """Rows are tokens, columns layers, a number is 100 times the effect; at 80 columns in blocks of layers."""
    frame = PANELS["patch"].frame
    wanted = {(row.pos, row.layer): round(100 * row.effect) for row in frame.itertuples()}
    found: dict[tuple[int, int], int] = {}
    columns: list[tuple[int, int]] = []
    lines = cells(shown[setting]["patch"])
    assert "100 x effect" in [plain(line) for line in lines]
    for line in lines:
        text = plain(line)
        if re.fullmatch(r"token +\d+( +\d+)*", text):
            columns = [(m.end(), int(m.group())) for m in re.finditer(r"\d+", text)]
        elif re.match(r'\d+ "', text):
            pos = int(text.split(" ")[0])
            for end, layer in columns:
                number = plain(line[end - 4 : end]).strip()
                if number:
                    found[pos, layer] = int(number)
    assert found == wanted


def test_a_text_is_its_tokens_on_their_colours(shown: dict[str, dict[str, str]]) -> None:
    frame = PANELS["tokens"].frame
    line = cells(shown["200"]["tokens"])[2]
    low = float(frame["logprob"].min())
    at = plain_index(line, " Mary")
    assert line[0].paper is None and not line[0].bold, "the first token has no probability"
    assert same(line[at].paper, between(colours.SEQUENTIAL, (frame["logprob"][1] - low) / -low), "200")
    assert plain(line).startswith("When Mary and 漢字 e\u0301te\u0301 שלום") and plain(line).endswith("⏎")
    rest = cells(shown["200"]["tokens"])[3]
    gave = plain_index(rest, " gave")
    assert rest[0].text == "⇥" and rest[gave].bold and not rest[0].bold
    assert shown["pipe"]["tokens"].startswith("\nText\nWhen Mary and 漢字 e\u0301te\u0301 שלום \\u202eabc\n\t \\x1b[31mred")


def test_bars_are_as_long_as_their_values(shown: dict[str, dict[str, str]]) -> None:
    """From -0.6 (an interval) to 0.9 (another): 0.8 takes 0.8 / 1.5 of the track, -0.4 half of that to the left of 0."""
    lines = [cells(shown["120"]["steps"])[i] for i in range(3, 7)]
    blue = tuple(int(colours.CLASSES[0][k : k + 2], 16) for k in (1, 3, 5))
    filled = [[i for i, one in enumerate(line) if one.text != " " and blue in (one.ink, one.paper)] for line in lines]
    track = 40
    assert abs(len(filled[0]) - 0.8 / 1.5 * track) <= 1 and abs(len(filled[1]) - 0.4 / 1.5 * track) < 2
    assert abs(filled[0][0] - (filled[1][-1] + 1)) <= 1, "both begin at 0"
    assert len(filled[3]) <= 1 and [plain(line)[:1] for line in lines] == ["0", "1", "2", "4"]
    for line, value in zip(lines, ("+0.800 [+0.600, +0.900]", "-0.400 [-0.600, -0.300]"), strict=False):
        assert value in plain(line) and "├" in plain(line) and "┤" in plain(line)
    assert len({plain_index(line, "[") for line in lines}) == 1


def test_a_curve_goes_through_its_points(shown: dict[str, dict[str, str]]) -> None:
    """x² from -4 to 4 in Braille's dots: in the column of each point a dot is at its height, within one."""
    lines = cells(shown["80"]["scan"])[2:14]
    dots = set()
    field = [[one.text for one in line] for line in lines]
    label = next(
        len(plain(line)) - len(plain(line).lstrip()) for line in lines if "\u2800" <= plain(line).strip()[:1] <= "\u28ff"
    )
    assert label >= 3
    left = 3  # "16" or " 0" and a space
    for i, row in enumerate(field):
        for j, c in enumerate(row[left:]):
            if "\u2800" < c <= "\u28ff":
                bits = ord(c) - 0x2800
                where = {0: (0, 0), 1: (1, 0), 2: (2, 0), 3: (0, 1), 4: (1, 1), 5: (2, 1), 6: (3, 0), 7: (3, 1)}
                dots |= {(4 * i + where[b][0], 2 * j + where[b][1]) for b in range(8) if bits >> b & 1}
    wide = max(x for _, x in dots)
    for x in range(-4, 5):
        at, height = (x + 4) / 8 * wide, (16 - x * x) / 16 * 47
        assert any(abs(column - at) <= 1 and abs(row - height) <= 1 for row, column in dots), x
    assert "16" in plain(lines[0])[:3]


def test_points_of_a_curve_in_a_pipe(shown: dict[str, dict[str, str]]) -> None:
    rows = [line.split() for line in shown["pipe"]["scan"].splitlines() if re.match(r"-?\d", line)]
    assert [(float(a), float(b)) for a, b in rows] == [(x, x * x) for x in np.linspace(-4, 4, 9)]


def on_a_terminal(*words: str, width: int, cwd: Path, **env: str) -> str:
    """What a command sends to a terminal of a width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS")}
    child = subprocess.Popen(
        [sys.executable, "-m", "probe", *words], cwd=cwd, env={**kept, "PYTHONPATH": str(ROOT), **TRUE, **env},
        stdin=subprocess.DEVNULL, stdout=theirs, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs)
    said = read_all(ours)
    assert child.wait() == 0, said
    return said


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each command whose pictures are maps; of random weights, so that all is quick."""
    import probe

    folder, lm = tmp_path_factory.mktemp("runs"), probe.load("tiny:llama")
    text = "one two \u05e9\u05dc\u05d5\u05dd \x1b[31m three"
    probe.trace(lm, text, generate=3, attention="full", lens=True, out=folder / "trace")
    probe.lens(lm, text, out=folder / "lens")
    probe.patch(lm, clean="a b c d", corrupt="a b X d", answer="a", against="b", out=folder / "patch")
    return folder


@pytest.mark.slow
def test_every_run_is_drawn(runs: Path) -> None:
    """From the real tables: a heat map of half blocks has the colours of the run's own numbers, and no text does anything."""
    import probe

    said = {name: on_a_terminal("runs", "show", name, width=90, cwd=runs) for name in ("trace", "lens", "patch")}
    for text in said.values():
        rest = SGR.sub("", text).replace("\u200e", "")
        assert "\x1b" not in rest and "▀" in text and "\u202e" not in rest
    part = said["trace"][said["trace"].index("\nHeads") :]
    lines, frame = cells(part), probe.open_run(runs / "trace").table("heads")
    line = next(line for line in lines if re.match(r"\d+ +▀", plain(line)))
    layer, column = int(plain(line).split()[0]), "entropy"
    own = frame[frame["layer"] == layer].sort_values("head")
    low, high = 0.0, float(frame[column].max())
    blocks_of = [one for one in line if one.text == "▀"]
    cell = len(blocks_of) // len(own)
    for head, value in enumerate(own[column]):
        assert same(blocks_of[head * cell].ink, between(colours.SEQUENTIAL, (value - low) / (high - low)), "80")
    assert "Attention pattern, at layer 0, head 0" in said["trace"]
    other = on_a_terminal("runs", "show", "trace", "--heads", "1.2", "--measure", "sink", width=90, cwd=runs)
    assert "at layer 1, head 2" in other and "entropy of a row" not in other


@pytest.mark.slow
def test_a_run_in_a_pipe_is_numbers(runs: Path, shell: Callable[..., Any]) -> None:
    done = shell("runs", "show", str(runs / "patch"))
    assert done.returncode == 0 and "\x1b" not in done.stdout and "▀" not in done.stdout, done.stderr
    assert "Patching resid_pre, by layer and token" in done.stdout
    assert "Patching" not in shell("runs", "show", str(runs / "patch"), "--no-pictures").stdout
    wrong = shell("runs", "show", str(runs / "patch"), "--measure", "nothing")
    assert wrong.returncode == 1 and "no picture of this run has a measure 'nothing'" in wrong.stderr
    wrong = shell("runs", "show", str(runs / "patch"), "--prompt", "7")
    assert wrong.returncode == 1 and "the run has no prompt 7" in wrong.stderr
