"""Steps: hand-marked cuts, and that steps tile the text and the tokens whatever it is."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.errors import BadOption
from probe.spans import cuts, split, steps

TEXTS = (Path(__file__).parent / "texts" / "steps.txt").read_text(encoding="utf-8").splitlines()[1:]
LINES = [
    ("one line\ntwo lines\nthree", "line", ["one line\n", "two lines\n", "three"]),
    ("a first paragraph\nstill it\n\nthe second one", "paragraph", ["a first paragraph\nstill it\n\n", "the second one"]),
    ("a; b; c", "regex:;\\s*", ["a; ", "b; ", "c"]),
    ("Look at these things:\n1. Take the first apple\n2. Take the second apple\n3. Eat both apples", "sentence",
     ["Look at these things:\n", "1. Take the first apple\n", "2. Take the second apple\n", "3. Eat both apples"]),
    ("Some points here:\n- the first point\n- the second point", "sentence",
     ["Some points here:\n", "- the first point\n", "- the second point"]),
    ("The first part is over\n\nThe second part begins", "sentence", ["The first part is over\n\n", "The second part begins"]),
    ("<think>Let me think about it.</think>The answer is seven.", "sentence",
     ["<think>", "Let me think about it.", "</think>", "The answer is seven."]),
    ("```\na. b. c\nd. e. f\n```\nThat was the code of it.", "sentence",
     ["```\na. b. c\nd. e. f\n```\n", "That was the code of it."]),
]  # fmt: skip


@pytest.mark.parametrize("line", TEXTS)
def test_sentences_end_where_a_careful_reader_ends_them(line: str) -> None:
    marked = line.partition(": ")[2].replace("⏎", "\n").replace("\\r", "\r")
    text, wanted = marked.replace("¦", ""), marked.split("¦")
    found = [text[a:b] for a, b in split(text)]
    assert [step.strip() for step in found] == [step.strip() for step in wanted]
    assert "".join(found) == text


@pytest.mark.parametrize(("text", "how", "wanted"), LINES)
def test_other_cuts(text: str, how: str, wanted: list[str]) -> None:
    assert [text[a:b] for a, b in split(text, how)] == wanted


PIECES = st.sampled_from([
    "a", "B", "I", "5", " ", "  ", "\n", "\n\n", ".", "?", "!", "…", "...", "$", "$$", "\\[", "\\]", "\\(",
    "\\)", "`", "```", "\n```\n", "|", "\n| a |", "\n|---|", "<think>", "</think>", "(", ")", "“", "”", '"',
    "'", "*", "**", "- ", "1. ", "# ", "。", "？", "」", "「", "我", "।", "؟", "No", "e.g.", "Then", "\r\n", "\t",
    "😀", "é", "\u200b", "https://a.b", "\\begin{a}", "\\end{a}", "<|channel|>final<|message|>",
])  # fmt: skip


@pytest.mark.slow
@given(st.lists(PIECES, max_size=40).map("".join), st.sampled_from(["sentence", "line", "paragraph"]))
def test_steps_tile_the_text(text: str, how: str) -> None:
    spans = split(text, how)
    assert "".join(text[a:b] for a, b in spans) == text
    assert all(a < b for a, b in spans) and [b for _, b in spans[:-1]] == [a for a, _ in spans[1:]]
    assert [cut.high for cut in cuts(text, how)] == sorted({cut.high for cut in cuts(text, how)})


@given(
    st.lists(st.text(alphabet="ab. \n", max_size=5), min_size=1, max_size=30),
    st.sampled_from(["sentence", "line", "paragraph", "token"]),
)
def test_steps_tile_the_tokens(tokens: list[str], how: str) -> None:
    text, offsets, at = "".join(tokens), [], 0
    for token in tokens:
        offsets.append((at, at + len(token)))
        at += len(token)
    found = steps(text, offsets, how)
    assert [s.start for s in found] == [0, *(s.end for s in found[:-1])] and found[-1].end == len(tokens)
    assert all(s.start < s.end for s in found)
    assert all(s.text == text[offsets[s.start][0] : offsets[s.end - 1][1]] for s in found)


def test_a_cut_inside_a_token_is_recorded() -> None:
    text = "The first one is here.Another one is there."
    offsets = [(0, 18), (18, 30), (30, len(text))]
    found = steps("The first one is here. Another one is there.", [(0, 18), (18, 30), (30, 44)])
    assert [s.mid_token for s in found] == [False, True] and found[1].start == 1
    assert [s.mid_token for s in steps(text, offsets, "line")] == [False]


@pytest.mark.parametrize(
    "unit",
    ["This is a sentence with 3.5 parts. ", "我有三个苹果。", "“他。”就", "x", "\n", "\n ", " " * 7 + "a", "\\[ ", "$$ ", "$5 ",
     "```\n", "| a |\n", "(He. ", '" ', "5! is ", "<think> ", "\\begin{a} ", "1. a\n", "Is it? No. ", "A. B. ", "a|b\n-|-\n"],
)  # fmt: skip
def test_long_texts_take_linear_time(unit: str) -> None:
    """Eight times the text: eight times the time and no more than twice that, where a quadratic rule would take 64 times."""

    def seconds(n: int) -> float:
        text = (unit * (n // len(unit) + 1))[:n]
        began = time.process_time()
        split(text)
        return time.process_time() - began

    short = min(seconds(5_000) for _ in range(3))
    assert min(seconds(40_000) for _ in range(2)) < 24 * short + 0.25


def test_a_long_text_has_all_its_sentences() -> None:
    assert len(split("This is a sentence with 3.5 parts. " * 3000)) == 3000
    assert len(split("我有三个苹果。" * 3000)) == 3000


@pytest.mark.parametrize("opening", ["", "<think>\n", "```python\n", "$$ x = ", "\\[", "- a\n| b |\n"])
@pytest.mark.parametrize(
    "close", ["</think>", "</seed:think>", "</reasoning>", "◁/think▷", "[/THINK]", "<|channel|>final<|message|>"]
)
def test_no_step_holds_both_thinking_and_answer(opening: str, close: str) -> None:
    """Also where the template opened the thinking, or code or a formula in it was never closed."""
    text = f"{opening}It is 42.\n{close}\n\nThe answer is 42."
    found = [text[a:b] for a, b in split(text)]
    assert found[-1] == "The answer is 42." and found[-2].strip() == close


def test_a_tag_that_is_quoted_ends_nothing() -> None:
    assert len(split("I write `</think>` there. ")) == 1


def test_help_and_import_need_no_splitter() -> None:
    code = "import sys, probe, probe.cli.main, probe.spans; print('sentencex' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.parametrize("how", ["chapter", "regex:", "regex:(", "spans:none.json"])
def test_a_split_that_is_none(how: str) -> None:
    with pytest.raises(BadOption):
        split("text", how)
