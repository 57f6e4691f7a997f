"""IOI: by which heads does "Mary" come to the end of "When Mary and John went to the store, John gave a drink to"?"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import probe

NAMES = (
    "Adam", "Beth", "Carl", "Dean", "Emma", "Fred", "Greg", "Hugh", "Ivan", "John", "Kate", "Lisa", "Mary",
    "Noah", "Paul", "Ruth",
)  # fmt: skip
PLACES = ("store", "house", "beach", "hotel", "river", "party", "field", "court")
THINGS = ("drink", "chair", "plate", "phone", "paper", "watch", "glass", "shirt")
Progress = Callable[[str, int, int], None] | None


def measure(lm: probe.LanguageModel, *, quick: bool, seed: int, out: Path | None, progress: Progress) -> dict[str, Any]:
    """Activation patching between texts that differ in who gives: heads at the last token, the stream by layer and position.
    Of the strongest heads and of all others of their layers: the direct path to the logits, what they write, what the answer
    loses without them, and how much less of that where the strongest head is off. seed: draws the words."""
    pairs, aside = drawn(lm, random.Random(seed), 4 if quick else 8)

    def patch(name: str, **asked: Any) -> Any:
        return probe.patch(lm, pairs=pairs, out=out and out / name, progress=progress, **asked).patches.sort_values("pair")

    upper = f"{lm.anatomy.n_layers // 2}..{lm.anatomy.n_layers - 1}"  # below, the last token has nothing: "last" shows it
    swept = patch("heads", sites=["z"], layers=upper, positions="last")
    total = by_head(swept, swept.effect)
    ranked = sorted(total, key=lambda head: -total[head].mean())
    chosen, best = ranked[:3] + ranked[:-3:-1], ranked[0]  # the last two write against the answer, the strongest first
    layers = ",".join(str(layer) for layer in sorted({int(head.split(".")[0]) for head in chosen}))
    sent = patch("direct", path=f"z@{layers}->logits")
    zeroed = {"sites": ["z"], "layers": layers, "positions": "last", "source": "zero"}
    alone, after = patch("zeroed", **zeroed), patch("zeroed-again", **zeroed, edit=[f"z@{best}:-1=zero"])
    lost, again = by_head(alone, alone.clean - alone.patched), by_head(after, after.clean - after.patched)
    for_answer, for_giver = written(pairs, aside, lambda text, **asked: probe.attribute(lm, text, **asked).attribution)
    measured = {
        "total": total,
        "direct": by_head(sent, sent.effect),
        "written": {head: for_answer[head] - for_giver[head] for head in for_answer},
        "written_for_answer": for_answer,
        "written_for_giver": for_giver,
        "lost_without": lost,
        "less_without_strongest": {head: lost[head] - again[head] for head in lost if head != best},
    }
    rest = [head for head in lost if head not in chosen]
    texts = swept.groupby("pair")[["clean", "corrupt"]].first()
    stream = patch("stream", sites=["resid_pre"], layers=f"0,{upper}")
    return {
        "clean": mean(texts.clean),
        "corrupt": mean(texts.corrupt),
        "right": float(np.mean([*(texts.clean > 0), *(texts.corrupt < 0)])),
        "head": {head: mean(found) for head, found in total.items()},
        "strongest": chosen,
        "strongest_effect": mean(total[best]),
        "most_negative_effect": mean(total[chosen[3]]),
        "roles": {head: {word: mean(found[head]) for word, found in measured.items() if head in found} for head in chosen},
        "strongest_of_others": {word: largest(found, rest) for word, found in measured.items()},
        **by_place({key: rows.effect.to_numpy() for key, rows in stream.groupby(["pos", "layer"])}),
    }


def drawn(lm: probe.LanguageModel, draw: random.Random, n: int) -> tuple[list[dict[str, str]], list[str]]:
    """Pairs of texts, in half of which the name that is right stands first; and of each a name that is not in it."""
    space = " " * (len(lm.tokenizer.encode(" Mary", add_special_tokens=False)) == 1)  # part of the name's token, or of none
    names, pairs = draw.sample(NAMES, len(NAMES)), []
    for i, (place, thing) in enumerate(zip(draw.sample(PLACES, n), draw.sample(THINGS, n), strict=True)):
        two, right = names[2 * i : 2 * i + 2], i % 2
        texts = [f"When {two[0]} and {two[1]} went to the {place}, {who} gave a {thing} to" for who in two]
        words = {"answer": space + two[right], "against": space + two[1 - right]}
        pairs.append({"clean": texts[1 - right], "corrupt": texts[right], **words})
    return pairs, [pairs[i - 1]["answer"] for i in range(n)]


def written(pairs: list[dict[str, str]], aside: list[str], attribute: Callable[..., Any]) -> Any:
    """Of each head, (pair,) logits that it writes for the answer and for the giver, less those for a name that is not there."""
    found = []
    for asked in ("answer", "against"):
        tables = [attribute(pair["clean"], answer=pair[asked], against=other) for pair, other in zip(pairs, aside, strict=True)]
        heads = [table[table["head"] >= 0].set_index(["layer", "head"]).contribution for table in tables]
        found.append({f"{layer}.{head}": np.array([one[layer, head] for one in heads]) for layer, head in heads[0].index})
    return found


def by_head(cells: Any, values: Any) -> dict[str, np.ndarray]:
    """Of each head: (pair,) its values."""
    return {f"{layer}.{head}": rows.to_numpy() for (layer, head), rows in values.groupby([cells.layer, cells["head"]])}


def by_place(found: dict[tuple[int, int], np.ndarray]) -> dict[str, Any]:
    """The stream at the giver's name and at the last token, by layer, of (pair,) effects by position and layer."""
    last, layers = max(pos for pos, _ in found), sorted({layer for _, layer in found})
    giver = max(found, key=lambda key: (key[1] == 0) * found[key].mean())[0]
    arrived = [layer for layer in layers if found[last, layer].mean() > 0.5]
    return {
        **{word: {str(layer): mean(found[pos, layer]) for layer in layers} for word, pos in (("giver", giver), ("last", last))},
        "arrives_at_layer": arrived[0] if arrived else None,
        "at_other_tokens": max(abs(found[key].mean()) for key in found if key[0] not in (giver, last)),
    }


def largest(found: dict[str, np.ndarray], heads: list[str]) -> dict[str, Any]:
    """Of these heads the one with the largest mean, whatever its sign."""
    head = max(heads, key=lambda one: abs(found[one].mean()))
    return {"head": head, **mean(found[head])}


def mean(values: Any) -> dict[str, float]:
    """The mean over pairs with its 95 % interval, Student's t."""
    return probe.student_mean(values)._asdict()
