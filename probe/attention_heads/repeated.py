"""Random tokens, repeated: a text in which nothing but the repetition can be foretold (Elhage et al. 2021; Olsson et al.
2022, 2209.11895). Runs no model."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probe.errors import BadOption

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

SHORTEST_WORD = 3  # letters
SPACES = ("Ġ", "▁")  # how vocabularies write the space before a word


def repeated_tokens(lm: LanguageModel, n: int, copies: int, sequences: int, seed: int) -> Tensor:
    """Ids (sequences, 1 + copies * n), or one fewer each for a model whose texts begin with no token of their own: that token,
    then n random words of the vocabulary, no two alike, `copies` times.

    Words are tokens of small Latin letters after a space; in a vocabulary of few, any ordinary tokens. The same seed gives the
    same ids, and more sequences begin with those of fewer. Raises `BadOption` where there are not n, or they don't fit.
    """
    words = ordinary_tokens(lm, at_least=n)
    if len(words) < n:
        raise BadOption(f"the vocabulary of {lm.name} has {len(words)} ordinary tokens", hint=f"--length {len(words)} at most")
    first = first_ids(lm)
    total = len(first) + copies * n
    if lm.context_length is not None and total > lm.context_length:
        fits = (lm.context_length - len(first)) // copies
        raise BadOption(
            f"{total} repeated tokens are more than the context of {lm.name} holds ({lm.context_length})",
            hint=f"--length {fits} at most, or --sequences 0",
        )
    drawn = [np.random.default_rng((seed, i)).choice(words, n, replace=False) for i in range(sequences)]
    return torch.tensor([[*first, *np.tile(one, copies).tolist()] for one in drawn], dtype=torch.long).reshape(-1, total)


def first_ids(lm: LanguageModel) -> list[int]:
    """What the tokenizer puts before a text."""
    alone, text = lm.encode("a").ids, lm.ids_of("a")
    return list(alone[: len(alone) - len(text)])


def ordinary_tokens(lm: LanguageModel, *, at_least: int) -> list[int]:
    """Ids of words, ascending; of any tokens that are not special where there are not so many words."""
    held = lm.n_ids
    words, others = ([i for i in found if held is None or i < held] for found in _tokens(lm.tokenizer))
    return words if len(words) >= at_least else others


@lru_cache(maxsize=4)
def _tokens(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Words, and all tokens that stand for text."""
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    there = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i not in special)
    words = tuple(i for i, token in there if isinstance(token, str) and _is_word(token))
    return words, tuple(i for i, _ in there)


def _is_word(token: str) -> bool:
    letters = token[1:]
    return (
        token.startswith(SPACES)
        and len(letters) >= SHORTEST_WORD
        and letters.isascii()
        and letters.isalpha()
        and letters.islower()
    )
