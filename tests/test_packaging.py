"""What is installed: the folders of the checkout, under their names, from a wheel, in an editable install, and beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import probe

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PLACES = {"probe": "probe", "cli": "probe/cli", "recipes": "probe/recipes"}  # top folder -> where it is installed
INSTALLED = {".py", ".md", ".png", ".json", ".jsonl", ".txt", ".yaml", ".typed", ".sql", ".html", ".css", ".js"}
CHECKS = f"""
import importlib.util, subprocess, sys
import probe, probe.cli.main, probe.recipes.bench, probe.recipes.survey
for name in ("cli", "recipes"):
    assert importlib.util.find_spec(name) is None, name
assert probe.__version__ == {probe.__version__!r}
print(probe.__file__, probe.cli.main.__file__, probe.recipes.__file__, sep="\\n")
"""


def installed_files() -> Iterator[str]:
    """Paths inside a wheel of every file that belongs there, from the folders themselves."""
    for top, place in PLACES.items():
        for path in sorted((ROOT / top).rglob("*")):
            if "web" in path.parts:  # what the built page is made of: for who builds it
                continue
            if path.suffix in INSTALLED or path.name == "Dockerfile":
                yield f"{place}/{path.relative_to(ROOT / top).as_posix()}"


def test_the_version_is_said_in_one_place() -> None:
    assert probe.__version__ == PROJECT["project"]["version"]


def test_the_gate_tries_the_lowest_versions_that_are_allowed() -> None:
    """Those of .ci/lowest.txt: of whatever pyproject.toml gives a floor, exactly that one. But for torch, of which PyPI has
    builds for CUDA only, of gigabytes, below the version that the gate is pinned to."""
    lines = (ROOT / ".ci" / "lowest.txt").read_text().splitlines()
    tried = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    extras = PROJECT["project"]["optional-dependencies"]
    for text in (*PROJECT["project"]["dependencies"], *extras["fast"], *extras["peft"]):
        wanted = Requirement(text)
        for floor in (s.version for s in wanted.specifier if s.operator == ">=" and wanted.name != "torch"):
            assert Version(tried[canonicalize_name(wanted.name)]) == Version(floor), text


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout without what was built in it."""
    copy = tmp_path_factory.mktemp("source") / "project"
    copy.mkdir()
    for name in (*PLACES, "pyproject.toml", "README.md"):
        here = ROOT / name
        if here.is_dir():
            shutil.copytree(here, copy / name, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
        else:
            shutil.copy(here, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    built = shutil.copytree(source, out / "source")
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", out, built)
    return next(out.glob("*.whl"))


def pip(*words: str | Path, python: Path | str = sys.executable) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def environment(at: Path) -> Path:
    """A new virtual environment with the dependencies of this one, and nothing of ours; its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", at], check=True)
    python = at / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    own = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=at).strip()
    held = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (Path(own) / "dependencies.pth").write_text("\n".join(held))  # only searched: their own .pth files are not read
    return python


def run(python: Path, *words: str, cwd: Path) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PROBE_MODEL")}
    done = subprocess.run([python, *words], cwd=cwd, env=clean, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(python: Path, *, cwd: Path) -> list[Path]:
    """Names and versions as they must be, seen from a folder; where probe, its command line and recipes came from."""
    script = python.with_name("probe" + python.suffix)
    said = {run(python, "-m", "probe", "--version", cwd=cwd), run(script, "--version", cwd=cwd)}
    assert len(said) == 1 and probe.__version__ in said.pop()
    return [Path(line) for line in run(python, "-c", CHECKS, cwd=cwd).splitlines()]


@pytest.mark.slow
def test_a_wheel_has_every_file_and_runs(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == set(installed_files())
    assert "probe/py.typed" in names and "probe/recipes/survey/expected.json" in names
    python = environment(tmp_path / "env")
    pip("install", "--no-deps", "--no-index", wheel, python=python)
    assert all(path.is_relative_to(tmp_path / "env") for path in check(python, cwd=tmp_path))


@pytest.mark.slow
def test_an_editable_install_runs_what_lies_in_the_checkout(source: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "env")
    pip("install", "--no-deps", "--no-index", "--no-build-isolation", "-e", source, python=python)
    expected = [source / "probe/__init__.py", source / "cli/main.py", source / "recipes/__init__.py"]
    assert check(python, cwd=tmp_path) == expected


@pytest.mark.slow
def test_inside_the_checkout_our_names_are_ours() -> None:
    """There `cli` is a folder of the current directory, but it is `probe.cli` that is loaded, and only that."""
    code = "import sys, probe.cli.main, probe.recipes.survey; print(probe.cli.main.__file__, 'cli' in sys.modules)"
    assert run(Path(sys.executable), "-c", code, cwd=ROOT).split() == [str(ROOT / "cli" / "main.py"), "False"]
    assert probe.__version__ in run(Path(sys.executable), "-m", "probe", "--version", cwd=ROOT)
