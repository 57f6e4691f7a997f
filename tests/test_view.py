"""`probe view`: which runs stand on a page, differences of two, pages of runs that grow, and every mistake in a line."""

from __future__ import annotations

import html
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import probe
from probe import store
from probe.errors import BadOption, ProbeError, RunError
from probe.reporting import viewing
from probe.reporting.differences import with_differences
from probe.reporting.views import Grid, Measure, SequenceView, TokenStrip
from probe.requests import ViewRuns
from probe.requests.view import parse_heads
from probe.store.growing import open_growing
from tests import panels
from tests.test_cli_trace import failed


def page_of(path: Path) -> dict[str, Any]:
    """What a page holds, beside its tables."""
    (found,) = re.findall(r'<script type="application/json" id="page">(.*?)</script>', path.read_text("utf-8"), re.DOTALL)
    return json.loads(found)


@pytest.fixture(scope="module")
def lm():
    return probe.load("tiny:llama")


@pytest.fixture(scope="module")
def runs(lm, tmp_path_factory) -> Path:
    """A folder of a trace of two prompts, one with other weights of the stream on the same text, and a rewind of the first."""
    folder = tmp_path_factory.mktemp("runs")
    probe.trace(lm, ["ab ab. cd cd.", "xy"], generate=12, attention="full", out=folder / "trace")
    probe.trace(lm, "ab ab. cd cd.", edit="resid_post@1=noise:2.0", out=folder / "edited")
    probe.trace(lm, "ab ab. cd cd.", out=folder / "plain")
    probe.rewind(folder / "trace", lm=lm, to="step0", prompt_id=0, samples=2, max_new=4, split="token", out=folder / "rewind")
    return folder


def test_the_page_lies_beside_the_run_and_the_run_stays_as_it_was(runs: Path) -> None:
    made = probe.view(runs / "trace")
    assert made.page == runs.resolve() / "trace.html" and made.files == ()
    page = page_of(made.page)
    assert [one["id"] for one in page["runs"]] == [probe.open_run(runs / "trace").run_id]
    assert [one["prompt"] for one in page["sequences"]] == [0, 1]
    assert (page["beside"], page["watching"]) == ([0], False)
    assert store.check(runs / "trace") == []
    made.page.unlink()


def test_a_rewind_shows_its_parent_wherever_the_folder_lies(runs: Path, tmp_path: Path) -> None:
    """By the path in the manifest; by the id of a run beside it when the folder was moved; not a run that has the place."""
    import shutil

    there = page_of(probe.view(runs / "rewind", out=tmp_path / "a.html").page)
    assert [one["command"] for one in there["runs"]] == ["rewind", "trace"]
    assert [one["parent"] for one in there["runs"]] == [1, None]
    assert {(one["run"], one["prompt"]) for one in there["sequences"]} == {(0, 0), (1, 0)}
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copytree(runs / "rewind", moved / "again")
    shutil.copytree(runs / "trace", moved / "under-another-name")
    about = json.loads((moved / "again" / "manifest.json").read_text())
    other = probe.open_run(runs / "plain")
    rewound = store.Run(
        store.open_run(moved / "again")._source, {**about, "parent": {**about["parent"], "path": str(other.path)}}
    )
    assert [one.path for one in viewing.ancestors(rewound)] == [moved / "under-another-name"]
    shutil.rmtree(moved / "under-another-name")
    assert viewing.ancestors(rewound) == []


def test_two_runs_stand_side_by_side_with_their_differences(runs: Path, tmp_path: Path) -> None:
    made = probe.view(runs / "plain", runs / "edited", out=tmp_path / "two.html")
    page = page_of(made.page)
    assert page["beside"] == [0, 1] and made.left_out == ()
    strips = [next(p for p in one["panels"] if p["kind"] == "tokens") for one in page["sequences"]]
    columns = [[measure["column"] for measure in strip["measures"]] for strip in strips]
    assert "logprob_b_minus_a" not in columns[0] and "logprob_b_minus_a" in columns[1]
    assert "logprob_b_minus_a" in strips[1]["derived"]


def test_the_differences_are_those_of_pandas(runs: Path) -> None:
    a, b = (probe.open_run(runs / name) for name in ("plain", "edited"))
    (compared,) = with_differences(*(viewing.sequence_views(run) for run in (a, b)))
    strip = compared.panels[0]
    assert isinstance(strip, TokenStrip)
    joined = b.tokens.merge(a.tokens, on=["prompt_id", "branch", "pos"], suffixes=("_b", "_a")).sort_values("pos")
    moved = 0
    for name in ("logprob", "entropy", "rank"):
        wanted = joined[f"{name}_b"].astype(float) - joined[f"{name}_a"].astype(float)
        np.testing.assert_array_equal(strip.frame[f"{name}_b_minus_a"].astype(float), wanted)
        moved += int(wanted.abs().max() > 0)
    assert moved, "the edit moves something"
    heads = next((panel for panel in compared.panels if isinstance(panel, Grid)), None)
    if heads is not None:
        assert any(one.column.endswith("_b_minus_a") for one in heads.measures)


def views(*found: Any) -> list[SequenceView]:
    return [SequenceView(0, "", found)]


def test_grids_are_compared_by_their_cells() -> None:
    """Rows in another order, and a cell that only one of the two has."""
    ids = pd.DataFrame({"pos": [0], "token": ["a"], "token_id": [1], "logprob": [0.0]})
    strip = TokenStrip("tokens", "", "tokens", ids, measures=(panels.LOGPROB,))
    frame = pd.DataFrame({"layer": [0, 0, 1, 1], "head": [0, 1, 0, 1], "sink": [0.1, 0.2, 0.3, 0.4]})

    def grid(rows: pd.DataFrame) -> Grid:
        axis = panels.Axis("head", "head")
        return Grid("heads", "", "heads", rows, rows=panels.LAYER, columns=axis, measures=(Measure("sink", "sink"),))

    other = frame.assign(sink=[1.0, 2.0, 3.0, 4.0]).iloc[[3, 0, 1]]
    (compared,) = with_differences(views(strip, grid(frame)), views(strip, grid(other)))
    found = compared.panels[1].frame.set_index(["layer", "head"])["sink_b_minus_a"]
    assert found.to_dict() == pytest.approx({(1, 1): 3.6, (0, 0): 0.9, (0, 1): 1.8})
    (back,) = with_differences(views(strip, grid(other)), views(strip, grid(frame)))
    assert np.isnan(back.panels[1].frame.set_index(["layer", "head"]).loc[(1, 0), "sink_b_minus_a"])
    (apart,) = with_differences(views(strip, grid(frame)), views(strip, grid(frame.assign(head=frame["head"] + 1))))
    assert apart.panels[1].derived == ()


def test_runs_of_other_tokens_have_no_differences_and_that_is_said(runs: Path, lm, tmp_path: Path) -> None:
    probe.trace(lm, "something else", out=tmp_path / "other")
    made = probe.view(runs / "plain", tmp_path / "other", out=tmp_path / "two.html")
    assert made.left_out == ("differences of the two runs: no prompt of theirs has the same token ids in both",)
    assert "_b_minus_a" not in json.dumps(page_of(made.page)["sequences"])


def test_prompts_are_chosen(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = probe.view(runs / "trace", prompt_id=1, out=tmp_path / "p.html")
    assert [one["prompt"] for one in page_of(made.page)["sequences"]] == [1]
    monkeypatch.setattr(viewing, "PROMPTS", 1)
    made = probe.view(runs / "trace", out=tmp_path / "p.html")
    assert [one["prompt"] for one in page_of(made.page)["sequences"]] == [0]
    assert made.left_out == ("all but the first 1 of 2 prompts; --prompt 1..1 shows others",)
    assert page_of(made.page)["left_out"] == list(made.left_out)


def test_heads_are_read() -> None:
    assert parse_heads("5.3,7.all, L2H11,5.3") == ((5, 3), (7, None), (2, 11))
    for text in ("5", "5.", "a.b", "5.3;6.1", "", "all"):
        with pytest.raises(BadOption, match="cannot read the heads"):
            parse_heads(text)


def test_every_mistake_is_a_line_and_a_hint(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trace, plain = runs / "trace", runs / "plain"
    Path("notes.html").write_text("my notes")
    Path("folder").mkdir()
    Path("begun.partial").mkdir()
    for run, given, message, hint in (
        ("nowhere", {}, "there is no run 'nowhere'", "probe runs ls"),
        ("folder", {}, "'folder' is not a run", "probe runs ls"),
        ("begun", {}, "unfinished", "--resume"),
        (trace, {"run_b": "nowhere"}, "there is no run 'nowhere'", "probe runs ls"),
        (trace, {"out": "notes.html"}, "'notes.html' is there already, and is no page of probe", "-o"),
        (trace, {"out": "folder"}, "'folder' is a folder", "-o page.html"),
        (trace, {"out": "no/where.html"}, "there is no folder 'no'", "-o"),
        (trace, {"out": trace / "page.html"}, "is inside the run", "elsewhere"),
        (trace, {"png": trace / "png"}, "is inside the run", "elsewhere"),
        (trace, {"prompt_id": 7}, "has no prompt 7", "it has: 0..1"),
        (trace, {"prompt_id": "x"}, "cannot read the prompts 'x'", "0,4..9"),
        (trace, {"heads": "99.0"}, "holds no pattern of head 99.0", "layers 0.."),
        (plain, {"heads": "0.0"}, "holds no attention patterns", "--attention full"),
        (trace, {"heads": "zero"}, "cannot read the heads 'zero'", "5.3,7.all"),
        (trace, {"measure": "rank"}, "--measure is for the files", "page"),
        (trace, {"png": "p", "measure": "rnk"}, "has a measure 'rnk'", "rank"),
        (trace, {"watch": True, "png": "p"}, "--watch draws the page of one run", "whole"),
        (trace, {"max_mb": -1.0}, "max-mb is -1.0", "20"),
    ):
        with pytest.raises(ProbeError) as error:
            probe.view(run, **given)
        assert message in error.value.message and hint in error.value.hint
        assert "\n" not in error.value.message + error.value.hint
    assert Path("notes.html").read_text() == "my notes"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["begun.partial", "folder", "notes.html"]
    assert store.check(trace) == [] and not list(runs.glob("*.html"))


@pytest.mark.slow
def test_mistakes_at_the_command_line(shell, runs: Path) -> None:
    failed(shell("view", "nowhere"), 1, "there is no run 'nowhere'", "probe runs ls")
    failed(shell("view", str(runs / "plain"), "--heads", "0.0"), 1, "holds no attention patterns")
    failed(shell("view", str(runs / "plain"), "--max-mb", "0"), 2, "max-mb")
    failed(shell("view"), 2, "Missing argument 'RUN'")


def test_the_command_says_what_it_wrote(shell, runs: Path, tmp_path: Path) -> None:
    done = shell("view", str(runs / "trace"), "-o", "page.html", "--no-progress")
    assert (done.returncode, done.stdout) == (0, "page: page.html\n")
    again = shell("view", str(runs / "plain"), "-o", "page.html", "--json")
    said = json.loads(again.stdout)
    assert said["command"] == "view" and said["summary"]["page"] == "page.html" and said["summary"]["files"] == []
    assert page_of(tmp_path / "page.html")["runs"][0]["path"].endswith("plain")
    quiet = shell("view", str(runs / "plain"), "-o", "page.html", "-q")
    assert (quiet.stdout, quiet.stderr) == ("page.html\n", "")


@pytest.mark.slow
def test_files_are_written_in_place_of_the_page(shell, runs: Path, tmp_path: Path) -> None:
    """Two prompts in the names; of two runs a- and b-; with -o the page, too."""
    done = shell("view", str(runs / "trace"), "--png", "png", "--svg", "svg", "--heads", "0.0")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "png").iterdir()}
    assert {"prompt0-tokens.png", "prompt1-tokens.png"} <= names
    assert {path.with_suffix(".svg").name for path in (tmp_path / "png").iterdir()} == {
        p.name for p in (tmp_path / "svg").iterdir()
    }
    assert not list(runs.glob("*.html")) and "page:" not in done.stdout
    done = shell("view", str(runs / "plain"), str(runs / "edited"), "--svg", "two", "--measure", "rank", "-o", "p.html")
    assert done.returncode == 0, done.stderr
    assert {"a-tokens-rank.svg", "b-tokens-rank.svg"} <= {path.name for path in (tmp_path / "two").iterdir()}
    assert (tmp_path / "p.html").is_file() and "page: p.html" in done.stdout


def test_without_matplotlib_nothing_is_begun(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BadOption, match="need the matplotlib package") as error:
        probe.view(runs / "plain", png=tmp_path / "png")
    assert "mechprobe[plot]" in error.value.hint and not (tmp_path / "png").exists()


def test_a_browser_is_given_the_page(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    made = probe.view(runs / "plain", out=tmp_path / "a page.html", open=True)
    assert opened == [made.page.resolve().as_uri()] and opened[0].startswith("file:///")
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    with pytest.raises(BadOption, match="no browser") as error:
        probe.view(runs / "plain", out=tmp_path / "b.html", open=True)
    assert (tmp_path / "b.html").is_file() and "b.html" in error.value.hint


def test_a_run_in_memory_needs_a_name_for_its_page(lm, tmp_path: Path) -> None:
    run = probe.trace(lm, "ab", out=None)
    with pytest.raises(BadOption, match="only in memory"):
        probe.view(run)
    assert page_of(probe.view(run, out=tmp_path / "p.html").page)["runs"][0]["path"] is None


def test_a_notebook_shows_the_page_in_a_frame_that_reaches_nothing(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = probe.open_run(runs / "rewind")
    shown = run._repr_html_()
    (tag,) = re.findall(r"<iframe[^>]*>", shown)
    assert 'sandbox="allow-scripts allow-downloads"' in tag and shown.count("<") == 2  # the frame's tag and its end
    (held,) = re.findall(r'srcdoc="([^"]*)"', shown)
    assert html.unescape(held).startswith("<!DOCTYPE html>") and run.run_id in html.unescape(held)
    monkeypatch.setattr(viewing, "NOTEBOOK_MB", 0.001)
    small = run._repr_html_()
    assert "<iframe" not in small and "<table>" in small and "branches" in small


def grow(writer: store.Writer, prompts: range) -> None:
    """A unit a prompt, put on the disk."""
    for i in prompts:
        prompt = {"prompt_id": [i], "text": [f"text {i}"], "rendered": [f"text {i}"], "n_tokens": [2], "error": [""]}
        place = {"prompt_id": [i, i], "branch": [0, 0], "pos": [0, 1], "segment": ["prompt", "prompt"]}
        with writer.unit(f"prompt {i}"):
            writer.write("prompts", prompt)
            writer.write("tokens", {**place, "token_id": [5, 6], "token": ["te", "xt"], "logprob": [None, -1.0]})
    writer.flush()


def begin(path: Path) -> store.Writer:
    return store.create(path, command="trace", arguments={}, resolved={"model": "tiny:llama"})


def wait_for(condition: Any) -> None:
    """Until it holds; a test that waits for ever is ended by its clock."""
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it never happened")


def test_a_growing_run_is_read_as_far_as_it_is_on_the_disk(tmp_path: Path) -> None:
    with begin(tmp_path / "run") as writer:
        grow(writer, range(2))
        run, units = open_growing(tmp_path / "run")
        assert (units, run.prompts["prompt_id"].tolist(), len(run.tokens)) == (2, [0, 1], 4)
        grow(writer, range(2, 3))
        again, units = open_growing(tmp_path / "run.partial")
        assert (units, again.prompts["prompt_id"].tolist()) == (3, [0, 1, 2])
        with pytest.raises(RunError, match="unfinished"):
            probe.view(tmp_path / "run")
        writer.finish(summary={})
    whole, units = open_growing(tmp_path / "run.partial")
    assert units is None and whole.path == tmp_path / "run"
    assert store.check(tmp_path / "run") == []


def test_a_page_is_written_while_the_run_grows_and_once_more_when_it_is_whole(tmp_path: Path, monkeypatch) -> None:
    """Each time with what is there by then; the last page doesn't load itself again."""
    monkeypatch.setattr(viewing, "LOOK", 0.05)
    page, seen = tmp_path / "run.html", []

    def write() -> None:
        with begin(tmp_path / "run") as writer:
            begun.set()
            for i in range(3):
                grow(writer, range(i, i + 1))
                wait_for(lambda i=i: page.is_file() and len(page_of(page)["sequences"]) == i + 1)
                seen.append((page_of(page)["watching"], page_of(page)["refresh"] > 0, page_of(page)["written"]))
            writer.finish(summary={})

    begun = threading.Event()
    thread = threading.Thread(target=write)
    thread.start()
    begun.wait()
    made = probe.view(tmp_path / "run", watch=True)
    thread.join()
    assert made.page == page.resolve()
    assert [one[:2] for one in seen] == [(True, True)] * 3 and all(one[2] for one in seen)
    assert len(page_of(page)["sequences"]) == 3 and page_of(page)["watching"] is False
    assert page_of(page)["refresh"] is None


def test_watching_a_whole_run_writes_its_page(runs: Path, tmp_path: Path) -> None:
    made = probe.view(runs / "plain", watch=True, out=tmp_path / "p.html")
    assert page_of(made.page)["watching"] is False


@pytest.mark.slow
def test_ctrl_c_ends_watching_and_leaves_the_page(tmp_path: Path) -> None:
    """Exit code 130; the page is there, and no longer loads itself."""
    with begin(tmp_path / "run") as writer:
        grow(writer, range(1))
        words = [sys.executable, "-m", "probe", "view", "run", "--watch"]
        started = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        page = tmp_path / "run.html"
        wait_for(page.is_file)
        assert page_of(page)["watching"] is True
        started.send_signal(signal.SIGINT)
        _, said = started.communicate(timeout=60)
        assert started.returncode == 130, said
        assert "interrupted" in said and "Traceback" not in said
        assert page_of(page)["watching"] is False and len(page_of(page)["sequences"]) == 1
        writer.finish(summary={})
    assert store.check(tmp_path / "run") == []


@pytest.mark.slow
def test_watching_what_is_no_run_or_is_removed_is_an_error(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(viewing, "LOOK", 0.05)
    with pytest.raises(RunError, match="there is no run"):
        probe.view(tmp_path / "nothing", watch=True)
    with begin(tmp_path / "run") as writer:
        grow(writer, range(1))
    timer = threading.Timer(1.0, lambda: store.remove(tmp_path / "run.partial"))
    timer.start()
    with pytest.raises(RunError, match="there is no run"):
        probe.view(tmp_path / "run", watch=True)


def test_a_request_that_means_nothing_is_refused_before_anything_is_read() -> None:
    for given in ({"max_mb": 0.0}, {"measure": "rank"}, {"watch": True, "png": "x"}, {"heads": "x"}, {"prompt_id": "y"}):
        with pytest.raises(ProbeError):
            ViewRuns("nowhere", **given)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["trace", "importance", "patch", "steer", "sample", "speculate"])
def test_a_run_of_any_command_is_drawn_before_its_end(verb: str, lm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its tables are on the disk, and nothing of the manifest: what stands in the summary is not there yet."""
    made: dict[str, Any] = {
        "trace": lambda out: probe.trace(lm, ["ab ab.", "xy"], generate=6, attention="topk:2", lens=True, out=out),
        "importance": lambda out: probe.importance(source, lm=lm, method="rescore,suppression", split="token", out=out),
        "patch": lambda out: probe.patch(lm, clean="ab", corrupt="cb", answer="a", against="b", sites=["resid_pre"], out=out),
        "steer": lambda out: probe.steer(lm, vector, "ab", answer="a", against="b", strengths=[1], controls=2, out=out),
        "sample": lambda out: probe.sample(lm, ["1 + 1 ="], samples=2, max_new=4, out=out),
        "speculate": lambda out: probe.speculate(lm, "ab ab ab", draft="ngram", generate=6, out=out),
    }  # fmt: skip
    source, vector = None, tmp_path / "v.safetensors"
    if verb == "importance":
        source = probe.trace(lm, "ab ab.", generate=8, out=tmp_path / "source")
    if verb == "steer":
        probe.make_direction(lm, ["good", "fine"], ["bad", "poor"], at="resid_post@1", to=vector)
    monkeypatch.setattr("probe.store.finishing.finish", lambda *rest: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        made[verb](tmp_path / "run")
    run, units = open_growing(tmp_path / "run", without=viewing.AT_THE_END)
    assert units and run.tables
    views = viewing.sequence_views(run)
    assert views and views[0].panels
    page = viewing.page_html([viewing.PageRun(run, views)], watching=True, refresh=5)
    assert '"watching":true' in page.html
