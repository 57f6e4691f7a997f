"""One request a verb: its fields are the function's keywords, the command's options and the manifest's arguments."""

from __future__ import annotations

import inspect
import json
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pandas as pd
import pytest
import typer
from probe.cli.command import Begun, with_options
from typer.testing import CliRunner

import probe
from probe.errors import BadOption, RunError
from probe.replaying import replay, request_of
from probe.requests import REQUESTS, Option, Request, Sampling, Trace, options_of, plain, public
from probe.tables import TABLES

VERBS = sorted(name for name in REQUESTS if callable(getattr(probe, name, None)))


@pytest.mark.parametrize("name", VERBS)
def test_the_signature_of_a_verb_is_the_fields_of_its_request(name: str) -> None:
    verb, request = getattr(probe, name), REQUESTS[name]
    parameters = inspect.signature(verb).parameters
    assert not any(p.kind is p.VAR_KEYWORD or p.kind is p.VAR_POSITIONAL for p in parameters.values())
    shown = {key: p.default for key, p in parameters.items()}
    for f in fields(request):
        assert f.name in shown and f"{f.name}: " in verb.__doc__
    assert request.function().__name__ == f"run_{name}"


@pytest.mark.parametrize("name", sorted(REQUESTS))
def test_every_field_is_declared_and_nothing_is_changed_once_it_is_asked(name: str) -> None:
    for one in options_of(REQUESTS[name]):
        assert one.option.help.endswith(".") or "]" in one.option.help, one.name
    with pytest.raises(FrozenInstanceError):
        REQUESTS[name].__dataclass_params__  # noqa: B018
        object.__new__(REQUESTS[name]).out = "x"  # type: ignore[misc]


def test_a_wrong_keyword_is_a_type_error_that_names_the_verb() -> None:
    with pytest.raises(TypeError, match=r"trace\(\).*genrate"):
        probe.trace(probe.load("tiny:llama"), "a", genrate=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "prompts", ["ab", ["ab", "cd"], [{"role": "user", "content": "a"}], Path("prompts.txt"), ["x"] * 101], ids=str
)
def test_arguments_are_plain_and_make_the_same_request(prompts: Any, tmp_path: Path) -> None:
    asked = Trace(
        prompts, generate=3, sampling=Sampling(0.7, stop=("x",), seed=3), capture="z@1.0", edit=["z@1.0=zero"],
        template_options=["a=1"], out=tmp_path, resume=True,
    )  # fmt: skip
    stored = json.loads(json.dumps(asked.arguments()))
    assert "out" not in stored and stored["capture"] == ["z@1.0"] and stored["sampling"]["temperature"] == 0.7
    again = Trace.from_arguments(stored)
    assert again.arguments() == asked.arguments() and again.sampling == asked.sampling
    if len(prompts) != 101 if isinstance(prompts, list) else True:
        assert again.prompts == prompts
    with pytest.raises(RunError, match="'warp' is no option of trace"):
        Trace.from_arguments({**stored, "warp": 9})


def test_what_the_options_alone_decide_is_checked_when_they_are_given() -> None:
    for wrong in ({"generate": -1}, {"top": -1}, {"store": "zip"}, {"split": "verse"}, {"system": "x"}, {"resume": True}):
        with pytest.raises(BadOption):
            Trace("a", **wrong)


SAID: dict[str, Any] = {
    "temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2, "stop": ("x", "yy"), "seed": 3,
}  # fmt: skip
NEEDED: dict[str, dict[str, Any]] = {"speculate": {"draft": "ngram"}, "rewind": {"to": "4", "replace": "b"}}
DRAWING = sorted(name for name, kind in REQUESTS.items() if any(f.name == "sampling" for f in fields(kind)))


def asked_of(verb: str, **said: Any) -> Any:
    return REQUESTS[verb]("/a", **NEEDED.get(verb, {}), **said)  # type: ignore[call-arg]


@pytest.mark.parametrize("verb", DRAWING)
def test_what_is_drawn_is_said_in_single_keywords_or_in_a_sampling(verb: str) -> None:
    assert set(SAID) <= set(inspect.signature(getattr(probe, verb)).parameters)
    asked, in_one = asked_of(verb, **SAID), asked_of(verb, sampling=Sampling(**SAID))
    assert asked == in_one and asked.sampling == Sampling(**SAID)
    stored = json.loads(json.dumps(asked.arguments()))
    assert stored["sampling"]["top_k"] == 9 and not {"temperature", "top_p", "stop"} & stored.keys()
    assert type(asked).from_arguments(stored) == asked
    assert replace(asked, sampling=Sampling(1.0)).sampling == Sampling(1.0)
    assert asked_of(verb, temperature=1.0, stop="end").sampling == Sampling(1.0, stop=("end",))
    for name, value in SAID.items():
        with pytest.raises(BadOption, match=f"{name} is given beside a sampling"):
            asked_of(verb, sampling=Sampling(1.0), **{name: value})
    with pytest.raises(BadOption, match="seed is given beside"):
        asked_of(verb, sampling=Sampling(1.0, seed=4), seed=0)
    with pytest.raises(BadOption, match="top_p is 3"):
        asked_of(verb, temperature=1.0, top_p=3.0)


def test_nothing_said_is_greedy_or_as_the_run_was() -> None:
    for verb in ("trace", "speculate"):
        assert asked_of(verb).sampling == Sampling() and asked_of(verb, seed=4).sampling == Sampling(seed=4)
        with pytest.raises(BadOption, match="filters do nothing"):
            asked_of(verb, top_p=0.5)
    for verb in ("rewind", "importance"):
        asked = asked_of(verb, seed=4)
        assert (asked_of(verb).sampling, asked.sampling, asked.seed, asked.arguments()["seed"]) == (None, None, 4, 4)
        assert asked_of(verb, temperature=0.0).sampling == Sampling()
        for said in ({"top_p": 0.5}, {"stop": "x"}, {"repetition_penalty": 1.1}):
            with pytest.raises(BadOption, match="filters need a temperature"):
                asked_of(verb, **said)
        earlier = {**asked_of(verb, sampling=Sampling(1.0, seed=2)).arguments(), "seed": 5}  # the sampling has a seed
        again = REQUESTS[verb].from_arguments(earlier)
        assert again.sampling == Sampling(1.0, seed=2)  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["rewind", "importance"])
def test_keywords_draw_what_a_sampling_draws(verb: str) -> None:
    lm = probe.load("tiny:llama")
    source = probe.trace(lm, "Count: one.", generate=20, temperature=1.0, seed=2)
    same_rows(probe.trace(lm, "Count: one.", generate=20, sampling=Sampling(1.0, seed=2)), source)
    more = {"to": "-8", "edit": "mlp_out@1=noise:0.5"} if verb == "rewind" else {}
    asked: dict[str, Any] = {"samples": 3, "max_new": 5, "split": "token", "lm": lm, **more}
    one = getattr(probe, verb)(source, temperature=0.8, top_k=5, seed=4, **asked)
    same_rows(getattr(probe, verb)(source, sampling=Sampling(0.8, top_k=5, seed=4), **asked), one)


def test_plain_values() -> None:
    assert plain({"a": (Path("x"), float("nan"), 1.5, None, True)}) == {"a": ["x", None, 1.5, None, True]}


def rows(run: probe.Run, table: str) -> pd.DataFrame:
    """By their keys, without the run's own name."""
    keys = [key for key in TABLES[table].keys if key != "run_id"]
    return run.table(table).drop(columns="run_id").sort_values(keys, ignore_index=True)


@pytest.mark.slow
def test_a_replayed_trace_has_the_same_tables(tmp_path: Path) -> None:
    lm = probe.load("tiny:llama")
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "hello there"}\n{"prompt": ""}\n{"prompt": "one two"}\n')
    asked: dict[str, Any] = {
        "generate": 5, "sampling": Sampling(1.0, seed=4), "capture": "resid_post@all", "attention": "full", "lens": True,
    }  # fmt: skip
    for prompts in ("hello", path, ["hello", [{"role": "user", "content": "x"}]][:1] * 101):
        first = probe.trace(lm, prompts, **asked, out=tmp_path / f"first-{type(prompts).__name__}")
        again = replay(lm, first)
        assert again.tables == first.tables
        for table in first.tables:
            pd.testing.assert_frame_equal(rows(again, table), rows(first, table))


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["rewind", "importance"])
def test_what_goes_back_into_a_run_is_replayed(verb: str, tmp_path: Path) -> None:
    lm = probe.load("tiny:llama")
    source = probe.trace(lm, "Count: one.", generate=20, sampling=Sampling(1.0, seed=2), out=tmp_path / "source")
    asked: dict[str, Any] = {"samples": 3, "max_new": 5, "seed": 4, "split": "token", "answer": "last-number"}
    if verb == "rewind":
        asked |= {"to": "-8", "replace": " two", "edit": "mlp_out@1=zero", "merge_answers": True}
    else:
        asked |= {
            "method": "resampling,early-answer,suppression",
            "candidates": ("1", "2"),
            "expect": "1",
            "suppress": "pattern@1",
        }
    first = getattr(probe, verb)(source, lm=lm, **asked, out=tmp_path / "first")
    again = replay(lm, probe.open_run(tmp_path / "first"))
    assert again.tables == first.tables and again.summary == first.summary
    for table in first.tables:
        pd.testing.assert_frame_equal(rows(again, table), rows(first, table))


def test_a_run_that_no_verb_made_is_not_replayed() -> None:
    from probe.store import create

    with create(None, command="other", arguments={}) as writer:
        run = writer.finish(summary={})
    with pytest.raises(RunError, match="other"):
        request_of(run)


@dataclass(frozen=True)
class Count(Request):
    """A verb of its own, for the tests below."""

    command: ClassVar[str] = "count"
    runner: ClassVar[str] = "tests.test_requests:run_count"
    word: Annotated[str, Option("What is counted.", argument=True)]
    times: Annotated[int, Option("How often.", ("--times", "-t"), minimum=1)] = 2
    tags: Annotated[tuple[str, ...], Option("Words.", ("--tag",), shell=list[str] | None)] = ()


def run_count(request: Count) -> str:
    """Says a word."""
    return " ".join([request.word] * request.times + list(request.tags))


def test_a_declared_field_is_a_keyword_an_option_and_a_line_of_help() -> None:
    count = public(run_count, Count)
    assert count("a", times=3) == "a a a" and count.__name__ == "count" and "times: How often." in str(count.__doc__)

    @with_options
    def command(begun: Begun[Count]) -> None:
        """Counts."""
        typer.echo(run_count(begun.build()))

    app = typer.Typer(rich_markup_mode=None)
    app.command()(command)
    assert CliRunner().invoke(app, ["b", "-t", "3", "--tag", "x", "--tag", "y"]).stdout == "b b b x y\n"
    assert CliRunner().invoke(app, ["b"]).stdout == "b b\n"
    assert CliRunner().invoke(app, ["b", "-t", "0"]).exit_code == 2
    assert "How often." in CliRunner().invoke(app, ["--help"]).stdout


def same_rows(again: probe.Run, first: probe.Run) -> None:
    assert again.command == first.command and again.tables == first.tables
    for table in first.tables:
        pd.testing.assert_frame_equal(rows(again, table), rows(first, table))


@pytest.mark.parametrize("verb", ["lens", "attribute"])
def test_a_replayed_reading_has_the_same_tables(verb: str, tmp_path: Path) -> None:
    lm = probe.load("tiny:llama")
    traced = probe.trace(lm, "one two", generate=4, out=tmp_path / "traced")
    more: dict[str, dict[str, Any]] = {"lens": {"edit": "mlp_out@0=zero", "target": "a"}, "attribute": {"answer": "a"}}
    for i, source in enumerate(("hello there", traced.path, traced)):
        first = getattr(probe, verb)(lm, source, position="1,last", **more[verb], out=tmp_path / f"{verb}-{i}")
        same_rows(replay(lm, first), first)


def test_a_replayed_comparison_has_the_same_tables(tmp_path: Path) -> None:
    lm = probe.load("tiny:llama")
    first = probe.compare(lm, lm, ["ab", "a b c d"], edit="z@1=zero", out=tmp_path / "itself")
    same_rows(replay(lm, first), first)
    a, _ = (probe.trace(lm, "one two", edit=edit, out=tmp_path / name) for name, edit in (("a", ()), ("b", "z@0=zero")))
    runs = probe.compare(a, tmp_path / "b", out=tmp_path / "runs")
    same_rows(replay(lm, runs), runs)
    other = probe.compare(lm, probe.load("tiny:qwen2"), "a b c", out=tmp_path / "two")
    with pytest.raises(RunError, match="two models"):
        replay(lm, other)


def test_replayed_steering_has_the_same_tables(tmp_path: Path) -> None:
    lm, file = probe.load("tiny:llama"), tmp_path / "v.safetensors"
    made = probe.make_direction(lm, ["good", "fine"], ["bad", "poor"], at="resid_post@1", to=file, out=tmp_path / "made")
    same_rows(replay(lm, made), made)
    asked: dict[str, Any] = {"strengths": [-1.5, 2], "controls": 2, "seed": 3}
    for what in ({"answer": "a", "against": "b"}, {"matching": "e", "generate": 3}):
        first = probe.steer(lm, file, ["so", "very good"], **what, **asked, out=tmp_path / next(iter(what)))
        same_rows(replay(lm, first), first)


def test_a_replayed_speculation_has_the_same_tables() -> None:
    lm = probe.load("tiny:llama")
    first = probe.speculate(lm, ["ab", "c"], draft="layers:2", block=3, generate=8, sampling=Sampling(1.0, seed=2))
    again = replay(lm, first)
    for table in ("proposals", "tokens", "steps"):
        pd.testing.assert_frame_equal(rows(again, table), rows(first, table))


@pytest.mark.parametrize(
    ("verb", "asked"),
    [
        ("patch", {"clean": "abcab", "corrupt": "bbcab", "answer": "a", "against": "b", "sites": ["z", "resid_mid@1"]}),
        ("patch", {"pairs": [("abcab", "bbcab", "a", "b"), ("cabca", "bacbc", "c", "b")], "source": "resample", "seed": 3}),
        ("patch", {"pairs": [{"clean": "abcab", "corrupt": "bbcab", "answer": "a"}], "metric": "kl", "path": "z@0->q@1"}),
        ("patch", {"clean": "abcab", "corrupt": "bbcab", "answer": "a", "against": "b", "method": "attribution", "sample": 3}),
    ],
)
def test_a_replayed_sweep_has_the_same_tables(verb: str, asked: dict[str, Any]) -> None:
    lm = probe.load("tiny:llama")
    first = getattr(probe, verb)(lm, **asked)
    again = replay(lm, first)
    assert again.tables == first.tables and again.manifest["arguments"] == first.manifest["arguments"]
    for table in first.tables:
        pd.testing.assert_frame_equal(rows(again, table), rows(first, table))
