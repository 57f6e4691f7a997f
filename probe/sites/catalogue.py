"""The sites: all that is known of each without a model, in one table. Knows no layers, heads or positions."""

from __future__ import annotations

import difflib
import re
from math import inf
from typing import Literal, NamedTuple

from probe.errors import UnknownSite

Source = Literal["stream", "write", "share", "part", "call", "end"]
"""What a site is: the stream, what a part adds to it, a term of that, a tensor inside a part, an attention call's, or an end of
the stream."""

Use = Literal["change", "cut", "patch", "send", "receive", "route"]
"""Change it, cut edges out of it, patch it (exactly, or estimated from gradients), be an end of a path, or change the
choice that is made by it."""
INNER: tuple[Use, ...] = ("change", "patch", "send", "receive")
OUTER: tuple[Use, ...] = ("change", "patch")


class Site(NamedTuple):
    """A kind of activation, and all that is known of it without a model.

    axes: after `batch`. order: when it is computed, from 0 at a block's input to 1 at its output. part: the part of the
    block that writes it. uses: what can be done with it, besides being read. field: what it is of an attention call.
    lens_name: TransformerLens' name, {} is the layer. unit: what an entry of its last axis is, where single ones can be
    named: a place names them by this word's first letter, `mlp_post@5.n12`.
    """

    name: str
    axes: tuple[str, ...]
    source: Source
    order: float
    doc: str
    part: str = ""
    uses: tuple[Use, ...] = INNER
    field: str = ""
    lens_name: str = ""
    unit: str = ""

    @property
    def per_layer(self) -> bool:
        """Whether each layer has its own."""
        return self.source != "end"

    @property
    def per_head(self) -> bool:
        """Whether each head has its own."""
        return "head" in self.axes or self.of_keys

    @property
    def of_keys(self) -> bool:
        """Whether its heads are those of keys and values."""
        return "kv_head" in self.axes

    @property
    def at_positions(self) -> bool:
        """Whether it is a vector at each position; patterns and scores have a number for each query and key."""
        return "pos" in self.axes

    @property
    def after_blocks(self) -> bool:
        """Whether it comes after the last block; a model may compute it for the last positions only."""
        return self.order == inf

    @property
    def in_the_sum(self) -> bool:
        """Whether it is the stream within a block: one tensor that a part reads and that the block goes on adding to."""
        return self.source == "stream" and 0 < self.order < 1

    def moment(self, layer: int) -> float:
        """When it is computed, from -1 (the embedding) on: layer l's input at l, its output at l + 1, inf after them."""
        return layer + self.order


_D_MODEL, _MLP = ("pos", "d_model"), 0.75
_OTHERS = "what a further part (per-layer inputs, a second MLP) adds to it"

SITES: dict[str, Site] = {
    site.name: site
    for site in (
        Site("embed", _D_MODEL, "end", 0, "output of the token embedding",
             uses=(*OUTER, "send"), lens_name="hook_embed"),
        Site("resid_pre", _D_MODEL, "stream", 0, "residual stream into a block", lens_name="blocks.{}.hook_resid_pre"),
        Site("resid_mid", _D_MODEL, "stream", 0.5, "residual stream between attention and MLP",
             lens_name="blocks.{}.hook_resid_mid"),
        Site("resid_post", _D_MODEL, "stream", 1, "residual stream out of a block",
             lens_name="blocks.{}.hook_resid_post"),
        Site("attn_out", _D_MODEL, "write", 0.25, "what the attention (or other mixer) adds to the stream", "attn",
             lens_name="blocks.{}.hook_attn_out"),
        Site("mixer_out", _D_MODEL, "write", 0.25,
             "what a second mixer (a state space beside the attention) adds to the stream", "mixer"),
        Site("mlp_out", _D_MODEL, "write", _MLP, "what the MLP adds to the stream", "mlp",
             lens_name="blocks.{}.hook_mlp_out"),
        Site("routed_out", _D_MODEL, "share", _MLP,
             "of mlp_out, what the experts add that a router chose; where others add to it too", "mlp"),
        Site("shared_out", _D_MODEL, "share", _MLP,
             "of mlp_out, what is not routed_out: that of the experts which every token has", "mlp"),
        *(Site(f"other_out{n}", _D_MODEL, "write", _MLP, _OTHERS, f"other{n}") for n in ("", "_2", "_3", "_4", "_5")),
        Site("mlp_post", ("pos", "d_mlp"), "part", _MLP, "the MLP's hidden layer, before its last matrix", "mlp",
             lens_name="blocks.{}.mlp.hook_post", unit="neuron"),
        Site("router", ("pos", "expert"), "part", _MLP,
             "logits by which a mixture's experts are chosen; recorded, they give the tables routing and expert_load", "mlp",
             uses=("route",), unit="expert"),
        Site("q", ("pos", "head", "d_head"), "call", 0.25, "queries, after rotation", "attn", field="query",
             lens_name="blocks.{}.attn.hook_rot_q"),
        Site("k", ("pos", "kv_head", "d_head"), "call", 0.25, "keys, after rotation; one a key-value head", "attn",
             field="key", lens_name="blocks.{}.attn.hook_rot_k"),
        Site("v", ("pos", "kv_head", "d_head"), "call", 0.25, "values; one a key-value head", "attn", field="value",
             lens_name="blocks.{}.attn.hook_v"),
        Site("q_pre", ("pos", "head", "d_head"), "part", 0.25,
             "queries before rotation, after any norm of queries; q where nothing is rotated", "attn"),
        Site("k_pre", ("pos", "kv_head", "d_head"), "part", 0.25,
             "keys before rotation, after any norm of keys; k where nothing is rotated", "attn"),
        Site("z", ("pos", "head", "d_head"), "part", 0.25, "heads' weighted values, before W_O", "attn",
             lens_name="blocks.{}.attn.hook_z"),
        Site("pattern", ("head", "query", "key"), "call", 0.25, "attention weights", "attn", uses=("cut",),
             lens_name="blocks.{}.attn.hook_pattern"),
        Site("scores", ("head", "query", "key"), "call", 0.25, "attention scores before the softmax", "attn",
             uses=("cut",), lens_name="blocks.{}.attn.hook_attn_scores"),
        Site("final_norm", _D_MODEL, "end", inf, "output of the last norm", uses=OUTER,
             lens_name="ln_final.hook_normalized"),
        Site("logits", ("pos", "d_vocab"), "end", inf, "the model's output", uses=("change", "receive")),
    )
}  # fmt: skip


def sites_of(*sources: Source) -> tuple[str, ...]:
    """The names of the sites that are of these sources, in the table's order."""
    return tuple(name for name, site in SITES.items() if site.source in sources)


def sites_for(use: Use) -> tuple[str, ...]:
    """The names of the sites with which that can be done."""
    return tuple(name for name, site in SITES.items() if use in site.uses)


# names whose activation is no site here: what they are, and the site that is nearest to it
_ELSEWHERE = {
    "blocks.{}.attn.hook_q": ("the queries before any norm and rotation", "q_pre"),
    "blocks.{}.attn.hook_k": ("the keys before any norm and rotation", "k_pre"),
}


def find_site(word: str) -> tuple[str, int | None]:
    """Our name of a site, and the layer where TransformerLens' name holds one. Raises `UnknownSite`."""
    if word in SITES:
        return word, None
    number = re.match(r"blocks\.([0-9]+)\.", word)
    theirs = word if number is None else f"blocks.{{}}.{word[number.end() :]}"
    ours = next((site.name for site in SITES.values() if site.lens_name == theirs), "")
    if ours:
        return ours, None if number is None else int(number[1])
    if number is not None and theirs in _ELSEWHERE:
        what, site = _ELSEWHERE[theirs]
        raise UnknownSite(
            f"'{word}' is {what}, which is no site here",
            hint=f"{site}@{number[1]} is after the norm and before the rotation: the same where a model norms neither",
        )
    last = word.lower().rpartition(".")[2].removeprefix("hook_")
    near = [name for form in (word.lower(), last) for name in difflib.get_close_matches(form, SITES, n=1)]
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise UnknownSite(f"unknown site '{word}'", hint=f"{hint}sites are: {', '.join(SITES)}")
