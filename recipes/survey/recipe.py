"""Finds the anatomy of a tiny model of each causal family that transformers knows; a row each, and what got worse."""

from __future__ import annotations

import logging
import time
import traceback
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from probe.anatomy import Anatomy, Layer, find
from probe.errors import UnknownModel
from probe.tiny import tiny

DEPTHS = (4, 3)  # hybrids repeat their kinds of layers every four; some families want a multiple of three
SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_post", "z", "pattern")


@dataclass(frozen=True)
class FamilyReport:
    """What was found in one family.

    `placed`: every block has an equation, and the last resid_post replays the logits. `equations` and `absent` map to
    the layers they are about ("0,2"); absent's keys are "site: reason". `error` is relative, RMS."""

    family: str
    placed: bool
    reason: str = ""
    layers: int = 0
    kind: str = ""
    equations: Mapping[str, str] = field(default_factory=dict)
    attention: str = ""
    absent: Mapping[str, str] = field(default_factory=dict)
    readout: str = ""
    note: str = ""
    causal: bool = False
    error: float = 0.0
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """What stays the same from run to run, for expected.json."""
        return {k: v for k, v in asdict(self).items() if k not in {"family", "error", "seconds"} and v != ""}


def examine(family: str) -> FamilyReport:
    """Build a tiny model of the family and find its anatomy; never raises, but a crash of the process is a crash."""
    begun = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.getLogger("transformers").setLevel(logging.ERROR)
            row = described(family, find(_built(family)))
    except UnknownModel as error:
        row = FamilyReport(family, False, f"not built: {error.message}")
    except Exception as error:  # one family must not end the survey of the others
        where = traceback.extract_tb(error.__traceback__)[-1]
        row = FamilyReport(
            family, False, f"{type(error).__name__}: {error} ({where.filename.rpartition('/')[2]}:{where.lineno})"
        )
    return FamilyReport(**{**asdict(row), "seconds": round(time.perf_counter() - begun, 2)})


def _built(family: str) -> Any:
    """The tiny model at the first depth that runs."""
    refusals = []
    for layers in DEPTHS:
        try:
            return tiny(family, layers=layers)[0]
        except UnknownModel as error:
            refusals.append(error)
    raise refusals[0]


def described(family: str, anatomy: Anatomy) -> FamilyReport:
    """The anatomy as a row."""
    layers = list(enumerate(anatomy.layers))
    seen = [i for i, layer in layers if layer.attention]
    why = reason(anatomy)
    return FamilyReport(
        family=family,
        placed=not why,
        reason=why,
        layers=anatomy.n_layers,
        kind=" | ".join(dict.fromkeys(kind(layer) for _, layer in layers)),
        equations=_by_text((layer.equation.removeprefix("resid_post = "), i) for i, layer in layers),
        attention=f"{len(seen)}/{anatomy.n_layers}",
        absent=_by_text(
            (f"{site}: {anatomy.reason(site, i)}", i) for i, _ in layers for site in SITES if not anatomy.has(site, i)
        ),
        readout=_readout(anatomy),
        note=anatomy.absent.get("elsewhere", ""),
        causal=anatomy.causal,
        error=anatomy.residual_error,
    )


def reason(anatomy: Anatomy) -> str:
    """Why the family is not placed; "" if it is."""
    if not anatomy.n_layers:
        return anatomy.absent["blocks"]
    for i, layer in enumerate(anatomy.layers):
        if not layer.writes:
            return f"layer {i}: {layer.equation}"
    if not anatomy.readout_exact:
        return anatomy.absent.get("head") or anatomy.absent.get("final_norm") or (
            f"the replayed logits are off by {anatomy.readout_error:.1e}"
        )  # fmt: skip
    return ""


def kind(layer: Layer) -> str:
    """How the block's writes stand to each other, in a word or two."""
    if not layer.writes:
        return "unsolved"
    if layer.carry == 0:
        return "post-norm" if len(layer.writes) == 1 else "starts anew"
    if len(layer.writes) == 1:
        return "one write"
    return "sequential" if "resid_mid" in layer.taps else "parallel" if _has_both(layer) else "no middle"


def _has_both(layer: Layer) -> bool:
    return {"attn", "mlp"} <= {write.kind for write in layer.writes}


def _readout(anatomy: Anatomy) -> str:
    """`lm_head(model.norm(x)) * 0.0625`, where it is exact."""
    if not anatomy.readout_exact:
        return ""
    inner = f"{anatomy.final_norm.path}(x)" if anatomy.final_norm else "x"
    cap, scale = anatomy.readout.cap, anatomy.readout.scale
    text = f"{anatomy.head}({inner})" + (f" * {scale:.4g}" if scale != 1 else "")
    return f"{cap:g} tanh({text} / {cap:g})" if cap else text


def _by_text(found: Iterable[tuple[str, int]]) -> dict[str, str]:
    """Equal texts once, with the layers they were said of."""
    layers: dict[str, list[int]] = {}
    for text, i in found:
        layers.setdefault(text, []).append(i)
    return {text: ",".join(map(str, numbers)) for text, numbers in layers.items()}


def _seen(attention: str) -> int:
    """3 of "3/4": more than the record has is no regression (transformers moves families to its registry)."""
    return int(attention.partition("/")[0])


def regressions(expected: Mapping[str, Any], row: FamilyReport) -> list[str]:
    """What the record has and the row has not: a place, an equation, a site; one sentence each."""
    if not expected["placed"]:
        return []
    if not row.placed:
        return [f"{row.family} was placed, and is not: {row.reason}"]
    changed = [
        f"{row.family}: {name} was {expected[name]!r}, and is {getattr(row, name)!r}"
        for name in ("layers", "equations", "readout", "causal")
        if expected[name] != getattr(row, name)
    ]
    if _seen(row.attention) < _seen(expected["attention"]):
        changed.append(f"{row.family}: attention was seen in {expected['attention']} layers, and is in {row.attention}")
    before, now = ({(k.partition(":")[0], i) for k, v in a.items() for i in v.split(",")} for a in
                   (expected["absent"], row.absent))  # fmt: skip
    return changed + [f"{row.family}: {site}@{i} was found, and is not" for site, i in sorted(now - before)]
