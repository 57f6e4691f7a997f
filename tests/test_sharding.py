"""Several processes make one run: its tables are those of one process, whatever dies on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import typer
from probe.cli.terminal import SOME_FAILED, end_with_failed

import probe
from probe import store, tables
from probe.errors import BadOption, EngineError, OutOfRange, StorageFull
from probe.requests import Trace, workers
from probe.sharding import dispatching
from probe.sharding.jobs import Job, ShardResult, failure, job_of
from probe.sharding.pools import Heard
from probe.sharding.shards import LEAST, LONG, TRIES, Shards
from probe.store.manifest import read_records
from probe.tracing import recording
from tests.in_process import InProcess

Fault = Callable[[int, int, int], BaseException | None]
"""(worker, shard, how often it was tried before) -> what goes wrong; a SystemExit is a death."""


class Faulty(InProcess):
    """Workers to whom things happen; `reverse`: who was asked last answers first."""

    fault: Fault = staticmethod(lambda worker, shard, tries: None)
    reverse = False

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.tries: Counter[int] = Counter()
        self.heard: list[ShardResult] = []

    def wait(self, seconds: float) -> list[Heard]:
        if self.reverse:
            self.asked.reverse()
        return super().wait(seconds)

    def work(self, worker: int, shard: int | None) -> Any:
        if shard is None:
            return super().work(worker, shard)
        wrong = self.fault(worker, shard, self.tries[shard])
        self.tries[shard] += 1
        if isinstance(wrong, SystemExit):
            return None
        answer = super().work(worker, shard) if wrong is None else failure(shard, wrong)
        self.heard.append(answer)
        return answer


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[Faulty]:
    """The pools that are opened, in this process and without Ray."""
    opened: list[Faulty] = []

    def open_pool(job: Job) -> Faulty:
        opened.append(Faulty(job))
        return opened[-1]

    monkeypatch.setattr(dispatching, "open_pool", open_pool)
    monkeypatch.setattr(workers, "installed", lambda: True)
    return opened


@pytest.fixture(scope="module")
def lm() -> Any:
    return probe.load("tiny:llama")


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty problems of different lengths, one of them empty of a prompt."""
    file = tmp_path_factory.mktemp("problems") / "problems.jsonl"
    rows: list[dict[str, Any]] = [{"prompt": f"{i} and {i} is {'very ' * (i % 5)}", "expect": str(2 * i)} for i in range(39)]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": 3}]))
    return file


PAIRS = [(f"{i} and one", f"{i} but one", "a", "b") for i in range(7)]
CUT = "regex:.{5}"
SHARED = ("tracing", "reading tokens", "problems", "patching")  # what workers are heard of


def traced(lm: Any, file: Path) -> Path:
    """A run with generations, of which problems are gone back into."""
    path = file.parent / "traced"
    if not path.exists():
        texts = [f"{i} and {'so ' * (i % 4)}on." for i in range(11)]
        probe.trace(lm, texts, generate=14, temperature=1.0, split=CUT, out=path)
    return path


VERBS: dict[str, Callable[..., store.Run]] = {
    "trace": lambda lm, file, **more: probe.trace(
        lm, file, capture="resid_post@1", batch_tokens=200, generate=3, temperature=1.0, seed=3, **more
    ),
    "top": lambda lm, file, **more: probe.top(lm, [file], at=["mlp_post@1.n3", "z@1.0"], top=3, **more),
    "means": lambda lm, file, **more: probe.means(lm, [file], at="z@all", **more),
    "rewind": lambda lm, file, **more: probe.rewind(
        traced(lm, file), lm=lm, to="step1", append_wait=True, samples=2, max_new=5, split=CUT, **more
    ),
    "importance": lambda lm, file, **more: probe.importance(
        traced(lm, file), lm=lm, method="resampling,rescore", samples=2, max_new=4, split=CUT, **more
    ),
    "patch": lambda lm, file, **more: probe.patch(lm, pairs=PAIRS, sites=["resid_pre", "z"], source="resample", **more),
    "neurons": lambda lm, file, **more: probe.patch(lm, pairs=PAIRS[:3], sites=["mlp_post"], by="neuron", top=3, **more),
    "sample": lambda lm, file, **more: probe.sample(lm, file, samples=3, max_new=4, temperature=1.0, **more),
}


def rows(run: store.Run) -> dict[str, list[str]]:
    """The rows of every table, of large ones in the order of their texts; as text: NaN is not NaN."""
    found = {}
    for name in run.tables:
        told = list(map(str, run.table_arrow(name).drop(["run_id"]).to_pylist()))
        found[name] = sorted(told) if tables.TABLES[name].large else told
    return found


@pytest.fixture(scope="module")
def alone(lm: Any, problems: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, store.Run]:
    """The runs that one process makes."""
    folder = tmp_path_factory.mktemp("alone")
    return {name: verb(lm, problems, out=folder / name) for name, verb in VERBS.items()}


def same(run: store.Run, other: store.Run) -> None:
    assert rows(run) == rows(other)
    assert run.summary == other.summary and run.manifest["arguments"] == other.manifest["arguments"]
    assert run.path is not None and store.check(run.path) == [] and not (run.path / "shards").exists()


@pytest.fixture(scope="module", autouse=True)
def small_parts() -> Iterator[None]:
    """A corpus is read in many parts, and problems are drawn a few at a time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("probe.corpora.windows.LEAST", 100)
        patched.setattr("probe.rewinding.rollouts.PROBLEMS", 5)
        yield


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("count", "size", "reverse"), [(1, None, False), (3, 1, True)])
def test_what_workers_make_is_what_one_process_makes(
    lm: Any, pools: list[Faulty], problems: Path, alone: dict[str, store.Run], tmp_path: Path, verb: str, count: int,
    size: int | None, reverse: bool, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(Faulty, "reverse", reverse)
    told: list[tuple[str, int, int]] = []
    run = VERBS[verb](
        lm, problems, out=tmp_path / "r", engine="ray", workers=count, shard_size=size, progress=lambda *how: told.append(how)
    )
    same(run, alone[verb])
    assert run.manifest["warnings"] == alone[verb].manifest["warnings"]
    assert len(pools[0].workers) == 0 and sum(a.only is None for a in pools[0].heard) >= (1 if size is None else 3)
    shared = [(done, total) for what, done, total in told if what in SHARED]
    assert [done for done, _ in shared] == sorted(done for done, _ in shared)
    assert shared[-1][0] == shared[-1][1] - (verb == "sample"), "the problem that cannot be run is not shared"


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("patch", "neurons")])
def test_what_workers_found_is_read_and_not_computed_again(
    lm: Any, pools: list[Faulty], problems: Path, tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model of the process that makes the run is never run. Of a file it encodes each text once, when it looks through
    them, and once more those of which something is shown; its workers together encode each once."""
    traced(lm, problems)
    forwards, encoded = list[int](), Counter[int]()
    encode = type(lm).encode

    def counted(model: Any, text: str) -> Any:
        encoded[id(model)] += 1
        return encode(model, text)

    monkeypatch.setattr(type(lm), "encode", counted)
    hook = lm.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    try:
        run = VERBS[verb](lm, problems, out=tmp_path / "r", engine="ray", workers=2, shard_size=1)
    finally:
        hook.remove()
    assert not forwards
    if verb in ("rewind", "importance"):
        return
    shown = {"top": lambda: len({row["prompt_id"] for row in run.table_arrow("top").to_pylist()}), "means": lambda: 1}
    here, texts = encoded.pop(id(lm)), 39
    assert here == texts + shown.get(verb, int)() and sum(encoded.values()) == texts
    assert len(encoded) == 2 and max(encoded.values()) < texts, "two workers have done it"


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("goes_on", ["ray", "local"])
def test_an_interrupted_run_is_completed_by_other_workers_or_by_one_process(
    lm: Any, pools: list[Faulty], problems: Path, alone: dict[str, store.Run], tmp_path: Path, verb: str, goes_on: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def stop(what: str, done: int, total: int) -> None:
        seen.extend([done] if what in SHARED else [])
        if len(seen) == 2:
            raise KeyboardInterrupt

    seen: list[int] = []
    monkeypatch.setattr(Faulty, "reverse", True)
    with pytest.raises(KeyboardInterrupt):
        VERBS[verb](lm, problems, out=tmp_path / "r", engine="ray", workers=3, shard_size=1, progress=stop)
    finished = sum(a.only is None and not a.failed for a in pools[0].heard)
    units = [unit for record in read_records(tmp_path / "r.partial") for unit in record["units"]]
    assert sum(unit.startswith("shard-") for unit in units) == finished >= 2, "all that was finished is part of the run"
    more: dict[str, Any] = {"engine": "ray", "workers": 2, "shard_size": 2} if goes_on == "ray" else {}
    same(VERBS[verb](lm, problems, out=tmp_path / "r", resume=True, **more), alone[verb])


def test_a_run_that_one_process_began_is_completed_by_workers(
    lm: Any, pools: list[Faulty], problems: Path, alone: dict[str, store.Run], tmp_path: Path
) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if done > 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        VERBS["trace"](lm, problems, out=tmp_path / "r", progress=stop)
    same(VERBS["trace"](lm, problems, out=tmp_path / "r", resume=True, engine="ray", workers=2, shard_size=2), alone["trace"])


@pytest.mark.parametrize("verb", VERBS)
def test_workers_that_die_cost_a_shard(
    lm: Any, pools: list[Faulty], problems: Path, alone: dict[str, store.Run], tmp_path: Path, verb: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Every shard's first worker dies, every second one meets something."""
    wrong = [SystemExit(), RuntimeError("out of memory")]
    monkeypatch.setattr(Faulty, "fault", staticmethod(lambda worker, shard, tries: wrong[tries] if tries < 2 else None))
    run = VERBS[verb](lm, problems, out=tmp_path / "r", engine="ray", workers=2, shard_size=1)
    same(run, alone[verb])
    assert max(pools[0].tries.values()) == TRIES


def test_a_shard_that_always_fails_becomes_rows_of_errors(
    lm: Any, pools: list[Faulty], problems: Path, alone: dict[str, store.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = staticmethod(lambda worker, shard, tries: RuntimeError("poison") if shard == 1 else None)
    monkeypatch.setattr(Faulty, "fault", poison)
    for verb in VERBS:
        run = VERBS[verb](lm, problems, out=tmp_path / verb, engine="ray", workers=2, shard_size=1)
        assert pools[-1].tries[1] == TRIES
        told = [row["error"] for row in run.table_arrow("prompts").to_pylist() if "poison" in (row["error"] or "")]
        assert told and all(text.startswith(f"a worker failed {TRIES} times here: RuntimeError: poison") for text in told)
        assert any("shard 1 was given up" in text for text in run.manifest["warnings"])
        assert store.check(tmp_path / verb) == []
        with pytest.raises(typer.Exit) as ended:
            end_with_failed(run, "of them failed", of="pairs" if run.manifest["command"] == "patch" else "prompts")
        assert ended.value.exit_code == SOME_FAILED
    prompts, own = (
        {row["prompt_id"]: row for row in one.table_arrow("prompts").drop(["run_id"]).to_pylist()}
        for one in (store.open_run(tmp_path / "trace"), alone["trace"])
    )
    assert prompts.keys() == own.keys()
    assert all(own[i] == row for i, row in prompts.items() if "poison" not in (row["error"] or ""))


def test_of_a_shard_that_is_given_up_what_the_run_has_is_kept(
    lm: Any, pools: list[Faulty], problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process recorded half of a batch that did not fit into memory, and was killed; only the rest is an error."""
    whole, done = recording.read_sequences, []

    def read_one_half(lm: Any, batch: list[Any], *rest: Any) -> None:
        if len(batch) > 3:
            raise torch.OutOfMemoryError
        if done:
            raise KeyboardInterrupt
        done.extend(one.prompt.prompt_id for one in batch)
        whole(lm, batch, *rest)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(recording, "read_sequences", read_one_half)
        VERBS["trace"](lm, problems, out=tmp_path / "r")
    monkeypatch.setattr(
        Faulty, "fault", staticmethod(lambda worker, shard, tries: RuntimeError("poison") if shard == 0 else None)
    )
    run = VERBS["trace"](lm, problems, out=tmp_path / "r", resume=True, engine="ray", workers=1, shard_size=1)
    prompts = run.table_arrow("prompts").to_pylist()
    assert len(prompts) == 40 and len({row["prompt_id"] for row in prompts}) == 40
    lost = {row["prompt_id"] for row in prompts if "poison" in (row["error"] or "")}
    assert done and lost and not lost & set(done)


@pytest.mark.parametrize("verb", ["trace", "top"])
def test_a_worker_that_cannot_write_is_asked_no_more(
    lm: Any, pools: list[Faulty], problems: Path, alone: dict[str, store.Run], tmp_path: Path, verb: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The disk of one is full from its second shard on; when all are, the run ends, and is gone on with when there is room."""
    full = StorageFull("the disk is full: could not write 'r'")
    monkeypatch.setattr(Faulty, "fault", staticmethod(lambda worker, shard, tries: full if worker == 0 and shard else None))
    run = VERBS[verb](lm, problems, out=tmp_path / "r", engine="ray", workers=2, shard_size=1)
    assert rows(run) == rows(alone[verb]) and run.summary == alone[verb].summary
    told = [text for text in run.manifest["warnings"] if text not in alone[verb].manifest["warnings"]]
    assert told == [f"1 of the workers could not write where they were: {full.message}"]
    monkeypatch.setattr(Faulty, "fault", staticmethod(lambda worker, shard, tries: full if shard > 1 else None))
    with pytest.raises(StorageFull, match="the disk is full"):
        VERBS[verb](lm, problems, out=tmp_path / "full", engine="ray", workers=2, shard_size=1)
    monkeypatch.setattr(Faulty, "fault", staticmethod(lambda worker, shard, tries: None))
    same(VERBS[verb](lm, problems, out=tmp_path / "full", engine="ray", resume=True), alone[verb])


def test_a_worker_may_have_another_clock(
    lm: Any, pools: list[Faulty], problems: Path, alone: dict[str, store.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One lives in 1970 and one in 2100: nothing in the run is from there."""
    work, now = Faulty.work, time.time

    def elsewhen(self: Faulty, worker: int, shard: int | None) -> Any:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(time, "time", lambda: 4.1e9 if worker else 1e6)
            patched.setattr(
                "probe.store.manifest.now", lambda: "2099-12-03T00:00:00+00:00" if worker else "1970-01-12T00:00:00+00:00"
            )
            return work(self, worker, shard)

    monkeypatch.setattr(Faulty, "work", elsewhen)
    began = now()
    for verb in ("trace", "sample", "top"):
        run = VERBS[verb](lm, problems, out=tmp_path / verb, engine="ray", workers=2, shard_size=1)
        same(run, alone[verb])
        stamps = [datetime.fromisoformat(run.manifest[name]).timestamp() for name in ("started", "ended")]
        assert int(began) <= stamps[0] <= stamps[1] <= now() + 1 and 0 <= run.manifest["wall_seconds"] <= now() - began + 1


def test_what_is_wrong_with_all_shards_or_with_the_request_ends_the_run(
    lm: Any, pools: list[Faulty], problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Faulty, "fault", staticmethod(lambda worker, shard, tries: RuntimeError("no memory")))
    with pytest.raises(EngineError, match="every shard fails; the first: RuntimeError: no memory"):
        VERBS["trace"](lm, problems, out=tmp_path / "a", engine="ray", workers=2, shard_size=1)
    full = StorageFull("the disk is full", hint="free some space")
    monkeypatch.setattr(Faulty, "fault", staticmethod(lambda worker, shard, tries: full if shard == 1 else None))
    with pytest.raises(StorageFull, match="the disk is full"):
        VERBS["trace"](lm, problems, out=tmp_path / "b", engine="ray", workers=2, shard_size=1)
    assert pools[-1].tries[1] == 2, "once with each worker"
    monkeypatch.setattr(Faulty, "fault", staticmethod(lambda worker, shard, tries: None))
    with pytest.raises(OutOfRange):
        probe.trace(lm, problems, capture="resid_post@1:400", out=tmp_path / "c", engine="ray")
    assert sum(pools[-1].tries.values()) == 1, "it is not tried again"


def test_workers_that_die_before_they_have_the_model_end_the_run(
    lm: Any, pools: list[Faulty], problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Faulty, "work", lambda self, worker, shard: None)
    with pytest.raises(EngineError, match="die before they have the model"):
        VERBS["trace"](lm, problems, out=tmp_path / "a", engine="ray", workers=2)


def test_those_that_have_the_model_go_on_where_others_never_come_to_it(
    lm: Any, pools: list[Faulty], problems: Path, alone: dict[str, store.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Faulty.work
    monkeypatch.setattr(Faulty, "work", lambda self, worker, shard: work(self, worker, shard) if worker == 1 else None)
    same(VERBS["trace"](lm, problems, out=tmp_path / "a", engine="ray", workers=3, shard_size=1), alone["trace"])


def test_a_worker_of_which_nothing_is_heard_is_replaced(
    lm: Any, pools: list[Faulty], problems: Path, alone: dict[str, store.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first worker of the third shard never answers, and there is no other."""

    def wait(self: Faulty, seconds: float) -> list[Heard]:
        if self.asked and self.asked[0][1] == 2 and not self.tries[2]:
            self.tries[2] += 1
            self.asked.clear()
        return InProcess.wait(self, seconds)

    monkeypatch.setattr(Faulty, "wait", wait)
    monkeypatch.setattr("probe.sharding.shards.LONG", 0.0)
    same(VERBS["trace"](lm, problems, out=tmp_path / "a", engine="ray", workers=1, shard_size=1), alone["trace"])
    assert pools[0].tries[2] == 2


def test_what_cannot_be_shared_is_refused(
    lm: Any, pools: list[Faulty], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadOption, match="in memory"):
        probe.trace(lm, ["one", "two"], engine="ray")
    with pytest.raises(BadOption, match="unknown engine 'rai'"):
        probe.trace(lm, ["one", "two"], engine="rai")
    with pytest.raises(BadOption, match="--workers is of --engine ray"):
        probe.trace(lm, ["one", "two"], workers=2)
    with pytest.raises(BadOption, match="workers is 0"):
        probe.trace(lm, ["one", "two"], engine="ray", workers=0)
    own = probe.LanguageModel(lm.model, lm.tokenizer, name="mine")
    with pytest.raises(BadOption, match="made in memory"):
        probe.trace(own, ["one", "two"], engine="ray", out=tmp_path / "r")
    monkeypatch.setattr(workers, "installed", lambda: False)
    with pytest.raises(BadOption, match="not installed") as refused:
        probe.sample(lm, "one", engine="ray", out=tmp_path / "r")
    assert refused.value.hint == 'pip install "mechprobe[ray]"'


def test_shards_are_given_out_in_order_and_again_where_they_failed() -> None:
    shards = Shards(known=lambda number: number == 1)
    assert [shards.give(worker, 0.0) for worker in (0, 1)] == [0, 2]
    shards.fail(0, 0, "dead")
    assert shards.give(2, 1.0) == 0 and shards.finish(0, 2, 2.0)
    shards.end(3, 3, 5)
    assert not shards.done and shards.give(2, 2.0 + LEAST) == 2, "another is too slow with it"
    assert shards.finish(2, 2, 9.0) and not shards.finish(2, 1, 10.0) and shards.done
    alone = Shards()
    assert alone.give(0, 0.0) == 0 and alone.hung(1e9) == [], "nobody knows how long a shard takes"
    assert alone.finish(0, 0, 1.0) and alone.give(0, 1.0) == 1
    assert alone.hung(1.0 + LONG) == [] and alone.hung(1.1 + LONG) == [(0, 1)]
    alone.free(1, 0)
    assert alone.give(1, 100.0) == 1 and alone.hung(100.1 + LONG) == [] and alone.hung(100.1 + 2 * LONG) == [(1, 1)]
    lost = Shards()
    for _ in range(TRIES):
        assert lost.give(0, 0.0) == 0
        lost.fail(0, 0, "why")
    assert lost.lost == {0: "why"} and lost.give(0, 0.0) == 1


try:
    import ray
except ImportError:
    ray = None  # type: ignore[assignment]
needs_ray = pytest.mark.skipif(ray is None, reason='Ray is not installed: pip install "mechprobe[ray]"')

DRIVER = """
import sys, probe
from pathlib import Path
file, out, resume = sys.argv[1:]
lm = probe.load("tiny:llama")
print("begun", flush=True)
probe.trace(
    lm, Path(file), capture="resid_post@1", batch_tokens=200, generate=3, temperature=1.0, seed=3, out=out, engine="ray",
    workers=2, shard_size=1, resume=bool(resume), progress=lambda what, done, total: print(what, done, flush=True),
)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray of this machine that this process has joined: so it is started once."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", num_cpus=2 * torch.get_num_threads(), include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()


@needs_ray
@pytest.mark.slow
def test_ray_and_a_worker_that_is_killed(
    lm: Any, cluster: Any, problems: Path, alone: dict[str, store.Run], tmp_path: Path
) -> None:
    """A worker is killed when the first shard is done; whatever the others were doing, the tables are those of one process."""
    from probe.sharding.ray_pool import RayPool

    pids: list[int] = []

    def kill(what: str, done: int, total: int) -> None:
        if not pids:
            pids.extend(one.pid for one in psutil.process_iter() if one.name().startswith("ray::Worker"))
            os.kill(pids[0], signal.SIGKILL)

    same(VERBS["trace"](lm, problems, out=tmp_path / "r", engine="ray", workers=2, shard_size=1, progress=kill), alone["trace"])
    assert pids and not psutil.pid_exists(pids[0])
    assert RayPool(job_of(Trace("a", engine="ray"), lm, tmp_path)).room == 2


@needs_ray
@pytest.mark.slow
def test_a_process_that_is_killed_with_its_workers_is_gone_on_with(
    problems: Path, alone: dict[str, store.Run], tmp_path: Path
) -> None:
    words = [sys.executable, "-c", DRIVER, str(problems), str(tmp_path / "r")]
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}  # what Ray has set in this process
    started = subprocess.Popen([*words, ""], stdout=subprocess.PIPE, text=True, start_new_session=True, env=own)
    assert started.stdout is not None
    for line in started.stdout:
        if line.startswith("tracing"):
            break
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    units = [unit for record in read_records(tmp_path / "r.partial") for unit in record["units"]]
    assert any(unit.startswith("shard-") for unit in units)
    done = subprocess.run([*words, "resume"], capture_output=True, text=True, env=own)
    assert done.returncode == 0 and not done.stderr, done.stderr
    same(store.open_run(tmp_path / "r"), alone["trace"])
