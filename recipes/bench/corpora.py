"""What `top` and `means` cost over many tokens, beside plain forwards over the same windows; and whether memory grows."""

from __future__ import annotations

from functools import partial

import torch

import probe
from probe.corpora.windows import Corpus, padded_windows, surveyed
from probe.requests import CorpusMeans

from .measure import Case, once, show
from .trace import text_of

TARGET = 1.2
LENGTHS = (40, 200, 90, 350, 20)  # tokens of a text, in turn


def texts_of(lm: probe.LanguageModel, tokens: int) -> list[str]:
    """Texts of different lengths, about so many tokens in all."""
    ids = lm.encode(text_of(lm, tokens)).ids
    texts: list[str] = []
    at = 0
    while at < len(ids):
        n = LENGTHS[len(texts) % len(LENGTHS)]
        texts.append(lm.pieces(ids[at : at + n]).text)
        at += n
    return texts


def _plain(corpus: Corpus) -> Case:
    """The model on every batch, as anyone would run it: all logits, nothing kept."""

    def run() -> None:
        with torch.no_grad():
            for part in corpus.parts():
                for batch in corpus.batches(corpus.read(part)):
                    corpus.lm.model(padded_windows(batch)[0].to(corpus.lm.device), use_cache=False)

    return Case(f"plain model(ids), {corpus.seen.tokens:,} tokens", run)


def top(lm: probe.LanguageModel, *, tokens: int) -> None:
    """Every stream and the last layer's heads; and one place low in the model, above which the forward ends."""
    asked = {"top, all streams, last heads": ["resid_post@all", "z@-1"], "top, resid_post@2 alone": ["resid_post@2"]}
    for n in (tokens // 10, tokens):
        texts = texts_of(lm, n)
        _compared(lm, texts, [Case(name, partial(probe.top, lm, texts, at=at), TARGET) for name, at in asked.items()])


def means(lm: probe.LanguageModel, *, tokens: int) -> None:
    """Every stream and every head."""
    for n in (tokens // 10, tokens):
        texts = texts_of(lm, n)
        run = partial(probe.means, lm, texts, at=["resid_post@all", "z@all"])
        _compared(lm, texts, [Case("means, all streams and heads", run, TARGET)])


def _compared(lm: probe.LanguageModel, texts: list[str], cases: list[Case]) -> None:
    """Beside plain forwards. A tenth of the tokens comes first: to warm up, and for its peak of memory, the same later."""
    corpus = surveyed(lm, texts, CorpusMeans(texts, at=["embed"]))
    show(f"{corpus.seen.tokens:,} tokens of {len(texts):,} texts (baseline: plain forwards)", once(_plain(corpus), cases))
