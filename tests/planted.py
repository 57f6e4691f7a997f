"""Models whose weights were set by hand: GPT-2's own class, no training, and it is known which parts do the work.

The stream holds named rows: the token and the position as one-hot vectors, and what the parts write. A norm with an enormous
`layer_norm_epsilon` and a gain of its root takes nothing but the mean away; a last row keeps every mean at zero, so the norms
are the identity. All that has no task is small noise: it writes, and what it writes does not matter.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from probe.language_model import LanguageModel

BOS = "<s>"
PEOPLE = ("Mary", "John", "Anna", "Paul", "Ruth", "Omar")
PLACES = ("Rome", "Oslo", "Cairo", "Lima", "Delhi", "Quito")
KINDS = ("born", "lives")
OTHERS = ("the", "and", "went", "gave", "saw", "met", "then", "when", "store", "book", "red", "blue", "old", "new", "in", "at")
WORDS = (BOS, *PEOPLE, *PLACES, *KINDS, *OTHERS, *(f"w{i}" for i in range(9)))
N_WORDS, N_POSITIONS, D_HEAD, N_HEADS = len(WORDS), 32, 48, 4
EPSILON = 1e8  # of the norms: their scale is constant to about 1e-8
NOISE = 0.01
LOUD = 12.0  # logits that one unit in the rows `out` is worth

_ids = {word: i for i, word in enumerate(WORDS)}
_starts = {"token": 0, "position": N_WORDS, "previous": N_WORDS + N_POSITIONS, "out": 2 * N_WORDS + N_POSITIONS}
_LEVEL = 3 * N_WORDS + N_POSITIONS  # the row that keeps the mean at zero


class Planted(NamedTuple):
    """A model, a task that it does, and the parts that do it, with the positions at which they do.

    `clean` is answered by `answer`, `corrupt` by `against`. Heads go by (layer, head), MLPs by their layer. `stream`: for
    each layer, the positions at which what differs between the two texts stands before its block. Where there are two,
    each carries half of the difference in logits."""

    lm: LanguageModel
    clean: str
    corrupt: str
    answer: str
    against: str
    heads: Mapping[tuple[int, int], set[int]]
    mlps: Mapping[int, set[int]]
    stream: tuple[set[int], ...]

    def ids(self, text: str) -> Tensor:
        """(1, pos), with the token that begins a text."""
        return torch.tensor([self.lm.encode(text).ids])

    @torch.no_grad()
    def difference(self, ids: Tensor) -> float:
        """Logit of the answer minus that of its rival, by a plain forward."""
        last = self.lm.model(ids).logits[0, -1]
        return float(last[_ids[self.answer]] - last[_ids[self.against]])


@functools.cache
def induction() -> Planted:
    """Two layers (Elhage et al. 2021): head 0.1 writes the token before, head 1.2 looks for the place whose token before is
    the present one and copies the token there. `w1 w2 … w1` is answered by `w2`."""
    model = _quiet(layers=2)
    _attend(model, 0, 1, score=30.0, query=("position", 0), key=("position", 1))
    _move(model, 0, 1, read="token", write="previous")
    _attend(model, 1, 2, score=8.0, query=("token", 0), key=("previous", 0))
    _move(model, 1, 2, read="token", write="out")
    return Planted(
        _named(model, "planted-induction"),
        clean="the Mary saw old John met then new red book Oslo Mary",
        corrupt="the John saw old Mary met then new red book Oslo Mary", answer="saw", against="met",
        heads={(0, 1): {3, 6}, (1, 2): {12}}, mlps={}, stream=({2, 5}, {3, 6}),
    )  # fmt: skip


@functools.cache
def copying() -> Planted:
    """Three layers: head 1.3 looks for a person, from everywhere, and copies the name; nothing else writes to the answer."""
    model = _quiet(layers=3)
    people = torch.zeros(D_HEAD, N_WORDS)
    people[0, [_ids[name] for name in PEOPLE]] = 1.0
    attention = model.transformer.h[1].attn.c_attn
    with torch.no_grad():
        _query(model, 1, 3).zero_()
        attention.bias[3 * D_HEAD] = 20.0 * D_HEAD**0.5
        key = _key(model, 1, 3).zero_()
        key[_rows("token")] = people.T
    _move(model, 1, 3, read="token", write="out")
    return Planted(
        _named(model, "planted-copy"), clean="then Mary went in the store and gave the book",
        corrupt="then John went in the store and gave the book", answer="Mary", against="John",
        heads={(1, 3): {10}}, mlps={}, stream=({2}, {2}, {10}),
    )  # fmt: skip


@functools.cache
def lookup() -> Planted:
    """Three layers: head 0.2 writes the token before; the MLP of layer 1 holds (person, kind) -> place, a neuron each
    (Geva et al. 2021), that fires only for both. `Mary born` is answered by where she was born."""
    model = _quiet(layers=3)
    _attend(model, 0, 2, score=30.0, query=("position", 0), key=("position", 1))
    _move(model, 0, 2, read="token", write="previous")
    mlp, sharp = model.transformer.h[1].mlp, 16.0
    with torch.no_grad():
        for neuron, ((person, kind), place) in enumerate(facts().items()):
            into, out = mlp.c_fc.weight[:, neuron].zero_(), mlp.c_proj.weight[neuron].zero_()
            into[_rows("previous").start + _ids[person]] = sharp
            into[_rows("token").start + _ids[kind]] = sharp
            mlp.c_fc.bias[neuron] = -1.5 * sharp
            out[_rows("out").start + _ids[place]] = 2.0 / sharp
            out[_LEVEL] = -2.0 / sharp
    return Planted(
        _named(model, "planted-lookup"), clean="the book and Mary born", corrupt="the book and John born",
        answer=facts()["Mary", "born"], against=facts()["John", "born"],
        heads={(0, 2): {5}}, mlps={1: {5}}, stream=({4}, {5}, {5}),
    )  # fmt: skip


@functools.cache
def naming() -> Planted:
    """Two layers, answers of two words: head 1.3 names the person of the text and, after a person, head 1.1 the place. A head
    that is not asked looks at the token that begins the text, and takes nothing from it. `heads`, and `stream`, of the whole
    answer; the first word hangs on the person at 2 alone."""
    model = _quiet(layers=2)
    people, places = ([_ids[word] for word in words] for words in (PEOPLE, PLACES))
    others = [i for i in range(N_WORDS) if i not in people]
    for head, asked, wanted in ((3, others, people), (1, people, places)):
        attention = model.transformer.h[1].attn.c_attn
        with torch.no_grad():
            query, key = _query(model, 1, head).zero_(), _key(model, 1, head).zero_()
            start = _rows("token").start
            query[[start + i for i in asked], 0] = 30.0 * D_HEAD**0.5
            key[[start + i for i in wanted], 0] = 1.0
            attention.bias[head * D_HEAD + 1] = 15.0 * D_HEAD**0.5
            key[start + _ids[BOS], 1] = 1.0
            _move(model, 1, head, read="token", write="out")
            value = attention.weight[:, 2 * N_HEADS * D_HEAD :][:, head * D_HEAD : (head + 1) * D_HEAD]
            value[[start + i for i in range(N_WORDS) if i not in wanted]] = 0.0
    return Planted(
        _named(model, "planted-naming"), clean="then Mary went in Rome and gave the book",
        corrupt="then John went in Oslo and gave the book", answer=" Mary Rome", against=" John Oslo",
        heads={(1, 3): {2}, (1, 1): {5}}, mlps={}, stream=({2, 5}, {2, 5}),
    )  # fmt: skip


def facts() -> dict[tuple[str, str], str]:
    """What `lookup` knows."""
    n = len(PLACES)
    return {(person, kind): PLACES[(i + 2 * j) % n] for i, person in enumerate(PEOPLE) for j, kind in enumerate(KINDS)}


def _quiet(*, layers: int) -> GPT2LMHeadModel:
    """Embeddings and head as the rows say; everything between writes noise."""
    config = GPT2Config(
        vocab_size=N_WORDS, n_positions=N_POSITIONS, n_embd=N_HEADS * D_HEAD, n_layer=layers, n_head=N_HEADS, n_inner=64,
        layer_norm_epsilon=EPSILON, tie_word_embeddings=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if ".ln_" in name:
            parameter.fill_(EPSILON**0.5 if name.endswith("weight") else 0.0)
        else:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(NOISE * noise if parameter.ndim == 2 else torch.zeros_like(noise))
    for table, rows in ((model.transformer.wte.weight, "token"), (model.transformer.wpe.weight, "position")):
        table.zero_()[:, _rows(rows)] = torch.eye(len(table))
        table[:, _LEVEL] = -1.0
    model.lm_head.weight.zero_()[:, _rows("out")] = LOUD * torch.eye(N_WORDS)
    return model


def _attend(
    model: GPT2LMHeadModel, layer: int, head: int, *, score: float, query: tuple[str, int], key: tuple[str, int]
) -> None:
    """The head's score is `score` where the query's one-hot rows, and the key's moved on by a number, are the same."""
    with torch.no_grad():
        for part, (rows, moved), scale in (
            (_query(model, layer, head), query, score * D_HEAD**0.5), (_key(model, layer, head), key, 1.0),
        ):  # fmt: skip
            n = _rows(rows).stop - _rows(rows).start
            part.zero_()[_rows(rows), :n] = scale * torch.eye(n).roll(moved, dims=1)


def _move(model: GPT2LMHeadModel, layer: int, head: int, *, read: str, write: str) -> None:
    """The head writes the rows `read` of where it looks into the rows `write`."""
    attn, own = model.transformer.h[layer].attn, slice(head * D_HEAD, (head + 1) * D_HEAD)
    with torch.no_grad():
        value = attn.c_attn.weight[:, 2 * N_HEADS * D_HEAD :][:, own].zero_()
        value[_rows(read), :N_WORDS] = torch.eye(N_WORDS)
        out = attn.c_proj.weight[own].zero_()
        out[:N_WORDS, _rows(write)] = torch.eye(N_WORDS)
        out[:N_WORDS, _LEVEL] = -1.0


def _query(model: GPT2LMHeadModel, layer: int, head: int) -> Tensor:
    """The part (d_model, d_head) of the weights that makes a head's queries."""
    return model.transformer.h[layer].attn.c_attn.weight[:, head * D_HEAD : (head + 1) * D_HEAD]


def _key(model: GPT2LMHeadModel, layer: int, head: int) -> Tensor:
    return model.transformer.h[layer].attn.c_attn.weight[:, (N_HEADS + head) * D_HEAD : (N_HEADS + head + 1) * D_HEAD]


def _rows(name: str) -> slice:
    return slice(_starts[name], _starts[name] + (N_POSITIONS if name == "position" else N_WORDS))


def _named(model: GPT2LMHeadModel, name: str) -> LanguageModel:
    return LanguageModel(model, tokenizer(), name=name)


def tokenizer() -> PreTrainedTokenizerFast:
    """A token a word, and the one that begins a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel(_ids, unk_token=WORDS[-1]))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token=BOS, eos_token=BOS)
