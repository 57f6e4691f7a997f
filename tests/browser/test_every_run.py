"""Every command's run opens with the panels that its tables are shown by; each is drawn, and gives its rows and files."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from probe.store import Run
from probe.tables import TABLES

from .looking import Opened, painted
from .making import RUNS, Maker

pytestmark = pytest.mark.browser

# run -> (kinds, table): a panel of one of the kinds with rows of the table
TEXT = ("tokens", "tokens")
SHOWN: dict[str, tuple[tuple[str, str], ...]] = {
    "trace": (TEXT, ("grid", "heads"), ("listing bars", "steps")),
    "trace-full": (
        TEXT, ("grid", "heads"), ("patterns", "attention"), ("grid", "attention_rows"), ("grid", "lens"),
        ("grid lines", "activations"),
    ),
    "odd": (TEXT,),
    "spelled": (TEXT,),
    "long": (TEXT,),
    "trace-topk": (TEXT, ("grid", "heads"), ("patterns", "attention"), ("grid", "attention_rows")),
    "trace-summary": (TEXT, ("grid", "attention_rows")),
    "trace-explain": (TEXT, ("listing", "stages"), ("listing bars", "candidates")),
    "trace-answers": (TEXT, ("listing bars", "answers")),
    "trace-bare": (TEXT,),
    "chain": (TEXT,),
    "rewind": (
        TEXT, ("listing bars", "steps"), ("bars", "effects"), ("tokens", "rescored"), ("bars", "branches"),
        ("listing", "branches"), ("tree", "branches"),
    ),
    "importance": (
        TEXT, ("bars", "importance"), ("grid", "dependence"), ("lines", "early_answers"), ("listing", "branches"),
        ("tree", "branches"),
    ),
    "sample": (TEXT, ("bars", "branches"), ("tree", "branches"), ("bars", "sampled"), ("lines bars", "sampled_means")),
    "patch": (TEXT, ("grid", "patches")),
    "patch-heads": (TEXT, ("grid", "patches")),
    "patch-path": (TEXT, ("grid", "patches")),
    "patch-attribution": (TEXT, ("grid", "patches")),
    "patch-steps": (TEXT, ("grid", "patches"), ("listing bars", "steps")),
    "patch-pairs": (TEXT, ("grid", "patches"), ("grid", "patch_means")),
    "lens": (TEXT, ("grid", "lens"), ("lines listing", "lens_positions")),
    "attribute": (("tokens", "prompts"), ("grid bars", "attribution"), ("bars grid listing", "attribution_sources")),
    "speculate": (TEXT, ("listing", "proposals")),
    "compare": (("tokens", "comparison"), ("grid lines bars", "similarity")),
    "steer-made": (("bars", "projections"),),
    "steer": (("lines", "steering_means"), ("lines listing", "steering")),
}  # fmt: skip


def test_every_run_is_looked_at() -> None:
    assert SHOWN.keys() == RUNS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_its_panels_are_drawn_and_give_their_files(name: str, tiny: Maker, look) -> None:
    run, opened = tiny[name], look(tiny.page(name))
    panels = next(one for one in opened.content["sequences"] if one["run"] == 0)["panels"]
    for kinds, table in SHOWN[name]:
        assert any(one["kind"] in kinds.split() and one["table"] == table for one in panels), (kinds, table)
    assert sorted(opened.names) == sorted(one["name"] for one in panels)
    for panel in panels:
        assert panel["table"] in run.tables, "what a run does not hold has no panel"
        given(opened, run, panel)


def given(opened: Opened, run: Run, panel: dict[str, Any]) -> None:
    """The panel is drawn; its CSV has the rows of the table, its PNG and SVG are pictures."""
    name = panel["name"]
    shown = opened.show(name)
    assert shown.get_attribute("aria-label") == panel["title"]
    assert painted(shown.locator(".picture").first.screenshot()) > 0.002, f"{name} is blank on the page"
    same_rows(opened, run, panel)
    png = opened.file(name, "png")
    assert png.startswith(b"\x89PNG") and painted(png) > 0.002, f"{name}.png is blank"
    svg = ElementTree.fromstring(opened.file(name, "svg"))
    assert float(svg.attrib["width"]) > 100 and float(svg.attrib["height"]) > 10
    tags = [one.tag.rpartition("}")[2] for one in svg.iter()]
    few = 0 if panel["follows"] else 3  # of a place that has no rows it says so, in a line
    assert sum(tag in {"rect", "path", "line", "polyline", "polygon", "circle", "text"} for tag in tags) > few, f"{name}.svg"
    assert not {"script", "image", "foreignObject"} & set(tags)
    assert not any("href" in key for one in svg.iter() for key in one.attrib)


def same_rows(opened: Opened, run: Run, panel: dict[str, Any]) -> None:
    """What the CSV says of the table's own columns is the table, read by pandas: the same texts, the same float32."""
    rows = list(csv.DictReader(io.StringIO(opened.file(panel["name"], "csv").decode(), newline="")))
    table = run.table(panel["table"])
    for column, value in panel["where"].items():
        table = table[table[column].isin(value if isinstance(value, list) else [value])]
    own = [column for column in rows[0] if column not in panel["derived"]]
    if not own:  # the tokens of a run that has no table of them
        assert panel["kind"] == "tokens" and {"pos", "token"} <= rows[0].keys() and "tokens" not in run.tables
        return
    if panel["counted"]:
        same_counts(rows, table, panel)
        return
    assert len(rows) == len(table) > 0, panel["name"]
    assert set(own) <= set(table.columns)
    keys = [key for key in TABLES[panel["table"]].keys if key in own]
    alike = {key for key in TABLES[panel["table"]].keys if table[key].nunique(dropna=False) == 1}
    assert set(TABLES[panel["table"]].keys) - alike <= set(own), "the rows can be told apart"
    steps = {one["name"]: one.get("step") for one in opened.content["frames"][panel["frame"]]["columns"]}
    wanted = [[plain(value) for value in row] for row in table[own].itertuples(index=False, name=None)]
    types = [kind_of(table[name]) for name in own]
    given = [[read(row[name], kind) for name, kind in zip(own, types, strict=True)] for row in rows]
    tolerance = [single(table[name]) if steps[name] is None else 0.51 * steps[name] for name in own]
    place = [own.index(key) for key in keys]
    for ours, theirs in zip(
        *(sorted(all, key=lambda row: str([row[i] for i in place])) for all in (given, wanted)), strict=True
    ):
        for name, one, other, off in zip(own, ours, theirs, tolerance, strict=True):
            assert equal(one, other, off), (panel["name"], name, one, other)


def same_counts(rows: list[dict[str, str]], table: pd.DataFrame, panel: dict[str, Any]) -> None:
    """Rows that count rows of the table: none twice, and each that counts any has as many as pandas finds. Of a rewind some
    samples of control are left out, and the note says so."""
    by = panel["counted"]
    names = [[row[name].removesuffix(".0") for name in by] for row in rows]
    assert len({*map(tuple, names)}) == len(names) > 0, panel["name"]
    texts = table[by].map(lambda value: "" if plain(value) is None else str(plain(value)))
    there = texts.map(lambda value: value.removesuffix(".0")).value_counts().to_dict()
    left_out = "not counted" in panel["note"]
    for row, name in zip(rows, names, strict=True):
        count, found = int(row["count"]), there.get(tuple(name), 0)
        assert count == found or (left_out and count < found), (panel["name"], name)
    assert sum(int(row["count"]) for row in rows) == len(table) or left_out


def kind_of(column: pd.Series) -> type:
    """What the values of a column are."""
    seen = [value for value in column if plain(value) is not None]
    if not seen:
        return str
    if isinstance(seen[0], (bool, np.bool_)):
        return bool
    return {"i": int, "u": int, "f": float}.get(np.asarray(seen[0]).dtype.kind, str) if np.isscalar(seen[0]) else list


def read(cell: str, kind: type) -> Any:
    """A cell of a CSV: empty is null, lists are JSON."""
    if cell == "":
        return None
    if kind is bool:
        return {"True": True, "False": False}[cell]
    return json.loads(cell) if kind is list else kind(cell)


def single(column: pd.Series) -> float:
    """By how much its numbers may differ from what was written of them: not at all; -1: they are float32."""
    first = next((value for value in column if value is not None), None)
    return -1.0 if np.asarray(first).dtype == np.float32 or column.dtype == np.float32 else 0.0


def plain(value: Any) -> Any:
    """A value of a table as Python has it; NaN, and the empty text, which a CSV does not tell from none, as None."""
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if value is None or value is pd.NA or (isinstance(value, (float, np.floating)) and math.isnan(value)) or value == "":
        return None
    return value.item() if isinstance(value, np.generic) else value


def equal(one: Any, other: Any, off: float) -> bool:
    """off: by how much a number may differ; below 0: it is the same float32."""
    if isinstance(other, list):
        return isinstance(one, list) and len(one) == len(other) and all(map(equal, one, other, [off] * len(one)))
    if one is None or other is None or isinstance(other, (str, bool)):
        return one == other and isinstance(one, bool) == isinstance(other, bool)
    return np.float32(one) == np.float32(other) if off < 0 else abs(one - other) <= off
