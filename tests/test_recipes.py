"""Recipes: each runs on a tiny model, what it expects is well formed and recorded, and disagreement is seen."""

from __future__ import annotations

import ast
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from probe.cli.recipe import root

import probe
from probe.errors import BadRecipe
from probe.reproducing import Recipe, find_recipe, list_recipes, read_recipe, record, reproduce, start

RECIPES = {recipe.name: recipe for recipe in list_recipes(root())}
TEXT = "def measure(lm, *, quick, seed, out, progress):\n    return {'x': dict(value=1.0 + quick, low=0.5, high=2.5), 'y': 1}\n"
VALUE = {"name": "x", "path": "summary.x", "direction": "> summary.y"}


@pytest.fixture(scope="module")
def lm() -> Any:
    return probe.load("tiny:llama")


def written(folder: Path, model: str, **recorded: tuple[float, float, float]) -> Recipe:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.py").write_text(TEXT)
    own = {size: dict(zip(("value", "low", "high"), found, strict=True)) for size, found in recorded.items()}
    about = {"question": "?", "finding": "", "model": model, "seed": 0, "values": [{**VALUE, **own}]}
    (folder / "expected.json").write_text(json.dumps(about))
    return read_recipe(folder)


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.4, 2.6, "held"), (2.4, 9.0, "held"), (2.6, 9.0, "failed"), (-1.0, 0.4, "failed")]
)
def test_on_its_own_model_intervals_meet_or_do_not(lm: Any, low: float, high: float, verdict: str, tmp_path: Path) -> None:
    made = reproduce(written(tmp_path / "a", lm.name, whole=((low + high) / 2, low, high)), lm)
    assert made.own_model and [one.found.verdict for one in made.comparisons] == [verdict]
    assert made.agrees == (verdict == "held")


def test_on_another_model_directions_are_compared(lm: Any, tmp_path: Path) -> None:
    recipe = written(tmp_path / "a", "another", whole=(100.0, 99.0, 101.0))
    (found,) = reproduce(recipe, lm).comparisons
    assert (found.expected, found.found.verdict) == ("> summary.y", "not resolved")
    (tmp_path / "a" / "recipe.py").write_text(TEXT.replace("'y': 1", "'y': 3"))
    assert not reproduce(recipe, lm).agrees


def test_what_is_recorded_is_what_is_expected_from_then_on(lm: Any, tmp_path: Path) -> None:
    recipe = written(tmp_path / "a", lm.name)
    made = reproduce(recipe, lm, quick=True, out=tmp_path / "kept")
    record(made, quick=True)
    (value,) = read_recipe(recipe.folder).about.values
    assert value.quick is not None and value.whole is None
    assert (value.quick.value, value.quick.low, value.quick.high) == (2.0, 0.5, 2.5)
    assert json.loads((tmp_path / "kept" / "found.json").read_text())["summary"]["x"]["value"] == 2.0
    assert reproduce(read_recipe(recipe.folder), lm, quick=True).agrees


def test_a_value_that_is_gone_disagrees_and_a_broken_recipe_is_said(lm: Any, tmp_path: Path) -> None:
    recipe = written(tmp_path / "a", lm.name, whole=(1.0, 0.0, 2.0))
    code = recipe.folder / "recipe.py"
    code.write_text(TEXT.replace("'x'", "'z'"))
    assert not reproduce(recipe, lm).agrees
    broken = ("def measure(", r"cannot be read: .*, line 1")
    for text, message in (broken, ("x = 1", "no function measure"), ("def measure(lm, **k): return 3", "returned int")):
        code.write_text(text)
        with pytest.raises(BadRecipe, match=message):
            reproduce(recipe, lm)
    (recipe.folder / "expected.json").write_text('{"question": "?"}')
    with pytest.raises(BadRecipe, match="no description of a recipe"):
        read_recipe(recipe.folder)
    with pytest.raises(BadRecipe, match="there is no recipe 'inductoin'") as unknown:
        find_recipe("inductoin", root())
    assert "induction" in unknown.value.hint


def test_a_recipe_imports_modules_beside_it_and_not_those_of_another_of_its_name(lm: Any, tmp_path: Path) -> None:
    for n in (1.0, 2.0):
        recipe = written(tmp_path / str(n), lm.name)
        (recipe.folder / "drawn.py").write_text(f"N = {n}\n")
        (recipe.folder / "recipe.py").write_text("from .drawn import N\n" + TEXT.replace("1.0 + quick", "N"))
        named = recipe.folder.rename(tmp_path / "a")
        assert reproduce(read_recipe(named), lm).summary["x"]["value"] == n
        named.rename(tmp_path / f"was-{n}")


def test_a_recipe_is_begun_and_runs_at_once(lm: Any, tmp_path: Path) -> None:
    start(tmp_path / "mine", root() / "start")
    made = reproduce(find_recipe(str(tmp_path / "mine"), root()), lm, quick=True)
    assert made.agrees and [one.found.verdict for one in made.comparisons] == ["held"]
    with pytest.raises(BadRecipe, match="already there"):
        start(tmp_path / "mine", root() / "start")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_whole(name: str) -> None:
    """Question, method, finding and sources in its README, with pictures of under 100 kB; public names in under 120 lines;
    values with intervals around them."""
    recipe = RECIPES[name]
    for part in ("Question", "Method", "What was found", "What would falsify it", "Sources"):
        assert f"**{part}" in recipe.readme, part
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", recipe.readme)
    assert pictures and all((recipe.folder / one).stat().st_size < 100_000 for one in pictures)
    code = (recipe.folder / "recipe.py").read_text()
    assert code.count("\n") < 120
    for node in ast.walk(ast.parse(code)):
        assert not (isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "probe"), "a name that is not public"
        assert not (isinstance(node, ast.Import) and any(one.name.startswith("probe.") for one in node.names))
    about = recipe.about
    assert about.finding and about.versions.keys() >= {"torch", "transformers"} and about.seconds.keys() == {"whole", "quick"}
    for one in about.values:
        for found in (one.whole, one.quick):
            assert found is not None and found.low <= found.value <= found.high and math.isfinite(found.high - found.low)
    contents = (root() / "README.md").read_text()
    assert f"[{name}]({recipe.folder.name}/README.md)" in contents and about.finding in contents


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_on_a_model_that_knows_nothing(name: str, lm: Any) -> None:
    made = reproduce(RECIPES[name], lm, quick=True)
    assert not made.own_model and len(made.comparisons) >= 2
    assert all(one.found.found is not None for one in made.comparisons)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_agrees_with_itself_on_the_model_it_was_recorded_on(name: str, smollm2: Any) -> None:
    made = reproduce(RECIPES[name], smollm2, quick=True)
    assert made.agrees, [one for one in made.comparisons if one.found.verdict == "failed"]


@pytest.mark.slow
def test_the_command_line(shell, tmp_path: Path) -> None:
    assert "induction" in shell("recipe", "ls").stdout and "survey" not in shell("recipe", "ls").stdout
    assert "Question" in shell("recipe", "show", "induction").stdout
    assert shell("recipe", "new", "mine").returncode == 0
    words = ("recipe", "run", "mine", "-m", "tiny:llama", "--quick", "--no-progress")
    done = shell(*words, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["summary"]["compared"][0]["verdict"] == "held"
    about = tmp_path / "mine" / "expected.json"
    about.write_text(about.read_text().replace("> -100", "> 100"))
    wrong = shell(*words)
    assert wrong.returncode == 1 and "not as expected" in wrong.stdout
