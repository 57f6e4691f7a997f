"""Which characters of a decoded text each token wrote. Knows how decoders join tokens; re-tokenises nothing."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

_LOST = "�"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_WINDOW = 8  # tokens of context in which a decoder that follows no known rule is assumed to be local


class Pieces(NamedTuple):
    """A decoded text and the half-open character span of each token in it.

    The spans tile the text exactly and `tokens[i] == text[slice(*offsets[i])]`. A character belongs to the token that
    holds its first byte: further tokens of the same character have an empty piece at its end. Bytes that never become a
    character are U+FFFD, as in the tokenizer's own decoding.
    """

    text: str
    tokens: list[str]
    offsets: list[tuple[int, int]]


def pieces(tokenizer: Any, ids: Sequence[int]) -> Pieces:
    """Decode `ids` at once and find each token's part of it, in time linear in their number."""
    ids = [int(i) for i in ids]
    text = decode(tokenizer, ids)
    names = tokenizer.convert_ids_to_tokens(ids) if ids else []
    bounds = None
    if all(name is None or isinstance(name, str) for name in names):
        # an id beyond the tokenizer's vocabulary (a padding row of the embedding) has no name and no text
        names = [name or "" for name in names]
        bounds = _byte_level(names, text)
        if bounds is None:
            bounds = _byte_fallback(names, text)
    if bounds is None:
        bounds = _windowed(tokenizer, ids, len(text))
    offsets = [(int(a), int(b)) for a, b in pairwise(bounds)]
    return Pieces(text, [text[a:b] for a, b in offsets], offsets)


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of `ids`, special tokens included, nothing tidied."""
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def alone(tokenizer: Any, token_id: int) -> str:
    """The text of one token in the middle of a text: a leading space is kept, half a character is U+FFFD."""
    anchor = tokenizer.encode("a", add_special_tokens=False)[-1:]
    before, both = decode(tokenizer, anchor), decode(tokenizer, [*anchor, int(token_id)])
    return both.removeprefix(before) if anchor and both.startswith(before) else decode(tokenizer, [int(token_id)])


def vocabulary(tokenizer: Any) -> list[str]:
    """By id the text of each token in the middle of a text, a leading space kept; empty for a special token, for one that
    holds a part of a character, and for an id that is none."""
    anchor = tokenizer.encode("a", add_special_tokens=False)[-1:]
    before, n = decode(tokenizer, anchor), max(tokenizer.get_vocab().values()) + 1
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | set(tokenizer.all_special_ids)
    texts = tokenizer.batch_decode(
        [[*anchor, i] for i in range(n)], skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return ["" if i in special or _LOST in text else text.removeprefix(before) for i, text in enumerate(texts)]


def spelled(tokenizer: Any, token_id: int) -> str | None:
    """The bytes of a token that holds a part of a character, as in `<0xC3>`; None for one of whole characters."""
    if _LOST not in alone(tokenizer, token_id):
        return None
    (name,) = tokenizer.convert_ids_to_tokens([int(token_id)])
    if not isinstance(name, str) or _BYTE.fullmatch(name):
        return name if isinstance(name, str) else None
    if not all(character in _ALPHABET for character in name):
        return None
    text = bytes(_ALPHABET[character] for character in name).decode("utf-8", "probe.spell")
    return None if _LOST in text else text


def _spell(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "".join(f"<0x{byte:02X}>" for byte in error.object[error.start : error.end]), error.end


codecs.register_error("probe.spell", _spell)


def _byte_level(names: list[str], text: str) -> np.ndarray | None:
    """Boundaries if each token is bytes in GPT-2's alphabet (or as it stands) and the text is those bytes as UTF-8."""
    meaning: dict[str, bytes] = {}
    for name in set(names):
        known = all(character in _ALPHABET for character in name)
        meaning[name] = bytes(_ALPHABET[c] for c in name) if known else name.encode("utf-8", "surrogatepass")
    data = b"".join(meaning[name] for name in names)
    if data.decode("utf-8", "replace") != text:
        return None
    ends = np.cumsum([0, *(len(meaning[name]) for name in names)])
    return np.concatenate([[0], np.cumsum(_first_bytes(data))])[ends]


def _first_bytes(data: bytes) -> np.ndarray:
    """(bytes,) bool: where a character of `data.decode("utf-8", "replace")` begins."""
    first = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80

    def lose(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeDecodeError)
        first[error.start : error.end] = False
        first[error.start] = True
        return _LOST, error.end

    codecs.register_error("probe.lose", lose)
    data.decode("utf-8", "probe.lose")
    return first


def _byte_fallback(names: list[str], text: str) -> np.ndarray | None:
    """Boundaries if a token is its name with U+2581 for a space, and a run of byte tokens is UTF-8 or all lost."""
    lengths, parts, at = [], [], 0
    while at < len(names):
        end = at
        while end < len(names) and _BYTE.fullmatch(names[end]):
            end += 1
        if end > at:
            run = bytes(int(name[3:5], 16) for name in names[at:end])
            try:
                parts.append(run.decode("utf-8"))
                lengths += [int((byte & 0xC0) != 0x80) for byte in run]
            except UnicodeDecodeError:
                parts.append(_LOST * len(run))
                lengths += [1] * len(run)
            at = end
        else:
            parts.append(names[at].replace("▁", " "))
            lengths.append(len(parts[-1]))
            at += 1
    joined = "".join(parts)
    if joined != text:
        if joined != f" {text}":
            return None
        lengths[next(i for i, length in enumerate(lengths) if length)] -= 1  # the decoder drops the first space
    return np.cumsum([0, *lengths])


def _windowed(tokenizer: Any, ids: list[int], length: int) -> np.ndarray:
    """Boundaries for any decoder, from what each token adds to the text of the few before it.

    Exact where decoding is local; where it is not (a later token removes an earlier space) the removed characters go
    to no token. The boundaries never decrease and end at `length`.
    """
    bounds = [0]
    for i in range(len(ids)):
        start = max(0, i - _WINDOW)
        before = _settled(decode(tokenizer, ids[start:i])) if i > start else 0
        bounds.append(bounds[-1] + _settled(decode(tokenizer, ids[start : i + 1])) - before)
    bounds[-1] = length
    return np.minimum.accumulate(np.clip(bounds, 0, length)[::-1])[::-1]


def _settled(text: str) -> int:
    """Length of a text; lost bytes at its end may become one character yet."""
    kept = text.rstrip(_LOST)
    return len(kept) + (len(kept) < len(text))


def _gpt2_alphabet() -> dict[str, int]:
    """GPT-2's stand-in for each byte -> the byte: itself where printable, else the next one from U+0100 on."""
    itself = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(itself)]
    return {chr(byte): byte for byte in itself} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_ALPHABET = _gpt2_alphabet()
