"""`probe weights`: options in, one library verb, what stands out among the weights out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import typer

from probe.errors import BadOption
from probe.registries.weight_operations import weight_edit_help
from probe.requests import Option, WeightSurvey

from .command import Begun, with_options
from .groups import NamedLoading, Planning, Showing


@dataclass(frozen=True)
class WeightEditing:
    """Edits of the weights, written as a patch in place of a look."""

    edit_weights: Annotated[
        tuple[str, ...],
        Option(f"{weight_edit_help()} Writes -o FILE, for --weights-patch; repeatable.", shell=list[str] | None),
    ] = ()


@with_options
def command(
    begun: Begun[WeightSurvey], editing: WeightEditing, loading: NamedLoading, planning: Planning, showing: Showing
) -> None:
    """Look at a model's weights, without a text: matrices, norms, heads' circuits, and how heads compose."""
    request = begun.build()
    if editing.edit_weights:
        _check_alone(request)
        _edit(editing, request, loading, planning, showing)
        return
    from probe.matrices import plan_weights, run_weights

    from .surveyed import show_weights
    from .terminal import end_with_verdicts, show_plan, show_run, show_warnings

    with showing.progress() as report:
        lm = loading.load(report)
        request = replace(request, out=request.out or "auto", progress=report)
        if planning.dry_run:
            show_plan(plan_weights(lm, request), as_json=showing.as_json)
            return
        run = run_weights(lm, request)
    show_warnings(run)
    show_run(run, "weights", showing, show_weights)
    end_with_verdicts(run)


def _check_alone(request: WeightSurvey) -> None:
    """Raises `BadOption` for what is asked of a look: an edit takes none."""
    plain = WeightSurvey().arguments()
    said = [name for name, value in request.arguments().items() if value != plain[name]]
    if said or request.resume:
        raise BadOption(
            f"--edit-weights writes a patch and looks at nothing: --{(said or ['resume'])[0]} has no part in it",
            hint="leave it out, or look at the edited weights: probe weights MODEL --weights-patch FILE",
        )


def _edit(editing: WeightEditing, request: WeightSurvey, loading: NamedLoading, planning: Planning, showing: Showing) -> None:
    """Write the patch, or only find out what it would change."""
    if request.expect_that:
        raise typer.BadParameter("--edit-weights makes no run: nothing can be expected of it")
    if request.out is None and not planning.dry_run:
        raise typer.BadParameter("--edit-weights writes a file: name it with -o FILE.safetensors")
    from probe.language_model.weights_patch import save_patch
    from probe.weight_edits import make_patch

    from .terminal import show_document

    with showing.progress() as report:
        patch = make_patch(loading.load(report), editing.edit_weights)
    for note in patch.notes:
        typer.echo(f"note: {note}", err=True)
    changed = list(dict.fromkeys(change.parameter for change in patch.changes))
    if not planning.dry_run:
        assert request.out is not None, "it was asked for"
        patch = save_patch(request.out, patch)
    if showing.as_json:
        show_document({**patch.identity, "parameters": changed, "notes": list(patch.notes)})
        return
    if not showing.quiet:
        for name in changed:
            typer.echo(f"changes {name}")
    if patch.path:
        typer.echo(f"patch: {request.out}")
