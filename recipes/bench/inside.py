"""What looking inside costs: files of texts followed through the model, beside plain forwards."""

from __future__ import annotations

import torch

import probe

from . import corpora
from .measure import Case, compare, show
from .trace import plain, text_of


def main(model: str, *, repeat: int, quick: bool, only: str | None = None) -> None:
    """Print every comparison, or only one of them."""
    lm = probe.load(model)
    print(f"{lm}  torch threads: {torch.get_num_threads()}")
    lm.anatomy  # noqa: B018  (found before anything is timed)
    tokens = 1000 if quick else 100_000
    parts = {
        "heads": lambda: heads(lm, text_of(lm, 64 if quick else 512), repeat=repeat),
        "top": lambda: corpora.top(lm, tokens=tokens),
        "means": lambda: corpora.means(lm, tokens=tokens),
    }
    for name, run in parts.items():
        if only in (None, name):
            run()


def heads(lm: probe.LanguageModel, text: str, *, repeat: int) -> None:
    """A whole `probe.heads` of one text, beside its plain forward; random tokens are texts more, so they stand apart."""
    cases = [
        Case("heads, summaries", lambda: probe.heads(lm, text, sequences=0)),
        Case("heads, --kernel", lambda: probe.heads(lm, text, sequences=0, kernel=True), 1.5),
        Case("heads, --kernel --memory elu", lambda: probe.heads(lm, text, sequences=0, kernel=True, memory="elu"), 1.5),
        Case("heads, --kernel, and random tokens", lambda: probe.heads(lm, text, kernel=True)),
    ]
    show("heads (baseline: plain forward)", compare(plain(lm, text), cases, repeat=repeat))
