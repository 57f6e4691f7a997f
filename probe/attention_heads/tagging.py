"""A tag for each token of a text: from a column of the user's file, or from a tagger. Runs no model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from probe.errors import BadOption, BadPrompt
from probe.registries.tagger_languages import LANGUAGES, part_of_speech
from probe.spans import split
from probe.texts import TokenSequence

Tags = list[str | None]
"""One a token; None for a token that has none: white space, a special token, what a template wrote."""

# words as the tag sets have them: clitics (n't, 's) stand alone, and so does each mark of punctuation
WORD = re.compile(r"[^\W_]+?(?=n['’]t\b)|n['’]t\b|['’](?:s|re|ve|ll|d|m)\b|[^\W_]+(?:[-.,][^\W_]+)*|[^\w\s]|_", re.IGNORECASE)
HINT = "a list, or a text with spaces between: one tag a word (as white space parts them) or one a token"


def column_tags(sequence: TokenSequence, column: str) -> Tags:
    """The tags that the prompt's own column gives its tokens. As many as words: each goes to all tokens of its word; else as
    many as tokens of the text. An empty tag is none.

    Raises `BadPrompt` where there are none, or as many as neither.
    """
    content, value = sequence.prompt.content, sequence.prompt.columns.get(column)
    tags = value.split() if isinstance(value, str) else value
    if tags is None:
        raise BadPrompt(f"it has no tags in '{column}'", hint=HINT)
    if not isinstance(content, str):
        raise BadPrompt("tags are for a text, and it is messages", hint="leave out --tags, or give texts")
    if isinstance(tags, str) or not isinstance(tags, Sequence) or not all(one is None or isinstance(one, str) for one in tags):
        raise BadPrompt(f"its tags in '{column}' are not texts", hint=HINT)
    assert sequence.pieces is not None, "finish() comes first"
    begin = sequence.pieces.text.find(content)
    if begin < 0:
        raise BadPrompt("its tokens spell another text, so that no word's tag can be put to them", hint="give tags of tokens")
    offsets = sequence.pieces.offsets
    inside = [i for i, (low, high) in enumerate(offsets) if begin <= low < begin + len(content) and high > begin]
    words = [(begin + word.start(), begin + word.end()) for word in re.finditer(r"\S+", content)]
    if len(tags) == len(words):
        return over_words(sequence, words, tags)
    if len(tags) != len(inside):
        raise BadPrompt(f"it has {len(tags)} tags, {len(words)} words and {len(inside)} tokens", hint=HINT)
    found: Tags = [None] * len(offsets)
    for at, tag in zip(inside, tags, strict=True):
        found[at] = tag or None
    return found


def tagger_tags(sequence: TokenSequence, language: str) -> Tags:
    """Coarse parts of speech by HanTa (Wartena 2019), sentence by sentence; a word's goes to all its tokens."""
    assert sequence.pieces is not None, "finish() comes first"
    text, tagger, about = sequence.pieces.text, tagger_of(language), LANGUAGES[language]
    words: list[tuple[int, int]] = []
    tags: Tags = []
    for sentence in _sentences(text):
        if sentence:
            words += sentence
            tags += [part_of_speech(tag, about) for tag in tagger.tag_sent([text[a:b] for a, b in sentence], taglevel=0)]
    return over_words(sequence, words, tags)


def _sentences(text: str) -> Iterator[list[tuple[int, int]]]:
    """The words of each sentence, as characters of the text."""
    for low, high in split(text):
        yield [(low + word.start(), low + word.end()) for word in WORD.finditer(text[low:high])]


@lru_cache(maxsize=1)
def tagger_of(language: str) -> Any:
    """HanTa's tagger with the model that it brings. Raises `BadOption` where it is not installed."""
    try:
        from HanTa.HanoverTagger import HanoverTagger
    except ImportError as error:
        hint = "pip install 'mechprobe[tags]'; tags of your own (--tags COLUMN) need none"
        raise BadOption("--tagger needs the package HanTa", hint=hint) from error
    return HanoverTagger(LANGUAGES[language].model)


def over_words(sequence: TokenSequence, words: Sequence[tuple[int, int]], tags: Sequence[str | None]) -> Tags:
    """The tag of the word, (start, end) in the text, in which a token's first character that is no white space stands."""
    pieces = sequence.pieces
    assert pieces is not None, "finish() comes first"
    of: dict[int, str | None] = {}
    for (low, high), tag in zip(words, tags, strict=True):
        of.update(dict.fromkeys(range(low, high), tag or None))
    template = sequence.template or []
    found: Tags = []
    for i, ((low, high), token) in enumerate(zip(pieces.offsets, pieces.tokens, strict=True)):
        first = low + len(token) - len(token.lstrip())
        if not token:  # a further part of the character that the token before it holds
            first = low - 1
        known = i >= len(template) or not template[i]
        found.append(of.get(first) if known and (first < high or not token) else None)
    return found
