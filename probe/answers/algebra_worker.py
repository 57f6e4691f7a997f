"""The process that reads formulas: a line [formula, level] in, its form or null out. Run as a file."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from typing import Any

CPU_SECONDS, MEMORY = 20, 2 << 30
LARGEST_POWER = 1000
BARE = r"(?<![a-z\\])(pi|inf|sin|cos|tan|log|ln|exp)(?![a-z])"  # without the backslash they are letters to the parser


def main() -> None:
    """Answer line by line, until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    logging.disable(logging.CRITICAL)
    import math_verify  # noqa: F401  # takes a second

    limit("RLIMIT_AS", MEMORY)
    sys.set_int_max_str_digits(5000)
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        formula, level = json.loads(line)
        limit("RLIMIT_CPU", int(sum(os.times()[:2])) + CPU_SECONDS)
        try:
            found = form(formula, simplest=level == "simplest")
        except Exception:  # whatever a parser says of a text: it has no form
            found = None
        print(json.dumps(found), file=answers, flush=True)


def limit(which: str, most: int) -> None:
    """A limit of this process, where the system has such."""
    try:
        import resource
    except ImportError:
        return
    _, hard = resource.getrlimit(getattr(resource, which))
    resource.setrlimit(getattr(resource, which), (most, hard))


def form(formula: str, *, simplest: bool = False) -> str | None:
    """The text of what is read, if reading that again gives the same."""
    found = read(formula, simplest=simplest)
    if found is None:
        return None
    written = write(found)
    again = read(written, simplest=simplest)
    return written if again is not None and write(again) == written else None


def read(formula: str, *, simplest: bool) -> Any:
    """What a formula is, with exact numbers and terms in order."""
    import sympy
    from math_verify import parse
    from math_verify.parser import LatexExtractionConfig

    latex = re.sub(BARE, r"\\\1 ", formula).replace("\\inf ", "\\infty ")
    parsed = parse(f"${latex}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
    if len(parsed) != 1 or not isinstance(parsed[0], sympy.Basic) or not small(parsed[0]):
        return None
    exact = {number: sympy.Rational(str(number)) for number in parsed[0].atoms(sympy.Float)}
    found = parsed[0].xreplace(exact).doit()
    if isinstance(found, sympy.Expr):
        return sympy.simplify(sympy.cancel(sympy.together(sympy.expand(found)))) if simplest else found
    return found if isinstance(found, sympy.core.relational.Relational) else None


def small(found: Any) -> bool:
    """Whether its powers and factorials can be worked out."""
    import sympy

    for power in found.atoms(sympy.Pow):
        sizes = [abs(number) for number in power.exp.atoms(sympy.Number) if number.is_finite]
        tower = power.exp.atoms(sympy.Pow) and not power.exp.free_symbols and len(sizes) > 1
        if tower or any(size > LARGEST_POWER for size in sizes):
            return False
    return all(f.args[0].is_Symbol or abs(f.args[0]) <= 100 for f in found.atoms(sympy.factorial) if not f.free_symbols)


def write(found: Any) -> str:
    """As text: powers with ^, no spaces, small letters."""
    import sympy

    return sympy.sstr(found).replace("**", "^").replace(" ", "").lower()


if __name__ == "__main__":
    main()
