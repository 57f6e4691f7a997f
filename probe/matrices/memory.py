"""How much each look at weights holds at once, by shapes alone, and how much of it is done at once within `--memory`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from probe.errors import BadOption
from probe.instrument import bytes_elsewhere, parameters
from probe.matrices.spectra import ROWS
from probe.matrices.vocabulary import BLOCK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from probe.anatomy import Layer
    from probe.language_model import LanguageModel

WIDE, NARROW = 8, 4  # bytes of a number
PAIR = 3 * 64  # bytes of the rows of a pair of heads, and of what they are sorted by


def check_memory(lm: LanguageModel, looks: Sequence[str], layers: Sequence[int], budget: int) -> int:
    """The most bytes that any of the looks holds at once. Raises `BadOption` where that is more than there may be."""
    needs = {look: need for look, need in _needs(lm, layers).items() if look in looks}
    for look, need in needs.items():
        if need > budget:
            hint = "more --memory" + (
                "" if len(layers) == 1 or look not in ("composition", "matrices") else ", or fewer --layers"
            )
            raise BadOption(
                f"'{look}' of this model takes about {need / 1e9:.3g} GB, and --memory is {budget / 1e9:.3g} GB", hint=hint
            )
    return max(needs.values(), default=0)


def weights_held(lm: LanguageModel) -> int:
    """The most bytes of the model's own weights that are in memory at once: those that stay there, what is outside the blocks,
    and of the blocks that are kept elsewhere one."""
    model = lm.model
    stay = sum(parameter.nbytes for parameter in parameters(model) if not parameter.is_meta)
    blocks = [bytes_elsewhere(model.get_submodule(path)) for path in dict.fromkeys(one.block for one in lm.anatomy.layers)]
    return stay + bytes_elsewhere(model) - sum(blocks) + max(blocks, default=0)


def _needs(lm: LanguageModel, layers: Sequence[int]) -> dict[str, int]:
    anatomy = lm.anatomy
    own = [anatomy.layers[n] for n in layers]
    heads = max((_of_heads(one, anatomy.d_model) for one in own), default=0)
    blocks = tuple(f"{one.block}." for one in own)
    whole = len(own) == anatomy.n_layers
    shapes = [p.shape[-2:] if p.dim() == 3 else (p.shape[0], p[0].numel()) for name, p in lm.model.named_parameters()
              if p.dim() >= 2 and (whole or name.startswith(blocks))]  # fmt: skip
    spectra = max((_of_spectrum(*shape) for shape in shapes), default=0)
    ends = 2 * WIDE * anatomy.d_model**2 + 3 * WIDE * min(BLOCK, anatomy.d_vocab) * anatomy.d_model
    return {
        "matrices": spectra, "differences": spectra, "heads": heads + ends,
        "tokens": heads + ends + max((_of_token(one, anatomy.d_vocab) for one in own), default=0),
        "composition": heads + _of_composition(own, anatomy.d_model), "neurons": ends + neuron_bytes(lm),
    }  # fmt: skip


def _of_spectrum(rows: int, columns: int) -> int:
    """The smaller Gram matrix, what its eigenvalues are found in, and some rows in float64."""
    small = min(rows, columns)
    return WIDE * (2 * small**2 + 2 * min(ROWS, max(rows, columns)) * small)


def _of_heads(layer: Layer, d: int) -> int:
    """All heads of a layer: what the attention makes of every unit vector, the matrices, and those for each query head."""
    width = layer.n_heads * layer.d_head
    return WIDE * (d * layer.d_head * (6 * layer.n_heads + 4 * layer.n_kv_heads) + width**2 + width * d)


def _of_token(layer: Layer, d_vocab: int) -> int:
    """One token in the heads of a layer, against a block of the vocabulary: scores and logits, and what is sorted of them."""
    return 6 * WIDE * layer.n_heads * min(BLOCK, d_vocab)


def tokens_at_once(lm: LanguageModel, layer: int, budget: int) -> int:
    """How many tokens are followed at once; half of the memory is theirs."""
    return max(1, budget // 2 // max(1, _of_token(lm.anatomy.layers[layer], lm.anatomy.d_vocab)))


def _of_composition(layers: Sequence[Layer], d: int) -> int:
    """What every head writes, in float32; rows of all pairs; the products of one layer with another."""
    counts = [one.n_heads for one in layers]
    pairs = sum(here * sum(counts[:i]) for i, here in enumerate(counts))
    widths = [one.n_heads * one.d_head for one in layers]
    return NARROW * d * sum(widths) + PAIR * pairs + 3 * NARROW * max(widths, default=0) ** 2


def neuron_bytes(lm: LanguageModel) -> int:
    """One neuron: its directions, and their cosines with a block of the vocabulary."""
    return 10 * WIDE * lm.anatomy.d_model + 8 * NARROW * min(BLOCK, lm.anatomy.d_vocab)


def neurons_at_once(lm: LanguageModel, budget: int) -> int:
    """How many neurons are told of at once; half of the memory is theirs."""
    return max(1, budget // 2 // neuron_bytes(lm))
