"""Runs on a server that speaks S3, a process of its own: those of a folder, whatever dies, with one process and with Ray."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

import probe
from probe import store
from probe.errors import RunError, StorageFull
from probe.requests.workers import installed
from probe.store.remote import RemoteFolder
from tests.test_remote import ASKED, TEXTS, another_machine, has_no_half, is_as, sorted_rows
from tests.test_store_crash import ROOT, work

pytest.importorskip("moto", reason="needs moto, a server that speaks S3: the extra 'test' has it")
pytest.importorskip("flask_cors", reason="of moto's server")
WRITE = "import sys; from tests.test_store_crash import work; work(sys.argv[1], resume=sys.argv[2] == 'resume', pause=0.05)"


@pytest.fixture(scope="module", autouse=True)
def bucket() -> Iterator[str]:
    """The URL of a bucket of a server that is started, and that all processes find by their environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "--port", str(port)], **quiet)  # type: ignore[call-overload]
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {"ENDPOINT_URL": address, "ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret"}.items():
            patched.setenv(f"AWS_{name}", value)
        for _ in range(600):
            try:
                urlopen(Request(f"{address}/bucket", method="PUT")).close()
                break
            except URLError:
                time.sleep(0.1)
        yield "s3://bucket"
    server.kill()
    server.wait()


@pytest.fixture
def url(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    another_machine(monkeypatch, tmp_path / "home")
    return f"{bucket}/{secrets.token_hex(4)}/r"


def test_the_run_is_that_of_a_folder(url: str, undisturbed: Path) -> None:
    work(url, resume=False)  # type: ignore[arg-type]
    is_as(url, undisturbed)
    assert [run.path for run in store.list_runs(url.rpartition("/")[0])] == [url]
    store.remove(url)
    assert RemoteFolder(url).files() == {}


@pytest.mark.slow
def test_a_kill_while_it_grows(url: str, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run or a whole one is there, and a machine that has nothing of it completes it."""
    started = subprocess.Popen([sys.executable, "-c", WRITE, url, ""], cwd=ROOT)
    there = RemoteFolder(url)
    while len(there.files("journal")) < 2 and started.poll() is None:
        time.sleep(0.005)
    started.kill()
    assert started.wait() == -signal.SIGKILL, "it was not at its end"
    has_no_half(url)
    another_machine(monkeypatch, tmp_path / "elsewhere")
    work(url, resume=True)  # type: ignore[arg-type]
    is_as(url, undisturbed)


def test_a_bucket_that_is_not_there_is_said() -> None:
    with pytest.raises(StorageFull, match="there is no bucket 'nothing-here'") as caught:
        work("s3://nothing-here/r", resume=False)  # type: ignore[arg-type]
    assert "make it" in caught.value.hint


def test_who_may_not_write_is_told_so(bucket: str) -> None:
    def ask_who_it_is(after: str) -> None:
        address, told = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        urlopen(Request(address, data=after.encode(), headers=told)).close()

    ask_who_it_is("0")
    try:
        for asked in (lambda: work(f"{bucket}/r", resume=False), lambda: store.open_run(f"{bucket}/r")):  # type: ignore[arg-type]
            with pytest.raises(RunError, match="access is denied") as caught:
                asked()
            assert "AWS_ACCESS_KEY_ID" in caught.value.hint
    finally:
        ask_who_it_is("1000000")


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="needs Ray")
def test_ray_makes_the_run_of_one_process(url: str, tmp_path: Path) -> None:
    lm = probe.load("tiny:llama")
    alone = probe.trace(lm, TEXTS, **ASKED, out=tmp_path / "alone")
    run = probe.trace(lm, TEXTS, **ASKED, engine="ray", workers=2, shard_size=1, out=url)
    assert sorted_rows(run) == sorted_rows(alone)
    assert store.check(url) == [] and run.manifest["summary"] == alone.manifest["summary"]
