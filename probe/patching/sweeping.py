"""The verb `patch`: pairs in, every cell patched, effects out. Knows the order of things."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probe import store as stores
from probe.errors import BadOption
from probe.patching import recording
from probe.patching.attribution import Attribution, sample
from probe.patching.cells import LayerCells, cells_of
from probe.patching.exact import Exact, floor, prepare_pair
from probe.patching.pairs import Pair
from probe.patching.path_patching import Sender
from probe.patching.paths import PathGroup, path_groups
from probe.patching.planning import PatchPlan, prepare
from probe.patching.reading import values
from probe.patching.recording import summarize
from probe.patching.sources import POOLED, Values, activations, replacement

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

Progress = Callable[[str, int, int], None]
"""What is going on, how much of it is done, and how much there is."""


def patch(
    lm: LanguageModel, *, clean: Any = None, corrupt: Any = None, answer: str | None = None, against: str | None = None,
    pairs: Iterable[Any] | Path = (), out: str | Path | None = None, resume: bool = False,
    progress: Progress | None = None, **what: Any,
) -> stores.Run:  # fmt: skip
    """Put activations of one text into another's run, place by place, and measure what each carries to the answer.

    clean, corrupt: texts, or runs (`probe.trace`); answer, against: what follows the clean text, and what it is compared
    with: their first tokens. pairs: several (clean, corrupt, answer, against), or a `Path` to a .jsonl or .csv of them.
    sites: `resid_pre`, `attn_out`, `z`, …, or places (`z@9.6,9.9:last`); layers, heads, positions: for those that name
    none. by: `pos`, `head`, `step`: along these cells are apart, along the others they are patched at once (default: by
    head where there are heads, else by position). source: `clean` (the other text), `zero`, `mean`, `noise`, `resample`.
    direction: `denoise` (into the corrupt run) or `noise` (into the clean one); default denoise from the other text, else
    noise. metric: `logit-diff`, `logprob`, `prob`, `kl`. align: where lengths differ, `left`, `right` or `ends`.
    rewind: a run of `probe.rewind` in place of texts and answers: its control and edited arm, both with what followed the
    step, step by step, up to measure_at: `parting` (default: where the next-token distributions part), `answer`, a position.
    memory: what a pass may take, such as `2GB`. edit: changes that hold in all runs.
    chat, system, template_options, allow_template_loss: as in `trace`. seed.
    method: `exact`, or `attribution`: `patched` is estimated from the gradient at the base run (METHODS B3), of all cells by
    two forwards and a backward; ig: averaged over so many points on the way to the other text; sample: how many random cells
    are run too, for the correlation in the summary (default 40). path: `SENDER->RECEIVER` in place of sites (METHODS B4):
    a row for each sender and each receiver above it; what the sender changes reaches the receiver alone.

    effect = (patched - corrupt) / (clean - corrupt), or (clean - patched) / (clean - corrupt) where noising, of the metric
    after the last token; `change` is the same undivided, `floor` what 95 % of random patches of the same norm stay under:
    where clean and corrupt differ by less, the summary names the pair as `small` and a warning says it.
    Equal to a full forward with the patch, to rounding. Tables: `patches`, `prompts`, `tokens`, and
    `patch_means` over several pairs. Raises `BadOption`, `BadPrompt`, `BadPlace` and its kinds, `BadEdit`, `NonFinite`.
    """
    if resume and (out is None or out == "auto"):
        raise BadOption("which run is to be resumed?", hint="name it with --out")
    plan = prepare(lm, clean=clean, corrupt=corrupt, answer=answer, against=against, pairs=pairs, **what)
    word = "path" if plan.path else plan.asked.sites[0].partition("@")[0]
    path = stores.fresh_path("patch", word=word) if out == "auto" else out
    path = Path(path) if path else None
    with stores.create(path, command="patch", arguments=plan.arguments, resume=resume) as writer:
        if not writer.done("texts"):
            with writer.unit("texts"):
                recording.write_texts(writer, lm, plan.pairs)
        (_Sweep if plan.path is None else _Paths)(lm, writer, plan, progress).run()
        if len(plan.pairs) > 1 and not writer.done("means"):
            with writer.unit("means"):
                recording.write_means(writer, plan.pairs, plan.direction, seed=plan.seed)
        summary = summarize(writer, lm, plan)
        for number in summary["undefined"]:
            writer.warn(f"pair {number}: clean and corrupt have the same {plan.metric}, so no effect is defined")
        if small := [number for number in summary["small"] if number not in summary["undefined"]]:
            writer.warn(
                f"clean and corrupt differ by less in {plan.metric} than random patches of the same norm move it "
                f"({'pair ' + ', '.join(map(str, small)) if len(plan.pairs) > 1 else 'see floor'}): effects are shares of "
                "nearly nothing, look at the differences"
            )
        return writer.finish(summary=summary, model=lm.identity, anatomy=lm.anatomy.to_dict(), seed=plan.seed)


class _Sweep:
    """All pairs and sites of a plan, one unit of the run for each slice."""

    def __init__(self, lm: LanguageModel, writer: stores.Writer, plan: PatchPlan, progress: Progress | None) -> None:
        self._lm, self._writer, self._plan, self._progress = lm, writer, plan, progress
        self._pools: dict[str, Values] = {}
        self._parts = [cells_of(lm, pair, plan.asked, plan.direction) for pair in plan.pairs]
        self._sampled = sample(self._parts, plan.pairs, plan.sample, seed=plan.seed)
        self._total = sum(len(part.locations) for parts in self._parts for part in parts)
        self._done = 0

    def run(self) -> None:
        for number, (pair, parts) in enumerate(zip(self._plan.pairs, self._parts, strict=True)):
            for note in pair.notes:
                self._writer.warn(note)
            if all(self._writer.done(_unit(number, i)) for i in range(len(parts))):
                self._count(sum(len(part.locations) for part in parts))
                continue
            engine = self._engine(pair, parts)
            if engine.warning:
                self._writer.warn(engine.warning)
            under = self._floor(number, engine)
            for site, members in groupby(enumerate(parts), key=lambda item: item[1].site):
                self._site(number, engine, site, list(members), under)

    def _floor(self, number: int, engine: Exact | Attribution) -> float:
        """NaN where all is estimated and nothing is run."""
        plan = self._plan
        if plan.method == "attribution" and not plan.sample:
            return float("nan")
        return floor(engine.prepared, metric=plan.metric, address=f"{plan.seed} {number}", edits=plan.edits)

    def _engine(self, pair: Pair, parts: Sequence[LayerCells]) -> Exact | Attribution:
        if self._plan.method == "attribution":
            return Attribution(self._lm, pair, self._plan, parts)
        return Exact(self._lm, pair, self._plan)

    def _site(
        self,
        number: int,
        engine: Exact | Attribution,
        site: str,
        members: Sequence[tuple[int, LayerCells]],
        under: float,
    ) -> None:
        lm, plan, pair = self._lm, self._plan, engine.view.pair
        layers = sorted({part.layer for _, part in members})
        old = engine.base(site, layers)
        other = engine.other(site, layers) if plan.source == "clean" else old
        pool = self._pool(site, layers) if plan.source in POOLED else old
        tokens = lm.labels(pair.base(plan.direction))
        for i, part in members:
            if not self._writer.done(_unit(number, i)):
                address, layer = f"{plan.seed} {number} {site}@{part.layer}", part.layer
                new = replacement(
                    plan.source, old[layer], other[layer], pair.origins(plan.direction), pool[layer], address=address
                )
                sampled = self._sampled.get((number, i), set())
                found = engine.cells(part, old[layer], new, self._report, sampled=sampled)
                with self._writer.unit(_unit(number, i)):
                    recording.write_cells(
                        self._writer, number, engine.view, part, found, metric=plan.metric, tokens=tokens, floor=under
                    )
            self._count(len(part.locations))

    def _pool(self, site: str, layers: Sequence[int]) -> dict[int, Tensor]:
        """A site's values at all positions of all texts."""
        if site not in self._pools:
            texts = [ids for pair in self._plan.pairs for ids in (pair.clean, pair.corrupt)]
            found = [activations(self._lm, ids, site, layers, self._plan.edits) for ids in texts]
            self._pools[site] = {layer: torch.cat([values[layer] for values in found]) for layer in layers}
        return self._pools[site]

    def _count(self, cells: int) -> None:
        self._done += cells
        self._report(0)

    def _report(self, more: int) -> None:
        if self._progress is not None:
            self._progress("patching", self._done + more, self._total)


class _Paths:
    """All pairs and paths of a plan, one unit of the run for the senders of each site and layer."""

    def __init__(self, lm: LanguageModel, writer: stores.Writer, plan: PatchPlan, progress: Progress | None) -> None:
        self._lm, self._writer, self._plan, self._progress = lm, writer, plan, progress
        assert plan.path is not None
        self._sends = [path_groups(lm, pair, plan.path, plan.asked, plan.direction) for pair in plan.pairs]
        self._total = sum(len(send.paths) for own in self._sends for send in own)
        self._done = 0

    def run(self) -> None:
        for number, (pair, own) in enumerate(zip(self._plan.pairs, self._sends, strict=True)):
            for note in pair.notes:
                self._writer.warn(note)
            missing = [(i, send) for i, send in enumerate(own) if not self._writer.done(_unit(number, i))]
            self._done += sum(len(send.paths) for send in own) - sum(len(send.paths) for _, send in missing)
            if missing:
                self._pair(number, pair, missing)

    def _pair(self, number: int, pair: Pair, missing: Sequence[tuple[int, PathGroup]]) -> None:
        lm, plan = self._lm, self._plan
        view = prepare_pair(lm, pair, plan.direction, plan.edits)
        under = floor(view, metric=plan.metric, address=f"{plan.seed} {number}", edits=plan.edits)
        sender, tokens = Sender(view, plan), lm.labels(pair.base(plan.direction))
        wheres = [(send.site, send.layer) for _, send in missing]
        old = values(lm, pair.base(plan.direction), wheres, edits=plan.edits).values
        other = (
            values(lm, pair.source(plan.direction), wheres, edits=plan.edits).values if plan.source == "clean" else old
        )
        for i, send in missing:
            new = self._new(number, pair, send, old[send.site, send.layer], other[send.site, send.layer])
            found = sender.measure(send, new, self._report)
            with self._writer.unit(_unit(number, i)):
                for receiver, part, measured in found:
                    recording.write_cells(self._writer, number, view, part, measured, metric=plan.metric, tokens=tokens,
                                    floor=under, receiver=receiver)  # fmt: skip
            self._done += len(send.paths)

    def _new(self, number: int, pair: Pair, send: PathGroup, old: Tensor, other: Tensor) -> Tensor:
        """What senders take (pos, [head,] d)."""
        lm, plan = self._lm, self._plan
        texts = [ids for one in plan.pairs for ids in (one.clean, one.corrupt)] if plan.source in POOLED else []
        pool = [activations(lm, ids, send.site, [send.layer], plan.edits)[send.layer] for ids in texts]
        address = f"{plan.seed} {number} {send.site}@{send.layer}"
        origins = pair.origins(plan.direction)
        return replacement(plan.source, old, other, origins, torch.cat([old[:0], *pool]), address=address)

    def _report(self, more: int) -> None:
        if self._progress is not None:
            self._progress("patching", self._done + more, self._total)


def _unit(number: int, i: int) -> str:
    return f"pair{number}-slice{i}"
