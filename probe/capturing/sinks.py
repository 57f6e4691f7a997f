"""What can be asked of attention, and where a read puts what it finds: the protocol, and a sink that keeps everything in
memory. Knows no model and no file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np

from probe.errors import BadOption

if TYPE_CHECKING:
    from torch import Tensor

Mode = Literal["none", "heads", "summary", "topk", "full"]


@dataclass(frozen=True)
class AttentionSpec:
    """How much of each pattern is kept: nothing, a summary of each head, statistics
    of each row too, the `k` largest weights too, or all."""

    mode: Mode = "heads"
    k: int = 0

    @classmethod
    def parse(cls, text: str) -> AttentionSpec:
        """`none`, `heads`, `summary`, `topk:K` or `full`; raises `BadOption`."""
        mode, colon, number = text.partition(":")
        if mode == "topk" and number.isdecimal() and int(number) > 0:
            return cls("topk", int(number))
        if mode == "topk" or colon or mode not in get_args(Mode):
            raise BadOption(f"unknown attention '{text}'", hint="none, heads, summary, topk:K (as in topk:8) or full")
        return cls(mode)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"topk:{self.k}" if self.mode == "topk" else self.mode


Columns = dict[str, Any]
"""Column name of probe.tables -> array of one value a row, or `Ragged`."""


@dataclass(frozen=True, eq=False)
class Ragged:
    """Lists of different lengths: list i is `values[offsets[i] : offsets[i + 1]]`. offsets (n + 1,) int32."""

    values: np.ndarray
    offsets: np.ndarray

    def __getitem__(self, row: int) -> np.ndarray:
        """The list of one row."""
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.offsets) - 1

    def __iter__(self) -> Iterator[np.ndarray]:
        """The lists in their order."""
        return (self[row] for row in range(len(self)))


class Sink(Protocol):
    """Takes what a read finds, while the model runs. `prompt` is the row of the batch, `layer` -1 where a site has none.

    Arrays belong to the sink: they are not changed later. Rows come sorted by head, then query; padding is never among them.
    A sink that keeps a tensor of `activation` must keep that very object (not a slice of it) until the read is over, and
    let a later one for the same (site, layer, head) replace it: that is how a model that writes into it is found out.
    """

    def activation(self, site: str, layer: int, head: int | None, values: Tensor) -> None:
        """One site: values (batch, pos, width), padding included. With `head` None the whole width of all heads; of a site
        whose cells name units the width are those of all its cells (`sites.units_read`)."""

    def heads(self, layer: int, columns: Columns) -> None:
        """Columns of the table `heads` after `head`: `rows` and the statistics, each (batch, head)."""

    def rows(self, prompt: int, layer: int, columns: Columns) -> None:
        """Columns of the table `attention_rows` from `head` on, each (n_heads * n_tokens,); once a prompt and layer."""

    def attention(self, prompt: int, layer: int, columns: Columns) -> None:
        """Columns of `attention` from `head` on: `keys` (Ragged, or None for full rows), `weights` (Ragged), `kept_mass`.

        Full rows come in pieces of bounded size, each a whole number of rows; with top-k once a prompt and layer.
        """

    def scores(self, prompt: int, layer: int, columns: Columns) -> None:
        """Columns of `scores` from `head` on: `scores` (Ragged) holds -inf where a key is masked; in pieces."""

    def routing(self, layer: int, experts: Tensor, weights: Tensor, entropy: Tensor) -> None:
        """Each token's experts and their weights (batch, pos, chosen), the largest first, and the entropy of the router's
        logits (batch, pos), padding included."""

    def lens(self, layer: int, columns: Columns) -> None:
        """Columns of `lens` from `top_ids` on, each (batch, pos) or (batch, pos, top), padding included."""


@dataclass
class MemorySink:
    """Keeps what it is given: `activations[site, layer, head]`, `summaries[layer]`, and lists of pieces by (prompt, layer)."""

    activations: dict[tuple[str, int, int | None], Tensor] = field(default_factory=dict)
    summaries: dict[int, Columns] = field(default_factory=dict)
    row_pieces: dict[tuple[int, int], Columns] = field(default_factory=dict)
    attention_pieces: dict[tuple[int, int], list[Columns]] = field(default_factory=lambda: defaultdict(list))
    score_pieces: dict[tuple[int, int], list[Columns]] = field(default_factory=lambda: defaultdict(list))
    guesses: dict[int, Columns] = field(default_factory=dict)
    routed: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def activation(self, site: str, layer: int, head: int | None, values: Tensor) -> None:
        """Keep the tensor itself."""
        self.activations[site, layer, head] = values

    def heads(self, layer: int, columns: Columns) -> None:
        """Keep the head summaries of a layer."""
        self.summaries[layer] = columns

    def rows(self, prompt: int, layer: int, columns: Columns) -> None:
        """Keep the summaries of a layer's rows."""
        self.row_pieces[prompt, layer] = columns

    def attention(self, prompt: int, layer: int, columns: Columns) -> None:
        """Keep a piece of a layer's patterns."""
        self.attention_pieces[prompt, layer].append(columns)

    def scores(self, prompt: int, layer: int, columns: Columns) -> None:
        """Keep a piece of a layer's scores."""
        self.score_pieces[prompt, layer].append(columns)

    def routing(self, layer: int, experts: Tensor, weights: Tensor, entropy: Tensor) -> None:
        """Keep the experts of a layer's tokens."""
        self.routed[layer] = experts, weights, entropy

    def lens(self, layer: int, columns: Columns) -> None:
        """Keep what a layer would answer."""
        self.guesses[layer] = columns

    def pattern(self, layer: int, head: int, n: int, *, prompt: int = 0) -> np.ndarray:
        """The rows kept of one head as (query, key) float32; keys that were not kept are 0."""
        return _square(self.attention_pieces[prompt, layer], "weights", head, n, empty=0.0)

    def score(self, layer: int, head: int, n: int, *, prompt: int = 0) -> np.ndarray:
        """The scores kept of one head as (query, key) float32; masked keys are -inf."""
        return _square(self.score_pieces[prompt, layer], "scores", head, n, empty=-np.inf)


def _square(pieces: list[Columns], name: str, head: int, n: int, *, empty: float) -> np.ndarray:
    out = np.full((n, n), empty, np.float32)
    for piece in pieces:
        values, keys = piece[name], piece.get("keys")
        for row in np.flatnonzero(np.asarray(piece["head"]) == head):
            where = slice(0, len(values[row])) if keys is None else keys[row]
            out[piece["query"][row], where] = values[row]
    return out
