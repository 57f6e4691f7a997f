"""Words that decide whether a full stop ends a sentence, where the splitter's own lists do not say so."""

from __future__ import annotations

import re

# no sentence ends in these
NEVER_LAST = frozenset((
    "e.g", "i.e", "eg", "ie", "cf", "vs", "viz", "mr", "mrs", "ms", "messrs", "dr", "prof", "sra", "srta", "mme",
    "mlle", "sig", "resp", "a.k.a", "z.b", "d.h", "u.a", "p.ej", "т.е", "т.к", "т.н",
))  # fmt: skip
# nor in these before a number
BEFORE_NUMBER = frozenset((
    "fig", "figs", "eq", "eqs", "eqn", "eqns", "ref", "refs", "sec", "secs", "sect", "ch", "chs", "chap", "vol", "vols",
    "no", "nos", "nr", "p", "pp", "pg", "thm", "thms", "lem", "prop", "props", "cor", "def", "defs", "ex", "exs", "rem",
    "tab", "app", "approx", "ca", "c", "art", "arts", "par", "para", "ed", "max", "min", "jan", "feb", "mar", "apr",
    "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec",
))  # fmt: skip
# nor in these before a small letter
BEFORE_SMALL = frozenset((
    "incl", "excl", "avg", "std", "dev", "temp", "dia", "est", "max", "min", "wt", "ht", "qty", "amt", "misc", "tot",
    "cu", "gal", "yd", "yds", "kcal", "tbsp", "tsp", "pkg", "doz", "wk", "wks", "mo", "mos", "yr", "yrs", "sol", "soln",
    "freq", "coeff", "const", "diff", "deg", "rad", "num", "denom", "prob", "stat", "govt", "assoc", "orig", "cont",
    "pos", "neg", "opp", "adj", "approx", "ca", "etc", "al", "inc", "ltd", "corp", "co", "fig", "eq", "sec", "no", "in",
    "ft", "lb", "lbs", "oz", "hr", "hrs", "mins", "sq", "jr", "sr", "var", "def", "prop", "thm", "cor", "ref", "vol",
    "ch", "ave", "blvd", "bldg", "apt", "mon", "tue", "tues", "wed", "thu", "thur", "thurs", "fri", "sun", "jan", "feb",
    "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec", "ed", "eds", "dept", "np",
))  # fmt: skip
UNITS = frozenset(("sec", "secs", "min", "mins", "hr", "hrs", "ft", "in", "lb", "lbs", "oz", "mm", "mph", "sq"))
# words, not abbreviations
ORDINARY = frozenset((
    "me", "may", "art", "ill", "miss", "ok", "okay", "arc", "con", "op", "la", "fed", "id", "mm", "rep", "re", "no",
    "in", "am", "is", "as", "del", "ark", "ore", "res", "sens", "ken", "ext", "ord", "que",
))  # fmt: skip
# a single capital after one of these is a name for something, not the initial of somebody
NAMES_A_THING = frozenset((
    "is", "be", "equals", "than", "call", "called", "it", "value", "point", "points", "vertex", "vertices", "line",
    "side", "angle", "node", "edge", "set", "matrix", "graph", "group", "field", "ring", "number", "variable",
    "unknown", "letter", "option", "choice", "answer", "case", "box", "bag", "event", "plan", "type", "class", "grade",
    "part", "vitamin", "team", "room", "city", "town", "house", "person", "step", "column", "row", "at", "in", "gives",
    "get", "choose", "pick", "select", "center", "centre", "circle", "triangle", "root", "constant", "find", "for",
    "solve", "compute", "denote", "function", "factor", "term", "plane", "=",
))  # fmt: skip
STARTERS = frozenset((
    "The", "This", "That", "These", "Those", "There", "Then", "They", "Their", "Thus", "Therefore", "Hence", "So",
    "Since", "It", "Its", "If", "In", "Is", "He", "His", "Her", "She", "We", "You", "Your", "My", "Our", "But", "And",
    "Or", "Now", "Next", "No", "Not", "Yes", "Let", "Let's", "First", "Second", "Third", "Finally", "For", "From",
    "After", "Also", "As", "At", "All", "Because", "However", "Here", "How", "What", "When", "Where", "Which", "Who",
    "Why", "Wait", "Each", "Both", "Again", "Given", "Note", "Using", "With", "Once", "Only", "Okay", "OK", "Hmm", "To",
    "On", "One", "Do", "Does", "Adding",
))  # fmt: skip
# a line that ends in one of these goes on in the next
GOES_ON = frozenset((
    "a", "an", "the", "of", "to", "by", "in", "on", "at", "for", "from", "with", "and", "or", "but", "nor", "than",
    "that", "which", "who", "whose", "is", "are", "was", "were", "be", "has", "have", "had", "as", "if", "when",
    "since", "because", "get", "gives", "let", "mr", "mrs", "ms", "dr", "prof", "its", "their", "his", "her", "our",
    "my", "your", "into", "equals",
))  # fmt: skip
# patterns, whatever the case: what a step is called; what answers a question in a word
LABEL = (
    r"(?:step|case|part|example|theorem|lemma|claim|question|problem|exercise|fact|rule|stage|phase|note|definition|proposition"
    r"|corollary|remark|solution|method|approach|attempt|chapter|section) (?:\d+|[ivx]+|[a-z])"
)
REPLY = r"yes|yep|yeah|no|nope|never|none|always|maybe|true|false|correct|wrong|sure|indeed|nothing|nobody|-?\d[\d.,]*"
# the commonest words of languages that share an alphabet; the splitter knows the abbreviations of each
LATIN = {
    code: frozenset(some.split())
    for code, some in {
        "en": "the of and is to that it in we so then are this was for have with not be",
        "de": "der die das und ist nicht ein eine wir es sind zu dann also am im mit von auf war hat wie wenn oder aber",
        "fr": "le les est une des et du il nous donc dans pas sont que la un en pour avec sur au",
        "es": "el los las que es una y por son entonces del pero hay la un con para se en",
        "it": "il che di una sono gli quindi della per è abbiamo non la un con si le",
        "pt": "o os que não uma é são então do da para temos um com se em as",
        "nl": "de het een en is niet dat van zijn we dus met voor op",
        "pl": "i w na nie to jest się z do że czyli ma są mam",
    }.items()
}
LETTERS = {"el": re.compile(r"[Ͱ-Ͽ]"), "ru": re.compile(r"[Ѐ-ӿ]")}
