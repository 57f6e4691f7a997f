"""Each token's piece of a text: the spans tile it, agree with decoding every prefix, and take linear time."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from probe.language_model.pieces import Pieces, alone, decode, pieces
from probe.tiny import tokenizer as byte_level

SPECIALS = ["<s>", "</s>", "<unk>"]
WORDS = ["the", "cat", "sat", "▁", "▁the", "▁cat", "▁s", "at", ".", ",", "é", "▁über", "▁▁", "\n", "a", "b", "c", "我"]


def sentencepiece(*decoding: decoders.Decoder) -> PreTrainedTokenizerFast:
    """As converted from sentencepiece: spaces as U+2581, other bytes as <0xNN>."""
    names = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    backend = Tokenizer(models.BPE(vocab={n: i for i, n in enumerate(names)}, merges=[], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    backend.decoder = decoders.Sequence(list(decoding))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def wordpiece(*, tidy: bool) -> PreTrainedTokenizerFast:
    names = ["[UNK]", "do", "n", "'", "t", "##s", "##ing", "go", ",", ".", "!", "the", "é", "##é"]
    backend = Tokenizer(models.WordPiece(vocab={n: i for i, n in enumerate(names)}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece(cleanup=tidy)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def spaced_words() -> PreTrainedTokenizerFast:
    """Added tokens with spaces and with letters that mean other bytes in GPT-2's alphabet."""
    fast = byte_level()
    fast.add_tokens(["<my tok>", "naïve", " leading", "Ġ"])
    fast.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<|é|>", special=True)]}, replace_extra_special_tokens=False
    )
    return fast


FALLBACK = (decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse())
TOKENIZERS = {
    "byte level": byte_level,
    "byte level, added words": spaced_words,
    "fallback": lambda: sentencepiece(*FALLBACK),
    "fallback, stripped": lambda: sentencepiece(*FALLBACK, decoders.Strip(" ", 1, 0)),
    "metaspace": lambda: sentencepiece(decoders.Metaspace()),
    "words": lambda: wordpiece(tidy=False),
    "words, tidied": lambda: wordpiece(tidy=True),
    "suffixed": lambda: sentencepiece(decoders.BPEDecoder(suffix="t")),
    "python bytes": ByT5Tokenizer,
}
LOCAL = sorted(set(TOKENIZERS) - {"words, tidied"})


@pytest.fixture(params=sorted(TOKENIZERS))
def tokenizer(request: pytest.FixtureRequest):
    return TOKENIZERS[request.param]()


def random_ids(tokenizer, n: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(len(tokenizer)), k=n)


def random_text(n: int, seed: int) -> str:
    """Unicode from everywhere but the surrogates, with much ASCII and many spaces."""
    draw = random.Random(seed)
    kinds = (
        lambda: " ",
        lambda: chr(draw.randrange(32, 127)),
        lambda: chr(draw.randrange(0xD800)),
        lambda: chr(draw.randrange(0xE000, 0x110000)),
    )
    return "".join(draw.choice(kinds)() for _ in range(n))


def assert_tiles(found: Pieces, text: str) -> None:
    assert found.text == text
    assert "".join(found.tokens) == text
    assert [text[a:b] for a, b in found.offsets] == found.tokens
    ends = [0, *(b for _, b in found.offsets)]
    assert [a for a, _ in found.offsets] == ends[:-1]
    assert ends[-1] == len(text) and all(a <= b for a, b in pairwise(ends))


@pytest.mark.parametrize("seed", range(5))
def test_pieces_of_random_ids_tile_the_decoded_text(tokenizer, seed: int) -> None:
    ids = random_ids(tokenizer, 60, seed)
    assert_tiles(pieces(tokenizer, ids), decode(tokenizer, ids))


@pytest.mark.parametrize("seed", range(5))
def test_pieces_of_random_text_tile_the_decoded_text(tokenizer, seed: int) -> None:
    ids = tokenizer(random_text(60, seed))["input_ids"]
    assert_tiles(pieces(tokenizer, ids), decode(tokenizer, ids))


@pytest.mark.parametrize("kind", LOCAL)
@pytest.mark.parametrize("seed", range(3))
def test_a_prefix_that_decodes_to_a_prefix_ends_where_its_last_piece_does(kind: str, seed: int) -> None:
    """The quadratic way: decode each prefix. Prefixes that end inside a character say nothing."""
    tokenizer = TOKENIZERS[kind]()
    for ids in (random_ids(tokenizer, 60, seed), tokenizer(random_text(40, seed))["input_ids"]):
        found, checked = pieces(tokenizer, ids), 0
        for n, (_, end) in enumerate(found.offsets, start=1):
            prefix = decode(tokenizer, ids[:n])
            if found.text.startswith(prefix) and not prefix.endswith("�"):
                assert end == len(prefix), (n, prefix)
                checked += 1
        assert checked > len(ids) / 20


def test_a_character_belongs_to_the_token_of_its_first_byte() -> None:
    tokenizer = byte_level()
    ids = tokenizer("a🙂é", add_special_tokens=False)["input_ids"]
    assert len(ids) == 1 + 4 + 2
    assert pieces(tokenizer, ids).tokens == ["a", "🙂", "", "", "", "é", ""]
    assert pieces(tokenizer, ids).offsets == [(0, 1), (1, 2), (2, 2), (2, 2), (2, 2), (2, 3), (3, 3)]
    # cut inside the character: what there is of it is one lost character, as in the tokenizer's own decoding
    assert pieces(tokenizer, ids[:3]).tokens == ["a", "�", ""]
    # bytes that no character has: each is lost alone
    assert pieces(tokenizer, ids[2:4]).tokens == ["�", "�"]


def test_byte_fallback_characters_too() -> None:
    tokenizer = TOKENIZERS["fallback, stripped"]()
    ids = tokenizer("▁the 🙂a")["input_ids"]
    found = pieces(tokenizer, ids)
    assert found.text == "the 🙂a" or found.text.endswith("🙂a")
    smile = found.text.index("🙂")
    assert [b - a for a, b in found.offsets if a >= smile] == [1, 0, 0, 0, 1]


def test_special_tokens_are_pieces_and_ids_beyond_the_vocabulary_are_empty() -> None:
    tokenizer = byte_level()
    ids = [tokenizer.bos_token_id, *tokenizer("hi", add_special_tokens=False)["input_ids"], 10_000, tokenizer.eos_token_id]
    assert pieces(tokenizer, ids).tokens == ["<s>", "h", "i", "", "</s>"]


def test_nothing_has_no_pieces() -> None:
    assert pieces(byte_level(), []) == Pieces("", [], [])


@pytest.mark.parametrize("kind", ["byte level", "fallback", "words"])
def test_time_is_linear(kind: str) -> None:
    """Ten times the tokens take about ten times as long; the quadratic way would take a hundred."""
    tokenizer = TOKENIZERS[kind]()

    def seconds(n: int) -> float:
        ids = random_ids(tokenizer, n, 0)
        start = time.perf_counter()
        pieces(tokenizer, ids)
        return time.perf_counter() - start

    short = min(seconds(1_000) for _ in range(3))
    assert seconds(10_000) < 40 * short + 0.1


def test_a_hundred_thousand_tokens() -> None:
    tokenizer = byte_level()
    ids = random_ids(tokenizer, 100_000, 0)
    start = time.perf_counter()
    found = pieces(tokenizer, ids)
    assert time.perf_counter() - start < 5
    assert_tiles(found, decode(tokenizer, ids))


def test_a_token_alone_keeps_its_space() -> None:
    tokenizer = TOKENIZERS["fallback, stripped"]()
    names = tokenizer.get_vocab()
    assert alone(tokenizer, names["▁cat"]) == " cat"
    assert alone(tokenizer, names["<0xF0>"]) == "�"
    assert alone(wordpiece(tidy=False), 6) == "ing"
    assert alone(byte_level(), byte_level().convert_tokens_to_ids("ð")) == "�"


def test_the_default_tokenizer(smollm2) -> None:
    for seed in range(3):
        for ids in (random_ids(smollm2.tokenizer, 300, seed), smollm2.encode(random_text(300, seed)).ids):
            assert_tiles(smollm2.pieces(ids), smollm2.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
