"""`python -m recipes.survey [FAMILY…]`: a table of what the equations find in each family, and what got worse."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .recipe import FamilyReport, examine, regressions
from .workers import Died, each

EXPECTED = Path(__file__).with_name("expected.json")


def main() -> int:
    """Survey the families, print the table to stdout and progress to stderr; 1 if any got worse."""
    given = _parser().parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers inherit it: they are what there is to share
    from probe.tiny import families

    names = given.family or sorted(families())
    rows: list[FamilyReport] = []
    for name, found in each(examine, names, jobs=given.jobs, timeout=given.timeout):
        rows.append(FamilyReport(name, False, f"crashed: {found.how}") if isinstance(found, Died) else found)
        print(f"{len(rows):>4}/{len(names)} {name} {rows[-1].seconds} s", file=sys.stderr, flush=True)
    rows.sort(key=lambda row: row.family)
    print(table(rows))
    known = json.loads(EXPECTED.read_text())["families"] if EXPECTED.exists() else {}
    worse = [problem for row in rows if row.family in known for problem in regressions(known[row.family], row)]
    print("\n".join(["", summary(rows), *worse]))
    if given.record:
        EXPECTED.write_text(json.dumps(recorded(known, rows), indent=1, ensure_ascii=False) + "\n")
    return int(bool(worse) and not given.record)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recipes.survey", description=__doc__)
    parser.add_argument("family", nargs="*", help="families of transformers' causal-LM mapping (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("--timeout", type=float, default=180, help="seconds for one family")
    parser.add_argument("--record", action="store_true", help="write expected.json from what was found")
    return parser


def table(rows: list[FamilyReport]) -> str:
    """A line a family, and one below it for each further equation, absent site and reason."""
    lines = [f"{'family':<26}{'layers':>6} {'attention':>9} {'error':>8} {'sec':>6}  {'kind':<12} resid_post ="]
    for row in rows:
        first, *more = row.equations or [""]
        found = f"{row.layers:>6} {row.attention:>9} {row.error:>8.0e}" if row.placed else f"{'not placed':>25}"
        lines.append(f"{row.family:<26}{found} {row.seconds:>6.2f}  {row.kind:<12} {first if row.placed else ''}")
        lines += [f"{'':<28}layers {row.equations[e]}: {e}" for e in more if row.placed]
        lines += [f"{'':<28}{text}" for text in (row.reason, row.note) if text]
        lines += [f"{'':<28}no {what} (layers {layers})" for what, layers in row.absent.items() if row.placed]
    return "\n".join(lines)


def summary(rows: list[FamilyReport]) -> str:
    placed = sum(row.placed for row in rows)
    built = sum(not row.reason.startswith("not built") for row in rows)
    return f"{len(rows)} families, {built} built, {placed} placed, {built - placed} not placed"


def recorded(known: Mapping[str, Any], rows: list[FamilyReport]) -> dict[str, Any]:
    """What expected.json holds: the versions, and a record for each family ever surveyed."""
    import torch
    import transformers

    families = dict(known) | {row.family: row.record() for row in rows}
    return {"transformers": transformers.__version__, "torch": torch.__version__, "families": dict(sorted(families.items()))}


if __name__ == "__main__":
    sys.exit(main())
