"""`probe recipe`: known results, each reproduced with one command. Options in, library calls, expected beside found out."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probe.requests import Option

from .command import with_options
from .completing import completed
from .groups import Loading, Output, Watching, load
from .terminal import interval, show_document, show_table

if TYPE_CHECKING:
    from probe.reproducing import Comparison, Recipe, Recorded, Reproduction

app = typer.Typer(help="Known results, reproduced: list, show, run, begin one.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(help="A recipe's name, or the path of its folder.", autocompletion=completed("recipes"))]
VERDICTS = {"held": "agrees", "failed": "disagrees"}
DIRECTIONS = {"held": "as expected", "failed": "not as expected"}


@dataclass(frozen=True)
class RecipeLoading(Loading):
    """Which model a recipe is run on."""

    model: Annotated[
        str | None,
        Option(
            "Another model than the recipe's: directions are compared, not values.", ("--model", "-m"), complete="models",
            default="the recipe's",
        ),
    ] = None  # type: ignore[assignment]  # fmt: skip


@dataclass(frozen=True)
class Reproducing:
    """How a recipe is run, and what is kept."""

    quick: Annotated[bool, Option("Its small settings: within a minute, with wider intervals.", ("--quick",))] = False
    seed: Annotated[int | None, Option("Another seed than the recorded one: does it replicate?")] = None
    out: Annotated[Path | None, Option("A folder that keeps its runs and what it found.", ("--out", "-o"))] = None
    record: Annotated[
        bool, Option("Write what is found into its expected.json, as what is expected from now on.", ("--record",))
    ] = False


def root() -> Path:
    """The folder of the recipes that come with the package."""
    return Path(str(files("probe.recipes")))


@app.command("ls")
@with_options
def ls(output: Output) -> None:
    """List the recipes that come with probe: the question, what was found, how long it takes."""
    from probe.reproducing import list_recipes

    recipes = list_recipes(root())
    if output.as_json:
        show_document({"command": "recipe ls", "summary": {"recipes": [_plain(one) for one in recipes]}})
        return
    rows = [(one.name, one.about.question, one.about.finding, _seconds(one)) for one in recipes]
    show_table(("recipe", "question", "found", "whole, quick"), rows)


@app.command("show")
@with_options
def show(name: Name, output: Output) -> None:
    """Show a recipe: its question, its method, what was found, and the values that a run is held against."""
    from probe.reproducing import find_recipe

    from .help import plain
    from .printing import console

    recipe = find_recipe(name, root())
    if output.as_json:
        show_document({"command": "recipe show", "summary": {**_plain(recipe), "readme": recipe.readme}})
        return
    if sys.stdout.isatty():
        from rich.markdown import Markdown

        console().print(Markdown(recipe.readme))
    else:
        typer.echo(plain(recipe.readme))
    typer.echo("")
    rows = [(one.name, _recorded(one.whole), _recorded(one.quick), one.direction or "") for one in recipe.about.values]
    show_table(("value", f"on {recipe.about.model}", "quick", "on any model"), rows)
    typer.echo(f"\nfolder: {recipe.folder}")


@app.command("run")
@with_options
def run(name: Name, how: Reproducing, loading: RecipeLoading, output: Output, watching: Watching) -> None:
    """Run a recipe and print expected beside found; exit code 1 where they disagree."""
    from probe.reproducing import find_recipe, record, reproduce

    recipe = find_recipe(name, root())
    with watching.progress() as report:
        lm = load(loading.model or recipe.about.model, loading, progress=report)
        made = reproduce(recipe, lm, quick=how.quick, seed=how.seed, out=how.out, progress=report)
    if how.record:
        record(made, quick=how.quick, seed=how.seed)
    if output.as_json:
        show_document({"run": how.out, "command": "recipe run", "summary": _plain_reproduction(made, lm.name)})
    else:
        _show(made, lm.name)
        if how.record:
            typer.echo(f"recorded in {recipe.folder}")
    if not made.agrees and not how.record:
        raise typer.Exit(1)


@app.command("new")
@with_options
def new(folder: Annotated[Path, typer.Argument(help="The folder of the new recipe; its name is the recipe's.")]) -> None:
    """Begin a recipe: a folder with a README, a recipe.py that runs, and an expected.json to fill in."""
    from probe.reproducing import start

    for path in start(folder, root() / "start"):
        typer.echo(path)
    typer.echo(f"try it: probe recipe run {folder} --model tiny:llama --quick", err=True)


def _show(made: Reproduction, model: str) -> None:
    typer.echo(f"{made.recipe.about.question}\n")
    if not made.own_model:
        typer.echo(f"on {model}; recorded on {made.recipe.about.model}: directions are compared, not values\n")
    rows = [(one.name, _expected(one), _found(one), _verdict(one)) for one in made.comparisons]
    show_table(("value", "expected", "found", "verdict"), rows)
    typer.echo(f"\n{made.seconds:.1f} s; {'nothing disagrees' if made.agrees else 'not as expected'}")


def _expected(one: Comparison) -> str:
    return one.expected if isinstance(one.expected, str) else _recorded(one.expected)


def _recorded(one: Recorded | None) -> str:
    return "" if one is None else f"{one.value:.4g}" + ("" if one.low == one.high else f" {interval(one.low, one.high, '.4g')}")


def _found(one: Comparison) -> str:
    found = one.found
    if found.found is None:
        return f"nothing: {found.why}"
    value = found.found if isinstance(found.found, str) else format(found.found, ".4g")
    return value if found.low is None else f"{value} {interval(found.low, found.high, '.4g')}"


def _verdict(one: Comparison) -> str:
    words = DIRECTIONS if isinstance(one.expected, str) else VERDICTS
    return words.get(one.found.verdict, one.found.verdict)


def _seconds(recipe: Recipe) -> str:
    found = recipe.about.seconds
    return ", ".join(f"{found[size]:.0f} s" if size in found else "–" for size in ("whole", "quick"))


def _plain(recipe: Recipe) -> dict[str, Any]:
    return {"name": recipe.name, "folder": str(recipe.folder), **recipe.about.model_dump()}


def _plain_reproduction(made: Reproduction, model: str) -> dict[str, Any]:
    compared = [
        {
            "name": one.name, "expected": one.expected if isinstance(one.expected, str) else one.expected.model_dump(),
            "found": one.found.found, "low": one.found.low, "high": one.found.high, "verdict": one.found.verdict,
            "why": one.found.why,
        }
        for one in made.comparisons
    ]  # fmt: skip
    about = {"recipe": made.recipe.name, "model": model, "own_model": made.own_model, "agrees": made.agrees}
    return {**about, "seconds": round(made.seconds, 3), "compared": compared, "found": made.summary}
