"""`--negate`: what a careful writer makes of a claim turned round, by kind; and what is refused."""

from __future__ import annotations

import pytest

from probe.errors import BadOption
from probe.spans.negating import negate

TURNED = [
    # a negation is taken out
    ("It is not true", "It is true"), ("We can't do it.", "We can do it."), ("We can’t do it.", "We can do it."),
    ("It won't work.", "It will work."), 
    ("I shan't go.", "I shall go."), ("It cannot be.", "It can be."), ("She doesn't have 3.", "She does have 3."),
    ("We couldn't have known.", "We could have known."), ("They don’t add up.", "They do add up."),
    ("9 is definitely not prime.", "9 is definitely prime."), ("It never ends.", "It always ends."),
    ("There are no apples.", "There are some apples."), ("There isn't any.", "There is some."),
    ("We haven't got it.", "We have got it."), ("Ann needn't go.", "Ann must go."), ("Not all are red.", "All are red."),
    ("Let's not add them.", "Let's add them."), ("It's not 5.", "It's 5."), ("So it is impossible.", "So it is possible."),
    # the first finite verb
    ("She wants to have 3.", "She does not want to have 3."),
    ("He has to have 3 of them.", "He does not have to have 3 of them."),
    ("We need to have 4 more.", "We do not need to have 4 more."), ("To have 3 she buys 4.", "To have 3 she does not buy 4."),
    ("Alice has 3 apples.", "Alice does not have 3 apples."), ("They had 5.", "They did not have 5."),
    ("Alice has bought 3.", "Alice has not bought 3."), ("They have been there.", "They have not been there."),
    ("We have to add 4.", "We do not have to add 4."), ("He will have 3.", "He will not have 3."),
    ("She could have had 3.", "She could not have had 3."), ("We can halve it.", "We cannot halve it."),
    ("It's 5.", "It's not 5."), ("Alice's apples are red.", "Alice's apples are not red."), ("We'll see.", "We will not see."),
    ("I've added them.", "I have not added them."), ("Let's add them.", "Let's not add them."),
    ("It gives 7.", "It does not give 7."), ("We get 7.", "We do not get 7."),
    ("If n is even, we can halve it.", "If n is even, we cannot halve it."),
    ("A can of beans costs 3.", "A can of beans does not cost 3."),
    ("The will has 3 pages.", "The will does not have 3 pages."),
    ("Will has 3 apples.", "Will does not have 3 apples."), ("What is 3 + 4? It is 7.", "What is 3 + 4? It is not 7."),
    ("The formula is $x is 3$.", "The formula is not $x is 3$."), ("`is` has 2 letters.", "`is` does not have 2 letters."),
    # replies, opposites and signs
    ("Yes, it is 5.", "No, it is not 5."), ("No, it is not 5.", "Yes, it is 5."), ("No.", "Yes."),
    ("Therefore, the answer is correct.", "Therefore, the answer is incorrect."),
    ("3 + 4 = 7", "3 - 4 = 7"), ("So x > 5.", "So x < 5."), ("$3 + 4$", "$3 - 4$"),
]  # fmt: skip
REFUSED = [
    "Hello there", "What is 3 + 4?", "Can you do it?", "To be or to have.", "They ain't here.", "It is not 5 but 7.",
    "It is not only 5.", "Use `is` here.", "I'd have 3.", "First, to have enough", "我有三个苹果。", "",
]  # fmt: skip


@pytest.mark.parametrize(("claim", "other"), TURNED)
def test_a_claim_turned_round(claim: str, other: str) -> None:
    assert negate(claim) == other


@pytest.mark.parametrize("claim", REFUSED)
def test_what_no_rule_turns_round_well_is_refused(claim: str) -> None:
    with pytest.raises(BadOption, match="no rule") as caught:
        negate(claim)
    assert "--replace" in caught.value.hint


@pytest.mark.parametrize("verb", ["is", "are", "was", "were", "could", "would", "should", "must", "has", "have", "had", "does"])
@pytest.mark.parametrize("mark", ["'", "’"])
def test_every_contraction_loses_its_negation_only(verb: str, mark: str) -> None:
    assert negate(f"So it {verb}n{mark}t been seen.") == f"So it {verb} been seen."
    assert negate(f"So it {verb} not been seen.") == f"So it {verb} been seen."
