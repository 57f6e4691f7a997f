"""How the page shows a text, breaks it into lines and keeps its cursor: the modules that need no document, run by node."""

from __future__ import annotations

import itertools
import json
import subprocess
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np

from .needed import program

SOURCES = Path(__file__).parents[2] / "probe" / "reporting" / "web" / "src"


def run_node(imports: str, module: str, expression: str, given: Any) -> Any:
    """What an expression over `given` is, in JSON."""
    script = f"""import {{ {imports} }} from {json.dumps((SOURCES / module).as_uri())};
    let text = ""; for await (const part of process.stdin) text += part;
    const given = JSON.parse(text); console.log(JSON.stringify({expression}));"""
    command = [program("node"), "--input-type=module", "-e", script]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nothing_unseen_and_nothing_that_turns_is_shown() -> None:
    """Of every character that Unicode counts among controls, formats, halves and spaces (UAX 44) a sign stands there."""
    unseen = {"Cc", "Cf", "Cs", "Co", "Zs", "Zl", "Zp"}
    shaped = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x8E2}  # the Arabic number signs are seen
    codes = [code for code in range(0x3000) if unicodedata.category(chr(code)) in unseen and code not in shaped]
    codes += [0xD83D, 0xDE00, 0xE000, 0xFEFF, 0xFFF9, 0xE0001, 0xE007F]
    shown = run_node("shown", "text.js", "given.map(shown)", [chr(code) for code in codes])
    assert len(set(shown)) == len(codes)
    for code, text in zip(codes, shown, strict=True):
        assert text and chr(code) not in text and not {unicodedata.category(c) for c in text} & unseen, hex(code)


def test_what_is_seen_is_shown_as_it_is() -> None:
    texts = ["Paris", "</script><script>", "مرحبا", "日本", "\U0001f469\u200d\U0001f467", "e\u0301", "x·y"]
    assert run_node("shown", "text.js", "given.map(shown)", texts) == texts
    strange = [" Paris", "a\n\n", "\t", "\x1b[31m", "\u0301", "", "\u202eabc", "\u200d"]
    wanted = ["·Paris", "a↵↵", "⇥", "⟨ESC⟩[31m", "◌\u0301", "∅", "⟨U+202E⟩abc", "⟨U+200D⟩"]
    assert run_node("shown", "text.js", "given.map(shown)", strange) == wanted


def test_lines_hold_every_token_once_and_are_as_wide_as_the_window() -> None:
    """Random tokens of random widths, folded here and there; a line is not shorter than it needs to be."""
    random = np.random.default_rng(0)
    texts = [str(text) for text in random.choice([" the", "ing", " a", ".\n", ",", " strawberry"], 400)]
    steps = np.sort(random.integers(0, 20, 400)).tolist()
    bounds = [0, *(i for i in range(1, 400) if steps[i] != steps[i - 1]), 400]
    parts = [{"step": steps[a], "start": a, "end": b, "key": str(a)} for a, b in itertools.pairwise(bounds)]
    folded = [parts[3]["key"], parts[-1]["key"]]
    call = "wrapped(given.parts, new Set(given.folded), given.texts, (text) => 10 * text.length, 120)"
    lines = run_node("wrapped", "wrapping.js", call, {"parts": parts, "folded": folded, "texts": texts})
    assert [i for line in lines for i in range(line["start"], line["end"])] == list(range(400))
    assert sum(line["folded"] for line in lines) == 2 and sum(line["first"] for line in lines) == len(parts)
    for line, after in itertools.pairwise(lines):
        held = texts[line["start"] : line["end"]]
        if line["folded"]:
            continue
        assert 10 * sum(map(len, held)) <= 120 or len(held) == 1
        assert not any("\n" in text for text in held[:-1])
        ended = "\n" in held[-1] or after["first"]
        if not ended:  # what comes up to the next white space would not have fitted
            word = [texts[after["start"]]]
            for text in texts[after["start"] + 1 : after["end"]]:
                if text[0].isspace():
                    break
                word.append(text)
            assert 10 * sum(map(len, [*held, *word])) > 120


def test_the_address_says_where_the_cursor_is() -> None:
    cursor = {"token": 57, "layer": 12, "head": 3, "prompt": 0, "branch": None, "run": 0, "step": 4}
    address = run_node("toAddress", "cursor.js", "toAddress(given)", cursor)
    assert address == "#t=57&l=12&h=3&p=0&r=0"
    back = run_node("fromAddress", "cursor.js", "fromAddress(given)", address)
    assert back == {**cursor, "step": None}  # it follows from the token
    odd = run_node("fromAddress", "cursor.js", "fromAddress(given)", "#t=1e9&l=<b>&h=&p=3&b=-1&zz=1")
    assert odd == {"token": None, "layer": None, "head": None, "prompt": 3, "branch": -1, "run": None, "step": None}
