"""Two models on one text: which tokens they see differently, by token or by character, and how alike their layers are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from probe.reporting.panels.context import Context, TokenTexts, noted, panel_name
from probe.reporting.views import Axis, Lines, Listing, Measure, Panel, ShownColumn, TokenStrip


def compared(context: Context) -> Iterator[Panel]:
    """The text under both, the places where they differ most, and the similarity of layers."""
    if len(frame := context.rows("comparison")):
        yield from _by_tokens(context, frame)
    if len(frame := context.rows("segments")):
        yield from _by_characters(context, frame)
    yield from _similarity(context)


def _sides(context: Context) -> str:
    about = context.summary
    edit = f" with {'; '.join(map(str, about['edit']))}" if about.get("edit") else ""
    return f"A is {about.get('a')}, B is {about.get('b')}{edit}."


def _by_tokens(context: Context, frame: pd.DataFrame) -> Iterator[Panel]:
    of_b = _texts_of_b(context)
    frame["shown"] = context.text_of.bytes_in_place_of(frame["token"], frame["token_id"])
    for column, text_of in (("top_a", context.text_of), ("top_b", of_b)):
        frame[f"{column}_token"] = [None if pd.isna(one) else text_of(int(one)) for one in frame[column]]
    derived = ("shown", "top_a_token", "top_b_token")
    where = {"prompt_id": context.prompt_id}
    note = noted(_sides(context), "Difference: B - A; above 0 B expects the token more.", context.text_of.note or of_b.note)
    yield TokenStrip(
        "tokens", "Text, under both models", "comparison", frame,
        where=where, derived=derived, measures=_measures(frame), shown="shown", note=note,
    )  # fmt: skip
    by = "js" if frame["js"].notna().any() else "difference"
    order = frame[by].abs().sort_values(ascending=False, kind="stable").index
    yield Listing(
        "differing", "Where they differ most", "comparison", frame.loc[order].reset_index(drop=True),
        where=where, derived=derived, note=note,
        columns=(
            ShownColumn("pos", "position", cursor="token"), ShownColumn("token", "token"),
            ShownColumn("logprob_a", "log-prob by A, nats", 3), ShownColumn("logprob_b", "by B", 3),
            ShownColumn("difference", "B - A", 3), ShownColumn("js", "Jensen-Shannon, nats", 4),
            ShownColumn("kl_ab", "KL(A || B), nats", 4), ShownColumn("tv", "total variation", 3),
            ShownColumn("top_a_token", "A's best"), ShownColumn("top_b_token", "B's best"),
        ),
    )  # fmt: skip


def _texts_of_b(context: Context) -> TokenTexts:
    """B's ids by B's tokenizer, which is A's wherever both are compared token by token."""
    made = context.run.manifest.get("other_model") or {}
    same = made.get("tokenizer_sha256") == (context.run.manifest.get("model") or {}).get("tokenizer_sha256")
    return context.text_of if same else context.tables.texts(made)


def _measures(frame: pd.DataFrame) -> tuple[Measure, ...]:
    worst = max((float(frame[one].abs().max()) for one in ("entropy_a", "entropy_b") if frame[one].notna().any()), default=None)
    found = (
        Measure("js", "Jensen-Shannon divergence", "nats", low=0.0),
        Measure("kl_ab", "KL(A || B)", "nats", low=0.0, high=finite_high(frame["kl_ab"])),
        Measure("kl_ba", "KL(B || A)", "nats", low=0.0, high=finite_high(frame["kl_ba"])),
        Measure("tv", "total variation", low=0.0),
        Measure("accept", "chance that the other accepts a draft (1 - TV)", low=0.0, high=1.0),
        Measure("difference", "log-probability, B - A", "nats", scaling="diverging"),
        Measure("logprob_a", "log-probability by A", "nats", high=0.0),
        Measure("logprob_b", "log-probability by B", "nats", high=0.0),
        Measure("rank_a", "rank by A (0 is the best)", scaling="log", low=0.0),
        Measure("rank_b", "rank by B (0 is the best)", scaling="log", low=0.0),
        Measure("entropy_a", "entropy of A", "nats", low=0.0, high=worst),
        Measure("entropy_b", "entropy of B", "nats", low=0.0, high=worst),
        Measure("same_top", "both have the same best token", scaling="classes"),
    )
    return tuple(one for one in found if frame[one.column].notna().any())


def finite_high(values: pd.Series) -> float | None:
    """The largest of those that are finite: a KL is infinite where one side excludes what the other can say."""
    finite = values[np.isfinite(values.astype(float))]
    return float(finite.max()) if len(finite) and finite.max() > 0 else None


def _by_characters(context: Context, frame: pd.DataFrame) -> Iterator[Panel]:
    """Two vocabularies have no tokens in common: the characters between boundaries that both have stand for them."""
    frame = frame.assign(pos=frame["segment"], token=frame["text"])
    where: Mapping[str, Any] = {"prompt_id": context.prompt_id}
    note = noted(
        _sides(context), "Their tokenizers differ: a place is the characters between two boundaries that both have.",
        "Difference: B - A; above 0 B expects the characters more.",
    )  # fmt: skip
    yield TokenStrip(  # whose column `segment` is prompt or completion, and no number
        "tokens", "Text, under both models", "segments", frame.drop(columns="segment"),
        where=where, derived=("pos", "token"), note=note,
        measures=(
            Measure("difference", "log-probability, B - A", "nats", scaling="diverging"),
            Measure("logprob_a", "log-probability by A", "nats", high=0.0),
            Measure("logprob_b", "log-probability by B", "nats", high=0.0),
            Measure("tokens_a", "A's tokens here", "tokens", low=0.0),
            Measure("tokens_b", "B's tokens here", "tokens", low=0.0),
        ),
    )  # fmt: skip
    order = frame["difference"].abs().sort_values(ascending=False, kind="stable").index
    yield Listing(
        "differing", "Where they differ most", "segments", frame.loc[order].reset_index(drop=True),
        where=where, derived=("pos", "token"), note=note,
        columns=(
            ShownColumn("pos", "place", cursor="token"), ShownColumn("text", "characters"),
            ShownColumn("tokens_a", "A's tokens"), ShownColumn("tokens_b", "B's tokens"),
            ShownColumn("logprob_a", "log-prob by A, nats", 3), ShownColumn("logprob_b", "by B", 3),
            ShownColumn("difference", "B - A", 3),
        ),
    )  # fmt: skip


def _similarity(context: Context) -> Iterator[Panel]:
    if not context.has("similarity"):
        return
    layers = Axis("layer", "layer", "layer")
    alike = {"cosine": "cosine, mean", "cosine_min": "least cosine", "cka": "CKA", "cka_debiased": "CKA, debiased"}
    few = "Of all texts together. Where positions are few, CKA tends to 1 and the debiased one does not."
    note = noted(_sides(context), few)
    whole = context.whole("similarity")
    for site in dict.fromkeys(whole["site"]):
        rows = context.tables.once(("similarity", site), partial(_of_site, whole, site))
        if rows["layer"].nunique() < 2:
            continue  # no curve: it stands in the list
        yield Lines(
            panel_name("similarity", str(site)), f"How alike {site} is in both, by layer", "similarity", rows,
            where={"site": site}, axis=layers, note=note,
            measures=tuple(Measure(name, title, high=1.0) for name, title in alike.items() if rows[name].notna().any()),
        )  # fmt: skip
        if rows["distance"].notna().any():
            yield Lines(
                panel_name("distance", str(site)), f"How far {site} is apart, by layer", "similarity", rows,
                where={"site": site}, axis=layers, note=_sides(context),
                measures=(Measure("distance", "|b - a| / |a|, mean over positions", low=0.0),),
            )  # fmt: skip
    yield Listing(
        "similarity", "Layers in both, one by one", "similarity", whole, note=note,
        columns=(
            ShownColumn("site", "site"), ShownColumn("layer", "layer", cursor="layer"),
            *(ShownColumn(name, title, 4) for name, title in alike.items()),
            ShownColumn("distance", "|b - a| / |a|", 4), ShownColumn("n", "positions"),
        ),
    )  # fmt: skip


def _of_site(whole: pd.DataFrame, site: str) -> pd.DataFrame:
    return whole[whole["site"] == site].reset_index(drop=True)
