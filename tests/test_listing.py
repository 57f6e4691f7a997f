"""The list of runs: what each line says, filters and orders, and runs that are not as they were written."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from probe.cli.main import app
from typer.testing import CliRunner

from probe import store
from probe.errors import BadOption

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Two plums?"}]}]


def made(
    folder: Path, name: str, prompts: list[str], *, command: str = "trace", model: str = "tiny:llama", started: str = "",
    arguments: dict[str, Any] | None = None, rendered: str | None = None,
) -> Path:  # fmt: skip
    """A run with a table `prompts` alone."""
    path = folder / name
    with store.create(path, command=command, arguments=arguments or {}) as writer:
        rows = len(prompts)
        with writer.unit("all"):
            given = {"prompt_id": range(rows), "text": prompts, "rendered": [rendered or text for text in prompts]}
            writer.write("prompts", {**given, "n_tokens": [1] * rows, "error": [""] * rows})
        writer.finish(summary={}, model={"name": model, "source": f"hub/{model.upper()}"})
    if started:
        edited(path, started=started)
    return path


def edited(path: Path, **changes: Any) -> None:
    """Its manifest with other values and its own seal, as if it had been written so."""
    about = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(store.manifest.sealed({**about, **changes})))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four runs, the oldest last by name."""
    made(tmp_path, "d", ["Alice has 3 apples. " + "She buys more. " * 9], started="2026-01-01T10:00:00Z")
    made(tmp_path, "c", ["one", "two PLUMS", "three"], command="rewind", model="smollm2", started="2026-02-01T10:00:00Z")
    made(tmp_path, "b", [json.dumps(CHAT)], rendered="<s>Be brief. Two plums?", started="2026-03-01T10:00:00Z")
    made(tmp_path, "a-pears", ["[1] is a reference"], rendered="<s>[1] is a reference", model="gemma")
    (tmp_path / "no-run").mkdir()
    return tmp_path


def names(root: Path, **wanted: Any) -> list[str]:
    return [run.path.name for run in store.list_runs(root, **wanted)]


def test_a_line_says_model_and_first_words(folder: Path) -> None:
    lines = {run.path.name: run for run in store.list_runs(folder)}
    assert list(lines) == ["d", "c", "b", "a-pears"]
    assert lines["d"].prompt.startswith("Alice has 3 apples. She buys") and lines["d"].prompt.endswith("…")
    assert len(lines["d"].prompt) <= 60
    assert (lines["c"].model, lines["c"].prompt, lines["c"].prompts) == ("smollm2", "one", 3)
    assert lines["b"].prompt == "Two plums?" and lines["a-pears"].prompt == "[1] is a reference"
    assert all(run.status == "whole" and run.reason == "" for run in lines.values())


def test_filters(folder: Path) -> None:
    assert names(folder, model="LLAMA") == ["d", "b"] and names(folder, model="hub/gem") == ["a-pears"]
    assert names(folder, command="rewind") == ["c"] and names(folder, command="rew") == []
    assert names(folder, grep="plums") == ["c", "b"]  # in the second prompt, and in a chat
    assert names(folder, grep=r"^a-|\d apples") == ["d", "a-pears"]
    assert names(folder, grep="plums", model="smol") == ["c"]
    with pytest.raises(BadOption, match=r"'\(' is not a regular expression"):
        names(folder, grep="(")


def test_since(folder: Path) -> None:
    local = datetime(2026, 2, 1, 10, 0, tzinfo=UTC).astimezone()
    for clock, wanted in ((timedelta(0), ["c", "b", "a-pears"]), (timedelta(minutes=1), ["b", "a-pears"])):
        then = local + clock
        assert names(folder, since=then.isoformat()) == wanted
        assert names(folder, since=then.replace(tzinfo=None).isoformat()) == wanted  # this machine's clock
    edited(folder / "c", started=(datetime.now(UTC) - timedelta(hours=50)).isoformat())
    assert names(folder, since="3d") == ["c", "a-pears"] and names(folder, since="2d") == ["a-pears"]
    assert names(folder, since="49h") == ["a-pears"] and names(folder, since="51h") == ["c", "a-pears"]
    for wrong in ("2", "yesterday", "2026-13-01", "-3d", "3 d", ""):
        with pytest.raises(BadOption, match="cannot read the time"):
            names(folder, since=wrong)


def test_orders(folder: Path) -> None:
    assert names(folder, sort="name") == ["a-pears", "b", "c", "d"]
    assert names(folder, sort="-started") == ["a-pears", "b", "c", "d"]
    assert names(folder, sort="-rows")[0] == "c" and names(folder, sort="rows")[-1] == "c"
    assert names(folder, sort="model") == ["a-pears", "c", "d", "b"]  # the oldest first of what is equal
    sizes = [run.bytes for run in store.list_runs(folder, sort="-size")]
    assert sizes == sorted(sizes, reverse=True)
    with pytest.raises(BadOption, match="cannot sort by 'age'"):
        names(folder, sort="age")


def test_a_damaged_run_is_listed_with_its_reason(folder: Path) -> None:
    (folder / "d" / "manifest.json").write_text("{")
    (folder / "c" / "prompts.parquet").unlink()
    table = folder / "b" / "prompts.parquet"
    table.write_bytes(table.read_bytes()[:-20])
    lines = {run.path.name: run for run in store.list_runs(folder)}
    assert set(lines) == {"a-pears", "b", "c", "d"}
    assert "manifest.json' is damaged: it is not JSON" in lines["d"].reason
    assert "prompts.parquet' is missing" in lines["c"].reason and lines["c"].model == "smollm2"
    assert "prompts.parquet' is damaged" in lines["b"].reason
    assert [run.status for run in lines.values()].count("damaged") == 3
    assert names(folder, command="rewind") == ["c"] and names(folder, grep="plums") == []
    done = CliRunner().invoke(app, ["runs", "ls", str(folder)])
    assert done.exit_code == 0 and "it is not JSON" in done.stdout and "[1] is a reference" in done.stdout


def test_an_unfinished_run_says_what_it_was_asked(tmp_path: Path) -> None:
    asked: tuple[tuple[Any, str, int], ...] = (
        ("Hello there", "Hello there", 1), (CHAT, "Two plums?", 1), (["a b", CHAT], "a b", 2), ({"file": "p.txt"}, "p.txt", 1),
        ({"table": "prompts"}, "", 0), ([], "", 0),
    )  # fmt: skip
    for i, (prompts, words, count) in enumerate(asked):
        with store.create(
            tmp_path / str(i), command="trace", arguments={"prompts": prompts}, resolved={"model": "tiny:llama"}
        ) as w:
            (run,) = [run for run in store.list_runs(tmp_path) if run.path.stem == str(i)]
            assert (run.status, run.prompt, run.prompts, run.model) == ("running", words, count, "tiny:llama")
            w.finish(summary={})


def test_the_command_filters_and_says_all_of_it_in_json(folder: Path) -> None:
    run = CliRunner().invoke
    done = run(app, ["runs", "ls", str(folder), "--grep", "plums", "--sort", "-started", "--json"])
    found = json.loads(done.stdout)["summary"]["runs"]
    assert [one["prompt"] for one in found] == ["Two plums?", "one"] and found[1]["prompts"] == 3
    assert {"model", "command", "started", "status", "reason", "path"} <= found[0].keys()
    shown = run(app, ["runs", "ls", str(folder), "-m", "smol", "--command", "rewind", "--since", "2026-01-15"]).stdout
    head, line = shown.splitlines()
    assert head.split() == ["run", "command", "model", "started", "status", "rows", "size", "prompt"]
    assert "smollm2" in line and "one (and 2 more)" in line
    none = run(app, ["runs", "ls", str(folder), "--model", "gpt"])
    assert (none.exit_code, none.stdout) == (0, "") and "as asked for" in none.stderr
    wrong = run(app, ["runs", "ls", str(folder), "--sort", "age"])
    assert wrong.exit_code == 1 and "--sort takes" in wrong.stderr


def test_words_of_a_prompt_cannot_break_the_line(tmp_path: Path) -> None:
    made(tmp_path, "r", ["two\nlines\tand \x1b[31m colour"])
    (line,) = CliRunner().invoke(app, ["runs", "ls", str(tmp_path)]).stdout.splitlines()[1:]
    assert "two lines and" in line and "\x1b" not in line
