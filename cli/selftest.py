"""`probe selftest`: the laws of the instrument on the user's own model."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import options as o
from cli.terminal import show_document

Name = Annotated[str, typer.Argument(help="Alias, Hugging Face id, directory, .gguf file or tiny:FAMILY.")]


def command(
    model: Name = "smollm2",
    revision: o.Revision = None,
    trust_remote_code: o.RemoteCode = False,
    allow_pickle: o.Pickle = False,
    device: o.Device = "auto",
    dtype: o.Dtype = "auto",
    as_json: o.AsJson = False,
    no_progress: o.NoProgress = False,
) -> None:
    """Check the laws of the instrument on a model: what should be zero, and how far from it it is."""
    import probe
    from cli.progress import plain_warnings, progress
    from cli.terminal import show_table
    from probe.laws import laws

    with plain_warnings(), progress(shown=not no_progress) as report:
        lm = probe.load(
            model, revision=revision, device=device, dtype=dtype, trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle, progress=report,
        )  # fmt: skip
        found = list(laws(lm, report))
    broken = [law for law in found if not law.holds and not law.skipped]
    if as_json:
        rows = [{**law._asdict(), "holds": law.holds} for law in found]
        show_document({"run": None, "command": "selftest", "summary": {"model": lm.name, "laws": rows}})
    else:
        show_table(
            ("law", "", "deviation", "at most", "unit"),
            [
                (law.name, "pass" if law.holds else "n/a" if law.skipped else "FAIL",
                 law.skipped if law.value is None else f"{law.value:.2g}", f"{law.tolerance:.2g}", law.unit)
                for law in found
            ],
        )  # fmt: skip
    if broken:
        typer.echo(f"error: {len(broken)} of {len(found)} laws do not hold on {lm.name}", err=True)
        typer.echo("hint: do not trust what depends on them; please report it with probe models check", err=True)
        raise typer.Exit(1)
