"""What speculation gains: ngram and layers:N against plain decoding, on a text that repeats itself and on one that doesn't."""

from __future__ import annotations

import statistics
from typing import Any

import torch

import probe
from probe.decoding import Sampling

DAYS = ("Monday", "Tuesday", "Wednesday")
TEXTS = {
    "repeats itself": "".join(f"{day}: open at nine, close at five. " for day in DAYS) + "Thursday:",
    "doesn't": "One evening in late October, the old lighthouse keeper",
}
COLUMNS = ("measured", "predicted", "predicted_with_pass_cost", "draft_cost", "pass_cost")


def main(model: str, *, repeat: int, quick: bool, only: str | None = None) -> None:
    """Print measured and predicted speed-up of each draft on each text, and where speculation is the slower one."""
    lm = probe.load(model)
    print(f"{lm}  torch threads: {torch.get_num_threads()}")
    lm.eos_ids = set()  # every text runs to its end
    layers = [f"layers:{max(1, round(share * lm.anatomy.n_layers))}" for share in (0.5, 0.8)]
    for name, text in TEXTS.items():
        if only in (None, name):
            table(lm, name, text, ["ngram", *layers], new=16 if quick else 64, rounds=1 if quick else max(1, repeat // 2))


def table(lm: probe.LanguageModel, name: str, text: str, drafts: list[str], *, new: int, rounds: int) -> None:
    """One text: medians over rounds, in each of which every draft stands beside plain decoding of the same tokens."""
    found: dict[str, list[dict[str, Any]]] = {draft: [] for draft in drafts}
    for turn in range(rounds + 1):
        for draft, runs in found.items():
            run = probe.speculate(lm, text, draft=draft, generate=new, sampling=Sampling())
            if turn:  # the first one warms up
                runs.append(run.summary)
    print(f"\na text that {name}: {new} tokens, block 4, greedy; times are those of one plain step")
    header = ("accepted/tested", "tokens a pass", "measured", "predicted", "with pass cost", "a draft", "a pass")
    print(f"  {'draft':<12}" + "".join(f"{title:>16}" for title in header))
    for draft, runs in found.items():
        speeds = [statistics.median(run["speed"][column] for run in runs) for column in COLUMNS]
        rate = runs[0]["acceptance"]["accepted/tested"]["estimate"]
        each = [runs[0]["tokens_per_pass"]["measured"]["estimate"], *speeds]
        shown = [f"{rate:.3f}" if rate is not None else "none tested", f"{each[0]:.2f}"]
        shown += [f"{value:.2f}x" for value in each[1:4]] + [f"{value:.3f}" for value in each[4:]]
        slower = "  slower than plain decoding on this machine" if speeds[0] < 1 else ""
        print(f"  {draft:<12}" + "".join(f"{value:>16}" for value in shown) + slower)
