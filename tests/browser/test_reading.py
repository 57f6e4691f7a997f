"""Long texts, small windows, dark rooms, readers who do not see: what the page is for each of them."""

from __future__ import annotations

import re

import pytest

from .looking import painted
from .making import LONG, Maker

pytestmark = pytest.mark.browser

POSITIONS = "all => all.map(one => Number(one.dataset.pos))"
SHOWN = "[data-panel=tokens] [data-pos]"


def test_of_a_long_text_only_what_is_seen_is_in_the_document(tiny: Maker, look) -> None:
    """Thousands of tokens; the window's lines are there, others come when it is scrolled, by key, wheel or overview."""
    opened = look(tiny.page("long"))
    there = opened.page.eval_on_selector_all(SHOWN, POSITIONS)
    assert 0 in there and len(there) < LONG / 3 and there == sorted(set(there))
    opened.press("End")
    opened.page.locator(f"[data-pos='{LONG - 1}']").wait_for(state="visible")
    there = opened.page.eval_on_selector_all(SHOWN, POSITIONS)
    assert 0 not in there and len(there) < LONG / 3 and there == list(range(there[0], LONG))
    readout = opened.readout("tokens")
    assert re.search(rf"\b{LONG - 1}\b", readout.replace(",", ""))
    opened.press("Home")
    opened.page.locator("[data-pos='0']").wait_for(state="visible")
    box = opened.panel("tokens").locator(".overview").bounding_box()
    opened.page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 0.9 * box["height"])
    opened.page.wait_for_timeout(200)
    there = opened.page.eval_on_selector_all(SHOWN, POSITIONS)
    assert min(there) > LONG / 2, "the overview is the scroll bar"


def test_a_chain_folds_by_step(tiny: Maker, look) -> None:
    opened = look(tiny.page("trace"))
    folds = opened.panel("tokens").locator("button.fold")
    assert folds.count() >= 2
    before = opened.page.locator(SHOWN).count()
    first = folds.nth(1)
    assert first.get_attribute("aria-expanded") == "true"
    first.click()
    opened.settle()
    assert folds.nth(1).get_attribute("aria-expanded") == "false"
    folds.nth(1).click()
    opened.settle()
    assert folds.nth(1).get_attribute("aria-expanded") == "true"
    assert opened.page.locator(SHOWN).count() == before
    opened.press("F")
    assert opened.page.locator(SHOWN).count() < before
    opened.press("F")
    assert opened.page.locator(SHOWN).count() == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trace-full", "rewind", "importance", "patch-pairs", "compare", "steer"])
def test_at_the_width_of_a_phone_nothing_sticks_out(name: str, tiny: Maker, look) -> None:
    opened = look(tiny.page(name), viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    for panel in opened.names:
        box = opened.show(panel).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390.5, panel
        size = opened.panel(panel).evaluate("one => parseFloat(getComputedStyle(one.querySelector('.readout')).fontSize)")
        assert size >= 11
    wide = opened.page.evaluate("() => document.scrollingElement.scrollWidth")
    assert wide <= 390, "the page does not move sideways"


def paper(opened) -> list[int]:
    found = opened.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    return [int(n) for n in re.findall(r"\d+", found)[:3]]


def test_dark_and_light_by_the_system_and_by_a_button(tiny: Maker, look) -> None:
    dark, light = (look(tiny.page("trace"), color_scheme=scheme) for scheme in ("dark", "light"))
    for opened, scheme, low, high in ((dark, "dark", 0, 80), (light, "light", 200, 256)):
        assert opened.page.evaluate("() => document.documentElement.dataset.theme") == scheme
        assert all(low <= part < high for part in paper(opened))
    seen = []
    for _ in range(3):
        light.page.locator("button[name=theme]").click()
        light.settle()
        seen.append(light.page.evaluate("() => document.documentElement.dataset.theme"))
    assert {"dark", "light"} == set(seen)
    first = look(tiny.page("trace"), color_scheme="dark").file("heads", "png")
    assert painted(first) > 0.01


def test_letters_can_be_read_on_every_colour(tiny: Maker, look) -> None:
    """Contrast of each token with what is under it, WCAG 2: 4.5 and more, dark and light."""
    for scheme in ("light", "dark"):
        opened = look(tiny.page("trace"), color_scheme=scheme)
        pairs = opened.page.eval_on_selector_all(
            SHOWN, "all => all.map(o => [getComputedStyle(o).color, getComputedStyle(o).backgroundColor])"
        )
        under = [channel / 255 for channel in opened_panel_paper(opened)]
        for ink, colour in pairs:
            *rgb, alpha = parts(colour)
            mixed = [alpha * c + (1 - alpha) * p for c, p in zip(rgb, under, strict=True)]
            assert contrast(parts(ink)[:3], mixed) >= 4.5, (scheme, ink, colour)


def opened_panel_paper(opened) -> list[float]:
    found = opened.page.evaluate("() => getComputedStyle(document.querySelector('[data-panel=tokens]')).backgroundColor")
    return [float(n) for n in re.findall(r"[\d.]+", found)[:3]]


def parts(colour: str) -> list[float]:
    found = [float(n) for n in re.findall(r"[\d.]+", colour)]
    scale = 1 if colour.startswith("color(") else 255
    return [*(n / scale for n in found[:3]), found[3] if len(found) > 3 else 1.0]


def contrast(one: list[float], other: list[float]) -> float:
    def light(rgb: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trace-full", "importance", "patch-heads"])
def test_readers_who_do_not_see_have_words_and_tables(name: str, tiny: Maker, look) -> None:
    """Every picture has a name and a table with its rows; every button and choice says what it is; keys reach all of them."""
    opened = look(tiny.page(name))
    sequence = opened.content["sequences"][0]
    for panel in sequence["panels"]:
        shown = opened.show(panel["name"])
        assert shown.get_attribute("aria-label") == panel["title"]
        for canvas in shown.locator(".picture canvas:visible").all():
            assert named(canvas), panel["name"]
        fold = shown.locator("details.as-table")
        fold.locator("summary").click()
        first = fold.locator("tbody tr").first
        first.wait_for()  # the rows are made when the fold opens
        assert fold.locator("thead th").count() == first.locator("td").count()
    nameless = opened.page.eval_on_selector_all(
        "button, select, a[href], input",
        "all => all.filter(o => !(o.ariaLabel || o.textContent || o.labels?.[0]?.textContent).trim()).map(o => o.outerHTML)",
    )
    assert nameless == []
    reached = set()
    opened.page.evaluate("() => document.activeElement.blur()")
    for _ in range(60):
        opened.page.keyboard.press("Tab")
        reached.add(opened.page.evaluate("() => document.activeElement.closest('[data-panel]')?.dataset.panel ?? ''"))
    assert len(reached) > 3


def named(canvas) -> bool:
    """The canvas has a name and can be focused, or something above it has and it is hidden."""
    return canvas.evaluate("""one => {
        const above = one.closest('[aria-hidden=true]');
        const inside = one.closest('[role=img][aria-label], [role=application][aria-label], [role=grid][aria-label]');
        return Boolean((one.getAttribute('role') && one.getAttribute('aria-label')) || above || inside);
    }""")


def test_nothing_moves_for_readers_who_want_it_still(tiny: Maker, look) -> None:
    opened = look(tiny.page("trace"), reduced_motion="reduce")
    moving = opened.page.evaluate(
        "() => [...document.querySelectorAll('*')].filter(o => parseFloat(getComputedStyle(o).transitionDuration) > 0.01"
        " || parseFloat(getComputedStyle(o).animationDuration) > 0.01).length"
    )
    assert moving == 0
