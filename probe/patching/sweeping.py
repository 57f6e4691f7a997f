"""The verb `patch`: pairs in, every cell patched, effects out. Knows the order of things."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

from probe.patching.attribution import Attribution, EstimatedAndExact, sample
from probe.patching.cells import LayerCells
from probe.patching.exact import Exact, floor
from probe.patching.neurons import with_neurons
from probe.patching.pairs import Pair
from probe.patching.path_patching import PathPatching
from probe.patching.paths import PathGroup
from probe.patching.planning import Patching, portions, resolved
from probe.patching.reading import SiteLayer
from probe.patching.recording import summarize, write_cells, write_lost, write_means, write_texts
from probe.patching.sources import Replacements
from probe.requests import PatchSweep, public
from probe.running import Running, running

if TYPE_CHECKING:
    from probe.language_model import LanguageModel
    from probe.store import Run

Engine = Exact | Attribution | PathPatching


def run_patch(lm: LanguageModel, request: PatchSweep) -> Run:
    """Put activations of one text into another's run, place by place, and measure what each carries to the answer.

    clean, corrupt: texts, or runs (`probe.trace`); answer, against: what follows the clean text, and what it is compared
    with: their first tokens, or, with whole_answer, all of them: log P(a_1 … a_k | text) = Σ_i log P(a_i | text, a_<i),
    each continuation by a forward of its own, whose text alone is patched; the difference is one of these log-probs, and `kl`
    is of the first token. measure_at: where both texts end, a position of the clean one.
    pairs: several (clean, corrupt, answer, against), or a `Path` to a .jsonl or .csv of them, answers also as `answer_set`.
    rewind: a run of `probe.rewind` in place of texts and answers: its control and edited arm, both with what followed the
    step, step by step, up to measure_at: `parting` (where the next-token distributions part), `answer`, a position.
    method: `exact`, or `attribution`: `patched` is estimated from the gradient at the base run (METHODS B3), of all cells by
    two forwards and a backward; `sample` random cells are run too, for the correlation in the summary. path (METHODS B4):
    a row for each sender and each receiver above it; what the sender changes reaches the receiver alone.

    effect = (patched - corrupt) / (clean - corrupt), or (clean - patched) / (clean - corrupt) where noising, of the metric
    after the last token; `change` is the same undivided, `floor` what 95 % of random patches of the same norm stay under:
    where clean and corrupt differ by less, the summary names the pair as `small` and a warning says it.
    Equal to a full forward with the patch, to rounding. Tables: `patches`, `prompts`, `tokens`, and
    `patch_means` over several pairs. Raises `BadOption`, `BadPrompt`, `BadPlace` and its kinds, `BadEdit`, `NonFinite`.
    """
    patching = resolved(lm, request)
    word = "path" if request.path else next(iter(request.sites)).partition("@")[0]
    came_to = {"pairs": [[*pair.names, *pair.answers] for pair in patching.pairs], "edits": list(map(str, patching.edits))}
    with running(request, lm, word=word, resolved=came_to) as run:
        if not run.writer.done("texts"):
            with run.writer.unit("texts"):
                write_texts(run.writer, lm, patching.pairs)
        patching = with_neurons(run, patching)
        lost = _Sweep(run, patching).run()
        if len(patching.pairs) > 1 and not run.writer.done("means"):
            with run.writer.unit("means"):
                write_means(run.writer, patching.pairs, request.towards, seed=request.seed)
        summary = summarize(run.writer, lm, patching) | ({"errors": len(lost)} if lost else {})
        for number in summary["undefined"]:
            run.warn(f"pair {number}: clean and corrupt have the same {request.metric}, so no effect is defined")
        if small := [number for number in summary["small"] if number not in summary["undefined"]]:
            run.warn(
                f"clean and corrupt differ by less in {request.metric} than random patches of the same norm move it "
                f"({'pair ' + ', '.join(map(str, small)) if len(patching.pairs) > 1 else 'see floor'}): effects are shares "
                "of nearly nothing, look at the differences"
            )
        return run.finish(summary, seed=request.seed)


patch = public(run_patch, PatchSweep)


class _Sweep:
    """All pairs of a sweep, one unit of the run for each site of each layer. Each text is read once, and once more where what
    is put in is made of all texts; of neurons, for each portion of the layers."""

    def __init__(self, run: Running, patching: Patching) -> None:
        self._run, self._lm, self._patching = run, run.lm, patching
        self._sampled = sample(patching)
        self._total, self._done = sum(len(part) for parts in patching.parts for part in parts), 0

    def run(self) -> dict[int, str]:
        """Why pairs came to nothing, by their number."""
        parts = self._patching.parts
        wheres = list(dict.fromkeys((part.site, part.layer) for own in parts for part in own))
        some = portions(self._patching, wheres) if self._patching.neurons else [wheres]
        items = list(product(range(len(some)), range(len(self._patching.pairs))))  # of a portion of the layers each pair
        replacements: Replacements | None = None
        of, lost = -1, dict[int, str]()
        for portion, number in self._run.share(
            "patching", items, total=self._total,
            size=lambda item: sum(map(len, self._cells(some[item[0]], item[1]).values())),
            lost=lambda item, error: lost.update({item[1]: error.message}),
        ):  # fmt: skip
            pair = self._patching.pairs[number]
            self._run.warn(*pair.notes)
            own = self._cells(some[portion], number)
            here = [i for i, part in own.items() if not self._run.writer.done(_unit(number, i))]
            self._done += sum(len(part) for i, part in own.items() if i not in here)
            self._report(0)
            if here:
                if of != portion or replacements is None:
                    replacements, of = Replacements(self._lm, self._patching, some[portion]), portion
                self._pair(number, pair, here, replacements)
        if lost:
            write_lost(self._run.writer, lost)
        return lost

    def _cells(self, wheres: Sequence[SiteLayer], number: int) -> dict[int, LayerCells | PathGroup]:
        """The cells of one pair at some sites of layers, by their number."""
        return {i: part for i, part in enumerate(self._patching.parts[number]) if _where(part) in wheres}

    def _pair(self, number: int, pair: Pair, missing: Sequence[int], replacements: Replacements) -> None:
        request, parts = self._patching.request, self._patching.parts[number]
        engine = self._engine(pair, [_where(parts[i]) for i in missing])
        if engine.warning:
            self._run.warn(engine.warning)
        under = float("nan")  # where all is estimated and nothing is run
        if request.runs_cells:
            under = floor(engine.prepared, metric=request.metric, address=f"{request.seed} {number}")
        tokens = self._lm.labels(pair.base(request.towards))
        for i in missing:
            part, where = parts[i], _where(parts[i])
            old, other = engine.values(where)
            new = replacements.of(number, where, old, other)
            found = engine.measure(part, old, new, self._report, sampled=self._sampled.get((number, i), set()))
            with self._run.writer.unit(_unit(number, i)):
                for receiver, cells, measured in found:
                    write_cells(
                        self._run.writer, number, engine.baselines, cells, measured, metric=request.metric, tokens=tokens,
                        floor=under, receiver=receiver,
                    )  # fmt: skip
            self._done += len(part)
            self._report(0)

    def _engine(self, pair: Pair, wheres: Sequence[SiteLayer]) -> Engine:
        request = self._patching.request
        exact = EstimatedAndExact if self._patching.neurons else PathPatching if request.path else Exact
        kind = Attribution if request.method == "attribution" else exact
        return kind(self._lm, pair, self._patching, list(dict.fromkeys(wheres)))

    def _report(self, more: int) -> None:
        self._run.report("patching", self._done + more, self._total)


def _where(part: LayerCells | PathGroup) -> SiteLayer:
    return part.site, part.layer


def _unit(number: int, i: int) -> str:
    return f"pair{number}-slice{i}"
