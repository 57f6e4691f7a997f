"""Passages of Python's own help (PSF licence), which every machine with Python has, and the stream of a layer over them."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import probe

CHARACTERS, LENGTH = 800, 256  # of a passage: at least so many, if they are no more than so many tokens
Progress = Callable[[str, int, int], None] | None


class TracedStream(NamedTuple):
    """Rows of the table `tokens`, with the token that comes `next` in the text, and x (n, d_model) at them."""

    tokens: pd.DataFrame
    x: Tensor

    def below(self, norm: float) -> TracedStream:
        """Without position 0 of each text and without what is as long as `norm`."""
        used = (self.tokens.pos.to_numpy() > 0) & (self.x.norm(dim=1) < norm).numpy()
        return TracedStream(self.tokens[used], self.x[used])

    def ids(self) -> list[Tensor]:
        """Of each text (pos,)."""
        return [torch.from_numpy(own.to_numpy(dtype=np.int64)) for _, own in self.tokens.groupby("prompt_id").token_id]


def passages(lm: probe.LanguageModel, n: int, seed: int) -> list[str]:
    """So many, drawn; they share no paragraph."""
    pieces = [""]
    for paragraph in dict.fromkeys(one for _, text in sorted(topics.items()) for one in text.strip().split("\n\n")):
        pieces[-1] += f"{paragraph}\n\n"
        if len(pieces[-1]) >= CHARACTERS:
            pieces.append("")
    chosen = random.Random(seed).sample(pieces[:-1], n)
    return [lm.pieces(lm.tokenizer.encode(one.strip(), add_special_tokens=False)[:LENGTH]).text for one in chosen]


def traced(lm: probe.LanguageModel, texts: list[str], layer: int, *, out: Path, progress: Progress) -> TracedStream:
    """What `probe.trace` of a file of the texts wrote; the file stays beside the run."""
    (file := out.with_suffix(".jsonl")).write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    run = probe.trace(lm, file, capture=f"resid_post@{layer}", attention="none", top=0, out=out, progress=progress)
    x = np.concatenate([run.activation("resid_post", layer, prompt_id=i) for i in range(len(texts))])
    return TracedStream(run.tokens.assign(next=run.tokens.groupby("prompt_id").token.shift(-1)), torch.from_numpy(x))


def one_token(tops: list[pd.DataFrame]) -> list[float]:
    """Of each list of texts the share in which the token at the top is the commonest of them, but for spaces."""
    return [float(top.token.str.strip().value_counts().iloc[0]) / len(top) for top in tops]


def follows(following: pd.Series, on: np.ndarray, words: set[str]) -> str:
    """The five tokens that come more often after those where a feature is on than after others, as a set of answers."""
    own, everywhere = (some.value_counts(normalize=True) for some in (following[on], following))
    gain = (own * np.log(own / everywhere.reindex(own.index))).sort_values(ascending=False, kind="stable")
    return rf"re:^({'|'.join(re.escape(one) for one in [one for one in gain.index if one in words][:5])})\Z"
