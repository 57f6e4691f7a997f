"""What is known of each step besides its importance: where it stands, how long it is, what was drawn around it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from probe.answers import TRUNCATED

ORIGINAL = "original"
KEYS = ["prompt_id", "step"]
GROUPS = ("all", "kind", "quarter", "tenth")
Place = tuple[int, int]  # prompt, position of the first drawn token
COLUMNS = {
    "branches": ("prompt_id", "branch", "arm", "edit", "step", "sample", "draw_pos", "max_new", "outcome"),
    "steps": ("prompt_id", "branch", "step", "kind", "start", "end"),
    "prompts": ("prompt_id",),
}
"""Of these tables the columns that are needed: no texts."""


class Draws(NamedTuple):
    """What was drawn from one place without any edit: each sample's outcome, samples ascending; the tokens it could have."""

    samples: np.ndarray
    outcomes: np.ndarray
    budget: float = np.nan

    def half(self, odd: bool) -> Draws:
        """Those of even, or odd, samples: the two have no noise in common."""
        own = self.samples % 2 == odd
        return self._replace(samples=self.samples[own], outcomes=self.outcomes[own])

    def of(self, samples: np.ndarray) -> np.ndarray:
        """Outcomes of these samples, which are there."""
        return self.outcomes[np.searchsorted(self.samples, samples)]

    @property
    def truncated(self) -> float:
        """The share that ran out of tokens."""
        return float((self.outcomes == TRUNCATED).mean())


def draws_of(branches: pd.DataFrame | None) -> dict[Place, Draws]:
    """Draws by the place that they begin at, of every problem; what several arms drew from one place once.

    A place is the text up to it: the same, whichever step was gone back to.
    """
    if branches is None or branches.empty:
        return {}
    own = branches[(branches["arm"].astype(str) != ORIGINAL) & (branches["edit"].fillna("").astype(str) == "")]
    own = own.drop_duplicates(["prompt_id", "draw_pos", "sample"]).sort_values(["prompt_id", "draw_pos", "sample"])
    return {
        (int(prompt), int(position)): Draws(
            rows["sample"].to_numpy(), rows["outcome"].astype(str).to_numpy(),
            float(rows["max_new"].iloc[0]) if "max_new" in rows else np.nan,
        )
        for (prompt, position), rows in own.groupby(["prompt_id", "draw_pos"], sort=False)
    }  # fmt: skip


def originals(branches: pd.DataFrame | None) -> dict[int, str]:
    """The class of each problem's own answer: that of the generation that was gone back into."""
    if branches is None:
        return {}
    own = branches[branches["arm"].astype(str) == ORIGINAL]
    return dict(zip(own["prompt_id"].astype(int), own["outcome"].astype(str), strict=True))


def steps_facts(steps: pd.DataFrame, draws: Mapping[Place, Draws]) -> pd.DataFrame:
    """A row a step of the generations: prompt_id, step, kind, `begins` and `ends` (positions that were drawn from before and
    after it), `position` (share of the generation's tokens before it), `kept` (share of its steps), `length` in tokens, and
    `quarter` and `tenth`, in percent, that it begins in.

    After the last step the end token is no part of what is kept: nothing is continued after it.
    """
    own = steps[steps["branch"] == 0].sort_values(KEYS, kind="stable")
    found = own[["prompt_id", "step", "kind"]].astype({"kind": str}).reset_index(drop=True)
    start, end = (own[name].to_numpy(np.int64) for name in ("start", "end"))
    by_problem = found.groupby("prompt_id")["step"]
    first = pd.Series(start).groupby(found["prompt_id"]).transform("min").to_numpy()
    last = pd.Series(end).groupby(found["prompt_id"]).transform("max").to_numpy()
    found["begins"], found["length"] = start, end - start
    found["ends"] = [
        at - (at == stop and (prompt, at) not in draws and (prompt, at - 1) in draws)
        for prompt, at, stop in zip(found["prompt_id"], end, last, strict=True)
    ]
    found["position"] = (start - first) / np.maximum(1, last - first)
    found["kept"] = by_problem.rank(method="first").sub(1) / by_problem.transform("size")
    for name, parts in (("quarter", 4), ("tenth", 10)):
        part = np.minimum(parts - 1, np.floor(found["position"] * parts + 1e-9)).astype(int)
        found[name] = [f"{100 * p // parts:02d}–{100 * (p + 1) // parts} %" for p in part]
    return found


def grouped(rows: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """(grouped by, value, rows) of rows with a step's facts: all of them, by kind, by quarter, by tenth."""
    for name in GROUPS:
        if name == "all":
            yield name, "", rows
        else:
            for value, own in rows.groupby(name, sort=True):
                yield name, str(value), own


def rollouts_around(rows: pd.DataFrame, draws: Mapping[Place, Draws]) -> int:
    """Continuations from before and after these steps; those that two steps share count once."""
    prompts = rows["prompt_id"].tolist()
    places = {*zip(prompts, rows["begins"].tolist(), strict=True), *zip(prompts, rows["ends"].tolist(), strict=True)}
    return sum(len(draws[place].samples) for place in places if place in draws)


def listed(rows: Sequence[Mapping[str, object]]) -> dict[str, list[object]]:
    """Rows as columns, NaN as None."""
    return {
        name: [None if isinstance(value := row[name], float) and np.isnan(value) else value for row in rows]
        for name in (rows[0] if rows else ())
    }
