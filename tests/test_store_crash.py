"""Kill a run at any moment, fill its disk, interrupt it: what is on the disk is whole, or `--resume` makes it so."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probe import durable, store
from probe.errors import RunError, StorageFull

ROOT = Path(__file__).parents[1]
UNITS = 12
SMALL = store.Limits(bytes=20_000, part_groups=3)


def work(path: Path, *, resume: bool, pause: float = 0.0, limits: store.Limits = SMALL) -> None:
    """A run of few small units: small tables, exact and rounded vectors, parts of one unit and of several."""
    with store.create(path, command="trace", arguments={"n": 1}, resume=resume, run_id="r", limits=limits) as writer:
        for unit in range(UNITS):
            if writer.done(str(unit)):
                continue
            with writer.unit(str(unit)):
                pos = np.arange(unit + 1)
                writer.write("prompts", {"prompt_id": UNITS - unit, "text": f"text {unit}"})
                writer.write("tokens", {"prompt_id": UNITS - unit, "branch": 0, "pos": pos, "token": ["a"] * len(pos)})
                for layer in range(2):
                    n = 260 if unit % 3 else 7
                    values = np.random.default_rng([unit, layer]).standard_normal((n, 6)).astype(np.float32)
                    place = {"prompt_id": unit, "branch": 0, "site": "z", "layer": layer, "head": 0, "pos": np.arange(n)}
                    writer.write("activations", {**place, "vector": values}, store="bf16" if layer else "exact")
                    time.sleep(pause)
        writer.finish(summary={"units": UNITS})


def everything(path: Path) -> dict[str, Any]:
    """Every row of a run."""
    assert store.check(path) == []
    run = store.open_run(path)
    return {name: run.table_arrow(name).to_pylist() for name in run.tables}


def is_as(path: Path, undisturbed: Path) -> None:
    """The same tables; those that are compacted at the end, to the byte."""
    assert everything(path) == everything(undisturbed)
    for name in ("prompts.parquet", "tokens.parquet"):
        assert (path / name).read_bytes() == (undisturbed / name).read_bytes()
    assert not path.with_name("r.partial").exists()


def nothing_torn(path: Path) -> None:
    """After a kill: a whole run, a partial one whose recorded files are whole, or nothing."""
    if path.exists():
        assert store.check(path) == []
        return
    with pytest.raises(RunError):
        store.open_run(path)
    partial = path.with_name("r.partial")
    if (partial / "state.json").exists():
        bad = [problem for problem in store.check(partial) if not problem.endswith(("completes it", "extra, not of this run"))]
        assert bad == [] or (partial / "manifest.json").exists()  # then its parts are being removed already


class Fuse:
    """Counts everything that changes a disk, and kills the process right before change `at`."""

    def __init__(self, at: int) -> None:
        self.n, self.at = 0, at
        self._write, self._fsync = os.write, os.fsync
        durable.os.write, durable.os.fsync = self.write, self.fsync  # type: ignore[assignment]
        sys.addaudithook(self.audit)

    def event(self) -> None:
        self.n += 1
        if self.n == self.at:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(self, name: str, args: object) -> None:
        if name in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            self.event()

    def write(self, fd: int, data: Any) -> int:
        if self.n + 1 == self.at:  # a kill in the middle of a write leaves a part of it
            self._write(fd, data[: len(data) // 2])
        self.event()
        return self._write(fd, data)

    def fsync(self, fd: int) -> None:
        self.event()
        self._fsync(fd)


def child(path: Path, *, at: int, resume: bool) -> tuple[int, int]:
    """Run `work` in a fork with a fuse: its wait status and how many changes it made."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        fuse, code = Fuse(at), 0
        try:
            work(path, resume=resume)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            code = 3
        os.write = fuse._write  # type: ignore[assignment]
        os.write(writer, str(fuse.n).encode())
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as said:
        n = said.read()
    return os.waitpid(pid, 0)[1], int(n or 0)


def drive(root: Path, every: int) -> None:
    """Kill a run at every so many changes (and at the last ones, where it gets its name), kill its resumption, resume.

    In forks, because importing takes longer than the run.
    """
    import filelock  # noqa: F401  (imported late)
    import pandas  # noqa: F401  (by pyarrow)

    (root / "count").mkdir()
    status, total = child(root / "count/r", at=-1, resume=False)
    assert status == 0
    for at in sorted({*range(1, total + 1, every), *range(total - 24 // every, total + 1)}):
        folder = root / f"{at:04d}"
        folder.mkdir()
        status, _ = child(folder / "r", at=at, resume=False)
        assert os.WIFSIGNALED(status), status
        shutil.copytree(folder, root / f"{at:04d}-after-kill")
        child(folder / "r", at=1 + at % 60, resume=True)
        shutil.copytree(folder, root / f"{at:04d}-after-second-kill")
        status, _ = child(folder / "r", at=-1, resume=True)
        assert status == 0, at


def kill_everywhere(tmp_path: Path, undisturbed: Path, *, every: int) -> int:
    code = f"from tests.test_store_crash import *; drive(Path({str(tmp_path)!r}), {every})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folders = sorted(path for path in tmp_path.iterdir() if path.is_dir() and path.name != "count")
    for folder in folders:
        if "after" in folder.name:
            nothing_torn(folder / "r")
        else:
            is_as(folder / "r", undisturbed)
    return len(folders) // 3


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_before_many_changes_of_the_disk(tmp_path: Path, undisturbed: Path) -> None:
    assert kill_everywhere(tmp_path, undisturbed, every=7) >= 20


def launch(path: Path, *, pause: float, limits: str = "SMALL") -> subprocess.Popen[str]:
    code = (
        "from tests.test_store_crash import *\nimport filelock, pandas\nprint('ready', flush=True)\n"
        f"work(Path({str(path)!r}), resume=True, pause={pause}, limits={limits})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def kill_at_random(path: Path, undisturbed: Path, *, kills: int) -> None:
    rng = random.Random(1)
    for _ in range(kills):
        process = launch(path, pause=0.004)
        time.sleep(rng.uniform(0.0, 0.25))
        process.kill()
        process.communicate()
        nothing_torn(path)
        if path.exists():
            is_as(path, undisturbed)
            shutil.rmtree(path)
    work(path, resume=True)
    is_as(path, undisturbed)


@pytest.mark.slow
def test_killed_at_many_random_moments(tmp_path: Path, undisturbed: Path) -> None:
    kill_at_random(tmp_path / "r", undisturbed, kills=20)


@pytest.mark.slow
def test_a_second_process_is_refused_and_the_lock_dies_with_its_owner(tmp_path: Path, undisturbed: Path) -> None:
    path = tmp_path / "r"
    first = launch(path, pause=0.2)
    wait_for(tmp_path / "r.partial/state.json")
    with pytest.raises(RunError, match="locked"):
        work(path, resume=True)
    first.kill()
    first.communicate()
    work(path, resume=True)
    is_as(path, undisturbed)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGINT there")
def test_ctrl_c_keeps_what_is_finished(tmp_path: Path, undisturbed: Path) -> None:
    path = tmp_path / "r"
    process = launch(path, pause=0.03, limits="store.Limits()")  # nothing is flushed before
    wait_for(tmp_path / "r.partial/activations")
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode not in (0, -signal.SIGKILL)
    (listed,) = store.list_runs(tmp_path)
    assert listed.status == "partial" and listed.units and not list(tmp_path.rglob("*.tmp"))
    work(path, resume=True)
    is_as(path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_fails_is_stated_and_the_run_resumable(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The disk fails at the n-th write or sync; at all of them, so that cleaning up has to live with it as well."""
    path = tmp_path / "r"
    for budget in (0, 1, 7, 20, 30, 40, 10**6):
        left = [budget]

        def spend(left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patched:
            write, fsync = os.write, os.fsync
            patched.setattr(durable.os, "write", lambda fd, data, write=write: (spend(), write(fd, data))[1])
            patched.setattr(durable.os, "fsync", lambda fd, fsync=fsync: (spend(), fsync(fd))[1])
            if budget < 10**6:
                with pytest.raises(StorageFull) as error:
                    work(path, resume=True)
                assert "--resume" in error.value.hint and "\n" not in error.value.message
                nothing_torn(path)
                assert not list(tmp_path.rglob("*.parquet.tmp"))
            else:
                work(path, resume=True)
    is_as(path, undisturbed)


def test_a_tiny_disk_fills_up(tmp_path: Path, undisturbed: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "none", str(disk)], capture_output=True).returncode
    ):
        pytest.skip("no file system can be mounted here")
    try:
        with pytest.raises(StorageFull, match="the disk is full"):
            work(disk / "r", resume=False)
        nothing_torn(disk / "r")
        (listed,) = store.list_runs(disk)
        assert listed.status == "partial" and listed.units
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        work(disk / "r", resume=True)
        is_as(disk / "r", undisturbed)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
def test_an_altered_part_is_not_built_upon(tmp_path: Path) -> None:
    path = tmp_path / "r"
    process = launch(path, pause=0.02)
    wait_for(tmp_path / "r.partial/journal/000000.json")
    process.kill()
    process.communicate()
    record = json.loads((tmp_path / "r.partial/journal/000000.json").read_text())
    part = tmp_path / "r.partial" / record["parts"][0]["path"]
    part.write_bytes(part.read_bytes()[:-1])
    assert any("torn" in problem for problem in store.check(tmp_path / "r.partial"))
    with pytest.raises(RunError, match="was altered"):
        work(path, resume=True)
