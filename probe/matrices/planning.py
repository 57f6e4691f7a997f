"""What a request to look at weights comes to on a model, and what it would compute. Computes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from probe.errors import BadOption
from probe.language_model.quantization import check_numbers
from probe.language_model.spreading import check_whole
from probe.matrices.memory import check_memory, weights_held
from probe.requests.groups import parse_memory
from probe.sites import parse_places, resolve

if TYPE_CHECKING:
    from probe.language_model import LanguageModel
    from probe.requests import WeightSurvey

FREQUENT = 5  # tokens, where none are named


@dataclass(frozen=True)
class ResolvedSurvey:
    """own_layers: None for all of the model, its ends too. heads: by layer, of those whose tokens are followed. neurons: by
    layer, none where it has none. memory: bytes, and `held` of them at once."""

    looks: tuple[str, ...]
    layers: list[int]
    own_layers: list[int] | None
    heads: dict[int, list[int]]
    neurons: dict[int, list[int]]
    tokens: list[int]
    offset: int
    top: int
    against: LanguageModel | None
    memory: int
    held: int
    word: str

    @property
    def of_heads(self) -> bool:
        """Whether heads are read."""
        return bool({"heads", "tokens", "composition"} & set(self.looks))

    @property
    def came_to(self) -> dict[str, Any]:
        """What a resume must come to again."""
        against = None if self.against is None else self.against.title
        return {"survey_layers": self.layers, "survey_tokens": self.tokens, "survey_against": against,
                "survey_neurons": sum(map(len, self.neurons.values()))}  # fmt: skip


def resolved(lm: LanguageModel, request: WeightSurvey) -> ResolvedSurvey:
    """The layers, heads and tokens that are meant. Raises `BadModel` for a quantised model, `BadOption`,
    `BadPlace`, `OutOfRange`, `SiteAbsent`."""
    check_whole(lm, "a survey of weights")
    check_numbers(lm.model, lm.name, "probe weights")
    anatomy, looks = lm.anatomy, request.looks
    layers = [cell.layer for cell in resolve(parse_places(f"resid_post@{request.layers}"), n_layers=anatomy.n_layers,
                                             n_heads=anatomy.n_heads)]  # fmt: skip
    heads: dict[int, list[int]] = {}
    if "tokens" in looks:
        cells = anatomy.cells(parse_places(f"z@{request.heads}"))
        heads = {cell.layer: list(cell.heads or ()) for cell in cells if cell.layer in layers}
    if request.offset and not {"heads", "tokens"} & set(looks):
        raise BadOption("--offset turns queries, and no QK circuit is asked for", hint="add --what heads or tokens")
    neurons = _neurons(lm, request, layers) if "neurons" in looks else {}
    memory = parse_memory(request.memory)
    held = check_memory(lm, [*looks, *(["differences"] if request.against is not None else [])], layers, memory)
    tokens = (lm.ids_of(request.tokens) if request.tokens else _frequent(lm)) if "tokens" in looks else []
    tokens = list(dict.fromkeys(tokens))
    against = request.against
    if isinstance(against, str):
        from probe.language_model import load

        against = load(against, dtype=str(lm.dtype).removeprefix("torch."), progress=request.progress)
    if against is not None:
        check_numbers(against.model, against.name, "what differs from them")
    own = None if request.layers == "all" else layers
    word = lm.name.rpartition("/")[2]
    return ResolvedSurvey(looks, layers, own, heads, neurons, tokens, request.offset, request.top, against, memory, held, word)


def _neurons(lm: LanguageModel, request: WeightSurvey, layers: list[int]) -> dict[int, list[int]]:
    """The neurons that are meant, by layer."""
    anatomy = lm.anatomy
    if request.neurons in (None, "all"):
        return {layer: list(range(anatomy.n_units("mlp_post", layer))) for layer in layers}
    cells = anatomy.cells(parse_places(f"mlp_post@{request.neurons}"))
    own = {cell.layer: list(cell.units or range(anatomy.n_units("mlp_post", cell.layer))) for cell in cells}
    found = {layer: units for layer, units in own.items() if layer in layers}
    if not found:
        raise BadOption(f"--neurons {request.neurons} is in none of the --layers {request.layers}", hint="leave out --layers")
    return found


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
        "neuron_weights": (3 * sum(map(len, survey.neurons.values())), 90 + 16 * survey.top, "neurons"),
    }  # fmt: skip
    tables = {name: {"rows": m, "bytes": m * size} for name, (m, size, look) in rows.items() if look in survey.looks}
    if survey.against is not None:
        tables["matrix_differences"] = {"rows": n, "bytes": 120 * n}
    return {"model": lm.name, "layers": len(survey.layers), "memory_bytes": survey.held,
            "weights_bytes": weights_held(lm), "tables": tables}  # fmt: skip
