"""A loaded model with its tokenizer: texts to ids and back, and what identifies it. Runs no forward pass itself."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from probe.errors import BadOption, BadPrompt
from probe.language_model import chat as chats
from probe.language_model.home import home
from probe.language_model.pieces import Pieces, alone, pieces, spelled, vocabulary
from probe.language_model.quantization import lost_gradients, method_in, n_parameters, quantised
from probe.language_model.rotary import Change, carried, change
from probe.requests import ChatOptions

if TYPE_CHECKING:
    import torch

    from probe.anatomy import Anatomy

_LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
    "context_length",
)
_VERY_LONG = 1 << 40  # configs write "no bound" as an absurd number


class Encoded(NamedTuple):
    """Token ids, and the text that they were made from (for a chat: the rendered one)."""

    ids: list[int]
    text: str


class Rendered(NamedTuple):
    """A conversation as ids and as text, the characters of its messages there, and notes."""

    ids: list[int]
    text: str
    spans: list[tuple[int, int]]
    notes: list[str]


def title_of(identity: Mapping[str, Any]) -> str:
    """The name of a model of this identity, how it was quantised, and the names of the adapter and patches on its weights."""
    adapter = identity.get("adapter")
    added = [*([adapter] if adapter else []), *(identity.get("weights_patch") or [])]
    named = [str(one) for one in (identity.get("name"), identity.get("quantize")) if one]
    return " + ".join([*named, *(PurePath(one.get("path") or "edited weights").name for one in added)])


class LanguageModel:
    """Hugging Face's own `model` (evaluating, no gradients) and `tokenizer`, untouched, under one name."""

    def __init__(self, model: Any, tokenizer: Any, *, name: str, identity: Mapping[str, Any] | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self._origin = dict(identity or {})
        self.loaded: Mapping[str, Any] | None = None  # the keywords of `load` that made it, where that made it
        self._patches: tuple[dict[str, Any], ...] = ()
        self._alone: dict[int, str] = {}
        self._spelled: dict[int, str | None] = {}

    def __repr__(self) -> str:
        return f"LanguageModel('{self.name}', {type(self.model).__name__}, {self.dtype}, {self.device})".replace("torch.", "")

    @property
    def title(self) -> str:
        """The name, with those of the adapter that was merged in and of the patches that are on the weights, if any are."""
        return title_of({**self._origin, "name": self.name, "weights_patch": self._patches})

    @property
    def patches(self) -> tuple[dict[str, Any], ...]:
        """What the manifest says of each patch that is on the live weights, in their order."""
        return self._patches

    @patches.setter
    def patches(self, patches: tuple[dict[str, Any], ...]) -> None:
        self._patches = patches
        self.__dict__.pop("identity", None)

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""

        from probe.instrument import device_of

        return device_of(self.model.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return self.model.dtype

    @cached_property
    def anatomy(self) -> Anatomy:
        """Where things are in the model; found once for its class, config and transformers version."""
        from probe.anatomy import cached_find
        from probe.instrument import is_sharded

        # several processes have to go through the same forwards, and one might find a file that another does not
        return cached_find(self.model, None if is_sharded(self.model) else home() / "anatomy")

    def width(self, site: str, layer: int = -1) -> int:
        """Values that a site has at one position, of one head where it has heads; 0 of patterns and scores.

        Raises `SiteAbsent` where the model does not have the site.
        """
        return self.anatomy.site(site, layer).width

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The manifest's `model`: JSON-able, the same for the same weights, tokenizer and placement."""
        from probe.instrument import devices, is_sharded

        model, template = self.model, self.tokenizer.chat_template
        return {
            "name": self.name,
            "revision": None,
            "source": "memory",
            "files": {},
            "tokenizer_sha256": tokenizer_text_sha256(self.tokenizer),
            "quantisation": quantised(model) or method_in(model.config),
            **self._origin,
            **({"weights_patch": list(self._patches)} if self._patches else {}),
            "class": type(model).__name__,
            "parameters": n_parameters(model),
            "chat_template_sha256": _text_sha256(str(template)) if template else None,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": ",".join(devices(model)),
            **({"tp_size": model.tp_size} if is_sharded(model) else {}),
            "attention": getattr(model.config, "_attn_implementation", None),
        }

    @cached_property
    def gradients_lost_in(self) -> str | None:
        """The first layer that a gradient does not come through, though torch says nothing; None if it comes through all."""
        return lost_gradients(self.model)

    @cached_property
    def context_length(self) -> int | None:
        """How many positions the model holds, by its config and scaling or as it was loaded; None if there is no bound."""
        if "context_length" in self._origin:
            return int(self._origin["context_length"])
        config = self.model.config.get_text_config(decoder=True)
        lengths = [getattr(config, name, None) for name in _LENGTHS]
        length = next((n for n in lengths if isinstance(n, int) and 0 < n < _VERY_LONG), None)
        return None if length is None else carried(config, length)

    @cached_property
    def frequencies_change(self) -> Change | None:
        """The length beyond which a text has other rotary frequencies at all its positions; None if they stay."""
        return change(self.model.config.get_text_config(decoder=True))

    def sets_frequencies(self, longest: int) -> bool:
        """Whether a text of so many tokens would set the rotary frequencies of the others in its batch."""
        return self.frequencies_change is not None and longest > self.frequencies_change.length

    @cached_property
    def n_ids(self) -> int | None:
        """How many token ids the model can read: rows of its embedding; None where that is no such table."""
        rows = getattr(self.model.get_input_embeddings(), "num_embeddings", None)
        return rows if isinstance(rows, int) else None

    def lacks(self, ids: Sequence[int]) -> int | None:
        """The first of the ids that the embedding has no row for; None if it has one for each."""
        n = self.n_ids
        return None if n is None else next((i for i in ids if i >= n), None)

    def check_ids(self, ids: Sequence[int]) -> None:
        """Raises `BadPrompt` for an id that the embedding has no row for: a token was added, and the matrix not resized."""
        missing = self.lacks(ids)
        if missing is not None:
            raise BadPrompt(
                f"the embedding of '{self.name}' has {self.n_ids:,} rows, and none for {self.token_text(missing)!r}, "
                f"id {missing:,}",
                hint="the token was added later: save the model after model.resize_token_embeddings(len(tokenizer))",
            )

    @cached_property
    def eos_ids(self) -> set[int]:
        """Every token that ends a generation: the generation config's and the tokenizer's."""
        configured = getattr(self.model.generation_config, "eos_token_id", None)
        several = configured if isinstance(configured, list | tuple) else [configured]
        return {int(i) for i in (*several, self.tokenizer.eos_token_id) if i is not None}

    @cached_property
    def end_texts(self) -> list[str]:
        """The texts of the tokens that end a generation, as a chat template writes them."""
        return [text for i in sorted(self.eos_ids) if (text := self.tokenizer.decode([i]))]

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text, if the tokenizer has one (whether or not it adds it by itself)."""
        return self.tokenizer.bos_token_id

    def encode(self, text: str) -> Encoded:
        """Raw text -> ids, with the special tokens that Hugging Face's tokenizer adds by default and never two BOS.

        The ids are empty if the text is empty and the tokenizer adds nothing. Raises `BadPrompt` if it isn't Unicode.
        """
        return Encoded(self._ids(text, special=True), text)

    def ids_of(self, text: str) -> list[int]:
        """Ids of a piece of text with nothing added: for what stands inside a text, not for a prompt."""
        return self._ids(text, special=False)

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]] | str, *, add_generation_prompt: bool = True, system: str | None = None
    ) -> Encoded:
        """Messages (a text is one of the user's) through the chat template, once, then tokenised with nothing added.

        Raises as `render` does.
        """
        found = self.render(messages, ChatOptions(chat=True, system=system), add_generation_prompt=add_generation_prompt)
        return Encoded(found.ids, found.text)

    def render(
        self, messages: Sequence[Mapping[str, Any]] | str, options: ChatOptions, *, add_generation_prompt: bool = True,
        beside: Mapping[str, Any] | None = None,
    ) -> Rendered:  # fmt: skip
        """Messages through the chat template as the options say, then tokenised with nothing added.

        beside: `tools` and `documents` of these messages alone.

        Raises `BadOption` if there is no template or it does not read an option, `BadPrompt` if it refuses the messages,
        fails, or leaves out what they say.
        """
        if not self.tokenizer.chat_template:
            raise BadOption(f"'{self.name}' has no chat template", hint="give the prompt raw, or a model tuned to chat")
        given = [{"role": "user", "content": messages}] if isinstance(messages, str) else [dict(m) for m in messages]
        if options.system is not None:
            given = [{"role": "system", "content": options.system}, *given]
        odd = next((m for m in given if not isinstance(m.get("role"), str) or not m.keys() & {"content", "tool_calls"}), None)
        if odd is not None or not given:
            # most templates would render nothing in its place
            raise BadPrompt(f"not a message: {odd}", hint="each needs a 'role' and a 'content'")
        found = chats.render(self.tokenizer, given, options, awaited=add_generation_prompt, name=self.name, beside=beside or {})
        return Rendered(self._ids(found.text, special=False), *found)

    def pieces(self, ids: Sequence[int]) -> Pieces:
        """Decode ids at once: the text, each token's piece of it and its character span (see `Pieces`)."""
        return pieces(self.tokenizer, ids)

    def token_text(self, token_id: int) -> str:
        """One token as it would read in the middle of a text, a part of a character as its bytes: `<0xC3>`."""
        if token_id not in self._alone:
            self._alone[token_id] = self._bytes(token_id) or alone(self.tokenizer, token_id)
        return self._alone[token_id]

    @cached_property
    def vocabulary(self) -> list[str]:
        """By id the text of each token in the middle of a text; empty for special tokens, parts of characters and ids that the
        model gives no logit."""
        return vocabulary(self.tokenizer)[: self.anatomy.d_vocab]

    def labels(self, ids: Sequence[int]) -> list[str]:
        """Tokens as a reader is shown them: their pieces of the text, but bytes where a token is a part of a character."""
        return [self.label(i, piece) for i, piece in zip(ids, self.pieces(ids).tokens, strict=True)]

    def label(self, token_id: int, piece: str) -> str:
        """One token with this piece of a text as a reader is shown it."""
        return piece if piece and piece.isascii() else self._bytes(int(token_id)) or piece

    def _bytes(self, token_id: int) -> str | None:
        if token_id not in self._spelled:
            self._spelled[token_id] = spelled(self.tokenizer, token_id)
        return self._spelled[token_id]

    def _ids(self, text: str, *, special: bool) -> list[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadPrompt(f"the prompt is not valid text: {error.reason} at {error.start}", hint="give UTF-8") from error
        ids = list(self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
        if self.bos_id is not None and ids[:2] == [self.bos_id] * 2:
            # the text brought its own; a template's double is the same mistake
            ids = ids[1:]
        self.check_ids(ids)
        return ids


def tokenizer_text_sha256(tokenizer: Any) -> str:
    """Of all that a tokenizer made in memory is."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return _text_sha256(backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items())))


def _text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
