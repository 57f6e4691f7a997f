"""The house keeps its shape: imports go down, files stay small, `--help` imports no torch, only one module registers hooks."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOPS = {"probe": "probe", "cli": "probe.cli", "recipes": "probe.recipes"}  # folder -> what it is installed as
# the picture of the house, from the ground up: each imports only from what stands lower
LAYERS = (
    {"errors"},
    {"addresses", "files", "durable", "patterns", "instrument", "workers", "kernels", "tiny", "stats", "devices", "fitting"}
    | {"memory"},
    {"sites", "tables", "spans", "answers", "scoring"},
    {"registries", "store", "outcomes", "expecting"},
    {"requests", "anatomy", "over_problems", "transcripts", "trees"},
    {"language_model"},
    {"decoding", "interventions", "capturing", "weight_edits", "targets"},
    {"texts", "serving", "sharding"},
    {"running"},
    {"labelling"},
    {"tracing", "rewinding"},  # the verbs that others are made of
    {"step_importance", "patching", "steering", "speculating", "comparing", "explaining", "lensing", "attributing", "sampling"}
    | {"corpora", "attention_heads", "importing"},
    {"relabelling", "reporting", "looking", "matrices"},
    {"laws", "replaying", "reproducing"},
)
NEVER = {"cli", "recipes", "probe.cli", "probe.recipes", "typer", "rich", "click"}
FILES = sorted(p for top in ("probe", "cli", "recipes") for p in (ROOT / top).rglob("*.py"))


def installed() -> dict[str, Path]:
    """The dotted name of every module -> its file."""
    names = {}
    for top, name in TOPS.items():
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT / top).with_suffix("").parts
            names[".".join((name, *parts)).removesuffix(".__init__")] = path
    return names


MODULES = installed()


def imported(module: str) -> set[str]:
    """Modules that a module imports, anywhere in it and also for types only: ours by their own names, others by their top."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{origin}.{a.name}" if f"{origin}.{a.name}" in MODULES else origin for a in node.names}
    return names - {module}


def unit(module: str) -> str:
    """The file or package of `probe` that a module is in; empty for `probe` itself."""
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_is_at_most_300_lines(path: Path) -> None:
    assert path.read_text().count("\n") <= 300


LIBRARY = sorted(m for m in MODULES if unit(m) not in {"", "cli", "recipes", "__main__"})


@pytest.mark.parametrize("module", LIBRARY)
def test_imports_go_down_only(module: str) -> None:
    floor = {name: i for i, names in enumerate(LAYERS) for name in names}
    assert unit(module) in floor, f"'{unit(module)}' has no place in LAYERS, the picture of the house: give it one"
    for name in imported(module):
        assert name not in NEVER and name.split(".")[0] not in NEVER, f"{module} imports {name}"
        there = unit(name) if name in MODULES else ""
        if there and there != unit(module):
            assert there in floor, f"'{there}' has no place in LAYERS, the picture of the house: give it one"
            assert floor[there] < floor[unit(module)], f"{module} imports {name}, which does not stand lower"


def test_the_picture_shows_no_room_that_is_not_there() -> None:
    assert sorted(name for names in LAYERS for name in names) == sorted({unit(module) for module in LIBRARY})


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Not for types either: the library, its command line and the recipes have an order in which they can be read."""
    graph = {module: imported(module) & MODULES.keys() for module in MODULES}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' <- '.join(error.args[1])}")


BY_HAND = {  # what others do in a notebook, to be compared with; a reconstruction put in, for which there is no edit
    "probe.recipes.bench.peer_tools", "probe.recipes.autoencoder.training",
}  # fmt: skip


def test_only_the_instrument_registers_hooks() -> None:
    for module, path in MODULES.items():
        if unit(module) != "instrument" and module not in BY_HAND:
            text = path.read_text()
            assert "_hook(" not in text, module
            assert "ALL_ATTENTION_FUNCTIONS" not in text, module


def test_no_family_names_in_the_library() -> None:
    for path in (ROOT / "probe").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Compare) and "model_type" in ast.unparse(node.left)), path


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["trace", "--help"],
        ["runs", "--help"],
        ["models", "--help"],
        ["steps", "--help"],
        ["speculate", "--help"],
        ["patch", "--help"],
        ["compare", "--help"],
        ["rewind", "--help"],
        ["importance", "--help"],
        ["sample", "--help"],
        ["answers", "--help"],
        ["view", "--help"],
    ],
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys\n"
        "from probe.cli.main import app\n"
        f"try:\n    app({words!r})\n"
        "except SystemExit as stop:\n    assert not stop.code\n"
        "heavy = {'torch', 'transformers', 'pandas', 'pyarrow', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_the_library_imports_no_torch() -> None:
    code = "import sys, probe; probe.ProbeError; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_every_public_name_can_be_imported() -> None:
    import probe

    for name in probe.__all__:
        assert getattr(probe, name) is not None
    assert dir(probe) == sorted(probe.__all__)


def test_the_packages_listed_are_the_folders_that_there_are() -> None:
    folders = {
        ".".join((TOPS[top], *path.parent.relative_to(ROOT / top).parts))
        for top in TOPS
        for path in (ROOT / top).rglob("__init__.py")
    }
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(folders) == listed  # and in order
    loose = {p.parent for top in TOPS for p in (ROOT / top).rglob("*.py") if not (p.parent / "__init__.py").exists()}
    assert not loose, f"modules in folders without __init__.py are not installed: {loose}"


def test_a_public_function_shows_its_options() -> None:
    """In its signature, for `help` and editors: no `**options`."""
    import probe

    for name in probe.__all__:
        function = getattr(probe, name)
        if inspect.isfunction(function):
            kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
            assert inspect.Parameter.VAR_KEYWORD not in kinds, name


def test_a_class_name_means_one_thing() -> None:
    homes: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}
