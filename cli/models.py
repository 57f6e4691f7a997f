"""`probe models`: what is here, fetch, remove, and what is known about one. Options in, library calls, tables out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .command import with_options
from .completing import completed
from .groups import NamedLoading, NamedModel, Output, Watching
from .terminal import show_document

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

app = typer.Typer(help="Models: list, fetch, remove, and what is where in them.", no_args_is_help=True, rich_markup_mode=None)

Made = Annotated[
    str, typer.Argument(help="A model that probe converted, as `probe models ls` names it.", autocompletion=completed("models"))
]
PlaceText = Annotated[
    str | None, typer.Argument(help="Only what this place matches, e.g. z@all.", autocompletion=completed("places"))
]


@app.command("ls")
@with_options
def ls(output: Output) -> None:
    """List the aliases, the models that probe converted and those in the Hugging Face cache, with their sizes."""
    from probe.language_model import hub
    from probe.language_model.home import made_here, models_dir
    from probe.language_model.names import ALIASES

    from .terminal import show_table

    made, cached = made_here(), hub.cached_models()
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys([*ALIASES, *made, *(repo for repo in cached if repo not in ALIASES.values())]):
        repo = ALIASES.get(name, name)
        folder = models_dir() / name if name in made else cached.get(repo)
        source = made[name]["source"] if name in made else repo if name in ALIASES or name in cached else None
        where = "probe" if name in made else "hugging face cache" if folder else None
        size = _size(folder) if folder else None
        path = str(folder) if folder else None
        rows.append({"name": name, "source": source, "where": where, "path": path, "bytes": size})
    if output.as_json:
        show_document({"models": rows})
        return
    show_table(
        ("name", "from", "here", "size"),
        [(r["name"], r["source"] or "", r["where"] or "–", _megabytes(r["bytes"])) for r in rows],
    )


@app.command("pull")
@with_options
def pull(named: NamedModel, output: Output, watching: Watching) -> None:
    """Fetch a model, converting it if need be; one of the Hub is brought up to date."""
    from probe.errors import BadOption
    from probe.language_model.loading import find, quiet
    from probe.language_model.names import name_kind

    name = name_kind(named.model)
    if name.kind == "tiny":
        raise BadOption(f"'{named.model}' is made in memory", hint="there is nothing to fetch")
    with watching.progress() as report, quiet():
        found = find(
            name, revision=named.revision, allow_pickle=named.allow_pickle, code=named.trust_remote_code, refresh=True,
            progress=report,
        )  # fmt: skip
    size = found.gguf.stat().st_size if found.gguf else _size(found.directory)
    path = str(found.gguf or found.directory)
    if output.as_json:
        show_document({"name": named.model, "path": path, "revision": found.revision, "bytes": size})
    else:
        typer.echo(f"{named.model}: {path} ({_megabytes(size)})")


@app.command("rm")
@with_options
def rm(name: Made, output: Output) -> None:
    """Remove a model that probe converted; never one of yours or of the Hugging Face cache."""
    from probe.errors import UnknownModel
    from probe.language_model.home import made_here, remove

    try:
        freed = remove(name)
    except KeyError as error:
        made = ", ".join(made_here()) or "nothing yet"
        raise UnknownModel(f"probe made no model '{name}'", hint=f"it made: {made}") from error
    if output.as_json:
        show_document({"removed": name, "bytes": freed})
    else:
        typer.echo(f"removed {name} ({_megabytes(freed)})")


@app.command("show")
@with_options
def show(loading: NamedLoading, output: Output) -> None:
    """Show a model's identity, its sizes, its tokenizer, and in brief what was found in it."""
    from .describe import facts, show_facts

    found = facts(_load(loading))
    if output.as_json:
        show_document(found)
    else:
        show_facts(found)


@app.command("check")
@with_options
def check(loading: NamedLoading, output: Output) -> None:
    """Show what was found in each layer (module, equation, residual error), and what was not and why."""
    from .describe import show_anatomy

    lm = _load(loading)
    if output.as_json:
        show_document({"model": lm.name, "anatomy": lm.anatomy.to_dict()})
    else:
        show_anatomy(lm.anatomy)


@app.command("sites")
@with_options
def sites(loading: NamedLoading, output: Output, place: PlaceText = None) -> None:
    """List the sites that a model has (or those that match a place), with shapes and bytes per token."""
    from .describe import show_sites, site_rows, sums

    lm = _load(loading)
    rows = site_rows(lm, place)
    equations = sums(lm.anatomy) if place is None else []
    if output.as_json:
        show_document({"model": lm.name, "sites": rows, "equations": equations})
    else:
        show_sites(rows, equations)


def _load(loading: NamedLoading) -> LanguageModel:
    with Watching().progress() as report:
        return loading.load(report)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _megabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:,.1f} MB"
