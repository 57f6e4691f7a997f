"""Edits on a live model: for as long as the context lasts every forward is edited, by absolute position; then none is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probe.anatomy.parts import of_text
from probe.instrument import Reader, Tap, attending, entering, tapping
from probe.interventions.attention import CallEditor
from probe.interventions.checking import check_middle, write_over
from probe.interventions.edits import Edit
from probe.interventions.experts import ExpertEdit, ExpertEditor
from probe.interventions.forwards import ActiveEdits, ForwardPositions, Start, changed
from probe.interventions.positions import locate_edits
from probe.language_model.stepping import cache_support
from probe.sites import SITES

if TYPE_CHECKING:
    from probe.language_model import LanguageModel


@contextmanager
def applying(
    lm: LanguageModel, edits: Sequence[Edit], *, ids: Any = None, n_prompt: int | Sequence[int] | None = None,
    longest: int | None = None, steps: Sequence[tuple[int, int]] = (), start: Start | None = None,
) -> Iterator[Applied]:  # fmt: skip
    """While active, every forward of `lm.model` is edited; edits of one tensor in the order given, others as it computes.

    ids, n_prompt, longest, steps: the text (or one for each row) that positions refer to, as in `locate_edits`. start: where
    each forward begins; without it, that is told from position ids, from the mask's padding and from the cache, so that a
    cached decode loop and one forward over the finished text are edited alike. What a cache held before was made without
    these edits and stays so; its keys and values themselves are edited when they are read.
    Nothing is changed, not even hooked, where an edit cannot be made: `BadEdit`, `SiteAbsent`, `OutOfRange`.
    """
    located = locate_edits(lm, edits, ids=ids, n_prompt=n_prompt, longest=longest, steps=steps)
    for where in dict.fromkeys((e.cell.site, e.cell.layer) for e in located if SITES[e.cell.site].in_the_sum):
        check_middle(lm.model, lm.anatomy, *where)
    cache_support(lm)  # how the model goes on is found out without edits
    forwards = ForwardPositions(lm.model, start)
    applied = Applied(lm, located, forwards)
    calls = CallEditor(lm.anatomy, applied, forwards)
    experts = ExpertEditor(lm.model, lm.anatomy, applied, forwards)
    with ExitStack() as hooked:
        hooked.enter_context(tapping(lm.model, applied.taps()))
        hooked.enter_context(experts.active())
        if calls.needed:
            hooked.enter_context(attending(lm.model, calls.observe, changer=calls.change))
        # last: the end of a forward comes after the edits of what it returns
        hooked.enter_context(entering(lm.model, applied.begin, forwards.end))
        yield applied


class Applied(ActiveEdits):
    """Edits at work. `edits` have their absolute positions: they are as good as the given ones in another context over the
    same text. `rows`: the rows of a forward, named by what they were when the batch was whole (None); to be set when some
    leave."""

    def __init__(self, lm: LanguageModel, edits: Sequence[Edit], forwards: ForwardPositions) -> None:
        super().__init__(edits)
        self._model, self._forwards = lm.model, forwards
        self._locations = [lm.anatomy.site(edit.cell.site, edit.cell.layer) for edit in self.edits]

    @property
    def start(self) -> Start | None:
        """Where each forward begins from now on; None where that is to be told from what the model is given."""
        return self._forwards.start

    @start.setter
    def start(self, start: Start | None) -> None:
        self._forwards.start = start

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward of the model begins with these arguments."""
        self.check_batch(self._forwards.begin(args, kwargs))

    def untouched(self) -> tuple[Edit, ...]:
        """Edits that so far met no position (of a cut: no visible edge): they changed nothing."""
        return tuple(edit for edit, met in zip(self.edits, self.met, strict=True) if not int(met))

    def taps(self) -> dict[Tap, Reader]:
        """What to tap for the edits outside of attention calls."""
        grouped: dict[Tap, list[int]] = defaultdict(list)
        for i, location in enumerate(self._locations):
            if location.changed is not None and not isinstance(self.edits[i], ExpertEdit):
                grouped[location.changed].append(i)
        return {tap: self._editor(members) for tap, members in grouped.items()}

    def _editor(self, members: list[int]) -> Reader:
        """The reader of one tap."""
        in_place = any(self._locations[i].site.in_the_sum for i in members)

        def edit(value: Tensor) -> Tensor | None:
            new = value
            for i in members:
                new = self._edited(i, new, owned=new is not value)
            if new is value:
                return None
            if in_place:
                write_over(value, new)
                return None
            return new

        return edit

    def _edited(self, i: int, value: Tensor, *, owned: bool) -> Tensor:
        """value (batch, pos, d), or flat, after edit i; the same tensor where it meets none of the edit's positions."""
        location = self._locations[i]
        given = value
        value = location.positions_first(given)
        positions = self._forwards.part(*(value.shape[:2] if value.ndim > 2 else (1, value.shape[0]))).positions
        if location.site.after_blocks and value.ndim > 2:
            positions = positions[:, positions.shape[1] - value.shape[1] :]
        hits = self.hits(i, positions, value.device)
        if hits is None:
            return given
        own = of_text(value, positions.shape[0], positions.shape[1], location.site.name)
        flat = own.reshape(*positions.shape, -1)
        vectors = changed(self.edits[i], location.by_head(flat), hits, unit=location.unit(self._model), owned=owned)
        new = location.put(flat, vectors).reshape(own.shape)
        if location.entries is not None and value.ndim > 3:
            return torch.empty_like(given).copy_(new.movedim(1, location.entries.axis))
        if own.shape[1] < value.shape[1] and own.ndim == value.ndim:
            return torch.cat([new, value[:, own.shape[1] :]], dim=1)  # what the model pads texts with stays
        return new.reshape(value.shape)
