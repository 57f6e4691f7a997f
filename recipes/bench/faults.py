"""What random kills do to runs that several processes make: they cost time. Workers, and the process that started them, are
killed until so many kills are spent; then the run is gone on with to its end, and compared with what one process makes."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

import probe
from probe.store.manifest import read_records

KILLS, QUICK = 200, 10
STARTERS = 0.15  # of the kills: one costs the start of three processes and of Ray
GAP = (0.2, 5.0)  # seconds between two kills, when there is a worker
DONE = (0, 3)  # exit codes; 3: some rows failed, which those of one process may as well
WAIT = 600  # seconds for a process to start a worker, or to end when nobody kills it any more
COMMON = ("--split", "regex:.{6}", "--temperature", "1", "--seed", "3")
VERBS: dict[str, tuple[str, ...]] = {
    "trace": ("trace", "--file", "problems.jsonl", "--generate", "12", "--batch-tokens", "400", *COMMON),
    "sample": ("sample", "problems.jsonl", "--samples", "4", "--max-new", "12", "--temperature", "1"),
    "rewind": ("rewind", "traced", "--to", "step1", "--append-wait", "--samples", "4", "--max-new", "12", *COMMON[:2]),
    "importance": ("importance", "traced", "--samples", "4", "--max-new", "8", *COMMON[:2]),
    "patch": ("patch", "--file", "pairs.jsonl", "--sites", "resid_pre,z"),
    "top": ("top", "texts.txt", "--at", "mlp_post@1", "--top", "3"),
    "means": ("means", "texts.txt", "--at", "z@all"),
}  # fmt: skip
WORKERS = ("--engine", "ray", "--workers", "2", "--shard-size", "1")


@dataclass
class Toll:
    """What was killed, and what that cost."""

    workers: int = 0
    starters: int = 0
    restarts: int = 0
    said: Counter[str] = field(default_factory=Counter)  # by processes that gave up by themselves

    @property
    def kills(self) -> int:
        return self.workers + self.starters


def main(model: str, *, repeat: int, quick: bool, only: str | None = None) -> None:
    """Print for each command the kills, shards, restarts and seconds, and how many rows are others than one process's.

    only: one of the commands; repeat: the seed. Needs the extra `ray`; `OMP_NUM_THREADS=1`, or each worker wants all cores.
    """
    verbs = [only] if only else ["trace"] if quick else list(VERBS)
    chance, kills = random.Random(repeat), QUICK if quick else KILLS
    load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"{model}: {kills} kills of {', '.join(verbs)}; seed {repeat}, {load}\n")
    names = ("workers", "starters", "restarts", "runs", "shards", "seconds", "rows", "others")
    print(f"  {'':<11}" + "".join(f"{name:>9}" for name in names))
    with tempfile.TemporaryDirectory(prefix="probe-faults-") as name:
        folder = Path(name)
        _write_inputs(folder)
        _probe(folder, model, *VERBS["trace"], "--out", "traced")
        for i, verb in enumerate(verbs):
            _soak(folder, model, verb, chance, kills * (i + 1) // len(verbs) - kills * i // len(verbs))


def _write_inputs(folder: Path) -> None:
    problems = [{"prompt": f"{i} and {i} is {'very ' * (i % 5)}", "expect": str(2 * i)} for i in range(480)]
    pairs = [{"clean": f"{i} and one", "corrupt": f"{i} but one", "answer": "a", "against": "b"} for i in range(60)]
    for name, rows in (("problems", problems), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "texts.txt").write_text("".join(f"{i} is what {i} was, " * 12 + "\n" for i in range(1500)))


def _words(model: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "probe", *words, "--model", model]


def _environment() -> dict[str, str]:
    return {**os.environ, "PROBE_NO_SERVER": "1"}


def _probe(folder: Path, model: str, *words: str) -> None:
    done = subprocess.run(_words(model, *words), cwd=folder, env=_environment(), capture_output=True, text=True)
    assert done.returncode in DONE, done.stderr


def _soak(folder: Path, model: str, verb: str, chance: random.Random, kills: int) -> None:
    """Runs of one command, until so many kills are spent; the last of them may be left alone for a while."""
    _probe(folder, model, *VERBS[verb], "--out", f"{verb}-alone")
    expected = _rows(folder / f"{verb}-alone")
    toll, began, shards, others = Toll(), time.monotonic(), 0, 0
    for number in itertools.count():
        out = f"{verb}-{number}"
        words = _words(model, *VERBS[verb], *WORKERS, "--out", out)
        shards += _finished(words, folder / out, toll, chance, kills)
        found = _rows(folder / out)
        others += sum(((found - expected) + (expected - found)).values())
        if toll.kills >= kills:
            break
    seconds = round(time.monotonic() - began)
    counts = (toll.workers, toll.starters, toll.restarts, number + 1, shards, seconds, sum(expected.values()), others)
    print(f"  {verb:<11}" + "".join(f"{count:>9}" for count in counts), flush=True)
    for line, times in toll.said.items():
        print(f"    {times} x {line}")


def _finished(words: list[str], out: Path, toll: Toll, chance: random.Random, kills: int) -> int:
    """Run a command to its end, killed and resumed; how many shards the run had when it was last seen."""
    shards, partial = 0, out.with_name(f"{out.name}.partial")
    for attempt in itertools.count():
        resumed = [*words, "--resume"] if attempt and partial.exists() else words
        with tempfile.TemporaryFile("w+") as told:
            started = subprocess.Popen(resumed, cwd=out.parent, env=_environment(), stdout=subprocess.DEVNULL, stderr=told)
            for _ in _moments(started, chance):
                shards = max(shards, _shards(partial))
                if toll.kills < kills:
                    _kill(started, toll, chance)
            if started.wait(WAIT) in DONE:
                return shards
            told.seek(0)
            toll.said.update(line.strip() for line in told if started.returncode > 0)
        toll.restarts += 1
    raise AssertionError("a run ends")


def _moments(started: subprocess.Popen[bytes], chance: random.Random) -> Iterator[None]:
    """Random moments of a process that has workers, until it ends."""
    while started.poll() is None:
        if _workers(started):
            yield
        with suppress(subprocess.TimeoutExpired):
            started.wait(chance.uniform(*GAP))


def _workers(started: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes of a command's workers, as Ray calls them."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for one in psutil.Process(started.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                found += [one] if one.name().startswith("ray::Worker") else []
    return found


def _kill(started: subprocess.Popen[bytes], toll: Toll, chance: random.Random) -> None:
    if chance.random() < STARTERS:
        started.kill()
        toll.starters += 1
        return
    with suppress(psutil.NoSuchProcess, IndexError):
        chance.choice(_workers(started)).kill()
        toll.workers += 1


def _shards(partial: Path) -> int:
    """The shards that are part of an unfinished run."""
    with suppress(probe.ProbeError, OSError):  # it is being written
        return sum(unit.startswith("shard-") for record in read_records(partial) for unit in record["units"])
    return 0


def _rows(path: Path) -> Counter[tuple[str, str]]:
    """Every row of every table, as text: NaN is not NaN."""
    run = probe.open_run(path)
    return Counter((name, str(row)) for name in run.tables for row in run.table_arrow(name).drop(["run_id"]).to_pylist())
