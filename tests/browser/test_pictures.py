"""What is drawn is what the rows say: colours of cells by the scales of Python; of large pictures only what is seen."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import probe
from probe.reporting.page import PageRun, page_html
from probe.reporting.scales import scale_of
from probe.reporting.views import Axis, Grid, Listing, Measure, OutcomeTree, Panel, SequenceView, ShownColumn, TokenStrip
from probe.store import Run

from .looking import Opened

pytestmark = [pytest.mark.browser, pytest.mark.slow]
LAYERS, POSITIONS, ROWS = 30, 1000, 2000
MEASURES = (
    Measure("prob", "probability", low=0.0, high=1.0), Measure("rank", "rank", scaling="log"),
    Measure("effect", "effect", scaling="diverging"), Measure("site", "site", scaling="classes"),
)  # fmt: skip
PIXELS = """canvas => Array.from(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data)"""


def strip() -> TokenStrip:
    frame = pd.DataFrame({"pos": range(POSITIONS), "token": [f" w{i}" for i in range(POSITIONS)], "logprob": -1.0})
    return TokenStrip("tokens", "Text", "tokens", frame, measures=(Measure("logprob", "log-prob"),))


def grid(**more: object) -> Grid:
    """Every cell but those of layer 3 from token 2 to 5, and one that has a row and no value."""
    rng = np.random.default_rng(0)
    layer, pos = (of.ravel() for of in np.meshgrid(range(LAYERS), range(POSITIONS), indexing="ij"))
    effect, sites = rng.normal(0, 2, layer.size), np.array(["attn", "mlp", "resid"])
    frame = pd.DataFrame({"layer": layer, "pos": pos, "prob": rng.random(layer.size), "effect": effect,
                          "rank": rng.integers(0, 49152, layer.size), "site": rng.choice(sites, layer.size)})  # fmt: skip
    frame.loc[(layer == 4) & (pos == 4), ["prob", "effect"]] = np.nan
    frame = frame[~((frame["layer"] == 3) & frame["pos"].between(2, 5))].reset_index(drop=True)
    return Grid("cells", "Cells", "lens", frame, rows=Axis("layer", "layer", "layer"), columns=Axis("pos", "position", "token"),
                measures=MEASURES, upwards=True)  # fmt: skip


def listing() -> Listing:
    frame = pd.DataFrame(
        {"branch": range(ROWS), "logprob": np.linspace(-9, 0, ROWS), "text": [f"It\nis {i}." for i in range(ROWS)]}
    )
    columns = (ShownColumn("branch", "branch", cursor="branch"), ShownColumn("logprob", "log-prob", digits=2))
    return Listing("rows", "Rows", "branches", frame, columns=columns, text="text")


def tree() -> OutcomeTree:
    """400 branches under two answers."""
    leaves = [
        {"label": f"{i % 2}, sample {i}", "n": 1, "outcomes": {str(i % 2): 1}, "children": [], "branch": i} for i in range(400)
    ]
    answers = [{"label": str(k), "n": 200, "outcomes": {str(k): 200}, "children": leaves[k::2]} for k in (0, 1)]
    root = {"label": "all", "n": 400, "outcomes": {"0": 200, "1": 200}, "children": answers}
    return OutcomeTree("tree", "Tree", "branches", pd.DataFrame({"branch": range(400)}), root=root)


@pytest.fixture(scope="module")
def run() -> Run:
    return probe.trace(probe.load("tiny:llama"), ["The cat sat"])


@pytest.fixture
def shown(run: Run, look, tmp_path: Path) -> Callable[..., Opened]:
    def show(*panels: Panel, where: str = "", **options: object) -> Opened:
        path = tmp_path / "page.html"
        path.write_text(page_html([PageRun(run, [SequenceView(0, "text", (strip(), *panels))])]).html)
        return look(path, where=where, **options)

    return show


def canvas_of(opened: Opened, name: str) -> tuple[object, np.ndarray]:
    """The canvas of a panel's cells, and its pixels (height, width, 4)."""
    canvas = opened.show(name).locator(".heat-window canvas")
    size = canvas.evaluate("canvas => [canvas.height, canvas.width]")
    return canvas, np.array(canvas.evaluate(PIXELS), np.uint8).reshape(*size, 4)


def alone(pixels: np.ndarray, x: int, y: int) -> np.ndarray | None:
    """The colour at a place where all around it is of that colour: inside a cell, beside what is written in it."""
    block = pixels[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 4).astype(int)
    return block[0] if (block == block[0]).all() else None


@pytest.mark.parametrize("number", range(len(MEASURES)), ids=[one.column for one in MEASURES])
def test_a_cell_has_the_colour_of_its_value(shown, number: int) -> None:
    """The pixels at a click have the colour, on the scale of Python, of the row that the readout then names."""
    panel, measure = grid(), MEASURES[number]
    opened = shown(panel)
    opened.show("cells").locator("select[name=measure]").select_option(str(number))
    opened.settle()
    canvas, pixels = canvas_of(opened, "cells")
    colours = scale_of(measure, panel.frame[measure.column])
    rows = panel.frame.set_index(["layer", "pos"])[measure.column]
    readout = opened.panel("cells").locator(".readout").first
    seen = set()
    box = canvas.bounding_box()
    for x, y in product(range(60, 260, 17), range(30, 450, 67)):
        if (got := alone(pixels, x, y)) is None:
            continue
        opened.page.mouse.click(box["x"] + x, box["y"] + y)
        opened.settle()
        said = re.match(r"layer (\d+), (\d+) .*: (.*)", readout.inner_text())
        cell = (int(said[1]), int(said[2]))
        seen.add(cell)
        assert said[3].startswith(f"{measure.title} " if cell in rows.index else "nothing")
        want = colours.colours(pd.Series([rows[cell]]))[0] if cell in rows.index else np.zeros(4)
        assert np.abs(got - want).max() <= 1, (cell, got, want)
    assert len(seen) > 15


def test_of_a_large_grid_only_the_window_is_drawn(shown) -> None:
    """Cells from 1 pixel on; the cursor is brought into sight, and the keys of the picture move it."""
    opened = shown(grid(), where="#t=900&l=12")
    canvas, pixels = canvas_of(opened, "cells")
    window = opened.panel("cells").locator(".heat-window")
    inner, outer, left = window.evaluate("one => [one.clientWidth, one.scrollWidth, one.scrollLeft]")
    assert pixels.shape[1] <= inner + 1 and outer > 5 * inner and left > 0
    canvas.focus()
    opened.press("ArrowRight", "ArrowRight", "ArrowUp")
    assert opened.readout("cells").startswith("layer 13, 902 ")
    opened.panel("cells").get_by_role("button", name="all", exact=True).click()
    opened.settle()
    fewer = window.evaluate("one => one.scrollWidth")
    assert fewer < outer / 5


def test_of_many_rows_and_branches_those_in_sight_are_in_the_document(shown) -> None:
    opened = shown(listing(), tree(), where="#b=1500")
    rows = opened.show("rows")
    assert rows.locator("tbody tr.here").inner_text().split()[0] == "1500"
    assert rows.locator(".listing tbody tr").count() < 60
    assert rows.locator(".whole-text").inner_text() == "It\nis 1500."
    rows.locator("tbody tr.here + tr").click()
    assert opened.readout("rows").startswith("branch 1,501") or opened.readout("rows").startswith("branch 1501")
    forks = opened.show("tree")
    assert forks.get_by_role("treeitem").count() == 3, "answers of many branches are closed at first"
    forks.get_by_role("button", name="open all").click()
    opened.settle()
    assert 3 < forks.get_by_role("treeitem").count() < 60
    forks.get_by_role("treeitem").filter(has_text="sample").first.click()
    opened.settle()
    branch = int(re.search(r"sample (\d+)", opened.readout("tree"))[1])
    assert opened.readout("rows").startswith(f"branch {branch},")
