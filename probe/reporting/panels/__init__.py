"""What is drawn of each table of a run: a function a subject makes its panels. Draws nothing, knows no page and no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from probe.errors import BadOption
from probe.reporting.panels import (
    branches,
    corpora,
    effects,
    experts,
    heads,
    key_spaces,
    over_problems,
    patching,
    steering,
    steps,
)
from probe.reporting.panels.attention import attended
from probe.reporting.panels.attribution import attributed
from probe.reporting.panels.comparing import compared
from probe.reporting.panels.context import Context, Head, Tables, TokenTexts, one_line
from probe.reporting.panels.findings import found
from probe.reporting.panels.lens import guessed, norms
from probe.reporting.panels.others import others
from probe.reporting.panels.sampler import answers, explained
from probe.reporting.panels.speculating import speculated
from probe.reporting.panels.tokens import strip
from probe.reporting.panels.weights import surveyed
from probe.reporting.views import OutcomeTree, Panel, SequenceView
from probe.store import Run

__all__ = ["PANELS", "Context", "Subject", "attended", "guessed", "sequence_views", "strip"]

TITLE = 80  # characters of a prompt that name it

Subject = Callable[[Context], Iterable[Panel]]

PANELS: tuple[Subject, ...] = (
    strip, found, compared, explained, answers, speculated,
    steps.panels, effects.panels, branches.panels, patching.panels, attributed, guessed, heads.panels, key_spaces.panels,
    attended, norms, experts.panels, steering.panels, corpora.panels, over_problems.panels, surveyed,
)  # fmt: skip
"""In the order in which panels stand on a page. Each looks at what tables the run has, never at the command."""


def sequence_views(
    run: Run, *, prompts: Sequence[int] | None = None, heads: Sequence[Head] | None = None,
    subjects: Sequence[Subject] | None = None,
) -> list[SequenceView]:  # fmt: skip
    """Everything that there is to see of a run, prompt by prompt. The first panel of each is its text.

    prompts: only these. heads: only their attention patterns, `(5, 3)` or `(7, None)` for all heads of layer 7. subjects:
    only what these of `PANELS` make. Panels that are about all prompts stand with each, with the same frame. Raises
    `BadOption` for a prompt that the run does not have.
    """
    tables = Tables(run)
    about = run.scan("prompts").to_pylist()
    known = [int(row["prompt_id"]) for row in about]
    for one in prompts or ():
        if one not in known:
            some = ", ".join(map(str, known[:8])) + (", …" if len(known) > 8 else "")
            raise BadOption(f"the run has no prompt {one}", hint=f"it has: {some}")
    texts = tables.texts(run.manifest.get("model"))
    chosen = None if heads is None else tuple(heads)
    wanted = [row for row in about if prompts is None or int(row["prompt_id"]) in prompts]
    return [_view(tables, row, texts, chosen, subjects) for row in wanted]


def _view(
    tables: Tables, prompt: dict[str, object], texts: TokenTexts, heads: tuple[Head, ...] | None,
    subjects: Sequence[Subject] | None,
) -> SequenceView:  # fmt: skip
    branch, tokens = tables.original(int(str(prompt["prompt_id"])))
    context = Context(tables, prompt, branch, tokens, texts, heads)
    title = one_line(prompt["text"], TITLE)
    panels = [panel for make in subjects or PANELS for panel in make(context)]
    shown = {panel.table for panel in panels if not isinstance(panel, OutcomeTree)}  # it shows no column of its table
    rest = others(context, shown) if subjects is None else ()
    return SequenceView(context.prompt_id, title, (*panels, *rest))
