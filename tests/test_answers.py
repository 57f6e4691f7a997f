"""Answers: keys that make classes, rules that find the last word, and spans that are what they say."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from probe.answers import HOWS, NONE, canonical, equal, explain, extract, key, merge, opens_thinking, speech
from probe.errors import BadOption

ROWS = [json.loads(line) for line in (Path(__file__).parent / "answers.jsonl").read_text().splitlines()]
SAME = [
    ("1,000", "1000"), ("12", "12.0"), ("12.", "12"), ("0.5", r"\frac12"), ("1/2", r"\dfrac{1}{2}"), (".5", "0.50"),
    ("$5", "5"), ("−3", "-3"), ("- 3", "-3"), (r"\text{cat}", "Cat."), ("(3,4)", "(3, 4)"), ("3e2", "300"), ("+7", "7"),
    (r"3\times 10^{2}", "300"), ("50%", r"50\%"), ("2/4", "1/2"), (r"\left( 1, 2 \right)", "(1,2)"), ("½", "0.5"),
    (r"\$12", "12"), ("**42**", "42"), (r"\(x + 1\)", "x+1"), ("Yes.", "yes"), ("1,234,567.50", "1234567.5"), ("0012", "12"),
    (r"\sqrt{12}", r"2\sqrt{3}"), ("1+x", "x+1"), (r"\frac{1}{\sqrt2}", r"\frac{\sqrt{2}}{2}"), ("2^{10}", "1024"),
    ("2 1/2", "5/2"),
    (r"2\frac12", "2.5"), ("12 345", "12345"), ("1.234.567", "1234567"), ("1.234,50", "1234.5"), ("2.5 million", "2500000"),
    ("x = 5", "5"), ("(B)", "b."), ("between 5 and 10", "5 to 10"), ("3 or 5", "5, 3"), (r"\{3, 1\}", "{1,3}"),
    ("twelve", "12"),
    ("cm²", "cm^2"), (r"\left(\frac12, 3\right)", "(0.5,3)"), (r"2\pi r", "2*pi*r"), ("11/2", "5.5"), ("10!", "3628800"),
    (r"\boxed{7}", "7"), (r"10\,000", "10000"), ("12345678901234567890", "12345678901234567890.0"), ("-0", "0"),
]  # fmt: skip
OTHER = [
    ("50%", "0.5"), ("(3,4)", "(3.4)"), ("12", "13"), ("1/0", "0"), ("12345678901234567890", "12345678901234567891"),
    ("0.1", "0.10000000000000001"), ("a", "b"), ("-3", "3"), ("1,2", "12"), ("x", "2x"), ("[1,2]", "(1,2)"),
    (r"\sqrt{2}", r"2\sqrt{3}"), ("12 cm", "12 m"), ("3,5", "5,3"), ("2 1/2", "21/2"), ("(1,2)", "(2,1)"), ("x+1",
    "x-1"), ("h2o", "oh2"),
    ("10!", "10"),
]  # fmt: skip
FOUND = [
    ("The answer is based on what she bought: 7. Her total", "auto", "7"),
    ("Here the answer is often calculated by dividing. So 3", "auto", "3"),
    ("So Alice has 3 + 4 = 7 apples.", "auto", "7"),
    ("The answer is 12. Then 15 more", "auto", "12"),
    ("x \\boxed{\\frac{1}{2}} y 9", "auto", "1/2"),
    ("\\boxed{1} and \\boxed{2}", "auto", "2"),
    ("\\boxed{a_{1}} 3", "boxed", "a_{1}"),
    ("#### 1,234", "auto", "1234"),
    ("It is (B).", "choice", "B"),
    ("Answer: C", "choice", "C"),
    ("A dog ran. The choice: D.", "choice", "D"),
    ("maybe yes, but no", "yes-no", "no"),
    ("3 - 2 = 1", "last-number", "1"),
    ("it is -4", "auto", "-4"),
    ("7 - 4", "last-number", "4"),
    ("7-4", "last-number", "4"),
    ("no digits", "auto", NONE),
    ("costs $1,200.50.", "auto", "2401/2"),
    ("Answer: Paris", "auto", "paris"),
    ("The final answer is: **42**", "auto", "42"),
    ("version 1.2.3", "auto", NONE),
    ("x is 5.\nThe answer is 6.\nor 7", "auto", "6"),
    ("The answer is 5 apples, not 6", "auto", "5"),
    ("about 3/4 of it", "auto", "3/4"),
    ("it is 12%.", "auto", "12%"),
    ("id: ab12cd", "regex=ab(\\d+)", "12"),
    ("x7 y8", "regex=[xy]\\d", "y8"),
    ("nothing", "regex=q", NONE),
    ("", "auto", NONE),
    ("unclosed \\boxed{3", "boxed", NONE),
    ("8 apples.<|im_end|>", "auto", "8"),
    ("1e3 volts", "auto", "1000"),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_one_class(a: str, b: str) -> None:
    assert equal(a, b), (canonical(a), canonical(b))


@pytest.mark.parametrize(("a", "b"), OTHER)
def test_two_classes(a: str, b: str) -> None:
    assert not equal(a, b), canonical(a)


@pytest.mark.parametrize(("text", "how", "key"), FOUND)
def test_extraction(text: str, how: str, key: str) -> None:
    found = extract(text, how)
    assert found.key == key, found
    assert text[found.start : found.end] == found.text
    chosen = [candidate for candidate in explain(text, how) if candidate.chosen]
    assert [c.key for c in chosen] == ([] if key == NONE else [key])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["text"][:40])
def test_answers_are_what_a_careful_reader_says(row: dict) -> None:
    found = extract(row["text"], row["how"])
    assert found.key in {canonical(text) for text in row["accepted"]} | {NONE} & set(row["accepted"]), found
    assert (found.confidence in ("high", "medium", "low")) == (found.key != NONE)


@example(". .")
@example("'a'.")
@example("2\\frac12")
@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="0123456789.,/-+%$eE \\frac{}()abx", max_size=24))
def test_a_key_is_its_own_key(text: str) -> None:
    assert canonical(canonical(text)) == canonical(text)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([
    "1,000", "2", " ", "½", "\\sqrt", "{3}", "and", "or", "to", "between", "x", "=", "(", ")", "[", ",", ".", "!", "%",
    "B", "yes",
    "million", "\\text{a}", "^2", "°", "é", "-", "\\frac", "{1}", "\\pi", "seven", "'", "*",
]), max_size=7).map("".join))  # fmt: skip
def test_a_key_is_its_own_key_however_it_is_put_together(text: str) -> None:
    assert canonical(canonical(text)) == canonical(text)


@pytest.mark.slow
@settings(deadline=None)
@given(st.text(max_size=80), st.sampled_from(["auto", "last-number", "boxed", "choice", "yes-no"]))
def test_any_text_can_be_read(text: str, how: str) -> None:
    found = extract(text, how)
    assert text[found.start : found.end] == found.text and (found.key == NONE) == (found.rule == "")


@settings(deadline=None)
@given(st.integers(-(10**30), 10**30), st.integers(1, 10**6))
def test_numbers_are_exact(top: int, bottom: int) -> None:
    assert equal(f"{top}/{bottom}", f"{top * 7}/{bottom * 7}") and not equal(f"{top}/{bottom}", f"{top + 1}/{bottom}")


@pytest.mark.parametrize("how", ["best", "regex=(", ""])
def test_an_unknown_rule_is_refused(how: str) -> None:
    with pytest.raises(BadOption):
        extract("x", how)


@pytest.mark.parametrize(("written", "how", "same"), [
    ("B", "choice", "The answer is **b**"), ("b", "choice", "(B)"), ("Option B", "choice", "B<|im_end|>"), ("No.",
    "yes-no", "no, because"),
    ("12 apples", "auto", r"\boxed{12}"), ("x = 5", "auto", "Answer: 5"), (r"\boxed{1{,}000}", "auto", "#### 1,000"),
    ("7", "last-number", "7"),
    ("Paris", "auto", "The answer is Paris."), ("18", "regex=(\\d+)", "18"), (r"\frac{\sqrt{12}}{2}",
    "boxed", r"\boxed{\sqrt{3}}"),
])  # fmt: skip
def test_what_is_expected_is_read_by_the_rule_in_use(written: str, how: str, same: str) -> None:
    assert key(written, how) == extract(same, how).key != NONE
    assert key(key(written, how), how) == key(written, how)


@pytest.mark.parametrize(("text", "opened", "found"), [
    ("<think>Is it 41?</think>It is 42.", False, "42"), ("Is it 41?</think> It is 42.", True, "42"),
    ("Is it 41? 42", True, NONE),
    ("<think>41", False, NONE), ("a</think>b 5<think>6", True, "5"), ("[THINK]4[/THINK]5", False, "5"),
    ("◁think▷4◁/think▷5", False, "5"),
    ("<|channel|>analysis<|message|>41<|end|><|start|>assistant<|channel|>final<|message|>42<|return|>", False, "42"),
    ("<|channel|>analysis<|message|>41", False, NONE),
])  # fmt: skip
def test_what_is_thought_is_no_answer(text: str, opened: bool, found: str) -> None:
    assert extract(text, thinking=opened).key == found
    assert speech(text, opened=opened).thinking == (found == NONE or text.endswith("6"))
    assert opens_thinking("user: hi <think>\n") and not opens_thinking("<think></think> hi")


def test_special_tokens_are_known_by_shape_and_by_place() -> None:
    assert extract("#### 18<|im_end|>").key == extract("#### 18</s>").key == extract("#### 18<eos>").key == "18"
    assert extract("It is 7 END9", hidden=[(8, 12)]).key == "7" and extract("It is 7 END9").key == "7"
    assert extract("It is 7 and 9", hidden=[(12, 13)]).key == "7"


@pytest.mark.parametrize("how", [*HOWS[:-1], "regex=a+"])
@pytest.mark.parametrize("unit", [
    "1", "1,", "1,111", "((1,", "\\boxed{", "}", "the answer is ", "answer is 5. Wait, ", "x = 2 and x = 3 ", "$1",
    "<think>", "</think>",
    "<|a", "- ", "1 111 ", "1.", "\n", "it is ", "is the answer ", "*", "[", "A, ", "yes or no ", "because ", "1{,}111",
])  # fmt: skip
def test_reading_is_linear(unit: str, how: str) -> None:
    """Four times the text takes at most about four times as long: the law is of the processor's time, with room for noise."""

    def seconds(n: int) -> float:
        text = (unit * n)[:n]
        began = time.process_time()
        extract(text, how)
        return time.process_time() - began

    seconds(500)
    # the least of three: a collection of garbage in between is not the text's
    assert min(seconds(8_000) for _ in range(3)) < 8 * seconds(2_000) + 0.25


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from(["x+1", "1+x", "(x+1)^2", "x^2+2*x+1", "sqrt(8)", "2*sqrt(2)", "7", NONE, "paris"]), max_size=6)
)
def test_merging_is_an_equivalence(keys: list[str]) -> None:
    """Any order, any company: two keys are one class or they aren't; a class goes by its first key."""
    merged = merge(keys)
    assert set(merged) == set(keys) and all(merged[merged[one]] == merged[one] for one in keys)
    for one, other in pairwise(keys):
        alone = merge([one, other])
        assert (alone[one] == alone[other]) == (merged[one] == merged[other])


@pytest.mark.slow
def test_a_lost_process_costs_only_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes too long has no form; the next formula is read by another process."""
    from probe.answers import algebra

    process = algebra._Process()
    try:
        assert process.ask("x+1", "form", 0.0) is None and process.ask("1+x", "form", 60) == "x+1"
        assert canonical("2003^{2002^{2001}}") == "2003^{2002^{2001}}" and canonical("10^{99999}") == "10^{99999}"
    finally:
        process.stop()


def test_merging_is_a_step_of_its_own() -> None:
    """Off the main thread too, and within its time."""
    from concurrent.futures import ThreadPoolExecutor

    keys = ["x+1", "1+x", "2/3", NONE, "sqrt(8)", "2*sqrt(2)", "(1,2)"]
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(merge, keys).result()
    assert found == {**{key: key for key in keys}, "1+x": "x+1", "2*sqrt(2)": "sqrt(8)"}
    assert merge(keys, timeout=0.01) == {key: key for key in keys}
