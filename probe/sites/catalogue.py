"""The sites: their names, ours and TransformerLens', and their axes. Knows no layers, heads or positions."""

from __future__ import annotations

import difflib
import re
from typing import NamedTuple

from probe.errors import UnknownSite


class Site(NamedTuple):
    """A kind of activation: its axes (after `batch`), and whether each layer, and each head, has its own."""

    name: str
    axes: tuple[str, ...]
    doc: str
    per_head: bool = False
    per_layer: bool = True


SITES: dict[str, Site] = {
    site.name: site
    for site in (
        Site("embed", ("pos", "d_model"), "output of the token embedding", per_layer=False),
        Site("resid_pre", ("pos", "d_model"), "residual stream into a block"),
        Site("resid_mid", ("pos", "d_model"), "residual stream between attention and MLP"),
        Site("resid_post", ("pos", "d_model"), "residual stream out of a block"),
        Site("attn_out", ("pos", "d_model"), "what the attention (or other mixer) adds to the stream"),
        Site(
            "mixer_out",
            ("pos", "d_model"),
            "what a second mixer (a state space beside the attention) adds to the stream",
        ),
        Site("mlp_out", ("pos", "d_model"), "what the MLP adds to the stream"),
        *(
            Site(
                f"other_out{number}",
                ("pos", "d_model"),
                "what a further part (per-layer inputs, a second MLP) adds to it",
            )
            for number in ("", "_2", "_3", "_4", "_5")
        ),
        Site("mlp_post", ("pos", "d_mlp"), "the MLP's hidden layer, before its last matrix"),
        Site("q", ("pos", "head", "d_head"), "queries, after rotation", per_head=True),
        Site("k", ("pos", "head", "d_head"), "keys, after rotation; one a key-value head", per_head=True),
        Site("v", ("pos", "head", "d_head"), "values; one a key-value head", per_head=True),
        Site("z", ("pos", "head", "d_head"), "heads' weighted values, before W_O", per_head=True),
        Site("pattern", ("head", "query", "key"), "attention weights", per_head=True),
        Site("scores", ("head", "query", "key"), "attention scores before the softmax", per_head=True),
        Site("final_norm", ("pos", "d_model"), "output of the last norm", per_layer=False),
        Site("logits", ("pos", "d_vocab"), "the model's output", per_layer=False),
    )
}

# TransformerLens' names; {} is the layer
_LENS_NAMES = {
    "hook_embed": "embed",
    "ln_final.hook_normalized": "final_norm",
    "blocks.{}.hook_resid_pre": "resid_pre",
    "blocks.{}.hook_resid_mid": "resid_mid",
    "blocks.{}.hook_resid_post": "resid_post",
    "blocks.{}.hook_attn_out": "attn_out",
    "blocks.{}.hook_mlp_out": "mlp_out",
    "blocks.{}.mlp.hook_post": "mlp_post",
    "blocks.{}.attn.hook_v": "v",
    "blocks.{}.attn.hook_rot_q": "q",
    "blocks.{}.attn.hook_rot_k": "k",
    "blocks.{}.attn.hook_z": "z",
    "blocks.{}.attn.hook_pattern": "pattern",
    "blocks.{}.attn.hook_attn_scores": "scores",
}

# names whose activation is no site here: what they are, and the site that is nearest to it
_ELSEWHERE = {
    "blocks.{}.attn.hook_q": ("the queries before any norm and rotation", "q", "hook_rot_q"),
    "blocks.{}.attn.hook_k": ("the keys before any norm and rotation", "k", "hook_rot_k"),
}


def find_site(word: str) -> tuple[str, int | None]:
    """Our name of a site, and the layer where TransformerLens' name holds one. Raises `UnknownSite`."""
    if word in SITES:
        return word, None
    number = re.match(r"blocks\.([0-9]+)\.", word)
    theirs = word if number is None else f"blocks.{{}}.{word[number.end() :]}"
    ours = _LENS_NAMES.get(theirs)
    if ours is not None:
        return ours, None if number is None else int(number[1])
    if number is not None and theirs in _ELSEWHERE:
        what, site, other = _ELSEWHERE[theirs]
        raise UnknownSite(
            f"'{word}' is {what}, which is no site here",
            hint=f"{site}@{number[1]} is after them ({other}); the same where a model has neither",
        )
    last = word.lower().rpartition(".")[2].removeprefix("hook_")
    near = [name for form in (word.lower(), last) for name in difflib.get_close_matches(form, SITES, n=1)]
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise UnknownSite(f"unknown site '{word}'", hint=f"{hint}sites are: {', '.join(SITES)}")
