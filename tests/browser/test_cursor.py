"""One cursor moves all panels: each says what the run's tables have there. Keys, clicks and the address move it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from probe.store import Run

from .looking import Opened
from .making import Maker

pytestmark = pytest.mark.browser

COLUMNS = {"token": {"pos"}, "layer": {"layer"}, "head": {"head"}, "step": {"step"}}


def numbers(text: str) -> list[float]:
    """The numbers in what a panel says, also in percent."""
    found = []
    for number, percent in re.findall(r"([−-]?\d[\d,]*(?:\.\d+)?(?:e[−-]?\d+)?)( ?%)?", text):
        value = float(number.replace("−", "-").replace(",", ""))
        found += [value / 100, value] if percent else [value]
    return found


def said(text: str, value: float) -> bool:
    """Whether a number is among those of a text, to the three digits that are shown."""
    return any(abs(number - value) <= 0.0051 * abs(value) + 5e-4 for number in numbers(text))


def cells(run: Run, panel: dict[str, Any], cursor: dict[str, int]) -> pd.DataFrame:
    """The rows of the table at the cursor, as far as the panel has its coordinates."""
    rows = run.table(panel["table"])
    for column, value in panel["where"].items():
        rows = rows[rows[column].isin(value if isinstance(value, list) else [value])]
    axes = [panel[side] for side in ("rows", "columns", "axis") if isinstance(panel.get(side), dict)]
    for coordinate, column in {**{a["cursor"]: a["column"] for a in axes if a["cursor"]}, **panel["follows"]}.items():
        if column in rows and coordinate in cursor:
            rows = rows[rows[column] == cursor[coordinate]]
    return rows


def check(opened: Opened, run: Run, cursor: dict[str, int]) -> dict[str, str]:
    """What every panel says, each held against the table where one cell is at the cursor; how many were is asserted on."""
    sequences = opened.content["sequences"]
    here = next(one for one in sequences if one["run"] == 0 and one["prompt"] == cursor["prompt"])
    told = {}
    for panel in here["panels"]:
        told[panel["name"]] = text = opened.readout(panel["name"])
        if panel["kind"] not in ("grid", "tokens"):
            continue
        rows = cells(run, panel, cursor)
        i, measure = next((i, one["column"]) for i, one in enumerate(panel["measures"]) if one["column"] in rows)
        if i:
            opened.panel(panel["name"]).locator("select[name=measure]").select_option(str(i))
            text = opened.readout(panel["name"])
        if panel["kind"] == "tokens":
            rows = rows[rows["pos"] == cursor["token"]] if "pos" in rows else rows[:0]
        if len(rows) != 1 or not isinstance(rows[measure].iloc[0], (float, np.floating, np.integer)):
            continue
        value = float(rows[measure].iloc[0])
        if not np.isnan(value):
            assert said(text, value), (panel["name"], measure, value, text)
            told[f"{panel['name']} checked"] = text
    return told


def move(opened: Opened, cursor: dict[str, int]) -> None:
    """By the keys for layer and head, and by a click on the token."""
    opened.show("tokens").locator(f"[data-pos='{cursor['token']}']").click()
    opened.settle()


@pytest.mark.slow
def test_a_click_on_a_token_moves_every_panel(tiny: Maker, look) -> None:
    run, opened = tiny["trace-full"], look(tiny.page("trace-full"), where="#p=0&l=2&h=1")
    cursor = {"prompt": 0, "branch": 0, "layer": 2, "head": 1, "token": 9}
    move(opened, cursor)
    before = check(opened, run, cursor)
    checked = {"tokens checked", "lens checked", "heads checked", "attention-rows checked", "norms-resid-post checked"}
    assert checked <= before.keys()
    pattern = cells(run, panel_of(opened, "patterns"), cursor)
    weights = pattern[pattern["query"] == 9].iloc[0]["weights"]
    assert said(before["patterns"], float(max(weights))), before["patterns"]
    cursor["token"] = 21
    move(opened, cursor)
    after = check(opened, run, cursor)
    weights = pattern[pattern["query"] == 21].iloc[0]["weights"]
    assert said(after["patterns"], float(max(weights)))
    for name in ("tokens", "lens", "patterns"):
        assert before[name] != after[name] and re.search(r"\b21\b", after[name]), (name, after[name])
    (norm,) = run.table("activations").query("prompt_id == 0 and pos == 21 and layer == 2 and site == 'resid_post'")["norm"]
    assert said(after["norms"], float(norm)) and not said(before["norms"], float(norm))
    assert checked <= after.keys()
    assert address(opened) == {"p": 0, "t": 21, "l": 2, "h": 1}


def panel_of(opened: Opened, name: str) -> dict[str, Any]:
    return next(one for one in opened.content["sequences"][0]["panels"] if one["name"] == name)


def address(opened: Opened) -> dict[str, int]:
    """Where the page says that it is, once it does: addresses are written a moment later."""
    opened.page.wait_for_timeout(500)
    return {key: value for key, value in opened.cursor().items() if key not in ("r", "b", "s")}


def test_keys_move_it_and_are_listed(tiny: Maker, look) -> None:
    opened = look(tiny.page("trace-full"), where="#p=0&t=5&l=1&h=1")
    for keys, there in (
        (["ArrowRight"], {"t": 6, "l": 1, "h": 1}),
        (["ArrowLeft", "ArrowLeft", "ArrowLeft"], {"t": 3, "l": 1, "h": 1}),
        (["]"], {"t": 3, "l": 2, "h": 1}),
        (["[", "["], {"t": 3, "l": 0, "h": 1}),
        (["["], {"t": 3, "l": 0, "h": 1}),
        (["}"], {"t": 3, "l": 0, "h": 2}),
        (["Home"], {"t": 0, "l": 0, "h": 2}),
        (["ArrowLeft"], {"t": 0, "l": 0, "h": 2}),
    ):
        opened.press(*keys)
        assert address(opened) == {"p": 0, **there}, keys
    opened.press("End")
    last = int(tiny["trace-full"].tokens.query("prompt_id == 0")["pos"].max())
    assert address(opened)["t"] == last
    opened.press("ArrowUp")
    assert address(opened)["t"] < last - 1
    opened.press(")")
    assert address(opened)["p"] == 1
    keys = opened.page.locator("dialog#keys")
    assert not keys.is_visible()
    opened.press("?")
    assert keys.is_visible()
    listed = keys.inner_text()
    assert all(key in listed for key in ("←", "→", "PageUp", "Home", "End", "[", "]", "?"))
    opened.press("Escape")
    assert not keys.is_visible()


@pytest.mark.slow
def test_the_address_brings_another_reader_there(tiny: Maker, look) -> None:
    """A page at an address says, in every panel, what the page said that the address was taken from."""
    first = look(tiny.page("trace-full"))
    first.press("End", "ArrowLeft", "]", "]", "}")
    first.page.wait_for_timeout(500)
    where = first.page.evaluate("() => location.hash")
    there = {name: first.readout(name) for name in first.names}
    second = look(tiny.page("trace-full"), where=where)
    assert {name: second.readout(name) for name in second.names} == there
    assert second.names == first.names and sum(map(bool, there.values())) >= 6
    elsewhere = look(tiny.page("trace-full"), where="#p=0&t=2&l=0&h=0")
    assert elsewhere.readout("lens") != there["lens"]


@pytest.mark.parametrize("where", ["#t=99999&l=77&h=-3&p=55&r=9&b=4", "#t=x&l=&&&=&t", "#<script>", "#t=1e9"])
def test_an_address_that_is_nowhere_is_a_page_all_the_same(where: str, tiny: Maker, look) -> None:
    opened = look(tiny.page("trace-full"), where=where)
    for name in opened.names:
        opened.show(name)
    opened.press("ArrowLeft", "]", "}")
    assert re.search(r"\d", opened.readout("tokens"))


def test_a_click_on_a_head_opens_its_pattern(tiny: Maker, look) -> None:
    run, opened = tiny["trace-full"], look(tiny.page("trace-full"), where="#p=0&t=8&l=0&h=0")
    heads = run.heads[run.heads["prompt_id"] == 0]
    layers, many = heads["layer"].nunique(), heads["head"].nunique()
    before = opened.readout("patterns")
    canvas = opened.show("heads").locator("canvas").first
    box = canvas.bounding_box()
    seen = set()
    for i in range(6):  # somewhere on the diagonal of the picture
        canvas.click(position={"x": box["width"] * (0.3 + 0.1 * i), "y": box["height"] * (0.3 + 0.1 * i)})
        there = address(opened)
        seen.add((there["l"], there["h"]))
        assert 0 <= there["l"] < layers and 0 <= there["h"] < many and there["t"] == 8
    assert len(seen) > 1
    assert opened.readout("patterns") != before
    layer, head = there["l"], there["h"]
    rows = run.table("attention").query(f"prompt_id == 0 and layer == {layer} and head == {head} and query == 8")
    assert said(opened.readout("patterns"), float(max(rows.iloc[0]["weights"])))


def test_a_prompt_is_chosen_from_a_list(tiny: Maker, look) -> None:
    run, opened = tiny["trace"], look(tiny.page("trace"))
    choice = opened.page.locator("select[name=prompt]")
    assert choice.locator("option").count() == 2
    choice.select_option("1")
    wanted = run.tokens[run.tokens["prompt_id"] == 1].sort_values("pos")["token"]
    tokens = opened.page.locator("[data-panel=tokens] [data-pos]")
    tokens.nth(len(wanted)).wait_for(state="detached")  # of the other prompt, which is longer
    opened.settle()
    texts = tokens.all_text_contents()
    assert len(texts) == len(wanted) and "".join(texts).replace("·", " ").startswith("<s>One. Two. Three.")


def test_the_text_is_coloured_by_the_measure_that_is_chosen(tiny: Maker, look) -> None:
    """Two tokens of different values have different colours, those of the same value the same."""
    opened = look(tiny.page("trace"))
    measures = panel_of(opened, "tokens")["measures"]
    choice = opened.panel("tokens").locator("select[name=measure]")
    seen = []
    rows = tiny["trace"].tokens.query("prompt_id == 0").set_index("pos")
    for i, measure in enumerate(measures[:4]):
        choice.select_option(str(i))
        opened.settle()
        colours = opened.page.eval_on_selector_all("[data-panel=tokens] [data-pos]", "all => all.map(o => o.style.background)")
        seen.append(colours)
        values = rows[measure["column"]].astype(float)
        low, high = int(values.idxmin()), int(values.idxmax())
        assert colours[low] != colours[high] or values[low] == values[high], measure
        assert said(opened.panel("tokens").locator(".readout").inner_text(), float(values[opened_at(opened)]))
    assert len({tuple(colours) for colours in seen}) > 1
    assert {"log-prob", "entropy", "rank"} & {word for m in measures for word in re.split(r"[ (]", m["title"].lower())}


def opened_at(opened: Opened) -> int:
    return int(opened.page.locator("[data-panel=tokens] [data-at]").first.get_attribute("data-pos"))
