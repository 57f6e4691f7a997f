"""Languages of which a tagger is to be had, and the coarse parts of speech of its tags. Knows no tagger."""

from __future__ import annotations

from typing import NamedTuple


class TaggerLanguage(NamedTuple):
    """The model that HanTa brings, the tag set it was trained on, and the part of speech by how a tag begins: the longest
    beginning counts."""

    model: str
    tag_set: str
    parts: dict[str, str]


def _parts(**begin: str) -> dict[str, str]:
    return {start: part for part, starts in begin.items() for start in starts.split()}


LANGUAGES: dict[str, TaggerLanguage] = {
    "en": TaggerLanguage("morphmodel_en.pgz", "BNC C5", _parts(
        NOUN="NN NP", VERB="V", ADJ="AJ", ADV="AV", DET="AT DT DPS", PRON="PN EX", ADP="PR", CONJ="CJ", NUM="CRD ORD",
        PRT="TO XX POS", PUNCT="PU", X="UNC ZZ ITJ",
    )),
    "de": TaggerLanguage("morphmodel_ger.pgz", "STTS", _parts(
        NOUN="NN NE NNA NNI", VERB="V", ADJ="ADJ", ADV="ADV PAV PROAV PWAV", DET="ART PIAT PIDAT PDAT PPOSAT PWAT PRELAT",
        PRON="P", ADP="AP", CONJ="KO", NUM="CARD", PRT="PTK", PUNCT="$", X="FM XY TRUNC ITJ",
    )),
    "nl": TaggerLanguage("morphmodel_dutch.pgz", "CGN", _parts(
        NOUN="N( SPEC(deeleigen", VERB="WW", ADJ="ADJ", ADV="BW", DET="LID", PRON="VNW", ADP="VZ", CONJ="VG", NUM="TW",
        PUNCT="LET", X="SPEC TSW",
    )),
}  # fmt: skip
"""The coarse classes are those of Petrov, Das & McDonald (2012, 1104.2086)."""


def part_of_speech(tag: str, language: TaggerLanguage) -> str:
    """NOUN, VERB, …; X for what is none of them."""
    begins = [begin for begin in language.parts if tag.startswith(begin)]
    return language.parts[max(begins, key=len)] if begins else "X"
