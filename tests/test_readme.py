"""The examples of the README and of the manual are true: every `$ command` is run, in order, and prints what is shown."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from probe.tables import TABLES

Shell = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parents[1]
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


def documents() -> dict[str, str]:
    """The README, then the pages of the manual in the order of its index: later ones go on from runs of earlier ones."""
    manual = ROOT / "recipes" / "manual"
    names = re.findall(r"\]\((\w+\.md)\)", (manual / "README.md").read_text(encoding="utf-8"))
    paths = [ROOT / "README.md", *(manual / name for name in dict.fromkeys(names))]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}


def examples(text: str) -> list[tuple[str, str]]:
    """(command, shown output) of every console block, in order; `…` alone on a line stands for any lines."""
    found = []
    for block in re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            while command.endswith("\\"):
                more, _, shown = shown.partition("\n")
                command = command[:-1] + more.strip()
            found.append((command, shown.strip("\n")))
    return found


def same(shown: str, printed: str) -> bool:
    """The same line: the same words, and numbers that differ by rounding only."""
    if NUMBER.sub("#", shown).split() != NUMBER.sub("#", printed).split():
        return False
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(printed), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=2e-3, abs_tol=2e-3) for a, b in pairs)


def agree(shown: list[str], printed: list[str]) -> bool:
    if not shown:
        return not printed
    if shown[0].strip() == "…":
        return any(agree(shown[1:], printed[i:]) for i in range(len(printed) + 1))
    return bool(printed) and same(shown[0], printed[0]) and agree(shown[1:], printed[1:])


def test_the_readme_has_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert 'pip install . && probe trace "The capital of France is"' in text
    assert 'pip install -e ".[test]" && pytest' in text


def test_the_readme_is_short_and_leads_on() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 250
    assert "(recipes/manual/README.md)" in text


@pytest.mark.slow
def test_console_examples_print_what_they_show(shell: Shell, tmp_path: Path) -> None:
    """Each command is run once, though several pages may show it; and its run has no table that is not said to be its own."""
    printed: dict[str, str] = {}
    for file in (ROOT / "recipes" / "manual").glob("*.jsonl"):  # that examples read
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for name, text in documents().items():
        assert name != "README.md" or examples(text), "the README shows at least one command"
        for command, shown in examples(text):
            if command not in printed:
                printed[command] = output_of(command, shell, tmp_path)
            assert agree(shown.splitlines(), printed[command].splitlines()), f"{name}: {command}\n{printed[command]}"
    for path in tmp_path.glob("*/manifest.json"):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        verb = "steer" if manifest["command"] == "make_direction" else manifest["command"]  # one command, two requests
        for table in manifest["tables"]:
            assert verb in TABLES[table].verbs, f"{verb} writes {table}"


def output_of(command: str, shell: Shell, folder: Path) -> str:
    """What a command prints in a folder."""
    words = shlex.split(command)
    if words[0] == "probe":
        done = shell(*words[1:], timeout=900)
    else:
        programs = {"python": [sys.executable], "cat": ["cat"]}
        assert words[0] in programs, command
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        line = [*programs[words[0]], *words[1:]]
        done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout.strip("\n")


def test_the_comparison_can_fail() -> None:
    assert same("a 1.234 b", "a 1.2341 b") and not same("a 1.234 b", "a 1.3 b") and not same("a 1 b", "a 1 c")
    assert agree(["x", "…", "z"], ["x", "1", "2", "z"]) and not agree(["x"], ["x", "y"])
