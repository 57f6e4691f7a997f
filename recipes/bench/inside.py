"""What looking inside costs: files of texts followed through the model, beside plain forwards."""

from __future__ import annotations

import torch

import probe

from . import corpora


def main(model: str, *, repeat: int, quick: bool, only: str | None = None) -> None:
    """Print every comparison, or only one of them."""
    lm = probe.load(model)
    print(f"{lm}  torch threads: {torch.get_num_threads()}")
    lm.anatomy  # noqa: B018  (found before anything is timed)
    tokens = 1000 if quick else 100_000
    parts = {"top": lambda: corpora.top(lm, tokens=tokens), "means": lambda: corpora.means(lm, tokens=tokens)}
    for name, run in parts.items():
        if only in (None, name):
            run()
