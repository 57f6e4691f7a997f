"""README's examples are true: every `$ command` in a console block is run in order and prints what the README shows."""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


def examples() -> list[tuple[str, str]]:
    """(command, shown output) of every console block, in order; `…` alone on a line stands for any lines."""
    text = (ROOT / "README.md").read_text()
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


@pytest.mark.slow
def test_console_examples_print_what_they_show(tmp_path: Path) -> None:
    shown = examples()
    assert shown, "the README shows at least one command"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for command, output in shown:
        words = shlex.split(command)
        line = [sys.executable, "-m", "probe", *words[1:]] if words[0] == "probe" else [sys.executable, *words[1:]]
        assert words[0] in {"probe", "python"}, command
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert agree(output.splitlines(), done.stdout.strip("\n").splitlines()), f"{command}\n{done.stdout}"


def test_the_comparison_can_fail() -> None:
    assert same("a 1.234 b", "a 1.2341 b") and not same("a 1.234 b", "a 1.3 b") and not same("a 1 b", "a 1 c")
    assert agree(["x", "…", "z"], ["x", "1", "2", "z"]) and not agree(["x"], ["x", "y"])
