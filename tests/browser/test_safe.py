"""A page from a file asks nobody for anything, runs no script but its own, and what a model wrote is text and nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from itertools import pairwise
from pathlib import Path

import pytest

from .looking import Opened
from .making import SCRIPT, SPELLED, Maker

pytestmark = pytest.mark.browser


def test_what_a_page_asks_for_and_complains_of_is_seen(chromium, tmp_path: Path) -> None:
    """What every other test here relies on: a page that is not safe is found out."""
    bad = tmp_path / "bad.html"
    bad.write_text("<html data-ready=yes><img src='http://127.0.0.1:9/x.png'><script>console.error('so'); nothing();</script>")
    context = chromium.new_context(offline=True)
    opened = Opened.at(context, bad)
    opened.page.wait_for_load_state("load")
    opened.settle()
    context.close()
    assert opened.asked == ["http://127.0.0.1:9/x.png"]
    assert "so" in opened.complaints and any("nothing is not defined" in text for text in opened.complaints)


def policy(html: str) -> dict[str, list[str]]:
    content = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', html)[1]
    return {name: sources for name, *sources in (one.split() for one in content.split(";"))}


def test_only_its_own_script_may_run(tiny: Maker, look, chromium, tmp_path: Path) -> None:
    html = tiny.page("trace-full").read_text()
    found = policy(html)
    scripts = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    styles = re.findall(r"<style>(.*?)</style>", html, flags=re.DOTALL)
    for name, texts in (("script-src", scripts), ("style-src", styles)):
        hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts]
        assert found[name] == hashes and len(hashes) == 1
    assert found["default-src"] == ["'none'"] and not any("unsafe" in source for one in found.values() for source in one)
    assert set(found) <= {"default-src", "script-src", "style-src", "base-uri", "form-action"}, "nothing else is allowed"
    assert not re.search(r"<script(?! type=\"application/)(?!>)|\son\w+=|javascript:", html.replace(scripts[0], ""))
    look(tmp_path / "own.html" if (tmp_path / "own.html").write_text(html) else None)  # as it is, it opens
    taken = tmp_path / "taken.html"
    begin = html.index('<script type="application/json"')
    other = "<script>document.title='taken'</script><img src=http://127.0.0.1:9/x onerror=\"document.title='taken'\">"
    taken.write_text(html[:begin] + other + html[begin:])
    context = chromium.new_context(offline=True)
    opened = Opened.at(context, taken)
    assert opened.page.title() != "taken"
    assert sum("Content Security Policy" in text for text in opened.complaints) >= 2
    context.close()


def test_a_script_in_a_token_is_text(tiny: Maker, look) -> None:
    opened = look(tiny.page("trace-full"), where="#p=1")
    assert opened.page.title() != "taken" and opened.content["sequences"][1]["title"] == SCRIPT
    assert SCRIPT in text_of(opened)
    assert opened.page.evaluate("() => document.scripts.length") == 2 + len(opened.content["frames"])
    for name in opened.names:
        opened.show(name)
    assert opened.page.title() != "taken"


def tokens(opened: Opened) -> list[str]:
    return opened.page.eval_on_selector_all("[data-panel=tokens] [data-pos]", "all => all.map(one => one.textContent)")


def text_of(opened: Opened) -> str:
    """The text of the strip, with what stands for white space turned back."""
    return "".join(tokens(opened)).replace("·", " ").replace("↵", "\n").replace("⇥", "\t")


def test_texts_that_could_do_harm_are_shown_as_they_are(tiny: Maker, look) -> None:
    """A token a text: what cannot be seen is a sign, a mark has a ring to sit on, joiners stay in their words."""
    opened = look(tiny.page("spelled"))
    shown = dict(zip(SPELLED, tokens(opened), strict=True))
    same = ("a", "e\u0301", "مرحبا", "שלום", "<0xC3>", "\ufffd", "می\u200cخواهم", "\U0001f469\u200d\U0001f467", "中", "b")
    assert all(shown[text] == text for text in same)
    assert shown[SCRIPT] == SCRIPT.replace(" ", "·")
    signs = {"\u202eabc": "⟨U+202E⟩abc", "\u0301": "◌\u0301", "\x1b[31m": "⟨ESC⟩[31m", "\x00": "⟨NUL⟩", "\x7f": "⟨U+007F⟩",
             "\u2028": "⟨U+2028⟩",
             " ": "·", "\t": "⇥", "\n": "↵", "": "∅"}  # fmt: skip
    assert {text: shown[text] for text in signs} == signs


def test_halves_of_characters_are_named_by_their_bytes(tiny: Maker, look) -> None:
    """The tokenizer is one of bytes; no escape, override or NUL of the prompt is in the document as such."""
    opened = look(tiny.page("trace-full"), where="#p=2")
    shown = tokens(opened)
    assert "<0xE2><0x80><0xAE>abc" in "".join(shown) and "⟨ESC⟩" in shown and "⟨NUL⟩" in shown
    run = tiny["trace-full"]
    pieces = list(run.tokens[run.tokens["prompt_id"] == 2].sort_values("pos")["token"])
    plain = {
        i: piece for i, piece in enumerate(pieces) if piece and piece.isascii() and piece.isprintable() and " " not in piece
    }
    assert len(plain) > 10 and all(shown[i] == piece for i, piece in plain.items())
    said = opened.page.evaluate("() => document.body.innerText")
    assert not any(char in said for char in "\x1b\x00\u202e\u202c")
    chosen = opened.page.locator("select[name=prompt] option").nth(2).text_content()
    assert "⟨U+202E⟩" in chosen and "\u202e" not in chosen


@pytest.mark.parametrize("name", ["spelled", "odd"])
def test_text_from_right_to_left_leaves_its_neighbours_where_they_are(name: str, tiny: Maker, look) -> None:
    """Tokens of a line stand from left to right in the order of their positions, whatever is written in them."""
    opened = look(tiny.page(name), viewport={"width": 500, "height": 800})
    boxes = opened.page.eval_on_selector_all(
        "[data-panel=tokens] [data-pos]",
        "all => all.map(o => [Number(o.dataset.pos), o.getBoundingClientRect()]).map(([i, b]) => [i, b.top, b.left, b.right])",
    )
    assert [pos for pos, *_ in boxes] == list(range(len(tiny[name].tokens)))
    lines: dict[int, list[list[float]]] = {}
    for _, top, left, right in boxes:
        lines.setdefault(round(top), []).append([left, right])
    assert len(lines) > 1
    for line in lines.values():
        for (_, end), (begin, _) in pairwise(line):
            assert begin >= end - 0.5
