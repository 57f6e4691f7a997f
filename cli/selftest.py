"""`probe selftest`: the laws of the instrument on the user's own models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command import with_options
from .completing import completed
from .groups import Output, Watching, Weights, load
from .terminal import show_document

if TYPE_CHECKING:
    from probe.laws import Law

Names = Annotated[
    list[str] | None,
    typer.Argument(
        help="Alias, Hugging Face id, directory, .gguf file or tiny:FAMILY; one or several.",
        show_default="smollm2",
        autocompletion=completed("models"),
    ),
]


@with_options
def command(weights: Weights, output: Output, watching: Watching, models: Names = None) -> None:
    """Check the laws of the instrument on models: what should be zero, and how far from it it is."""
    from probe.errors import ProbeError
    from probe.laws import laws

    names = models or ["smollm2"]
    found: dict[str, list[Law]] = {}
    unread: dict[str, ProbeError] = {}
    with watching.progress() as report:
        for name in names:
            try:
                found[name] = list(laws(load(name, weights, progress=report), report))
            except ProbeError as error:
                if len(names) == 1:
                    raise
                unread[name] = error
    if output.as_json:
        _show_json(found, unread)
    elif len(names) == 1:
        _show_laws(found[names[0]])
    else:
        _show_models(names, found, unread)
    broken = {name: sum(_broken(law) for law in rows) for name, rows in found.items()}
    broken = {name: number for name, number in broken.items() if number}
    if broken or unread:
        told = [f"{number} of {len(found[name])} laws do not hold on {name}" for name, number in broken.items()]
        told += [f"{name} was not tried: {error.message}" for name, error in unread.items()]
        typer.echo(f"error: {'; '.join(told)}", err=True)
        typer.echo("hint: do not trust what depends on them; please report it with probe models check", err=True)
        raise typer.Exit(1)


def _broken(law: Law) -> bool:
    return not law.holds and not law.skipped


def _cells(law: Law) -> tuple[str, ...]:
    said = "pass" if law.holds else "n/a" if law.skipped else "FAIL"
    value = law.skipped or law.failed or f"{law.value:.2g}"
    return law.name, said, value, f"{law.tolerance:.2g}", law.unit


def _show_laws(laws: list[Law]) -> None:
    from .terminal import show_table

    show_table(("law", "", "deviation", "at most", "unit"), [_cells(law) for law in laws])


def _show_models(names: list[str], found: dict[str, list[Law]], unread: dict[str, Any]) -> None:
    """How many laws hold on each model, and each that does not."""
    from .terminal import show_table

    counts = []
    for name in names:
        rows = found.get(name, [])
        skipped = sum(bool(law.skipped) for law in rows)
        broken = sum(map(_broken, rows))
        said = "not tried" if name in unread else "FAIL" if broken else "pass"
        counts.append((name, said, str(len(rows) - skipped - broken), str(skipped), str(broken)))
    show_table(("model", "", "hold", "n/a", "broken"), counts)
    broken_laws = [(name, *_cells(law)) for name, rows in found.items() for law in rows if _broken(law)]
    if broken_laws:
        typer.echo("")
        show_table(("model", "law", "", "deviation", "at most", "unit"), broken_laws)


def _show_json(found: dict[str, list[Law]], unread: dict[str, Any]) -> None:
    rows = [{"model": name, **law._asdict(), "holds": law.holds} for name, members in found.items() for law in members]
    errors = [{"model": name, "error": error.message} for name, error in unread.items()]
    summary = {"models": [*found, *unread], "laws": rows, "errors": errors}
    show_document({"run": None, "command": "selftest", "summary": summary})
