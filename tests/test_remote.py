"""A run at a URL is the run of a folder, whatever dies or goes away while it is written, and whoever goes on with it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from pyarrow.fs import FileSystem
from typer.testing import CliRunner

import probe
from cli.completing import completed
from cli.main import app
from probe import store
from probe.errors import BadOption, ProbeError, RunError, StorageFull
from probe.requests import workers
from probe.sharding import dispatching
from probe.sharding.working import Worker
from probe.store import claiming, remote, servers
from probe.store.remote import RemoteFolder
from tests.in_process import InProcess
from tests.test_store_crash import UNITS, everything, work

ASKED: dict[str, Any] = {"generate": 2, "capture": "resid_post@1", "batch_tokens": 30, "temperature": 1.0}
TEXTS = [f"{i} and {'so ' * (i % 3)}on" for i in range(9)]


def sorted_rows(run: store.Run) -> dict[str, list[str]]:
    """The rows of every table of a run, as text."""
    return {name: sorted(map(str, run.table_arrow(name).drop(["run_id"]).to_pylist())) for name in run.tables}


class Doomed(LocalFileSystem):
    """A server that goes away at the `last` change that is asked of it, or takes the process with it."""

    protocol = "doomed"
    cachable = False
    changes = 0
    last: int | None = None
    kills = False

    @classmethod
    def reset(cls, last: int | None = None, *, kills: bool = False) -> None:
        cls.changes, cls.last, cls.kills = 0, last, kills

    def _ask(self, changes: int = 0) -> None:
        Doomed.changes += changes
        if Doomed.last is not None and Doomed.changes >= Doomed.last:
            if Doomed.kills:
                os.kill(os.getpid(), signal.SIGKILL)
            raise ConnectionError("it has gone away")

    def _open(self, path: str, mode: str = "rb", block_size: Any = None, **more: Any) -> Any:
        self._ask("w" in mode)
        return super()._open(path, mode, block_size, **more)

    def info(self, path: Any, **more: Any) -> Any:
        self._ask()
        return super().info(path, **more)

    def rm_file(self, path: str) -> None:
        self._ask(1)
        super().rm_file(path)

    def mv(self, path1: str, path2: str, **more: Any) -> None:
        self._ask(1)
        super().mv(path1, path2, **more)

    def cp_file(self, path1: str, path2: str, **more: Any) -> None:
        self._ask(1)
        super().cp_file(path1, path2, **more)


fsspec.register_implementation("doomed", Doomed, clobber=True)


@pytest.fixture(autouse=True)
def a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is kept here from before, and the server stays."""
    another_machine(monkeypatch, tmp_path / "home")
    Doomed.reset()
    yield
    Doomed.reset()


def another_machine(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("PROBE_HOME", str(home))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"fsspec+doomed://{tmp_path}/bucket/r"


def files(url: str) -> dict[str, bytes]:
    place = RemoteFolder(url)
    return {name: place.read(name) or b"" for name in place.files()}


def is_as(url: str, undisturbed: Path) -> None:
    """The same files to the byte, and no others, but for the times in the manifest."""
    found = files(url)
    assert found.keys() == {path.relative_to(undisturbed).as_posix() for path in undisturbed.rglob("*") if path.is_file()}
    for name in found.keys() - {"manifest.json"}:
        assert found[name] == (undisturbed / name).read_bytes(), name
    there, here = (json.loads(text) for text in (found["manifest.json"], (undisturbed / "manifest.json").read_bytes()))
    differing = {key for key in here if here[key] != there[key]}
    assert differing <= {"started", "ended", "typed", "wall_seconds", "peak_memory_bytes", "xxh3_128"}
    assert everything(url) == everything(undisturbed)  # type: ignore[arg-type]


def has_no_half(url: str) -> None:
    """A whole run, or none."""
    if RemoteFolder(url).there("manifest.json"):
        assert [one for one in store.check(url) if not one.endswith("extra, not of this run")] == []
    else:
        with pytest.raises(RunError, match=r"unfinished|there is no run"):
            store.open_run(url)


def moments(url: str, first: int = 1) -> range:
    """Some of the changes that a server is asked for while a run is made, which is there then."""
    work(url, resume=False)  # type: ignore[arg-type]
    return range(first, Doomed.changes, Doomed.changes // 5)


def test_the_run_is_that_of_a_folder(url: str, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work(url, resume=False)  # type: ignore[arg-type]
    is_as(url, undisturbed)
    another_machine(monkeypatch, tmp_path / "elsewhere")
    run = store.open_run(url)
    assert run.path is not None and run.address == run.reference["path"] == url
    run.table("tokens")
    here = {path.relative_to(run.path).as_posix() for path in run.path.rglob("*.parquet")}
    assert here == {"tokens.parquet"}, "a table is brought when it is read"
    monkeypatch.setattr(RemoteFolder, "get", lambda *_: pytest.fail("what is here is not brought again"))
    store.open_run(url).table("tokens")


def test_a_server_that_goes_away_costs_nothing_that_was_done(
    url: str, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whatever change: what is there is whole or nothing, and the same command completes it, here and on another machine."""
    for last in moments(url):
        for home in ("home", "elsewhere"):
            shutil.rmtree(tmp_path / "bucket", ignore_errors=True)
            another_machine(monkeypatch, tmp_path / "home")
            Doomed.reset(last)
            try:
                work(url, resume=True)  # type: ignore[arg-type]
            except StorageFull as error:
                assert "it has gone away" in error.message or "does not answer" in error.message
                assert "--resume" in error.hint
            Doomed.reset()
            has_no_half(url)
            another_machine(monkeypatch, tmp_path / home)
            work(url, resume=True)  # type: ignore[arg-type]
            is_as(url, undisturbed)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_kill_at_any_change_leaves_no_run_or_a_whole_one(
    url: str, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for last in moments(url, 2):
        shutil.rmtree(tmp_path / "bucket")
        another_machine(monkeypatch, tmp_path / f"home{last}")
        if (pid := os.fork()) == 0:
            Doomed.reset(last, kills=True)
            try:
                work(url, resume=False)  # type: ignore[arg-type]
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        has_no_half(url)
        if last % 2:
            another_machine(monkeypatch, tmp_path / f"elsewhere{last}")
        work(url, resume=True)  # type: ignore[arg-type]
        is_as(url, undisturbed)


def test_what_was_made_elsewhere_is_gone_on_with_and_not_what_was_left_here(
    url: str, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begun(until: int) -> None:
        with store.create(url, command="trace", arguments={"n": 1}, resume=True, run_id="r") as writer:
            for unit in range(until):
                if not writer.done(f"more {unit}"):
                    with writer.unit(f"more {unit}"):
                        writer.write("prompts", {"prompt_id": 100 + unit, "text": "more"})
                    writer.flush()

    begun(1)
    another_machine(monkeypatch, tmp_path / "elsewhere")
    begun(3)
    another_machine(monkeypatch, tmp_path / "home")
    with store.create(url, command="trace", arguments={"n": 1}, resume=True, run_id="r") as writer:
        assert [writer.done(f"more {unit}") for unit in range(4)] == [True, True, True, False]
        assert writer.finish(summary={}).table("prompts")["prompt_id"].to_list() == [100, 101, 102]
    with pytest.raises(RunError, match="was made with n = 1, not 2"):
        store.create(url, command="trace", arguments={"n": 2}, resume=True)


def test_a_run_that_is_there_stays(url: str) -> None:
    work(url, resume=False)  # type: ignore[arg-type]
    before = files(url)
    with pytest.raises(RunError, match="a run is already there"):
        work(url, resume=False)  # type: ignore[arg-type]
    work(url, resume=True)  # type: ignore[arg-type]
    assert files(url) == before
    with store.create(f"{url}2", command="trace", arguments={}) as writer, writer.unit("a"):
        writer.write("prompts", {"prompt_id": 0, "text": "a"})
    with pytest.raises(RunError, match="was begun and not finished"):
        store.create(f"{url}2", command="trace", arguments={})


def test_a_run_in_which_nothing_was_done_leaves_nothing(url: str) -> None:
    store.create(url, command="trace", arguments={}).close()
    assert files(url) == {}


def test_one_process_at_a_time_writes(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = store.create(url, command="trace", arguments={})
    with first.unit("a"):
        first.write("prompts", {"prompt_id": 0, "text": "a"})
    first.flush()
    another_machine(monkeypatch, tmp_path / "elsewhere")
    with pytest.raises(RunError, match=rf"is being written by .*process {os.getpid()}"):
        store.create(url, command="trace", arguments={}, resume=True)
    with pytest.raises(RunError, match="is being written by"):
        store.remove(url)
    assert store.describe(url).status == "running"
    monkeypatch.setattr(claiming, "STALE", -1.0)  # as if nothing had been heard of the first for long
    second = store.create(url, command="trace", arguments={}, resume=True)
    with first.unit("b"):
        first.write("prompts", {"prompt_id": 1, "text": "b"})
    with pytest.raises(StorageFull, match="was taken over by another process"):
        first.flush()
    first.close()
    assert len(second.finish(summary={}).table("prompts")) == 1
    second.close()


class Late(InProcess):
    """Workers, and one more who comes last with each shard: when it is part of the run already."""

    late: Worker | None = None
    done: int | None = None

    def work(self, worker: int, shard: int | None) -> Any:
        if self.late is None and shard is not None:
            self.late = Worker(self.job)
            self.late.begin()
            self.late.work(0)  # from now on it knows which shards are done: none
        elif self.late is not None and self.done:
            self.late.work(self.done)
        answer = super().work(worker, shard)
        self.done = None if shard is None or answer.only is not None else shard
        return answer


@pytest.mark.parametrize("at", ["url", "folder"])
def test_workers_make_the_run_of_one_process_also_where_one_comes_late(
    at: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatching, "open_pool", Late)
    monkeypatch.setattr(workers, "installed", lambda: True)
    lm = probe.load("tiny:llama")
    alone = probe.trace(lm, TEXTS, **ASKED, out=tmp_path / "alone")
    brought: Counter[str] = Counter()
    get = RemoteFolder.get
    monkeypatch.setattr(
        RemoteFolder, "get", lambda self, name, *more: (brought.update([name.split("/")[-2]]), get(self, name, *more))[1]
    )
    where: Any = url if at == "url" else tmp_path / "r"
    run = probe.trace(lm, TEXTS, **ASKED, engine="ray", workers=2, shard_size=1, out=where)
    assert brought["activations"] == 0, "a large table does not travel over the one who joins"
    assert sorted_rows(run) == sorted_rows(alone)
    assert store.check(where) == []


def test_commands_take_a_url(url: str, undisturbed: Path, tmp_path: Path) -> None:
    work(url, resume=False)  # type: ignore[arg-type]
    place = url.rpartition("/")[0]

    def said(*words: str) -> str:
        result = CliRunner().invoke(app, [*words])
        assert result.exit_code == 0, result.output
        return result.output

    assert f"{url}: whole" in said("runs", "check", url)
    listed = json.loads(said("runs", "ls", place, "--json"))["summary"]["runs"]
    assert [(run["path"], run["status"], run["prompts"]) for run in listed] == [(url, "whole", UNITS)]
    assert "tokens" in said("runs", "show", url, "--no-pictures")
    assert said("runs", "export", url, "prompts").count("\n") == UNITS + 1
    RemoteFolder(url).write("mine.txt", b"kept")
    assert store.check(url) == ["mine.txt: extra, not of this run"]
    RemoteFolder(url).write("tokens.parquet", b"torn")
    assert store.check(url)[0].startswith("tokens.parquet: torn")
    assert "mine.txt" in said("runs", "rm", url, "--yes")
    assert files(url) == {"mine.txt": b"kept"} and not list((tmp_path / "home" / "runs").iterdir())


@pytest.mark.parametrize("name", ["state.json", "manifest.json"])
@pytest.mark.parametrize(("held", "what"), [(b"{}", "Field required"), (b"torn", "it is not JSON")])
def test_a_damaged_document_is_named_by_its_url(url: str, name: str, held: bytes, what: str) -> None:
    RemoteFolder(url).write(name, held)
    said = rf"^'{re.escape(url)}/{name}' is damaged: .*{what}"
    with pytest.raises(RunError, match=said) as caught:
        work(url, resume=True)  # type: ignore[arg-type]
    assert caught.value.hint == f"probe runs check {url}"
    (found,) = store.check(url)
    assert re.search(said, found)


def test_a_store_without_folders_keeps_what_lies_beside_what_is_deleted(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow lists no folders within folders of Google's stores: one that held other folders was taken for an empty one."""
    monkeypatch.setattr(remote, "FLAT", FileSystem.from_uri(url)[0].type_name)
    place = RemoteFolder(url)
    for name in ("shards/a/tokens.parquet", "shards/b/tokens.parquet"):
        place.write(name, b"rows")
    place.inside("shards/a").clear(["tokens.parquet"])
    assert files(url) == {"shards/b/tokens.parquet": b"rows"} and place.folders() == ["shards"]


def test_completion_asks_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RemoteFolder, "__init__", lambda *_: pytest.fail("a server was asked"))
    assert completed("runs")(None, [], "s3://bucket/ru") == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("out", "what"),
    [
        ("foo://bucket/run", "is no file system that pyarrow knows"),
        ("fsspec+foo://bucket/run", "is no file system that pyarrow knows"),
        ("s3://", "names no folder"),
        ("s3://user:secret@bucket/run", "holds a password"),
        ("s3://bucket/a run", "a space in it"),
        ("s3://bucket/run?nothing=1", "cannot read the URL"),
        ("abfs://container/run", "cannot read the URL"),
        ("fsspec+memory://bucket/run", "is only in the memory of this process"),
    ],
)
def test_what_is_no_place_for_a_run_is_said_in_a_line(out: str, what: str) -> None:
    result = CliRunner().invoke(app, ["trace", "a", "--model", "tiny:llama", "--out", out])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert what in result.output and "hint:" in result.output and "secret" not in result.output.replace(out, "")
    with pytest.raises(BadOption, match=what):
        store.open_run(out)
    assert issubclass(BadOption, ProbeError)


@pytest.mark.parametrize(
    ("scheme", "said", "what", "hint"),
    [
        ("s3", "AWS Error ACCESS_DENIED during HeadObject operation: No response body.", "access is denied", "AWS_PROFILE"),
        ("s3", "AWS Error NO_SUCH_BUCKET during CreateMultipartUpload operation", "there is no bucket 'place'", "make it"),
        ("s3", "AWS Error NETWORK_CONNECTION during HeadObject operation", "the server does not answer", "AWS_ENDPOINT_URL"),
        ("gs", "Status(UNAVAILABLE: Could not create a OAuth2 access token to", "access is denied", "GOOGLE_APPLICATION_CR"),
        ("gs", "Status(UNAVAILABLE: CURL error [6]=Could not resolve hostname", "the server does not answer", "is it up"),
        ("abfs", "N5Azure4Core11Credentials23AuthenticationExceptionE: Failed to", "access is denied", "AZURE_TENANT_ID"),
        ("abfs", "Azure Error: [AuthorizationFailure] 403 Server failed to", "access is denied", "az login"),
        ("abfs", "Azure Error: [ContainerNotFound] 404 The specified", "there is no bucket 'place'", "make it"),
        ("abfs", "Azure Error: [] Fail to get a new connection for: https", "the server does not answer", "is it up"),
        ("hdfs", "Unable to load libjvm\ndlopen(/usr/lib", "Unable to load libjvm", "JAVA_HOME"),
        ("fsspec+sftp", "it is broken\nin two lines", "it is broken", "is the URL right"),
    ],
)
def test_what_a_server_does_is_a_sentence_with_what_to_do_there(scheme: str, said: str, what: str, hint: str) -> None:
    """The errors are as pyarrow 26 has them of S3, of Google's and Azure's stand-ins, and of those that are not there."""
    error = servers.of_server(f"{scheme}://place/run", OSError(said), writes=False)
    assert error.message == f"cannot read '{scheme}://place/run': {what}" and hint in error.hint
    error = servers.of_server(f"{scheme}://place/run", OSError(said), writes=True)
    assert isinstance(error, StorageFull) and error.hint.endswith("--resume goes on")


def test_a_server_that_takes_long_is_waited_for_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "WAIT", 0.0)
    with (
        pytest.warns(UserWarning, match=r"'s3://place/run': .* it is waited for") as said,
        servers.told_of_waiting("s3://place/run"),
    ):
        while not said:
            time.sleep(0.001)
