"""A recipe: one question in one folder. What it says of itself, a run of it, and what it found beside what was found before.

A recipe's `expected.json` holds values with intervals, and for each what is expected of any model, both in the grammar of
`--expect-that`, over what `measure` of its `recipe.py` returns.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata, util
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from probe import durable
from probe.errors import BadOption, BadRecipe, ProbeError
from probe.expecting import FAILED, HELD, UNRESOLVED, Verdict, checked, verdict_of
from probe.requests import Progress

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

ABOUT, CODE, README = "expected.json", "recipe.py", "README.md"
RELATIVE, ABSOLUTE = 1e-3, 1e-4  # how far the same arithmetic on another processor may be away
PACKAGES = ("mechprobe", "torch", "transformers")


class Recorded(BaseModel):
    """A value that was found, with its interval."""

    model_config = ConfigDict(strict=True, extra="forbid")

    value: float
    low: float
    high: float


class ExpectedValue(BaseModel):
    """One value of a recipe. path: where it stands in what `measure` returns. direction: what is expected of any model, a
    comparison without its left side, such as `> 0` or `> summary.random`; null for what is of the recipe's own model."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str
    path: str
    direction: str | None = None
    whole: Recorded | None = None
    quick: Recorded | None = None


class About(BaseModel):
    """expected.json: the question, what was found in one line, and the values; on which model, with which seed and versions,
    in how many seconds."""

    model_config = ConfigDict(strict=True, extra="forbid")

    question: str
    finding: str
    model: str
    seed: int
    values: list[ExpectedValue]
    versions: dict[str, str] = {}
    seconds: dict[str, float] = {}


@dataclass(frozen=True)
class Recipe:
    """A folder and what it says of itself."""

    folder: Path
    about: About

    @property
    def name(self) -> str:
        return self.folder.name.replace("_", "-")

    @property
    def readme(self) -> str:
        """What it says to a reader. Raises `BadRecipe` if it says nothing."""
        try:
            return (self.folder / README).read_text(encoding="utf-8")
        except OSError as error:
            raise BadRecipe(f"'{self.folder}' has no {README}", hint="question, method, what was found, sources") from error

    def measure(self) -> Callable[..., Any]:
        """The function of its recipe.py, which may import modules beside it (`from .texts import drawn`). Raises `BadRecipe`
        if there is none."""
        path = self.folder / CODE
        name = f"probe_recipe_{self.folder.name}"
        spec = util.spec_from_file_location(name, path, submodule_search_locations=[str(self.folder)])  # modules beside it
        if not path.is_file() or spec is None or spec.loader is None:
            raise BadRecipe(f"there is no '{path}'", hint="it defines measure(lm, *, quick, seed, out, progress)")
        module = sys.modules[name] = util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except SyntaxError as error:
            raise BadRecipe(f"'{path}' cannot be read: {error.msg}, line {error.lineno}", hint="mend it") from error
        finally:  # another folder may have the same name
            for one in [one for one in sys.modules if one == name or one.startswith(f"{name}.")]:
                del sys.modules[one]
        if not callable(found := getattr(module, "measure", None)):
            raise BadRecipe(f"'{path}' defines no function measure", hint="measure(lm, *, quick, seed, out, progress)")
        return found


@dataclass(frozen=True)
class Comparison:
    """What was expected and what was found. verdict: held (the intervals meet), failed (they do not), not resolved (there is
    no value, or an interval lies on both sides of a direction). expected: that interval, or a direction."""

    name: str
    expected: Recorded | str
    found: Verdict


@dataclass(frozen=True)
class Reproduction:
    """A run of a recipe: what it measured, and each comparison. own_model: values are compared, not only directions."""

    recipe: Recipe
    summary: dict[str, Any]
    comparisons: list[Comparison]
    own_model: bool
    seconds: float

    @property
    def agrees(self) -> bool:
        return all(one.found.verdict != FAILED for one in self.comparisons)


def read_recipe(folder: Path) -> Recipe:
    """The recipe in a folder; its directions are read too. Raises `BadRecipe`."""
    path = folder / ABOUT
    try:
        recipe = Recipe(folder, About.model_validate_json(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise BadRecipe(f"there is no recipe '{folder}'", hint=f"a recipe is a folder with {CODE} and {ABOUT}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise BadRecipe(
            f"'{path}' is no description of a recipe: {where} {first['msg']}", hint="probe recipe new makes one"
        ) from error
    for one in recipe.about.values:
        checked(f"{one.path} {one.direction or '= 0'}")
    return recipe


def find_recipe(name: str, root: Path) -> Recipe:
    """A recipe by the path of its folder, or by its name in `root`. Raises `BadRecipe` with the names that there are."""
    if (Path(name) / ABOUT).is_file():
        return read_recipe(Path(name))
    folder = root / name.replace("-", "_")
    if Path(name).name != name or not (folder / ABOUT).is_file():
        names = ", ".join(one.name for one in list_recipes(root))
        raise BadRecipe(f"there is no recipe '{name}'", hint=f"name a folder with {ABOUT}, or one of: {names}")
    return read_recipe(folder)


def list_recipes(root: Path) -> list[Recipe]:
    """Those in a folder: the folders in it whose expected.json asks a question."""
    found = sorted(path.parent for path in root.glob(f"*/{ABOUT}"))
    return [read_recipe(folder) for folder in found if json.loads((folder / ABOUT).read_text(encoding="utf-8")).get("question")]


def reproduce(
    recipe: Recipe, lm: LanguageModel, *, quick: bool = False, seed: int | None = None, out: Path | None = None,
    progress: Progress | None = None,
) -> Reproduction:  # fmt: skip
    """Run a recipe, and hold what it finds against what it expects: intervals on its own model, directions on another.

    quick: its small settings, whose values are recorded beside those of the whole. seed: another than the recorded one.
    out: a folder that keeps its runs and, in found.json, what it found; none keeps nothing.
    """
    if out is not None and out.exists():
        raise BadOption(f"'{out}' is already there", hint="choose another --out")
    measure, begun = recipe.measure(), perf_counter()
    summary = measure(lm, quick=quick, seed=recipe.about.seed if seed is None else seed, out=out, progress=progress)
    if not isinstance(summary, Mapping):
        raise BadRecipe(f"measure of '{recipe.folder / CODE}' returned {type(summary).__name__}", hint="it returns a dict")
    summary, seconds = durable.jsonable(summary), perf_counter() - begun
    own = lm.name == recipe.about.model
    compare = partial(_compared, summary=summary, own=own, size="quick" if quick else "whole")
    made = Reproduction(recipe, summary, [found for one in recipe.about.values if (found := compare(one))], own, seconds)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        durable.write_json(out / "found.json", {"model": lm.name, "quick": quick, "summary": summary})
    return made


def _compared(one: ExpectedValue, *, summary: Mapping[str, Any], own: bool, size: str) -> Comparison | None:
    recorded: Recorded | None = getattr(one, size)
    if own and recorded is not None:
        room = RELATIVE * abs(recorded.value) + ABSOLUTE
        found = verdict_of(checked(f"{one.path} in [{recorded.low - room!r}, {recorded.high + room!r}]"), summary, _no_table)
        met = found.verdict == UNRESOLVED and found.low is not None and found.high is not None
        gone = found.found is None  # on its own model it has to be there
        verdict = HELD if met else FAILED if gone else found.verdict
        return Comparison(one.name, recorded, Verdict(**{**vars(found), "verdict": verdict, "why": "" if met else found.why}))
    if one.direction is None:
        return None
    found = verdict_of(checked(f"{one.path} {one.direction}"), summary, _no_table)
    return Comparison(one.name, one.direction, found)


def _no_table(name: str) -> None:
    return None


def record(made: Reproduction, *, quick: bool, seed: int | None = None) -> None:
    """Write what was found into the recipe's expected.json, as what is expected from now on. Raises `BadRecipe` where a value
    is missing."""
    recipe, size = read_recipe(made.recipe.folder), "quick" if quick else "whole"  # it may have been edited meanwhile
    values = []
    for one in recipe.about.values:
        found = verdict_of(checked(f"{one.path} = 0"), made.summary, _no_table)
        if not isinstance(found.found, int | float):
            raise BadRecipe(f"'{one.path}' of '{one.name}' has no value", hint=found.why or "it is no number")
        low, high = (float(found.found if bound is None else bound) for bound in (found.low, found.high))
        values.append(one.model_copy(update={size: Recorded(value=float(found.found), low=low, high=high)}))
    more = {
        "values": values, "versions": {name: metadata.version(name) for name in PACKAGES},
        "seed": recipe.about.seed if seed is None else seed,
        "seconds": {**recipe.about.seconds, size: round(made.seconds, 1)},
    }  # fmt: skip
    durable.write_json(recipe.folder / ABOUT, recipe.about.model_copy(update=more).model_dump(exclude_none=True))


def start(folder: Path, template: Path) -> list[Path]:
    """A copy of the recipe that others are started from, under another name. Raises `BadRecipe` where something is there."""
    if folder.exists():
        raise BadRecipe(f"'{folder}' is already there", hint="choose another name")
    try:
        folder.mkdir(parents=True)
        for name in (README, CODE, ABOUT):
            text = (template / name).read_text(encoding="utf-8")
            durable.write_bytes(folder / name, text.replace("NAME", folder.name).encode())
    except OSError as error:
        raise ProbeError(f"cannot write '{folder}': {error.strerror}", hint="choose another place") from error
    return [folder / name for name in (README, CODE, ABOUT)]
