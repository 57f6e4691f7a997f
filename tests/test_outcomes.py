"""What a completion comes to by expressions, and what may be said of outcomes in a request."""

from __future__ import annotations

import pytest

from probe.errors import BadOption
from probe.outcomes import OTHER, OutcomeRule, outcome_class
from probe.requests import OutcomeOptions, Rewind

REFUSE = OutcomeRule.parse(outcome=["refuse=/I can.t/", "hedge=/perhaps/i"])


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("Sorry, I can't.", "refuse"),
        ("PERHAPS I can't.", "refuse"),  # the first class that matches, not the first match
        ("PERHAPS so", "hedge"),
        ("i can't", OTHER),
        ("<think>I can't</think> Sure.", OTHER),  # what is thought is not said
        ("", OTHER),
    ],
)
def test_the_first_pattern_that_matches_is_the_outcome(text: str, outcome: str) -> None:
    assert outcome_class(text, REFUSE).key == outcome


def test_the_match_is_kept_as_it_is_written() -> None:
    found = outcome_class("Well, PERHAPS so", REFUSE)
    assert found == ("hedge", "PERHAPS", "outcome", None)


def test_thinking_is_searched_where_that_is_asked_for() -> None:
    rule = OutcomeRule.parse(outcome=["doubt=/wait/it"])
    assert outcome_class("<think>Wait, no</think> Yes.", rule).key == "doubt"
    assert outcome_class("Wait, no</think> Yes.", rule, thinking=True).key == "doubt"
    assert outcome_class("Wait, no</think> Yes.", OutcomeRule.parse(outcome=["doubt=/wait/i"]), thinking=True).key == OTHER


def test_a_text_that_was_cut_off_has_the_outcome_that_is_seen_in_it_already() -> None:
    assert outcome_class("I can't", REFUSE, stop_reason="length").key == "refuse"
    assert outcome_class("I would", REFUSE, stop_reason="context").key == "<truncated>"
    assert outcome_class("<think>hm", REFUSE, ended=False).key == "<truncated>"
    assert outcome_class("<think>hm", REFUSE, ended=True).key == OTHER


def test_special_tokens_are_not_said() -> None:
    assert outcome_class("yes I can't", REFUSE, hidden=[(4, 11)]).key == OTHER


def test_without_patterns_it_is_the_answer() -> None:
    assert outcome_class("so \\boxed{1,000}").key == outcome_class("the answer is 1000.", OutcomeRule()).key == "1000"
    assert outcome_class("so \\boxed{1,000}", stop_reason="length").key == "<truncated>"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("refuse", "no class"), ("=/x/", "no class"), ("<none>=/x/", "no class"), ("a=/x/q", "unknown: q"), ("a=//", "empty"),
        ("a=/(/", "not a regular expression"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said(written: str, said: str) -> None:
    with pytest.raises(BadOption, match=said):
        OutcomeRule.parse(outcome=[written])


def test_the_right_outcome_is_one_of_those_that_are_named() -> None:
    assert REFUSE.expected("hedge") == "hedge" and REFUSE.expected(OTHER) == OTHER
    assert OutcomeRule().expected("1,000") == "1000"
    with pytest.raises(BadOption, match="no outcome is called 'refused'") as caught:
        OutcomeOptions(outcome=("refuse=/no/",), expect="refused").check_outcomes()
    assert "refuse, <other>" in caught.value.hint
    with pytest.raises(BadOption, match="named twice"):
        OutcomeOptions(outcome=("a=/b/", "a=/c/")).check_outcomes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"outcome": ("a=/b/",), "judge": "cat"}, "--outcome and --judge"),
        ({"labels": "x.csv", "judge": "cat"}, "--labels and --judge"),
        ({"judge": "  "}, "empty command"),
        ({"judge": "cat", "judge_timeout": 0.0}, "judge-timeout is 0"),
        ({"answer": "last"}, "unknown way to find answers"),
        ({"answer": "regex=("}, "not a regular expression"),
    ],
)
def test_two_ways_to_say_what_an_outcome_is_are_refused(options: dict, said: str) -> None:
    with pytest.raises(BadOption, match=said):
        OutcomeOptions(**options).check_outcomes()


@pytest.mark.parametrize("more", [{"until": 0.1}, {"budget": "1000"}])
def test_who_labels_at_the_end_cannot_say_when_to_stop(more: dict) -> None:
    with pytest.raises(BadOption, match="look at outcomes while they draw"):
        Rewind("run", to="step1", judge="cat", **more)


def test_the_right_class_of_a_problem() -> None:
    assert OutcomeOptions().expected("1,000") == "1000" and OutcomeOptions(expect="7").expected("8") == "7"
    patterns = OutcomeOptions(outcome=("refuse=/no/",))
    assert patterns.expected("refuse") == "refuse" and patterns.expected("18") is None
    judged = OutcomeOptions(judge="cat")
    assert judged.expected("18") is None and judged.expected("yes", known={"yes"}) == "yes"
    assert OutcomeOptions(judge="cat", expect="no").expected("yes", known={"yes"}) == "no"
