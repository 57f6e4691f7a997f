"""The words for places mean one thing, say when they mean none, and every place's text reads back as that place."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from probe.errors import BadPlace, OutOfRange, SiteAbsent, UnknownSite
from probe.sites import SITES, Cell, Positions, parse_place, parse_places, resolve, split_edit
from probe.sites.positions import token_position

MODEL = {"n_layers": 12, "n_heads": lambda site, layer: 4 if site in ("k", "v") else 12}
HYBRID = {
    "n_layers": 4,
    "n_heads": lambda site, layer: 2 if layer % 2 else 0,
    "has": lambda site, layer: site == "resid_pre" or layer % 2 == 1,
}
WORDS = ("The", " capital", " of", " Paris", " is", " Paris", ",", " a", "=", "b", "#2", " 1,000")


def cells(text: str, **model) -> list[Cell]:
    return list(resolve(parse_places(text), **(model or MODEL)))


def where(text: str, n: int = 12, n_prompt: int = 8) -> list[int]:
    positions = parse_place(f"resid_post:{text}").positions
    return positions.indices(n, n_prompt, steps=[(8, 10), (10, 12)], tokens=WORDS)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("resid_post@5", "resid_post@5"),
        ("z@5.3", "z@5.3"),
        ("z@9.6,9.9:last", "z@9.6,9.9:last"),
        ("pattern@L5H3", "pattern@5.3"),
        ("resid_pre@all:-1", "resid_pre:last"),
        ("mlp_out@4..7:step3", "mlp_out@4..7:step3"),
        ("resid_pre@0,mlp_out@3", "resid_pre@0 mlp_out@3"),
        ("z@5.all, resid_mid", "z@5 resid_mid"),
        ("resid_pre@20..:0..", "resid_pre@20.."),
        ("resid_pre@..4", "resid_pre@0..4"),
        ("resid_pre@-3..-1,-1,-1", "resid_pre@-3..,-1"),
        ("z@0..3.1..2,all.0", "z@0..3.1..2,all.0"),
        ("z@-1.-2", "z@-1.-2"),
        ("resid_pre@3:prompt,last,5,all", "resid_pre@3"),
        ("z@1:prompt,completion,logits:last", "z@1:prompt,completion logits:last"),
        ("mlp_out:tok=Paris#2,q@3", "mlp_out:tok=Paris#2 q@3"),
        ("mlp_out:tok=1,,000,last", "mlp_out:tok=1,,000,last"),
        ("mlp_out:tok=a:b", "mlp_out:tok=a:b"),
        ("blocks.5.hook_resid_post", "resid_post@5"),
        ("blocks.3.attn.hook_z:2,blocks.0.hook_attn_out", "z@3:2 attn_out@0"),
        ("blocks.5.attn.hook_rot_q,blocks.5.attn.hook_rot_k", "q@5 k@5"),
        ("hook_embed,ln_final.hook_normalized:last", "embed final_norm:last"),
        ("blocks.11.mlp.hook_post,blocks.1.attn.hook_attn_scores", "mlp_post@11 scores@1"),
    ],
)
def test_a_place_has_one_canonical_text(text: str, canonical: str) -> None:
    assert " ".join(map(str, parse_places(text))) == canonical


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("resid_pots@5", "unknown site 'resid_pots'", "did you mean 'resid_post'"),
        ("blocks.5.hook_resid_pst", "unknown site", "did you mean 'resid_post'"),
        ("blocks.5.attn.hook_q", "is the queries before any norm and rotation", "q_pre@5 is after the norm"),
        ("blocks.2.attn.hook_k:last", "is the keys before any norm and rotation", "k_pre@2 is after the norm"),
        ("Z@5", "unknown site 'Z'", "did you mean 'z'"),
        ("xyzzy", "unknown site 'xyzzy'", "sites are: embed, resid_pre"),
        ("", "not a place", "SITE["),
        ("@5", "'@5' is not a place", "SITE["),
        ("z@5,", "the end of 'z@5,'", "SITE["),
        ("z@5,,q@3", "cannot read ',q@3'", "SITE["),
        ("z@", "the end of 'z@'", "SITE["),
        ("z@5:", "the end of 'z@5:'", "SITE["),
        ("z@5.3.2", "'.2'", "SITE["),
        ("z@five", "'five'", "SITE["),
        ("z@5:first", "'first'", "SITE["),
        ("z@7..4", "runs backwards", "4..7"),
        ("z@5:-1..-3", "runs backwards", "-3..-1"),
        ("logits@3", "'logits' has no layers", "write logits"),
        ("mlp_out@3.1", "'mlp_out' has no heads", "write mlp_out@3"),
        ("mlp_out@L3H1", "'mlp_out' has no heads", "write mlp_out@3"),
        ("blocks.5.hook_resid_post@5", "holds its layer already", "resid_post@5"),
        ("z:tok=", "cannot read 'tok='", "written twice"),
        ("z:tok=a=b", "cannot read '=b'", "written twice"),
        ("z:tok=a#b", "cannot read '#b'", "written twice"),
        ("z:tok=a#0", "occurrence 0", "#1"),
    ],
)
def test_what_cannot_be_read_is_said_with_a_hint(text: str, what: str, hint: str) -> None:
    with pytest.raises(BadPlace) as told:
        parse_places(text)
    assert what in told.value.message and hint in told.value.hint


def test_an_unknown_site_is_an_error_of_its_own() -> None:
    with pytest.raises(UnknownSite):
        parse_places("residual_stream@3")


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("resid_post@12", "no layer 12", "layers are 0..11, or -12..-1 from the end"),
        ("resid_post@-13", "no layer -13", "0..11"),
        ("resid_post@4..12", "no layer 4..12", "0..11"),
        ("resid_post@12..", "no layer 12..", "0..11"),
        ("z@5.12", "no head 12", "heads are 0..11"),
        ("k@5.4", "no head 4", "heads are 0..3"),
    ],
)
def test_layers_and_heads_out_of_range_name_the_legal_range(text: str, what: str, hint: str) -> None:
    with pytest.raises(OutOfRange) as told:
        cells(text)
    assert what in told.value.message and hint in told.value.hint


def test_cells() -> None:
    everywhere, last = Positions(), Positions(("last",))
    assert cells("z@9.6,9.9:last") == [Cell("z", 9, (6, 9), last)]
    assert cells("embed,logits:-1") == [Cell("embed", -1, None, everywhere), Cell("logits", -1, None, last)]
    assert [c.layer for c in cells("resid_post@-1,0..2,1")] == [0, 1, 2, 11]
    assert cells("k@-1")[0].heads == (0, 1, 2, 3)
    assert [c.layer for c in cells("mlp_out")] == list(range(12))


def test_no_site_layer_head_and_position_is_in_two_cells() -> None:
    """Rows of a run are identified by them: two places that overlap once wrote the same vectors twice."""
    assert cells("resid_pre@3:last,resid_pre@3:0..2") == [Cell("resid_pre", 3, None, Positions(("last", "0..2")))]
    assert cells("resid_pre@3:last,resid_pre") == cells("resid_pre")
    assert cells("z@3.1:last,z@3.1..2:0") == [
        Cell("z", 3, (1,), Positions(("last", "0"))),
        Cell("z", 3, (2,), Positions(("0",))),
    ]


def test_a_range_takes_the_layers_that_have_the_site_and_a_number_must_have_it() -> None:
    assert [c.layer for c in cells("z@all", **HYBRID)] == [c.layer for c in cells("attn_out@0..", **HYBRID)] == [1, 3]
    assert [c.layer for c in cells("attn_out@2", **HYBRID)] == [2]  # its reader says why it is absent
    for absent in ("z@2", "z@0..0", "pattern@-2.0"):
        with pytest.raises(SiteAbsent):
            cells(absent, **HYBRID)
    with pytest.raises(SiteAbsent):
        cells("z", **{**HYBRID, "has": lambda site, layer: False})


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        ("all", list(range(12))),
        ("last", [11]),
        ("-1,0", [0, 11]),
        ("3..5", [3, 4, 5]),
        ("-2..", [10, 11]),
        ("..1", [0, 1]),
        ("9..", [9, 10, 11]),
        ("prompt", list(range(8))),
        ("completion", [8, 9, 10, 11]),
        ("step1", [10, 11]),
        ("step-2,last", [8, 9, 11]),
        ("tok=Paris#2", [5]),
        ("tok=Paris#1,tok=is", [3, 4]),
        ("tok= is", [4]),
        ("tok=,,", [6]),
        ("tok===", [8]),
        ("tok=##2", [10]),
        ("tok=1,,000,7", [7, 11]),
    ],
)
def test_positions(text: str, indices: list[int]) -> None:
    assert where(text) == indices


@pytest.mark.parametrize(
    ("text", "what", "hint"),
    [
        ("12", "no position 12", "positions are 0..11, or -12..-1"),
        ("5..-9", "no position 5..-9", "0..11"),
        ("step2", "no step 2", "steps are 0..1"),
        ("tok=Paris", "2 tokens are 'Paris', at 3, 5", "tok=Paris#1"),
        ("tok=Paris#3", "no token 3 is 'Paris'", "2 times"),
        ("tok=Pari", "no token is 'Pari'", "'Paris'"),
        ("tok=xyz", "no token is 'xyz'", "piece of a word"),
    ],
)
def test_positions_that_a_text_does_not_have(text: str, what: str, hint: str) -> None:
    with pytest.raises(BadPlace) as told:
        where(text)
    assert what in told.value.message and hint in told.value.hint


def test_a_prompt_alone_has_no_completion_and_no_steps() -> None:
    for text in ("completion", "step0"):
        with pytest.raises(OutOfRange):
            Positions((text,)).indices(3, 3)


def test_which_positions_are_known_before_the_text_is() -> None:
    static = {text: parse_place(f"z:{text}").positions.static for text in ("all", "last", "3..", "prompt")}
    assert all(static.values())
    assert not any(parse_place(f"z:{text}").positions.static for text in ("step0", "tok=a", "0,completion"))


@pytest.mark.parametrize(
    ("text", "place", "op", "args"),
    [
        ("z@5.3=zero", "z@5.3", "zero", ()),
        ("mlp_out@7=mean:RUN", "mlp_out@7", "mean", ("RUN",)),
        ("resid_post@12:-1=patch:runs/a=b", "resid_post@12:last", "patch", ("runs/a=b",)),
        ("resid_post@12=add:FILE.safetensors:4.0", "resid_post@12", "add", ("FILE.safetensors", "4.0")),
        ("resid_post@8=noise:3.0", "resid_post@8", "noise", ("3.0",)),
        ("pattern@5.3:20..=cut:10..15", "pattern@5.3:20..", "cut", ("10..15",)),
        ("resid_post@3:tok=Paris=zero", "resid_post@3:tok=Paris", "zero", ()),
        ("resid_post@3:tok====zero", "resid_post@3:tok===", "zero", ()),
        ("z@9.6,9.9:tok=Paris#2,last=zero", "z@9.6,9.9:tok=Paris#2,last", "zero", ()),
    ],
)
def test_edits(text: str, place: str, op: str, args: tuple[str, ...]) -> None:
    found = split_edit(text)
    assert (str(found[0]), *found[1:]) == (place, op, args)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("z@5.3", "not an edit"),
        ("z@5=", "not an edit"),
        ("z:tok===zero", "not an edit"),
        ("z@5,q@3=zero", "several places"),
        ("zz=zero", "unknown site"),
    ],
)
def test_what_is_no_edit(text: str, what: str) -> None:
    with pytest.raises(BadPlace) as told:
        split_edit(text)
    assert what in told.value.message


numbers = st.one_of(
    st.integers(-40, 40).map(str),
    st.tuples(st.integers(0, 20), st.integers(20, 40)).map(lambda ends: f"{ends[0]}..{ends[1]}"),
    st.integers(-40, 40).map(lambda low: f"{low}.."),
    st.integers(-40, 40).map(lambda high: f"..{high}"),
    st.just("all"),
)
tokens = st.tuples(st.text(min_size=1, max_size=6), st.none() | st.integers(1, 9)).map(lambda t: token_position(*t))
position_items = st.one_of(
    numbers, tokens, st.integers(-9, 9).map("step{}".format), st.sampled_from(["last", "prompt", "completion"])
)


@st.composite
def place_texts(draw: st.DrawFn) -> str:
    site = SITES[draw(st.sampled_from(list(SITES)))]
    layer = numbers
    if site.per_head:
        layer = st.one_of(numbers, st.tuples(numbers, numbers).map(".".join), st.just("L5H3"))
    layers = ",".join(draw(st.lists(layer, max_size=3))) if site.per_layer else ""
    where = ",".join(draw(st.lists(position_items, max_size=3)))
    return f"{site.name}{'@' if layers else ''}{layers}{':' if where else ''}{where}"


@given(st.lists(place_texts(), min_size=1, max_size=3))
def test_the_text_of_places_reads_back_as_those_places(texts: list[str]) -> None:
    places = parse_places(",".join(texts))
    assert places == tuple(parse_place(text) for text in texts)
    assert parse_places(",".join(map(str, places))) == places
    assert split_edit(f"{places[0]}=add:a=b,c:4") == (places[0], "add", ("a=b,c", "4"))


@given(st.text(min_size=1, max_size=6), st.lists(st.text(max_size=3), max_size=4))
def test_any_token_can_be_named(text: str, others: list[str]) -> None:
    assume(text not in [form for other in others for form in (other, other.strip())])
    for nth in (None, 1):
        place = parse_place(f"z:{token_position(text, nth)}")
        assert place.positions.indices(len(others) + 1, 1, tokens=[*others, text]) == [len(others)]


@given(st.text(alphabet="zqlogitsresid_pre@:.,-#=0123456789LHalltoksteplast ", max_size=30))
def test_any_text_is_a_place_or_a_stated_error(text: str) -> None:
    for read in (parse_places, split_edit):
        try:
            read(text)
        except BadPlace as error:
            assert error.message and error.hint
