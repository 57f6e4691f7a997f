"""Autoencoder: what does a small sparse autoencoder keep of the stream, what do its features stand for, and what do they do?"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

import probe

from .reading import Progress, TracedStream, follows, one_token, passages, traced
from .training import Autoencoder, Change, components, explained, fitted, loss_with, shuffled

LARGE = 3.0  # times the median norm: at a few tokens it is a hundred times that, whatever they say; they are left alone
RARE = 0.1  # of the features: those that are on at the fewest tokens


def measure(lm: probe.LanguageModel, *, quick: bool, seed: int, out: Path | None, progress: Progress) -> dict[str, Any]:
    """Of unseen texts: what an autoencoder of the middle layer explains, and the loss with that put in, beside principal
    components; top texts of rare features, and steering along them. seed: texts, first weights, batches, random directions."""
    n_texts, n_unseen, n, steps = (12, 5, 3, 120) if quick else (88, 24, 8, 500)
    layer, draw = lm.anatomy.n_layers // 2, torch.Generator().manual_seed(seed)
    texts = passages(lm, n_texts + n_unseen, seed)
    with tempfile.TemporaryDirectory() as temporary:
        (folder := out or Path(temporary)).mkdir(parents=True, exist_ok=True)
        train = traced(lm, texts[:n_texts], layer, out=folder / "train", progress=progress)
        unseen = traced(lm, texts[n_texts:], layer, out=folder / "unseen", progress=progress)
        most = LARGE * float(train.x.norm(dim=1).median())
        used, held = train.below(most), unseen.below(most)
        made, begun = fitted(used.x, steps, draw), [lm.pieces(one[:20].tolist()).text for one in unseen.ids()[:n]]
        about = of_features(lm, made, used, held, begun, layer, folder, seed, progress)
    mixed, mixed_held = (shuffled(one, draw) for one in (used.x, held.x))
    control, axes = fitted(mixed, steps, draw), components(used.x)
    few, along = axes[:, : made.k], ((held.x - made.centre) @ axes).square().sum(dim=0).cumsum(dim=0)
    put: dict[str, Change] = {
        "autoencoder": made, "pca": lambda x: made.centre + (x - made.centre) @ few @ few.T,
        "mean": lambda x: made.centre.expand_as(x),
    }  # fmt: skip
    share = {name: explained(held.x, put[name](held.x), made.centre, held.tokens.prompt_id) for name in ("autoencoder", "pca")}
    share["shuffled"] = explained(mixed_held, control(mixed_held), control.centre, held.tokens.prompt_id)
    loss = {name: np.array([loss_with(lm, layer, one, most, put[name]) for one in unseen.ids()[:n]]) for name in put}
    loss["plain"] = -unseen.tokens.groupby("prompt_id").logprob.mean().to_numpy()[:n]
    kept = {name: (loss["mean"] - loss[name]) / (loss["mean"] - loss["plain"]) for name in ("autoencoder", "pca")}
    return {
        "layer": layer, "tokens": len(used.x), "left_out": len(train.x) - n_texts - len(used.x), "k": made.k,
        "components_as_good": int((along / along[-1] < share["autoencoder"].mean()).sum()) + 1,
        "more_than_pca": mean(share["autoencoder"] - share["pca"]),
        **{
            key: {name: mean(by_text) for name, by_text in found.items()}
            for key, found in (("explained", share), ("loss", loss), ("kept", kept))
        },
        **about,
    }  # fmt: skip


def of_features(
    lm: probe.LanguageModel, made: Autoencoder, used: TracedStream, held: TracedStream, begun: list[str], layer: int,
    folder: Path, seed: int, progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Of rare features: their top unseen texts, and what their rows, as long as they get, do to the tokens that follow them."""
    n, on, unseen = len(begun), made.features(used.x), made.features(held.x)
    rate = (on > 0).float().mean(dim=0)
    rare = (on.square().sum(dim=0) * ((rate <= rate[rate > 0].quantile(RARE)) + 1e-6)).topk(n).indices
    rows = normalize(made.rows)[rare] * on[:, rare].amax(dim=0)[:, None]
    blind = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed))
    files = [folder / f"{name}.safetensors" for name in (*rare.tolist(), *(f"random-{i}" for i in range(n)))]
    where = {"site": "resid_post", "layer": layer, "made": "a row of an autoencoder's decoder"}
    for file, vector in zip(files, [*rows, *blind], strict=True):
        save_file({"direction": vector.clone()}, file, {"probe_direction": json.dumps(where)})
    at = [f"direction:{file}" for file in files]
    top = probe.top(lm, folder / "unseen.jsonl", at=at, top=5, seed=seed, out=folder / "top", progress=progress).top
    shown = [top[(top.kind == "top") & (top.place == place)] for place in at]
    active = held.tokens[["prompt_id", "pos", "token"]].assign(**{str(int(i)): unseen[:, i] for i in rare})
    firing = [active.sort_values(str(int(i)), ascending=False).drop_duplicates("prompt_id")[:5] for i in rare]
    answers = [follows(used.tokens.next, on[:, i].numpy() > 0, set(lm.vocabulary) - {""}) for i in rare]

    def effects(i: int, kind: str, answer: str) -> pd.Series:
        """What its own and two random directions add to the log-prob of the answer, mean over texts."""
        run = probe.steer(
            lm, files[i], begun, strengths=[1.0], controls=2, answer_set=answer, seed=seed, out=folder / f"{kind}-{i}",
            progress=progress,
        )  # fmt: skip
        means = run.steering.groupby(["strength", "control"]).value.mean()
        return means[1.0] - means[0.0, 0]

    own = pd.DataFrame([effects(i, "own", answers[i]) for i in range(n)])
    others = pd.DataFrame([effects(i, "other", answers[i - 1]) for i in range(n)])[0].abs()  # what follows another feature
    randomly = own[[1, 2]].abs().mean(axis=1)
    return {
        "features": on.shape[1], "dead": int((on == 0).all(dim=0).sum()), "on": mean((unseen > 0).sum(dim=1).float()),
        "same_token": {
            "activation": mean(one_token(firing)), "projection": mean(one_token(shown[:n])),
            "random": mean(one_token(shown[n:])),
        },
        "steered": {"own": mean(own[0]), "random": mean(randomly), "other": mean(others)},
        "more_than_random": mean(own[0] - randomly), "more_than_other": mean(own[0] - others),
        "named": {
            str(int(feature)): {
                "on_at": float(rate[feature]), "largest": float(on[:, feature].max()), "followed_by": answer, "effect": effect,
                "projection": [f"{one.before}[{one.token}]{one.after}" for one in of.itertuples()],
                "activation": ["".join(active.token.loc[i - 8 : i]) for i in at.index],
            }
            for feature, of, at, answer, effect in zip(rare, shown, firing, answers, own[0], strict=False)
        },
    }  # fmt: skip


def mean(values: Iterable[float]) -> dict[str, float]:
    return probe.student_mean(values)._asdict()
