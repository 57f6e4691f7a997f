"""The verb `means`: mean and variance of sites over a file of texts, in one pass. Ranks nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from probe import store as stores
from probe.corpora.measures import Key, read_cells
from probe.corpora.moments import Moments
from probe.corpora.reading import BatchSink, read_corpus
from probe.corpora.windows import Window, surveyed
from probe.devices import uploaded
from probe.requests import CorpusMeans, public
from probe.running import running
from probe.texts import columns_of, hash_of, prompt_columns

if TYPE_CHECKING:
    from probe.language_model import LanguageModel
    from probe.sites import Cell


def run_means(lm: LanguageModel, request: CorpusMeans) -> stores.Run:
    """Mean, variance, least and greatest of each entry of a site over all tokens of a file of texts, and the mean norm.

    Of heads each has its own; where a place names neurons, these alone are read. The first tokens of a text (`skip`, 1 if
    nothing else is said) do not count: what stands at position 0 is often hundreds of times as large. The sums are float64,
    put together by Chan, Golub & LeVeque (1983). The edit `PLACE=mean:RUN` puts the mean in the place of an activation. The
    files are read once, in bounded memory beside their text.

    Tables: `means`, `prompts` (the first text, and those that could not be read). Raises `BadPrompt`, `BadPlace`, `SiteAbsent`,
    `BadOption`, `NonFinite`, `RunError`.
    """
    cells = read_cells(lm, request.at)
    units = {(cell.site, cell.layer): cell.units for cell in cells}
    corpus = surveyed(lm, request.texts, request)
    came_to = {"texts": len(corpus.prompts), "texts_sha256": hash_of(corpus.prompts)}
    with running(request, lm, word=cells[0].site, resolved=came_to, found=corpus.seen._replace(failed=[])) as run:
        if run.writer.whole:
            return run.writer.whole
        run.writer.extend("prompts", columns_of(corpus.prompts).types)
        widths = {key: width for cell in cells for key, width in _widths(lm, cell).items()}
        found = read_corpus(run, corpus, cells, lambda: Sums(widths), size=32 * sum(widths.values()))
        failed = found.failed(corpus)
        run.warn(*corpus.seen.notes, *corpus.remarks)
        with run.writer.unit("found", again=True):
            rows = [_row(key, units[key[:2]], *found.state.of(key)) for key in widths]
            for row in rows:
                run.write("means", {name: [value] for name, value in row.items()})
            bad = {one.prompt.prompt_id for one in failed}
            first = next((one for one in corpus.prompts if one.prompt_id not in bad), None)
            kept = [] if first is None else [corpus.windows_of(first)[0]]
            run.write("prompts", prompt_columns(kept, [one.prompt for one in failed]))
        return run.finish({**corpus.told(len(failed)), "means": [_brief(row) for row in rows]})


means = public(run_means, CorpusMeans)


def plan_means(lm: LanguageModel, request: CorpusMeans) -> dict[str, Any]:
    """What `means` would compute and write. Reads the texts, runs no model."""
    widths = {key: width for cell in read_cells(lm, request.at) for key, width in _widths(lm, cell).items()}
    corpus = surveyed(lm, request.texts, request)
    rows, values = len(widths), sum(widths.values())
    return corpus.plan(state=32 * values) | {"tables": {"means": {"rows": rows, "bytes": 60 * rows + 16 * values}}}


def _widths(lm: LanguageModel, cell: Cell) -> dict[Key, int]:
    """How many values each vector of a cell has."""
    width = lm.width(cell.site, cell.layer) if cell.units is None else len(cell.units)
    return {(cell.site, cell.layer, head): width for head in cell.heads or (None,)}


class MomentSink(BatchSink):
    """Moments of each site of one batch, and of the norms there."""

    def __init__(self, batch: Sequence[Window], counted: Tensor) -> None:
        super().__init__(batch, counted)
        self.moments: dict[Key, Moments] = {}
        self.norms: dict[Key, float] = {}

    def activation(self, site: str, layer: int, head: int | None, values: Tensor) -> None:
        """Take the moments of what counts, values (batch, pos, d)."""
        norms = torch.linalg.vector_norm(values, dim=-1, dtype=torch.float64)
        row, pos = uploaded(self.counted.nonzero().T, values.device)
        self.readback.put([norms, values[row, pos]], partial(self._take, (site, layer, head)))

    def _take(self, key: Key, norms: Tensor, own: Tensor) -> None:
        """norms (batch, pos), and what counts (n, d)."""
        self.check(norms)  # finite where all that it is of are
        if not self.bad.any():
            self.moments[key] = Moments.of(own.double().numpy())
            self.norms[key] = float(norms[self.counted].sum())


class Sums:
    """Moments of each site, and sums of the norms. widths: how many values each has."""

    def __init__(self, widths: dict[Key, int]) -> None:
        self.widths = widths
        self.moments = {key: Moments.nothing(width) for key, width in widths.items()}
        self.norms = np.zeros(len(widths))

    def sink(self, batch: Sequence[Window], counted: Tensor) -> MomentSink:
        return MomentSink(batch, counted)

    def take(self, sink: MomentSink) -> None:
        for number, key in enumerate(self.widths):
            self.moments[key].merge(sink.moments[key])
            self.norms[number] += sink.norms[key]

    def merge(self, other: Self) -> None:
        for key, own in self.moments.items():
            own.merge(other.moments[key])
        self.norms = self.norms + other.norms

    def arrays(self) -> dict[str, np.ndarray]:
        found = {"norms": self.norms}
        for number, moments in enumerate(self.moments.values()):
            found |= moments.arrays(str(number))
        return found

    def restored(self, arrays: dict[str, np.ndarray]) -> Self:
        found = type(self)(self.widths)
        found.moments = {key: Moments.restored(arrays, str(number)) for number, key in enumerate(self.widths)}
        found.norms = arrays["norms"]
        return found

    def of(self, key: Key) -> tuple[Moments, float]:
        """The moments at one place, and the mean norm there."""
        own = self.moments[key]
        return own, float(self.norms[list(self.widths).index(key)] / own.n)


def _row(key: Key, units: Sequence[int] | None, moments: Moments, norm: float) -> dict[str, Any]:
    site, layer, head = key
    vectors = {name: np.asarray(getattr(moments, name), np.float32) for name in ("mean", "variance", "minimum", "maximum")}
    return {
        "site": site, "layer": layer, "head": -1 if head is None else head, "units": units, "n": int(moments.n), **vectors,
        "mean_norm": norm, "norm_of_mean": float(np.linalg.norm(moments.mean)),
    }  # fmt: skip


def _brief(row: dict[str, Any]) -> dict[str, Any]:
    """A row without its vectors: what is told of it, with the total variance and the entry that is largest on average."""
    largest = int(np.abs(row["mean"]).argmax())
    return {
        **{name: row[name] for name in ("site", "layer", "head", "units", "n", "mean_norm", "norm_of_mean")},
        "total_variance": float(row["variance"].sum(dtype=np.float64)),
        "largest_entry": largest if row["units"] is None else row["units"][largest],
        "largest_mean": float(row["mean"][largest]),
    }  # fmt: skip
