"""The house keeps its shape: imports go down, files stay small, `--help` imports no torch, only one module registers hooks."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    {"errors"},
    {"files", "durable", "patterns"},
    {"sites", "tables", "spans", "answers", "workers", "kernels"},
    {"registries"},
    {"requests"},
    {"store"},
    {"anatomy", "tiny", "instrument", "language_model"},
    {"decoding", "interventions", "capturing", "lenses", "scoring", "stats"},
    {"texts"},
    {"running"},
    {
        "tracing",
        "rewinding",
        "step_importance",
        "patching",
        "steering",
        "speculating",
        "comparing",
        "heads",
        "explaining",
        "lensing",
        "attributing",
    },
    {"scaling", "reporting", "laws", "replaying"},
)
# inside a layer of several, who may import whom
BESIDE = {
    ("anatomy", "instrument"), ("language_model", "instrument"),
    ("language_model", "anatomy"), ("language_model", "tiny"), ("capturing", "scoring"),
    ("capturing", "lenses"), ("lenses", "scoring"), ("decoding", "scoring"), ("step_importance", "rewinding"),
    ("patching", "rewinding"),
    ("explaining", "tracing"),
    ("speculating", "tracing"),
}  # fmt: skip
FILES = sorted(p for top in ("probe", "cli", "recipes") for p in (ROOT / top).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def unit(path: Path) -> str:
    relative = path.relative_to(ROOT / "probe")
    return relative.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_is_at_most_300_lines(path: Path) -> None:
    assert path.read_text().count("\n") <= 300


@pytest.mark.parametrize("path", sorted((ROOT / "probe").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path: Path) -> None:
    level = {name: i for i, names in enumerate(LAYERS) for name in names}
    here = unit(path)
    if here in ("__init__", "__main__"):
        return
    for name in imported(path):
        top, _, rest = name.partition(".")
        assert top not in {"cli", "recipes", "typer", "rich", "click"}, name
        there = rest.split(".")[0]
        if top == "probe" and there and there != here:
            below = level[there] < level[here] or (here, there) in BESIDE
            assert below, f"{here} imports {name}"


def test_only_the_instrument_registers_hooks() -> None:
    for path in FILES:
        if unit_is_instrument(path):
            continue
        text = path.read_text()
        assert "_hook(" not in text, path
        assert "ALL_ATTENTION_FUNCTIONS" not in text, path


def unit_is_instrument(path: Path) -> bool:
    return path.is_relative_to(ROOT / "probe") and unit(path) == "instrument"


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
    places = {"probe": "probe", "cli": "probe.cli", "recipes": "probe.recipes"}  # top folder -> what it is installed as
    folders = {
        ".".join((places[top], *path.parent.relative_to(ROOT / top).parts))
        for top in places
        for path in (ROOT / top).rglob("__init__.py")
    }
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(folders) == listed  # and in order
    loose = {p.parent for top in places for p in (ROOT / top).rglob("*.py") if not (p.parent / "__init__.py").exists()}
    assert not loose, f"modules in folders without __init__.py are not installed: {loose}"
