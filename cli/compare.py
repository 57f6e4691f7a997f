"""`probe compare`: two models on one text, or two runs; one library verb."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from . import options as o
from .options import prompts_given

A = Annotated[str, typer.Argument(help="A model (as for --model), or a run directory.", metavar="A")]
B = Annotated[str, typer.Argument(help="The other model, or the other run.", metavar="B")]
Text = Annotated[str | None, typer.Argument(help="The text; - reads many from standard input, one a line.")]
Edits = Annotated[
    list[str] | None,
    typer.Option("--edit", "-e", help="Change B's activations: PLACE=OP, e.g. z@5.3=zero; repeatable."),
]
DtypeB = Annotated[str | None, typer.Option("--dtype-b", help="B's, where it is another than --dtype.")]
AdapterB = Annotated[
    str | None, typer.Option("--adapter-b", help="An adapter of B's: A may be the same model without.")
]
RevisionB = Annotated[str | None, typer.Option("--revision-b", help="B's, where it is another than --revision.")]


def command(
    a: A,
    b: B,
    text: Text = None,
    file: o.PromptFile = None,
    form: o.Format = None,
    column: o.TextColumn = None,
    edit: Edits = None,
    dtype: o.Dtype = "auto",
    dtype_b: DtypeB = None,
    chat: o.Chat = False,
    system: o.System = None,
    template_option: o.TemplateOption = None,
    allow_template_loss: o.TemplateLoss = False,
    revision: o.Revision = None,
    revision_b: RevisionB = None,
    trust_remote_code: o.RemoteCode = False,
    allow_pickle: o.Pickle = False,
    adapter: o.Adapter = None,
    adapter_b: AdapterB = None,
    context_length: o.ContextLength = None,
    device: o.Device = "auto",
    device_map: o.DeviceMap = None,
    out: o.Out = None,
    resume: o.Resume = False,
    seed: o.Seed = 0,
    dry_run: o.DryRun = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    no_progress: o.NoProgress = False,
) -> None:
    """Compare two models on one text (or two runs): KL both ways, total variation, agreement, where they part."""
    from probe.store import names_run

    runs = [names_run(name) for name in (a, b)]
    texts = None if any(runs) and text is None and file is None else prompts_given(text, file, form, column)
    import probe
    from probe.comparing import plan_compare
    from probe.errors import BadOption

    from .differences import show_comparison
    from .progress import plain_warnings, progress
    from .terminal import end_with_failed, show_json, show_plan

    what: dict[str, Any] = {
        "edit": edit or [],
        "chat": chat,
        "system": system,
        **o.template(template_option, allow_template_loss),
    }
    shared: dict[str, Any] = {
        "device": device,
        "context_length": context_length,
        "device_map": device_map,
        "trust_remote_code": trust_remote_code,
        "allow_pickle": allow_pickle,
    }
    kinds: list[dict[str, Any]] = [
        {"revision": revision, "dtype": dtype, "adapter": adapter},
        {"revision": revision_b or revision, "dtype": dtype_b or dtype, "adapter": adapter_b},
    ]
    if any(runs) and (adapter is not None or adapter_b is not None):
        raise BadOption("a run is what its model was when it was made", hint="adapters are for comparing models")
    with plain_warnings(), progress(shown=not (quiet or no_progress)) as report:
        sides: list[Any] = []
        for name, is_run, kind in zip((a, b), runs, kinds, strict=True):
            same = bool(sides) and name == a and kind == kinds[0]
            made = sides[0] if same else probe.open_run(name) if is_run else None
            sides.append(probe.load(name, **kind, **shared, progress=report) if made is None else made)
        if dry_run:
            if any(runs):
                raise BadOption("comparing two runs runs no model", hint="leave out --dry-run")
            show_plan(plan_compare(sides[0], sides[1], texts, **what), as_json=as_json)
            return
        run = probe.compare(
            sides[0], sides[1], texts, **what, seed=seed, out=out or "auto", resume=resume, progress=report
        )
    if as_json:
        show_json(run, "compare")
    else:
        show_comparison(run, quiet=quiet)
    end_with_failed(run, "texts could not be compared")
