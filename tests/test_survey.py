"""Every family that was placed once is placed still, by the same equations: recipes/survey/expected.json remembers."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from typing import Any

import pytest
from probe.recipes.survey.__main__ import EXPECTED, summary, table
from probe.recipes.survey.recipe import FamilyReport, examine, regressions
from probe.recipes.survey.workers import Died, each

from probe.tiny import families

KNOWN: dict[str, Any] = json.loads(EXPECTED.read_text())["families"]
SHARED = sorted(set(KNOWN) & set(families()))
N_CHUNKS = 16


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(N_CHUNKS))
def test_no_family_gets_worse(chunk: int) -> None:
    rows = [examine(family) for family in SHARED[chunk::N_CHUNKS]]
    assert [problem for row in rows for problem in regressions(KNOWN[row.family], row)] == []


def test_the_record_speaks_of_most_families_and_says_why_the_others_are_not_placed() -> None:
    placed = [name for name, known in KNOWN.items() if known["placed"]]
    assert len(placed) >= 160 and len(SHARED) >= 150
    for name, known in KNOWN.items():
        assert known["placed"] != bool(known.get("reason")), name
        assert not known["placed"] or sum(len(v.split(",")) for v in known["equations"].values()) == known["layers"]


def test_a_row_is_the_same_twice_and_a_worse_one_is_told() -> None:
    row = examine("llama")
    assert row.record() == KNOWN["llama"] and regressions(KNOWN["llama"], row) == []
    lost = replace(row, placed=False, reason="no chain")
    assert regressions(KNOWN["llama"], lost) == ["llama was placed, and is not: no chain"]
    other = replace(row, equations={"resid_pre + mlp": "0,1,2,3"})
    assert "resid_pre + mlp" in regressions(KNOWN["llama"], other)[0]
    without = replace(row, absent={"z: gone": "0,2"})
    assert regressions(KNOWN["llama"], without) == [f"llama: z@{i} was found, and is not" for i in (0, 2)]
    assert regressions(KNOWN["llama"] | {"placed": False}, lost) == []
    unseen = replace(row, attention="3/4")
    assert regressions(KNOWN["llama"], unseen) == ["llama: attention was seen in 4/4 layers, and is in 3/4"]
    assert regressions(KNOWN["llama"] | {"attention": "3/4"}, row) == []


def test_a_family_that_does_not_exist_or_fails_is_a_row() -> None:
    row = examine("llamma")
    assert not row.placed and row.reason == "not built: transformers has no causal family 'llamma'"
    assert "llamma" in table([row]) and summary([row]) == "1 families, 0 built, 0 placed, 0 not placed"


def behave(name: str) -> str:
    if name == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "hang":
        time.sleep(600)
    return name.upper()


@pytest.mark.slow
def test_a_crash_or_a_hang_costs_one_family() -> None:
    found = dict(each(behave, ["a", "crash", "b", "hang", "c"], jobs=1, timeout=5))
    assert [found[name] for name in "abc"] == ["A", "B", "C"]
    assert found["crash"] == Died("its process ended with code -9")
    assert found["hang"] == Died("it took more than 5 s")


def test_a_row_is_made_of_plain_values() -> None:
    record = FamilyReport("x", False, "no chain").record()
    assert json.loads(json.dumps(record)) == record
