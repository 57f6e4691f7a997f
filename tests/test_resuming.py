"""Every command that writes a run completes it with `resume`, to the tables of a run that was left alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from probe.cli.main import app
from safetensors.torch import save_file
from typer.main import get_command

import probe
from probe import store
from probe.errors import BadEdit, BadOption, RunError, UnknownModel

TEXTS = ["one two three.", "four five six.", "and seven."]


@pytest.fixture(scope="module")
def lm() -> Any:
    return probe.load("tiny:llama")


def verbs(lm: Any, folder: Path) -> dict[str, Callable[..., store.Run]]:
    file = folder / "v.safetensors"
    if not file.exists():
        probe.make_direction(lm, ["good", "fine"], ["bad", "poor"], at="resid_post@1", to=file)
    made = folder / "made.safetensors"
    return {
        "lens": lambda **more: probe.lens(lm, TEXTS[0], **more),
        "attribute": lambda **more: probe.attribute(lm, TEXTS[0], by_source=True, **more),
        "steer": lambda **more: probe.steer(lm, file, TEXTS, answer=" x", strengths=[1.0], controls=2, **more),
        "compare": lambda **more: probe.compare(lm, lm, TEXTS, edit="z@1=zero", **more),
        "make": lambda **more: probe.make_direction(lm, ["good", "fine"], ["bad", "poor"], at="resid_post@1", to=made, **more),
    }


def rows(run: store.Run) -> dict[str, list[dict[str, Any]]]:
    return {name: run.table_arrow(name).drop(["run_id"]).to_pylist() for name in run.tables}


@pytest.mark.parametrize("verb", ["lens", "attribute", "steer", "compare", "make"])
def test_a_run_that_was_cut_short_is_completed(lm: Any, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = verbs(lm, tmp_path)[verb]
    alone = run(out=tmp_path / "alone")
    units = []
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        if verb in ("steer", "compare"):  # after the first of its texts, which is kept
            run(out=tmp_path / "r", progress=lambda what, done, total: (_ for _ in ()).throw(KeyboardInterrupt))
        else:
            patched.setattr(store.Writer, "finish", lambda self, **what: (_ for _ in ()).throw(KeyboardInterrupt))
            run(out=tmp_path / "r")
    assert store.describe(tmp_path / "r.partial").units == 1
    with pytest.raises(RunError, match="not finished") as refused:
        run(out=tmp_path / "r")
    assert "--resume" in refused.value.hint
    real = store.Writer.unit
    monkeypatch.setattr(store.Writer, "unit", lambda self, key, **how: units.append(key) or real(self, key, **how))
    resumed = run(out=tmp_path / "r", resume=True)
    assert str(rows(resumed)) == str(rows(alone)) and resumed.summary == alone.summary  # as text: NaN is not NaN
    assert store.check(tmp_path / "r") == []
    again = run(out=tmp_path / "r", resume=True)  # of a whole run: it is read
    assert again.run_id == resumed.run_id
    with pytest.raises(BadOption, match="which run"):
        run(resume=True)


def test_hints_name_only_options_that_some_command_has() -> None:
    """Every --option in a hint or message of the source is an option of a command; those of one verb's package are its own."""
    commands: dict[str, set[str]] = {}

    def walk(command: Any, name: str) -> None:
        options = [word for parameter in command.params for word in (*parameter.opts, *parameter.secondary_opts)]
        commands[name] = {word for word in options if word.startswith("--")}
        for child, below in getattr(command, "commands", {}).items():
            walk(below, f"{name} {child}".strip())

    walk(get_command(app), "")
    everything = set().union(*commands.values()) | {"--help"}
    own = {
        "lensing": "lens", "attributing": "attribute", "steering": "steer", "comparing": "compare", "speculating": "speculate",
        "tracing": "trace", "rewinding": "rewind", "patching": "patch",
    }  # fmt: skip
    root = Path(__file__).parents[1] / "probe"
    for path in sorted(root.rglob("*.py")):
        hints = re.findall(r'hint=(?:\(\s*)?f?"([^"]*)"', path.read_text())
        said = {word for hint in hints for word in re.findall(r"--[a-z][a-z-]*", hint)}
        assert said <= everything, (path, said - everything)
        verb = own.get(path.relative_to(root).parts[0])
        if verb is not None and verb not in SHARED:
            there = {
                word for hint in hints if not re.search("probe |rewind", hint) for word in re.findall(r"--[a-z][a-z-]*", hint)
            }
            assert there <= commands[verb], (path, there - commands[verb])
    for name, options in commands.items():
        if "--out" in options and "--make" not in options and name not in ("models pull", "view", "recipe run"):
            assert "--resume" in options, name


SHARED = {"tracing", "rewinding"}  # other verbs use them, and their hints


def test_a_direction_of_another_program_and_a_name_that_is_too_long(lm: Any, tmp_path: Path) -> None:
    for metadata in ("[1]", '{"model": 3}', '{"site": [1]}', "{", '{"layer": "x"}'):
        save_file({"x": torch.ones(64)}, tmp_path / "m.safetensors", metadata={"probe_direction": metadata})
        with pytest.raises(BadEdit):
            probe.steer(lm, tmp_path / "m.safetensors", "hi", answer="x")
    for name in ("m" * 300, "~nobody-of-that-name/x", "a" * 300 + ".gguf"):
        with pytest.raises(UnknownModel):
            probe.load(name)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["rewind", "until", "importance"])
def test_continuations_that_are_drawn_again_have_the_same_numbers_to_the_last_digit(
    lm: Any, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row's log-probs differ in the last digits with the rows beside it: which these are must not depend on where a
    run was cut short."""
    from probe.decoding import Sampling
    from probe.rewinding import rollouts

    monkeypatch.setattr(rollouts, "ROWS", 16)
    monkeypatch.setattr(rollouts, "BLOCK", 32)
    warm = Sampling(temperature=1.0, seed=3)
    traced = probe.trace(lm, "hello there. And so on. 12 and 13", generate=24, sampling=warm, out=tmp_path / "t")
    calls = {
        "rewind": lambda **more: probe.rewind(traced, lm=lm, to="step0", delete=True, samples=24, max_new=12, **more),
        "until": lambda **more: probe.rewind(traced, lm=lm, to="step0", delete=True, samples=8, until=0.2, max_new=12, **more),
        "importance": lambda **more: probe.importance(
            traced, lm=lm, method="resampling", split="token", samples=6, max_new=8, **more
        ),
    }
    alone = calls[verb](out=tmp_path / "alone")
    real = rollouts._write
    for at in (1, 5, 19, 30):
        left = [None] * at

        def cut_short(*given: Any, left: list[None] = left) -> None:
            if not left:
                raise KeyboardInterrupt
            left.pop()
            real(*given)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(rollouts, "_write", cut_short)
            calls[verb](out=tmp_path / f"r{at}")
        resumed = calls[verb](out=tmp_path / f"r{at}", resume=True)
        assert str(rows(resumed)) == str(rows(alone))
