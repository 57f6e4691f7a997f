"""No text that comes from elsewhere moves a cursor, changes a colour or turns a line, wherever it is shown."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from probe.cli import printing
from probe.cli.main import app
from typer.main import get_command

import probe
from probe.store import manifest

WICKED = "\x1b]52;c;eA==\x07\x9b35;7m\u202e\u2066\x1b[35;7m\x7f\x08\r"
COMMAND = get_command(app)
OURS = re.compile(r"\x1b\[[\d;]*m")  # rich's own colours


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(params=[io.StringIO, Terminal], ids=["pipe", "terminal"])
def shown(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """What a command shows, on both streams; nothing wicked may be in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "xterm-256color")

    def run(*words: str, says: str = "", foreseen: bool = True) -> str:
        said = request.param()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), pytest.raises(SystemExit):
            COMMAND.main(list(words))
        text = said.getvalue()
        assert not any("35;7" in code for code in OURS.findall(text))
        rest = OURS.sub("", text)
        assert not [c for c in rest if not (c.isprintable() or c in "\n\t")], ascii(rest)
        assert says in rest and ("unforeseen" in rest) != foreseen, rest
        return text

    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace whose prompt, and so its tokens, steps and manifest, are wicked."""
    path = tmp_path_factory.mktemp("run") / "e"
    probe.trace(probe.load("tiny:llama"), f"one {WICKED} two.", generate=3, out=path)
    return path


def wicked(value: Any) -> Any:
    """The same with every text of it wicked."""
    if isinstance(value, dict):
        return {key: wicked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [wicked(item) for item in value]
    return value + WICKED if isinstance(value, str) else value


TINY = ("--model", "tiny:llama", "--no-progress")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("trace", f"text {WICKED}", *TINY), "surpris"),
        (("trace", f"text {WICKED}", *TINY, "--json"), '"command": "trace"'),
        (("trace", "x", "--model", f"no/{WICKED}", "--no-progress"), "error: unknown model"),
        (("trace", "x", "--model", f"tiny:{WICKED}", "--no-progress"), "error: "),
        (("trace", "x", *TINY, "--out", f"run{WICKED}"), "run: run"),
        (("trace", "x", *TINY, "--capture", f"z{WICKED}"), "error: "),
        (("trace", "--file", f"{WICKED}.txt", *TINY), "error: "),
        (("trace", "x", *TINY, f"--top{WICKED}"), "No such option"),
        (("runs", "ls", f"no{WICKED}"), "error: "),
        (("runs", "show", f"no{WICKED}"), "error: "),
        (("runs", "rm", f"no{WICKED}"), "error: "),
        (("steps", f"no{WICKED}"), "error: "),
    ],
)
def test_what_is_typed(shown: Callable[..., str], words: tuple[str, ...], says: str) -> None:
    shown(*words, says=says)


def test_a_received_run(shown: Callable[..., str], run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / f"e{WICKED}")
    path = tmp_path / "e"
    shutil.copytree(run, path)
    (path / f"extra{WICKED}").write_text("")
    shown("steps", str(path), says="step0")
    shown("steps", str(path), "--json")
    shown("runs", "check", str(path), says="extra, not of this run")
    about = wicked(json.loads((path / "manifest.json").read_text()))
    about["tables"] = json.loads((run / "manifest.json").read_text())["tables"]
    (path / "manifest.json").write_text(json.dumps(manifest.sealed(about)))
    for words in (("ls", "."), ("show", str(path)), ("tree", str(path)), ("check", str(path)), ("rm", "-y", str(path))):
        shown("runs", *words)
        if words[0] in ("ls", "show"):
            shown("runs", *words, "--json")


def test_warnings_and_failures_that_nobody_foresaw(
    shown: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import warnings

    def fails(*_: object, **__: object) -> None:
        warnings.simplefilter("always")
        warnings.warn(f"careful {WICKED}", stacklevel=1)
        print(f"a library says {WICKED}")
        raise KeyError(f"gone {WICKED}")

    monkeypatch.setattr("probe.store.list_runs", fails)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("PROBE_DEBUG", raising=False)
    text = shown("runs", "ls", ".", foreseen=False)
    assert "warning: careful" in text and "a library says" in text
    lines = [line for line in text.splitlines() if line.startswith(("error: ", "hint: "))]
    assert len(lines) == 2 and "KeyError" in lines[0] and "Traceback" not in text
    (report,) = tmp_path.glob("probe-*.txt")
    assert "Traceback" in report.read_text() and str(report) in lines[1]
    monkeypatch.setenv("PROBE_DEBUG", "1")
    assert "Traceback" in shown("runs", "ls", ".", foreseen=False)


def test_json_is_whole_in_a_pipe_of_any_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    document = {"text": f"é 😀 {WICKED} \ud800", "x": float("nan")}
    for encoding in ("ascii", "utf-8", "latin-1", "cp1252"):
        raw = io.BytesIO()
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding=encoding))
        with printing.guarded():
            print(printing.as_json(document), flush=True)
        assert json.loads(raw.getvalue().decode(encoding)) == {"text": document["text"], "x": None}
        assert raw.getvalue().decode(encoding).strip().isprintable()


@pytest.mark.parametrize("word", ["-5 + 3 =", "-x"])
def test_a_prompt_that_begins_with_a_dash_is_told_how(word: str) -> None:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as ended:
        COMMAND.main(["trace", word, "--model", "tiny:llama"])
    assert ended.value.code == 2 and "goes after --" in said.getvalue()
