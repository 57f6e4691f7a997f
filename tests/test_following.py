"""What follows a prompt is cut as it is cut behind that prompt; a token that is a part of a character is shown as its bytes."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

import probe
from probe.errors import BadOption
from probe.language_model import LanguageModel
from probe.language_model.following import answer_ids, ids_after
from probe.targets import NO_SETS, contrast_after
from probe.tiny import tiny

MERGES = [("▁", "7"), ("▁", "9"), ("▁", "a"), ("i", "s"), ("▁", "is"), ("=", "9")]


@pytest.fixture(scope="module")
def sentencepiece() -> LanguageModel:
    """A Llama with Llama 2's kind of tokenizer: a space before every text, spaces as U+2581, other bytes as <0xNN>."""
    names = ["<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁79ais.=?Ho", *map("".join, MERGES)]
    backend = Tokenizer(models.BPE(vocab={n: i for i, n in enumerate(names)}, merges=MERGES, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    model, _ = tiny("llama")
    torch.manual_seed(0)
    model.resize_token_embeddings(len(names))
    return LanguageModel(model, tokenizer, name="spm")


def names(lm: LanguageModel, ids: list[int]) -> list[str]:
    return lm.tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize(("prompt", "answer", "expected"), [("Ho a?", " 7", "▁7"), ("a=", "7", "7"), ("a is", " a.", "▁a")])
def test_an_answer_is_the_tokens_of_prompt_and_answer_together(
    sentencepiece: LanguageModel, prompt: str, answer: str, expected: str
) -> None:
    lm = sentencepiece
    ids = lm.encode(prompt).ids
    assert lm.encode(prompt + answer).ids[: len(ids)] == ids
    (token, *_), _ = answer_ids(lm, answer, "answer", after=ids)
    assert token == lm.encode(prompt + answer).ids[len(ids)] and names(lm, [token]) == [expected]
    assert names(lm, lm.ids_of(answer))[0] != expected  # alone it has a space of its own


def test_an_answer_before_which_the_prompt_is_cut_anew_is_said(sentencepiece: LanguageModel) -> None:
    """ "a =" + "9" is "=9", one token: the answer to the prompt as it is can only be "9"."""
    lm = sentencepiece
    (token,), (said,) = answer_ids(lm, "9", "answer", after=lm.encode("a=").ids)
    assert names(lm, [token]) == ["9"] and "ends in other tokens than '='" in said
    with pytest.raises(BadOption, match="begin with the same token"):
        contrast_after(lm, NO_SETS, " 7", " 7.", after=lm.encode("Ho").ids)
    with pytest.raises(BadOption, match="is empty"):
        answer_ids(lm, "", "answer", after=lm.encode("Ho").ids)


def test_every_verb_follows_that_token(sentencepiece: LanguageModel) -> None:
    lm = sentencepiece
    seven, nine = lm.tokenizer.convert_tokens_to_ids(["▁7", "▁9"])
    ids = lm.encode("Ho a?").ids
    with torch.no_grad():
        logits = lm.model(torch.tensor([ids])).logits[0, -1].double()
    expected = float(logits[seven] - logits[nine])
    written = probe.attribute(lm, "Ho a?", answer=" 7", against=" 9", out=None)
    assert written.summary["positions"][0]["logit"] == pytest.approx(expected, abs=1e-5)
    swept = probe.patch(lm, clean="Ho a?", corrupt="Ho 7?", answer=" 7", against=" 9", layers="0", out=None)
    assert swept.patches["clean"].iloc[0] == pytest.approx(expected, abs=1e-5)
    seen = probe.lens(lm, "Ho a?", target=" 7", position="last", out=None)
    assert seen.lens_positions["target_id"].tolist() == [seven]


def test_a_text_in_the_middle_has_no_space_of_its_own(sentencepiece: LanguageModel) -> None:
    """Also where the text before would be cut anew, so that nothing shows how it follows."""
    lm = sentencepiece
    for before, text in (("a=", "9."), ("Ho a", "is"), ("a", " is")):
        prefix = lm.encode(before).ids
        ids = ids_after(lm, prefix, text)
        assert lm.pieces([*prefix, *ids]).text == before + text
    assert names(lm, ids_after(lm, lm.encode("a=").ids, "9.")) == ["9", "."]


def test_a_part_of_a_character_is_shown_as_its_bytes(sentencepiece: LanguageModel) -> None:
    for lm in (probe.load("tiny:llama"), sentencepiece):
        ids = lm.ids_of("é")[-2:]
        assert [lm.token_text(i) for i in ids] == ["<0xC3>", "<0xA9>"] == lm.labels(ids)
        assert lm.labels(lm.ids_of("is"))[-1] in ("is", "s", " is")
        assert "".join(lm.pieces(ids).tokens) == "é"  # in the text they are one character, as ever
    run = probe.trace(probe.load("tiny:llama"), "é", out=None)
    assert {"<0xC3>", "<0xA9>"} == {row["token"] for row in run.summary["most_surprising"]}
