"""Regular expressions from outside: every one is searched or refused in one line, and soon, wherever one may be given."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.answers import extract
from probe.errors import BadOption
from probe.patterns import SECONDS, Pattern
from probe.spans import cuts

ENDLESS = r"(?:(?:x|xx)+)+c|(a+)+$"  # each more letter doubles what re would try
TEXT = "a" * 60 + "b" + "x" * 60


@pytest.mark.parametrize("search", [
    lambda: Pattern(ENDLESS, hint="h").search(TEXT), lambda: list(Pattern(ENDLESS, hint="h").spans(TEXT)),
    lambda: extract(TEXT, f"regex={ENDLESS}"), lambda: cuts(TEXT, f"regex:{ENDLESS}"),
])  # fmt: skip
def test_an_endless_search_ends(search, monkeypatch) -> None:
    monkeypatch.setattr("probe.patterns.SECONDS", 0.1)
    began = time.monotonic()
    with pytest.raises(BadOption, match="takes more than") as said:
        search()
    assert time.monotonic() - began < 30 and "repeats" in said.value.hint
    assert SECONDS <= 5  # what a user waits for


@pytest.mark.parametrize("wrong", ["(", "a{99999999999999}", "(" * 3000 + ")" * 3000, "\\", "(?P<x>a)(?P=y)", "a" * 20_000])
def test_what_is_no_expression_is_refused(wrong: str) -> None:
    with pytest.raises(BadOption) as said:
        Pattern(wrong, hint="write it so")
    assert said.value.hint == "write it so" and len(said.value.message) < 300


@given(st.text(max_size=20), st.text(max_size=40))
def test_any_expression_is_searched_or_refused(written: str, text: str) -> None:
    try:
        found = list(Pattern(written, hint="h").spans(text))
    except BadOption:
        return
    assert all(0 <= a <= b <= len(text) for a, b in found)


def test_groups_are_the_first_group_where_it_took_part() -> None:
    assert list(Pattern(r"a(\d)?", hint="h").groups("a1 a a2")) == [(1, 2), (3, 4), (6, 7)]
    assert Pattern("b+", hint="h").search("abba") == (1, 3) and Pattern("c", hint="h").search("abba") is None
