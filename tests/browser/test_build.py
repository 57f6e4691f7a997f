"""What is committed is what the sources give, is small, and names whose work it contains."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from probe.recipes.manual.screenshots import ALL, LARGEST, PICTURES

from .needed import program, without

ROOT = Path(__file__).parents[2]
REPORTING = ROOT / "probe" / "reporting"
BUILT, WEB = REPORTING / "built", REPORTING / "web"
AT_MOST = 120 * 1024  # bytes: of all built files together


@pytest.mark.browser
def test_building_again_gives_the_committed_bytes(tmp_path: Path) -> None:
    """`npm ci && npm run build` of a copy of the sources, with the versions of the lock file, in an empty folder."""
    npm = program("npm")
    web = shutil.copytree(WEB, tmp_path / "web", ignore=shutil.ignore_patterns("node_modules"))
    (tmp_path / "built").mkdir()

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([npm, *words], cwd=web, capture_output=True, text=True, timeout=300)

    installed = run("ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=2", "--fetch-timeout=30000")
    if installed.returncode and any(code in installed.stderr for code in ("ENOTFOUND", "EAI_AGAIN", "ETIMEDOUT", "ECONNRE")):
        without("the npm registry cannot be reached from here")
    assert installed.returncode == 0, installed.stderr
    built = run("run", "build")
    assert built.returncode == 0, built.stdout + built.stderr
    again = {path.name: path.read_bytes() for path in (tmp_path / "built").iterdir()}
    committed = {path.name: path.read_bytes() for path in BUILT.iterdir()}
    assert sorted(again) == sorted(committed)
    for name, content in committed.items():
        assert again[name] == content, f"{name} is not what web/ gives: npm ci --ignore-scripts && npm run build"


def test_the_built_files_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in BUILT.iterdir()}
    assert {"page.js", "page.css", "LICENSES.txt"} <= sizes.keys()
    assert sum(sizes.values()) <= AT_MOST, sizes


def test_the_licence_of_every_library_is_with_it() -> None:
    """Of every library that is bundled, in the version of the lock file."""
    used = json.loads((WEB / "package.json").read_text())["dependencies"]
    locked = json.loads((WEB / "package-lock.json").read_text())["packages"]
    said = (BUILT / "LICENSES.txt").read_text()
    for name in used:
        text = said.split(f"{name} {locked[f'node_modules/{name}']['version']}\n")[1]
        assert "ermission" in text or "Licensed under" in text
    bundled = {path.rpartition("node_modules/")[2] for path, of in locked.items() if path and not of.get("dev")}
    assert bundled == set(used), "what a library brings along has a licence too"


def test_the_readme_shows_six_pictures_and_says_what_each_is() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"pictures/(\w+)\.png\)", text) == [one.name for one in ALL] and len(ALL) == 6
    for one in ALL:
        assert re.search(rf"{re.escape(one.said)} !\[\w+\]\(recipes/manual/pictures/{one.name}\.png\)", text)
        content = (PICTURES / f"{one.name}.png").read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) <= LARGEST
    assert {path.stem for path in PICTURES.iterdir()} == {one.name for one in ALL}
