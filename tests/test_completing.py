"""What a shell completes: values of options and arguments, by the protocol that the shell speaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from probe.cli import completing
from probe.cli.main import app
from typer.main import get_command
from typer.testing import CliRunner

from probe.capturing import AttentionSpec
from probe.outcomes import OutcomeRule
from probe.requests import REQUESTS, options_of
from probe.sites import SITES, parse_places
from probe.spans import check_split
from probe.store import create
from probe.tables import TABLES


def asked(line: str) -> dict[str, str]:
    """What bash tells of a line whose last word is being written."""
    words = line.split(" ")
    return {"_PROBE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}


def completed(line: str) -> list[str]:
    done = CliRunner().invoke(app, [], prog_name="probe", env=asked(line))
    assert done.exit_code == 0, done.output
    return [line for line in done.stdout.splitlines() if line]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three runs, one unfinished run, a model and a file of one."""
    for place in ("runs/a-trace", "runs/b-trace", "alice"):
        with create(tmp_path / place, command="trace", arguments={}) as writer:
            with writer.unit("0"):
                writer.write("prompts", {"prompt_id": [0], "text": "x", "rendered": "x", "n_tokens": 1, "error": ""})
            writer.finish(summary={})
    (tmp_path / "runs/c.partial").mkdir()
    (tmp_path / "runs/c.partial/state.json").write_text("{}")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/config.json").write_text("{}")
    (tmp_path / "small.gguf").touch()
    (tmp_path / "notes").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROBE_HOME", str(tmp_path / "home"))
    return tmp_path


def test_models(here: Path) -> None:
    assert completed("probe trace -m smollm2") == ["smollm2", "smollm2-1.7b", "smollm2-360m", "smollm2-base"]
    everything = completed("probe trace --model ")
    assert {"gpt2", "mine", "small.gguf", "tiny:llama"} <= set(everything) and not {"notes", "alice"} & set(everything)
    assert completed("probe lens x -m ./m") == ["./mine"]
    assert completed("probe models show mi") == completed("probe selftest mi") == ["mine"]
    assert completed("probe compare smollm2 gp") == ["gpt2"]


@pytest.mark.slow
def test_runs_are_folders_with_a_manifest(here: Path) -> None:
    runs = ["runs/a-trace", "runs/b-trace"]
    assert completed("probe rewind ") == ["alice", *runs] and completed("probe rewind al") == ["alice"]
    for command in (
        "importance",
        "sample",
        "answers",
        "lens",
        "attribute",
        "runs show",
        "runs rm",
        "runs check",
        "steps",
        "runs tree",
    ):
        assert completed(f"probe {command} runs/") == runs
    assert completed("probe runs rm runs/a-trace runs/b") == ["runs/b-trace"]
    assert completed("probe rewind ./al") == ["./alice"]
    assert completed(f"probe rewind {here}/runs/a") == [f"{here}/runs/a-trace"]
    assert completed("probe patch --from-rewind runs/b") == ["runs/b-trace"]
    assert completed("probe rewind nowhere/") == []


def test_tables_of_the_run_that_stands_before(here: Path) -> None:
    assert completed("probe runs export alice ") == ["prompts"]
    assert completed("probe tables tok") == ["token_circuits", "tokens"] and set(completed("probe tables ")) == set(TABLES)
    (here / "alice" / "manifest.json").write_text("{")
    assert completed("probe runs export alice ") == []


def test_words() -> None:
    for word in completed("probe trace x --attention "):
        AttentionSpec.parse(word)
    assert completed("probe trace x --attention f") == ["full"]
    for word in completed("probe trace x --split "):
        if word != "spans:":  # of a file
            check_split(f"{word}x" if word.endswith(":") else word)
    answers = completed("probe rewind r --answer ")
    assert "boxed" in answers and "regex=" in answers
    for how in answers:
        OutcomeRule.parse(f"{how}x" if how.endswith("=") else how, ())
    assert completed("probe importance r --method res") == ["resampling", "rescore"]
    assert completed("probe importance r --method rescore,sup") == ["rescore,suppression"]
    assert completed("probe trace x --dtype b") == ["bfloat16"]
    assert completed("probe runs ls --command rew") == ["rewind"]
    assert completed("probe help rew") == ["rewind"]


def test_recipes_are_those_that_are_listed(here: Path) -> None:
    listed = CliRunner().invoke(app, ["recipe", "ls", "--json"])
    names = {one["name"] for one in json.loads(listed.stdout)["summary"]["recipes"]}
    assert {"induction", "ioi"} <= names == set(completed("probe recipe run "))


def test_places_and_edits() -> None:
    for line in ("probe trace x --capture ", "probe trace x --at ", "probe patch --sites "):
        found = completed(line)
        assert {"resid_post", "z@all", "embed"} <= set(found) and "embed@all" not in found
        for place in found:
            parse_places(place)
    assert completed("probe trace x --capture z@all,resid_po") == ["z@all,resid_post", "z@all,resid_post@all"]
    edits = {place.partition("@")[0] for place in completed("probe rewind r --edit ")}
    assert edits == {site.name for site in SITES.values() if site.uses}
    assert completed("probe rewind r --edit z@5=z") == ["z@5=zero"]
    assert "z@5=scale:" in completed("probe rewind r --edit z@5=")
    assert completed("probe trace x --capture router@3.") == ["router@3.e"]
    assert (
        completed("probe trace x --edit z@1,mlp_post@all.") == ["z@1,mlp_post@all.n"]
        and completed("probe trace x --at z@1.") == []
    )
    assert completed("probe trace x --edit router@3.e5=") == [f"router@3.e5={op}" for op in ("ablate", "force", "weigh:")]


def test_every_kind_that_is_declared_is_known() -> None:
    kinds = {one.option.complete for kind in REQUESTS.values() for one in options_of(kind)} - {None}
    assert kinds and kinds <= completing.WORDS.keys() | completing.FOUND.keys()
    shown = {name for command in get_command(app).commands.values() for name in [command.name]}  # type: ignore[attr-defined]
    assert set(completed("probe ")) == shown


@pytest.mark.parametrize(
    "line",
    [
        "probe trace -m smol",
        "probe rewind runs/",
        "probe trace x --edit z@1=",
        "probe importance r --method ",
        "probe recipe run ",
    ],
)
def test_a_shell_does_not_wait_for_torch(line: str, here: Path) -> None:
    program = "import sys; sys.argv[:] = ['probe']; from probe.cli.main import main; main()"
    command = [sys.executable, "-X", "importtime", "-c", program]
    done = subprocess.run(command, env={**os.environ, **asked(line)}, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout and "Usage" not in done.stdout
    loaded = {told.rpartition("|")[2].strip().partition(".")[0] for told in done.stderr.splitlines()}
    assert not loaded & {"torch", "transformers", "pyarrow", "pandas", "numpy", "scipy", "rich"}
