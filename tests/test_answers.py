"""Answers: keys that make classes, rules that find the last word, and spans that are what they say."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from probe.answers import NONE, canonical, equal, explain, extract, merge
from probe.errors import BadOption

SAME = [
    ("1,000", "1000"), ("12", "12.0"), ("12.", "12"), ("0.5", r"\frac12"), ("1/2", r"\dfrac{1}{2}"), (".5", "0.50"),
    ("$5", "5"), ("−3", "-3"), ("- 3", "-3"), (r"\text{cat}", "Cat."), ("(3,4)", "(3, 4)"), ("3e2", "300"), ("+7", "7"),
    (r"3\times 10^{2}", "300"), ("50%", r"50\%"), ("2/4", "1/2"), (r"\left( 1, 2 \right)", "(1,2)"), ("½", "0.5"),
    (r"\$12", "12"), ("**42**", "42"), (r"\(x + 1\)", "x+1"), ("Yes.", "yes"), ("1,234,567.50", "1234567.5"), ("0012", "12"),
    (r"\boxed{7}", "7"), (r"10\,000", "10000"), ("12345678901234567890", "12345678901234567890.0"), ("-0", "0"),
]  # fmt: skip
OTHER = [
    ("50%", "0.5"), ("(3,4)", "(3.4)"), ("12", "13"), ("1/0", "0"), ("12345678901234567890", "12345678901234567891"),
    ("0.1", "0.10000000000000001"), ("a", "b"), ("-3", "3"), ("1,2", "12"), ("x", "2x"), ("[1,2]", "(1,2)"),
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


@example(". .")
@example("'a'.")
@given(st.text(alphabet="0123456789.,/-+%$eE \\frac{}()abx", max_size=24))
def test_a_key_is_its_own_key(text: str) -> None:
    assert canonical(canonical(text)) == canonical(text)


@given(st.text(max_size=80), st.sampled_from(["auto", "last-number", "boxed", "choice", "yes-no"]))
def test_any_text_can_be_read(text: str, how: str) -> None:
    found = extract(text, how)
    assert text[found.start : found.end] == found.text and (found.key == NONE) == (found.rule == "")


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**6))
def test_numbers_are_exact(top: int, bottom: int) -> None:
    assert equal(f"{top}/{bottom}", f"{top * 7}/{bottom * 7}") and not equal(f"{top}/{bottom}", f"{top + 1}/{bottom}")


@pytest.mark.parametrize("how", ["best", "regex=(", ""])
def test_an_unknown_rule_is_refused(how: str) -> None:
    with pytest.raises(BadOption):
        extract("x", how)


def test_merging_is_a_step_of_its_own(monkeypatch) -> None:
    """Symmetric, off the main thread, and without the extra a clear line."""
    from concurrent.futures import ThreadPoolExecutor

    keys = ["x+1", "1+x", "2/3", NONE, "sqrt(8)", "2*sqrt(2)", "(1,2)"]
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(merge, keys).result()
    assert found == {**{key: key for key in keys}, "1+x": "x+1", "2*sqrt(2)": "sqrt(8)"}
    assert merge(keys, timeout=0.01) == {key: key for key in keys}
    monkeypatch.setattr("probe.answers.merging.find_spec", lambda name: None)
    with pytest.raises(BadOption, match="math-verify"):
        merge([])
