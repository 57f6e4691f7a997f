"""Which heads and MLPs wrote the answer, in exact parts, and from which layer on it stands."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from probe.attributing.decomposition import Component, decompose
from probe.attributing.linear import unembedded
from probe.attributing.recording import record
from probe.looking.findings import Finding
from probe.looking.subject import Subject, quoted

TOLD = 5
LEVEL = 0.95  # of the control's distribution
WRITERS = {
    "attn": ("attn_out", "attention"), "mlp": ("mlp_out", "MLP"), "mlp_routed": ("routed_out", "routed experts"),
    "mlp_shared": ("shared_out", "shared expert"),
}  # fmt: skip
"""By component: its site, and what it is called."""


def writers(subject: Subject) -> list[Finding]:
    """The parts that wrote most for the answer against its rival: the direct attribution of METHODS B5, whose parts sum to
    the difference of logits.

    The control of a part is what it writes here between two tokens drawn at random (root mean square). Told are parts whose
    multiple of that is larger than the largest of all parts is in 95 % of the random pairs: of a model that says nothing
    in particular, one look in twenty tells of any. Raises `SiteAbsent` where a logit cannot be taken apart.
    """
    lm = subject.lm
    seen = record(lm, subject.ids, [subject.position])
    last = seen.values[lm.anatomy.layers[-1].taps["resid_post"]]
    hidden = seen.values[lm.anatomy.final_norm] if lm.anatomy.final_norm is not None else last

    def parts(pair: tuple[int, int]) -> list[Component]:
        found = decompose(lm.model, lm.anatomy, seen, unembedded(lm.model, lm.anatomy, hidden, pair), lm.dtype)
        return [one for one in found.components if one.layer >= 0]

    own, random = parts(subject.choice), np.random.default_rng(subject.seed)
    pairs = [random.choice(lm.anatomy.d_vocab, 2, replace=False) for _ in range(subject.controls)]
    drawn = np.array([_values(parts((int(a), int(b)))) for a, b in pairs])  # (pair, part)
    usual = np.sqrt((drawn**2).mean(0))
    values = _values(own)
    standing = _multiples(values, usual) > _threshold(drawn)
    order = [i for i in np.argsort(-values)[:TOLD] if standing[i]]
    return [_wrote(subject, own[i], float(values[i]), float(usual[i])) for i in order]


def _values(parts: Sequence[Component]) -> np.ndarray:
    return np.array([float(part.value[0]) for part in parts])


def _multiples(values: np.ndarray, usual: np.ndarray) -> np.ndarray:
    return np.divide(values, usual, out=np.zeros_like(values), where=usual > 0)


def _threshold(drawn: np.ndarray) -> float:
    """The 95 % quantile over pairs of the largest multiple of any part, each pair against the others (pair, part)."""
    squares = drawn**2
    others = np.sqrt((squares.sum(0) - squares) / (len(drawn) - 1))
    return float(np.quantile(_multiples(drawn, others).max(1), LEVEL))


def _wrote(subject: Subject, part: Component, value: float, usual: float) -> Finding:
    name, place = _named(subject, part)
    rival = quoted(subject.lm.token_text(subject.choice.against))
    return Finding(
        "writer", f"{name} wrote {value:+.2f} logits for {subject.answer} against {rival}",
        value, "logits", usual, "what it writes here between two random tokens (rms)",
        subject.command("attribute", *subject.answers(), "--position", str(subject.position), "--sources"),
        place=place, layer=part.layer, head=part.head,
    )  # fmt: skip


def _named(subject: Subject, part: Component) -> tuple[str, str]:
    """A part in words, and its place; no place for what is no site of its own (a bias, a block that could not be split)."""
    if part.head >= 0:
        return f"head {part.layer}.{part.head}", f"z@{part.layer}.{part.head}"
    site, name = WRITERS.get(part.component, ("", part.component))
    if not site or not subject.lm.anatomy.has(site, part.layer):
        return f"{part.component} of layer {part.layer}", ""
    return f"the {name} of layer {part.layer}", f"{site}@{part.layer}"


def settled(subject: Subject, positions: pd.DataFrame, layers: pd.DataFrame) -> list[Finding]:
    """From which layer on the logit lens says the answer, against the other positions of the text (their own top tokens).

    positions, layers: the tables `lens_positions` and `lens`. Nothing where the text has fewer than 4 tokens, or the answer
    is not what the model says."""
    own = positions[positions["pos"] == subject.position].iloc[0]
    if len(positions) < 4 or int(own["final_id"]) != subject.choice.answer:
        return []
    layer, others = int(own["settled_layer"]), positions[positions["pos"] != subject.position]["settled_layer"]
    here = layers[layers["pos"] == subject.position].sort_values("layer")["kl_to_final"].to_numpy()
    before = f", {here[layer - 1]:.2f} a layer before" if layer else ""
    return [Finding(
        "settled", f"{subject.answer} stands from layer {layer} of {subject.lm.anatomy.n_layers - 1} on: "
        f"there KL(final‖layer) is {here[layer]:.2f} nats{before}",
        layer, "layer", float(others.median()), "the median of the text's other positions",
        subject.command("lens", "--position", str(subject.position)), place=f"resid_post@{layer}", layer=layer,
        pos=subject.position, token=subject.label(subject.position),
    )]  # fmt: skip
