"""`probe shell`: lines are commands; the keys of a terminal do what they should; what is typed can be completed."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from probe.cli.main import app
from probe.cli.staying.prompt import completions
from typer.main import get_command

from tests.test_serve import AS_INSTALLED, TINY, Place

# a session of its own, of which the terminal is the controlling one: Ctrl-C reaches what is in its foreground
IN_A_TERMINAL = (AS_INSTALLED[0], "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); " + AS_INSTALLED[1])
PROMPTS = "\n".join(f"prompt number {i} " + "word " * 60 for i in range(400))


class Terminal:
    """A shell in a terminal: what is typed, and what is shown."""

    def __init__(self, place: Place, cwd: Path) -> None:
        self.ours, theirs = pty.openpty()
        words = [sys.executable, *IN_A_TERMINAL, "shell", *TINY]
        env = {**place.env, "PROBE_HOME": str(cwd / "home"), "TERM": "dumb", "COLUMNS": "200"}
        self.process = subprocess.Popen(
            words, cwd=cwd, env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        self.shown = ""

    def type(self, keys: str) -> None:
        os.write(self.ours, keys.encode())

    def until(self, pattern: str) -> str:
        """What is shown up to here, and forgotten then."""
        while not (found := re.search(pattern, self.shown)):
            assert select.select([self.ours], [], [], 120)[0], f"nothing more is shown than {self.shown!r}"
            self.shown += os.read(self.ours, 4096).decode(errors="replace")
        before, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.ours)


@pytest.fixture
def place() -> Iterator[Place]:
    found = Place()
    yield found
    found.close()


@pytest.fixture
def terminal(place: Place, tmp_path: Path) -> Iterator[Terminal]:
    found = Terminal(place, tmp_path)
    found.until("probe> ")
    yield found
    found.close()


@pytest.mark.slow
def test_keys(terminal: Terminal, tmp_path: Path) -> None:
    """A command; one that is completed; Ctrl-C in a command, and at the prompt; a shell in the shell; Ctrl-D."""
    terminal.type('trace "Hello there. How are you?" -m tiny:llama --generate 12 --out first\n')
    assert "most surprising" in terminal.until("run: first\r\n[^>]*probe> ")
    terminal.type("steps fir\t")
    terminal.until("steps first ")
    terminal.type("\n")
    assert "step0" in terminal.until("\nprobe> ")
    (tmp_path / "p.txt").write_text(PROMPTS)
    terminal.type("trace --file p.txt -m tiny:llama --no-progress --out run --batch-tokens 80 --attention summary\n")
    while not (tmp_path / "run.partial").exists():
        time.sleep(0.05)
    time.sleep(0.3)
    terminal.type("\x03")
    assert "interrupted: what was finished is kept" in terminal.until("probe> ")
    assert not (tmp_path / "run").exists()
    time.sleep(1)  # a signal between the prompt and the wait for a key is seen with the next key only: Python has it so
    terminal.type("nonsense\x03")
    terminal.until("\nprobe> ")
    terminal.type("shell --model tiny:llama\n")
    terminal.until("Ctrl-D leaves[^>]*probe> ")
    for _ in range(2):  # what a command of the inner shell comes to is nothing that the outer one is told
        terminal.type("steps first\n")
        assert "step0" in terminal.until("\nprobe> ")
    terminal.type("exit\n")
    terminal.until("\nprobe> ")
    terminal.type("models sites ./nothing\n")
    terminal.until("hint: [^>]*probe> ")
    terminal.type("\x04")
    assert terminal.process.wait(timeout=60) == 1  # as the last command
    history = (tmp_path / "home/shell_history").read_text().splitlines()
    assert history[-1] == "models sites ./nothing" and history[0].startswith("trace ")
    assert oct((tmp_path / "home/shell_history").stat().st_mode)[-3:] == "600"


@pytest.mark.slow
def test_lines_through_a_pipe(place: Place, tmp_path: Path) -> None:
    """Each does what it does alone; the code is the last one's."""
    lines = ["# a remark", "", "trace Hello -m tiny:llama --out run", "probe tables tokens", 'trace "open', "trace --nonsense"]
    code, said, complained = place.run("shell", *TINY, cwd=tmp_path, stdin="\n".join(lines).encode())
    (tmp_path / "run").rename(tmp_path / "before")
    alone = [place.run(*words.split()[words.startswith("probe") :], cwd=tmp_path) for words in (lines[2], lines[3], lines[5])]
    quotation = b"error: a quotation in that line is not closed\nhint: a word with spaces stands between two quotes\n"
    assert said == b"".join(one for _, one, _ in alone)
    assert complained == quotation + b"".join(one for _, _, one in alone)
    assert code == 2 == alone[-1][0]
    code, said, complained = place.run("shell", *TINY, cwd=tmp_path, stdin=b"tables\nexit\ntrace --nonsense\n")
    assert (code, complained) == (0, b"") and said


def test_what_a_line_can_go_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell) -> None:
    assert shell("trace", "One. Two. Three.", *TINY, "--generate", "8", "--out", "first run").returncode == 0
    assert shell("trace", "One.", *TINY, "--generate", "8", "--split", "token", "--out", "second").returncode == 0
    monkeypatch.chdir(tmp_path)
    run = get_command(app)

    def found(line: str) -> list[str]:
        return completions(run, line, line.rpartition(" ")[2])

    assert found("tra") == ["trace "] == found("probe tra")
    assert found("rewind sec") == ["second "]
    steps = pd.read_parquet("second/steps.parquet")["step"].unique()
    assert len(steps) > 1 and [one.strip() for one in found("rewind second --to st")] == [f"step{n}" for n in steps]
    assert found("rewind second --to a") == found("rewind nowhere --to ") == ["all "]
    assert found("trace x --capture resid_po") == ["resid_post", "resid_post@all"]
    assert found("trace x --dt") == ["--dtype "]
    assert found('trace "') == [] and found("rewind second --numbers ") == ["first run/", "second/"]
    assert found("trace x --file sec") == ["second/"]
    assert found("trace x --file second/man") == ["second/manifest.json "]
    assert "PROBE_COMPLETE" not in "".join(os.environ)
