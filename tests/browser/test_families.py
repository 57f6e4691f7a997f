"""Runs that belong together on one page, a page that is written anew, and a page in a notebook. And pages of a real model."""

from __future__ import annotations

from pathlib import Path

import pytest

from probe.reporting.page import PageRun, page_html
from probe.reporting.panels import sequence_views

from .making import Maker
from .test_every_run import given

pytestmark = pytest.mark.browser


def test_two_runs_stand_side_by_side_under_one_cursor(tiny: Maker, look) -> None:
    """Both have a text of their own; a click in one moves the other, and B's text has the difference of both."""
    opened = look(tiny.page("trace-topk", "trace-summary"), viewport={"width": 1500, "height": 900})
    boxes = [opened.panel("heads", run).bounding_box() for run in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    texts = [opened.panel("tokens", run) for run in (0, 1)]
    texts[0].locator("[data-pos='7']").click()
    opened.settle()
    said = [text.locator(".readout").inner_text() for text in texts]
    assert said[0] == said[1] and said[0].startswith("7 ")
    measures = next(one for one in opened.content["sequences"] if one["run"] == 1)["panels"][0]["measures"]
    difference = next(i for i, one in enumerate(measures) if "−" in one["title"] or "minus" in one["title"])
    texts[1].locator("select[name=measure]").select_option(str(difference))
    opened.settle()
    assert texts[1].locator(".readout").inner_text().rstrip(" nats").endswith(" 0")  # the same model read the same text


def test_a_rewind_shows_the_run_that_it_went_back_into(tiny: Maker, look) -> None:
    opened = look(tiny.page("rewind"))
    choice = opened.page.locator("select[name=run]")
    ids = [tiny[name].run_id for name in ("rewind", "chain")]
    assert [any(run_id in text for text in choice.locator("option").all_inner_texts()) for run_id in ids] == [True, True]
    assert "rescored" in opened.names
    choice.select_option("1")
    opened.page.locator("section[data-panel=tokens][data-run='1']").wait_for()
    opened.settle()
    assert "rescored" not in opened.names and tiny["chain"].run_id in opened.page.locator("#facts").inner_text()


def test_a_page_that_is_written_anew_stays_where_the_reader_is(tiny: Maker, look, tmp_path: Path) -> None:
    run, page = tiny["trace"], tmp_path / "growing.html"

    def write(refresh: int | None) -> None:
        views = sequence_views(run)
        page.write_text(page_html([PageRun(run, views)], watching=refresh is not None, refresh=refresh).html, encoding="utf-8")

    write(1)
    opened = look(page)
    opened.page.locator("[data-pos='5']").click()
    opened.page.evaluate("() => { document.body.dataset.old = 'yes'; }")
    opened.page.wait_for_url("**#*t=5*")
    write(None)
    opened.page.locator("body[data-old]").wait_for(state="detached", timeout=20_000)
    opened.wait()
    assert opened.cursor()["t"] == 5 and opened.panel("tokens").locator(".readout").inner_text().startswith("5 ")
    assert "written" in opened.page.locator("p.written, .written").first.inner_text()


def test_a_run_in_a_notebook_is_its_page_in_a_frame(tiny: Maker, look, tmp_path: Path) -> None:
    """The cell's output, in a document that is not the page's own: it is drawn, asks for nothing and complains of nothing."""
    cell = tiny["lens"]._repr_html_()
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!DOCTYPE html><meta charset=utf-8><title>notebook</title><h1>cell</h1>{cell}", encoding="utf-8")
    opened = look(notebook, ready=False)
    frame = opened.page.frame_locator("iframe")
    frame.locator("html[data-ready=yes]").wait_for(state="attached", timeout=20_000)
    frame.locator("[data-pos='3']").click()
    frame.locator("section[data-panel=tokens] .readout", has_text="3 ").wait_for()
    assert opened.page.title() == "notebook"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trace-full", "rewind", "patch"])
def test_pages_of_a_real_model(name: str, smol: Maker, look) -> None:
    """SmolLM2's own tokens and sizes: every panel is drawn, and gives its table's rows and its files."""
    run, opened = smol[name], look(smol.page(name))
    for panel in next(one for one in opened.content["sequences"] if one["run"] == 0)["panels"]:
        given(opened, run, panel)
