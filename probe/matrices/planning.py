"""What a request to look at weights comes to on a model, and what it would compute. Computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from probe.errors import BadOption
from probe.requests.groups import parse_memory
from probe.sites import parse_places, resolve

if TYPE_CHECKING:
    from probe.language_model import LanguageModel
    from probe.requests import WeightSurvey

FREQUENT = 5  # tokens, where none are named


@dataclass(frozen=True)
class ResolvedSurvey:
    """own_layers: None for all of the model, its ends too. heads: by layer, of those whose tokens are followed."""

    looks: tuple[str, ...]
    layers: list[int]
    own_layers: list[int] | None
    heads: dict[int, list[int]]
    tokens: list[int]
    offset: int
    top: int
    against: LanguageModel | None
    word: str

    @property
    def of_heads(self) -> bool:
        """Whether heads are read."""
        return bool({"heads", "tokens", "composition"} & set(self.looks))

    @property
    def came_to(self) -> dict[str, Any]:
        """What a resume must come to again."""
        against = None if self.against is None else self.against.title
        return {"survey_layers": self.layers, "survey_tokens": self.tokens, "survey_against": against}


def resolved(lm: LanguageModel, request: WeightSurvey) -> ResolvedSurvey:
    """The layers, heads and tokens that are meant. Raises `BadOption`, `BadPlace`, `OutOfRange`, `SiteAbsent`."""
    anatomy, looks = lm.anatomy, request.looks
    layers = [cell.layer for cell in resolve(parse_places(f"resid_post@{request.layers}"), n_layers=anatomy.n_layers,
                                             n_heads=anatomy.n_heads)]  # fmt: skip
    heads: dict[int, list[int]] = {}
    if "tokens" in looks:
        cells = anatomy.cells(parse_places(f"z@{request.heads}"))
        heads = {cell.layer: list(cell.heads or ()) for cell in cells if cell.layer in layers}
    if request.offset and not {"heads", "tokens"} & set(looks):
        raise BadOption("--offset turns queries, and no QK circuit is asked for", hint="add --what heads or tokens")
    if "composition" in looks:
        _check_memory(lm, layers, parse_memory(request.memory))
    tokens = (lm.ids_of(request.tokens) if request.tokens else _frequent(lm)) if "tokens" in looks else []
    tokens = list(dict.fromkeys(tokens))
    against = request.against
    if isinstance(against, str):
        from probe.language_model import load

        against = load(against, dtype=str(lm.dtype).removeprefix("torch."), progress=request.progress)
    own = None if request.layers == "all" else layers
    return ResolvedSurvey(looks, layers, own, heads, tokens, request.offset, request.top, against, lm.name.rpartition("/")[2])


def _check_memory(lm: LanguageModel, layers: list[int], budget: int) -> None:
    need = stacked_bytes(lm, layers)
    if need > budget:
        raise BadOption(
            f"the heads of {len(layers)} layers take about {need / 1e9:.1f} GB, and --memory is {budget / 1e9:.1f} GB",
            hint="fewer --layers, or more --memory",
        )


def stacked_bytes(lm: LanguageModel, layers: list[int]) -> int:
    """About what all heads of these layers hold: four matrices of each, float64, and what they write, float32."""
    anatomy = lm.anatomy
    return sum(36 * anatomy.layers[n].n_heads * anatomy.layers[n].d_head * anatomy.d_model for n in layers)


def _frequent(lm: LanguageModel) -> list[int]:
    """The first words of the vocabulary: in the order in which a tokenizer merges, the most frequent ones."""
    special = set(lm.tokenizer.all_special_ids)
    words = (i for i in range(lm.n_ids or 0) if i not in special and lm.token_text(i).strip().isalpha())
    return [i for i, _ in zip(words, range(FREQUENT), strict=False)]


def plan_weights(lm: LanguageModel, request: WeightSurvey) -> dict[str, Any]:
    """What `weights` would compute and write. Reads no matrix."""
    survey = resolved(lm, request)
    anatomy = lm.anatomy
    n = sum(p.shape[0] if p.dim() == 3 else 1 for p in lm.model.parameters() if p.dim() >= 2)
    counts = [anatomy.layers[layer].n_heads for layer in survey.layers]
    pairs = 3 * sum(here * sum(counts[:i]) for i, here in enumerate(counts))
    followed = sum(map(len, survey.heads.values())) * len(survey.tokens)
    rows = {
        "matrices": (n, 160 + 4 * survey.top, "matrices"), "norm_gains": (2 * anatomy.n_layers + 1, 90, "norms"),
        "head_circuits": (sum(counts), 110, "heads"), "token_circuits": (followed, 60 + 24 * survey.top, "tokens"),
        "compositions": (pairs, 45, "composition"),
    }  # fmt: skip
    tables = {name: {"rows": m, "bytes": m * size} for name, (m, size, look) in rows.items() if look in survey.looks}
    if survey.against is not None:
        tables["matrix_differences"] = {"rows": n, "bytes": 120 * n}
    held = stacked_bytes(lm, survey.layers) if "composition" in survey.looks else 0
    return {"model": lm.name, "layers": len(survey.layers), "heads_memory_bytes": held, "tables": tables}
