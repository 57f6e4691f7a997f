"""Steps: hand-marked cuts, and that steps tile the text and the tokens whatever it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.errors import BadOption
from probe.spans import cuts, split, steps

# `|` marks where a step ends and the next begins
SENTENCES = r"""
The first step is here. |The second step is there.
Is it really so simple? |It certainly seems so! |Then we are finished.
The value is 3.14 and it stays. |Nothing else is needed.
It costs $3.50 at the shop. |That is 1,250.75 in all.
We use e.g. a table for this. |Then we go on with it.
Some of it, i.e. the larger part, is left. |The rest is gone.
See Fig. 3 for the details. |It shows the whole curve.
According to Dr. Smith it works. |His result is well known.
Mr. and Mrs. Jones bought apples. |They paid with a note.
The U.S. economy grew by 2.5 percent. |Others did not grow.
We compare A vs. B in the table. |The second one wins it.
By Thm. 2 the claim follows. |This ends the proof here.
J. R. R. Tolkien wrote the book. |It was a great success.
Let $x = 3.5. y$ be the number. |Then we can go on from it.
The formula $$a. b. c$$ is long. |We do not need all of it.
We have \[x. y. z\] as a result. |The rest follows at once.
So \(f(x) = 2. 5\) is the value. |It is what we wanted first.
He said "I am done." |Then he left the large room.
She asked "Is it so?" and waited. |Nobody gave her an answer.
(This is an aside.) |The main text goes on after it.
Wait... that is not quite right. |Let me try it once more.
Use `a.b. c` in the code here. |It returns a large number.
Visit https://example.com/a.b for more. |It is a long page there.
The file is called main.py and it runs. |It prints one long line.
Version 2.0.1 is the newest one. |Older ones do not work.
An unterminated last sentence follows. |and it goes on without an end
At 5 p.m. we leave the old house. |The train goes at seven.
The answer is (B). |The others are clearly wrong.
It is 5 ft. long and very heavy. |Nobody can lift it alone.
"""
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
    ("```\na. b. c\nd. e. f\n```\nThat was the code of it.", "sentence", None),
]  # fmt: skip
MARKED = [line for line in SENTENCES.strip().splitlines() if line]


@pytest.mark.parametrize("marked", MARKED)
def test_sentences(marked: str) -> None:
    wanted = marked.split("|")
    text = "".join(wanted)
    assert [text[a:b] for a, b in split(text)] == wanted


@pytest.mark.parametrize(("text", "how", "wanted"), LINES)
def test_other_cuts(text: str, how: str, wanted: list[str] | None) -> None:
    found = [text[a:b] for a, b in split(text, how)]
    if wanted is None:
        assert any(step.startswith("```") and "d. e. f" in step for step in found), found
    else:
        assert found == wanted


@given(st.text(alphabet="ab.?! \n1$`<>\\(){}'\"|-*", max_size=60), st.sampled_from(["sentence", "line", "paragraph"]))
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


def test_long_texts_are_cut_in_one_pass() -> None:
    text = "This is a sentence with 3.5 parts. " * 20_000
    assert len(split(text)) == 20_000


@pytest.mark.parametrize("how", ["chapter", "regex:", "regex:(", "spans:none.json"])
def test_a_split_that_is_none(how: str) -> None:
    with pytest.raises(BadOption):
        split("text", how)
