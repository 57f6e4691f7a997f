"""Commands in a server do what they do alone: the same bytes, codes and files; and alone where the server can't do the same."""

from __future__ import annotations

import json
import os
import pty
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from probe.cli.main import COMMANDS
from probe.cli.staying import sockets
from probe.cli.staying.server import Server
from safetensors.torch import save_file

from probe.errors import ProbeError
from tests.test_cli_trouble import PROMPTS
from tests.test_importing import TEXTS, tensors

ROOT = Path(__file__).parents[1]
TINY = ("--model", "tiny:llama")
AS_INSTALLED = ("-c", "import sys; sys.argv[0] = 'probe'; from probe.cli.staying.client import main; main()")
AS_MODULE = ("-m", "probe")
NOT_THE_SAME = ("run_id", "started", "ended", "wall_seconds", "peak_memory_bytes", "tables", "readme", "xxh3_128")


class Place:
    """A runtime folder of its own, with or without a server."""

    def __init__(self) -> None:
        self.runtime = Path(tempfile.mkdtemp(prefix="probe-test-", dir="/tmp"))  # a socket's path is short
        self.runtime.chmod(0o700)
        self.env = {**os.environ, "XDG_RUNTIME_DIR": str(self.runtime), "PYTHONPATH": str(ROOT)}
        self.env.pop("PROBE_NO_SERVER", None)
        self.server: subprocess.Popen[str] | None = None

    def begin(self, *words: str, **env: str) -> subprocess.Popen[str]:
        """Start a server; it listens when this returns."""
        self.server = subprocess.Popen(
            [sys.executable, "-m", "probe", "serve", *(words or TINY)], env={**self.env, **env}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert self.server.stdout is not None
        said = self.server.stdout.readline()
        assert "commands find it" in said, said + self.server.communicate()[0]
        return self.server

    def start(self, *words: str, cwd: Path, **more) -> subprocess.Popen[bytes]:
        """A command, running."""
        env = {**self.env, **more.pop("env", {})}
        begin = more.pop("begin", AS_INSTALLED)
        given = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        return subprocess.Popen([sys.executable, *begin, *words], cwd=cwd, env=env, **given)

    def run(self, *words: str, cwd: Path, stdin: bytes = b"", **more) -> tuple[int, bytes, bytes]:
        """Code, output and complaints of a command."""
        process = self.start(*words, cwd=cwd, stdin=subprocess.PIPE, **more)
        said, complained = process.communicate(stdin, timeout=240)
        return process.returncode, said, complained

    def commands(self) -> list[str]:
        """The processes of commands that the server runs."""
        assert self.server is not None
        return Path(f"/proc/{self.server.pid}/task/{self.server.pid}/children").read_text().split()

    def close(self) -> None:
        if self.server is not None:
            self.server.kill()
            self.server.communicate()
        shutil.rmtree(self.runtime)


@pytest.fixture
def place() -> Iterator[Place]:
    found = Place()
    yield found
    found.close()


@pytest.fixture(scope="module")
def served() -> Iterator[Place]:
    """A place with a server of `tiny:llama`."""
    found = Place()
    found.begin("--idle", "never", *TINY)
    yield found
    found.close()


def until(condition: Callable[[], bool]) -> None:
    for _ in range(2400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it never came to that")


def tables(run: Path) -> dict[str, pd.DataFrame]:
    return {path.stem: pd.read_parquet(path) for path in sorted(run.glob("*.parquet"))}


LINES = {
    "trace": ["trace", "Hello there", *TINY, "--out", "run"],
    "json": ["trace", "Hello there", *TINY, "--out", "run", "--json", "--generate", "3"],
    "another dtype": ["trace", "Hello", *TINY, "--dtype", "bfloat16", "--out", "run"],
    "another model": ["trace", "Hello", "--model", "tiny:gpt2", "--out", "run"],
    "the same twice": ["compare", "tiny:llama", "tiny:llama", "Hello there", "--out", "run"],
    "piped": ["trace", "-", *TINY, "--out", "run"],
    "dry": ["trace", "Hello", *TINY, "--dry-run"],
    "help": ["trace", "--help"],
    "version": ["--version"],
    "no words": [],
    "no such model": ["trace", "Hello", "--model", "./nothing", "--out", "run"],
    "no such model in json": ["trace", "Hello", "--model", "./nothing", "--json"],
    "wrong usage": ["trace", "--nonsense"],
    "no such place": ["trace", "Hello", *TINY, "--capture", "resid_past@1"],
    "a dash": ["trace", *TINY, "--out", "run", "--", "--no-server"],
}


@pytest.mark.parametrize("words", LINES.values(), ids=LINES.keys())
def test_a_command_is_the_same_to_the_byte(served: Place, forker, words: list[str], tmp_path: Path) -> None:
    """The other side is a fork too, but one that loads its models: the next test has a process of its own."""
    stdin = b'{"prompt": "one"}\n{"prompt": "two"}\n' if "-" in words else b""
    work, streams = tmp_path / "work", tmp_path / "streams"
    work.mkdir(), streams.mkdir()
    if set(words) & {"--help", "--nonsense"} or not words:  # quick, and the forker's usage lines name itself
        alone = served.run(*words, cwd=work, env={"PROBE_NO_SERVER": "1"})
    else:
        done = forker.run(tuple(words), cwd=work, stdin=stdin, scratch=streams, timeout=240)
        alone = done.returncode, done.stdout.encode(), done.stderr.encode()
    before = tables(work / "run")
    manifest = work / "run/manifest.json"
    told = json.loads(manifest.read_text()) if manifest.is_file() else {}
    shutil.rmtree(work), work.mkdir()
    found = served.run(*words, cwd=work, stdin=stdin)
    assert found == alone
    after = tables(work / "run")
    assert before.keys() == after.keys()
    for name, table in before.items():
        both = (one.drop(columns="run_id") for one in (table, after[name]))
        pd.testing.assert_frame_equal(*both, check_exact=True)
    now = json.loads(manifest.read_text()) if told else {}
    assert told.keys() == now.keys()
    for key in told.keys() - {*NOT_THE_SAME}:
        assert told[key] == now[key], key


@pytest.mark.slow
def test_a_command_is_the_same_as_from_nothing(served: Place, tmp_path: Path) -> None:
    for words, begin in (("trace", AS_INSTALLED), ("wrong usage", AS_MODULE), ("no such model in json", AS_INSTALLED)):
        alone = served.run(*LINES[words], cwd=tmp_path, begin=begin, env={"PROBE_NO_SERVER": "1"})
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        assert served.run(*LINES[words], cwd=tmp_path, begin=begin) == alone
        shutil.rmtree(tmp_path / "run", ignore_errors=True)


SESSION = """
trace "One." --generate 8 --split token --out first
trace "One." --generate 8 --temperature 1 --seed 3 --out second
trace --file texts.jsonl --attention topk:2 --lens --capture resid_post@all --out many
look first --out looked
view first --out page.html
steps first --split line
lens first --target x --out lensed
heads --file texts.jsonl --sequences 0 --out kinds
weights tiny:llama --what heads --out circuits
attribute "2 + 3 =" --answer 5 --against 6 --out written
top texts.jsonl --at mlp_post@1.n3 --at z@1.3 --out moved
means texts.jsonl --at z@all --out average
import states --layers 1,3 --out imported
patch --clean "2 + 3 =" --corrupt "2 + 4 =" --answer 5 --against 6 --out patched
steer --make good.txt bad.txt --at resid_post@1 -o good.safetensors --run made
steer --scan good.safetensors "2 + 3 =" --answer 5 --against 6 --strengths=-1,1 --run scan
rewind first --split token --to step2 --delete --samples 3 --max-new 6 --out back
importance first --split token --method rescore --out steps
sample problems.jsonl --samples 3 --max-new 4 --out drawn
answers drawn --answer last-number --out labelled
speculate "1, 2, 3, 1, 2," --draft ngram --generate 8 --quiet --out drafted
compare first second --out both
selftest tiny:llama
recipe ls
runs check first
models sites tiny:llama
tables tokens
help rewind
serve --idle soon
shell --device nowhere
"""


def given(work: Path) -> None:
    """What the session reads."""
    work.mkdir()
    (work / "texts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in TEXTS))
    (work / "problems.jsonl").write_text('{"prompt": "2 + 3 =", "expect": "5"}\n')
    (work / "good.txt").write_text("good\nfine\n"), (work / "bad.txt").write_text("bad\nawful\n")
    (work / "states").mkdir()
    save_file(tensors(TEXTS[0], [1, 3]), work / "states/a.safetensors")


def test_every_verb_is_in_the_session() -> None:
    verbs = {name for group in COMMANDS.values() for name, *_ in group}
    assert {words.split()[0] for words in SESSION.strip().split("\n")} == verbs


@pytest.mark.slow
def test_all_verbs_say_write_and_return_the_same(served: Place, forker, tmp_path: Path, monkeypatch) -> None:
    """One after the other in one folder: each finds what those before it have left. Their tables are compared above."""
    monkeypatch.setenv("PROBE_MODEL", "tiny:llama")
    work, streams, said, left = tmp_path / "work", tmp_path / "streams", {}, {}
    for kind in ("alone", "served"):
        given(work)
        for line in SESSION.strip().split("\n"):
            words = tuple(shlex.split(line))
            if kind == "served":
                said[kind, line] = served.run(*words, cwd=work, env={"PROBE_MODEL": "tiny:llama"})
            else:
                streams.mkdir()
                done = forker.run(words, cwd=work, stdin=b"", scratch=streams, timeout=240)
                said[kind, line] = done.returncode, done.stdout.encode(), done.stderr.encode()
                shutil.rmtree(streams)
        left[kind] = {f"{run.name}/{table}" for run in work.iterdir() if run.is_dir() for table in tables(run)}
        shutil.rmtree(work)
    lines = SESSION.strip().split("\n")
    assert [line for line in lines if said["served", line] != said["alone", line]] == []
    assert left["served"] == left["alone"]


def in_server(place: Place, cwd: Path, *words: str, **more) -> bool:
    """Whether a command runs in the server, and not in a process that imports torch itself."""
    process = place.start("trace", "-", *TINY, *words, cwd=cwd, stdin=subprocess.PIPE, **more)
    try:
        for _ in range(2400):
            if place.commands():
                return True
            if "torch" in Path(f"/proc/{process.pid}/maps").read_text():
                return False
            time.sleep(0.01)
        raise AssertionError("it is nowhere")
    finally:
        process.communicate(b"one\n", timeout=240)
        until(lambda: not place.commands())


def test_only_its_user_can_reach_it(served: Place) -> None:
    folder = served.runtime / "probe"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (socket,) = folder.glob("*.sock")
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600 and stat.S_ISSOCK(socket.stat().st_mode)


def test_a_folder_that_others_can_read_is_not_believed(served: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(served.runtime))
    folder = served.runtime / "probe"
    found = sockets.connected(5)
    assert found is not None
    found.close()
    with monkeypatch.context() as somebody:
        somebody.setattr(sockets, "peer", lambda _: os.getuid() + 1)
        assert sockets.connected(5) is None
    try:
        for mode in (0o750, 0o705, 0o711):
            folder.chmod(mode)
            assert sockets.connected(5) is None
    finally:
        folder.chmod(0o700)
    (tmp_path / "probe").symlink_to(folder)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert sockets.connected(5) is None
    with pytest.raises(ProbeError, match="not a folder that only you can read"):
        Server(lambda: None, idle=None)


def left(server: Server) -> None:
    """As when its process has died."""
    os.close(server.lock)
    server.wakes.close(), server.wake.close()


def test_of_two_that_start_at_once_one_is_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it has loaded anything, and whatever a dead one has left."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place.runtime))
    one = Server(lambda: None, idle=None)
    one.address.touch()
    with pytest.raises(ProbeError, match="a server is there already"):
        Server(lambda: None, idle=None)
    left(one)
    left(Server(lambda: None, idle=None))


@pytest.mark.slow
def test_it_is_found_and_passed_by(served: Place, tmp_path: Path) -> None:
    assert in_server(served, tmp_path)
    assert not in_server(served, tmp_path, "--no-server")
    assert not in_server(served, tmp_path, env={"PROBE_NO_SERVER": "1"})


@pytest.mark.slow
def test_another_process_than_it_would_be_is_refused(served: Place, tmp_path: Path) -> None:
    for env, name in (({"OMP_NUM_THREADS": "7"}, "$OMP_NUM_THREADS"), ({"PYTHONOPTIMIZE": "1"}, "$PYTHONOPTIMIZE")):
        code, said, complained = served.run("--version", cwd=tmp_path, env=env)
        assert (code, said[:6]) == (0, b"probe ")
        assert complained.decode() == f"warning: this runs without the server: it was started with another {name}\n"


def test_nothing_of_a_command_stays_in_the_server(served: Place, tmp_path: Path) -> None:
    """`python -m recipes.bench serve --only growth` does this 200 times, with all kinds of them."""
    assert served.server is not None
    files = Path(f"/proc/{served.server.pid}/fd")
    until(lambda: not served.commands())
    before = sorted(one.name for one in files.iterdir())
    for words, code in ((("trace", "Hello", *TINY), 0), (("trace", "--nonsense"), 2)):
        assert served.run(*words, cwd=tmp_path)[0] == code
    until(lambda: not served.commands())
    assert sorted(one.name for one in files.iterdir()) == before


def test_two_at_once(served: Place, tmp_path: Path) -> None:
    one = served.start("trace", "-", *TINY, "--out", "one", cwd=tmp_path, stdin=subprocess.PIPE)
    assert served.run("trace", "two", *TINY, "--out", "two", cwd=tmp_path)[0] == 0  # the first waits for its words
    assert one.poll() is None
    said, complained = one.communicate(b"one\n", timeout=240)
    assert one.returncode == 0, complained
    assert (tmp_path / "one/manifest.json").is_file() and said.endswith(b"run: one\n")


def reads(process: str, pipe: str) -> bool:
    """Whether a process has a pipe for its standard input; while it changes its streams it may have none."""
    try:
        return str(Path(f"/proc/{process}/fd/0").readlink()) == pipe
    except FileNotFoundError:
        return False


def test_the_next_command_is_not_taken_for_the_one_that_has_ended(served: Place, tmp_path: Path) -> None:
    """The server hears in one moment that a command has ended, that its client has gone, and that another has come."""
    assert served.server is not None
    first = served.start("trace", "-", *TINY, "--out", "first", cwd=tmp_path, stdin=subprocess.PIPE)
    assert first.stdin is not None
    given = f"pipe:[{os.fstat(first.stdin.fileno()).st_ino}]"
    until(lambda: any(reads(one, given) for one in served.commands()))  # the client has its answer
    (process,) = (one for one in served.commands() if reads(one, given))  # the command of the test before may still end
    served.server.send_signal(signal.SIGSTOP)
    try:
        first.communicate(b"one\n", timeout=240)
        until(lambda: ") Z " in Path(f"/proc/{process}/stat").read_text())
        second = served.start("--version", cwd=tmp_path)
        time.sleep(1)  # until it has connected
    finally:
        served.server.send_signal(signal.SIGCONT)
    said, complained = second.communicate(timeout=240)
    assert (second.returncode, complained) == (0, b"") and said.startswith(b"probe ")


@pytest.fixture
def long_run(served: Place, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A trace of many prompts, at work in the server on `run`, which hears of each signal under nohup too."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    (tmp_path / "p.txt").write_text(PROMPTS)
    words = ["trace", "--file", "p.txt", *TINY, "--out", "run", "--batch-tokens", "80", "--attention", "summary"]
    process = served.start(*words, cwd=tmp_path)
    signal.signal(signal.SIGHUP, before)
    until(lambda: (tmp_path / "run.partial").exists() or process.poll() is not None)
    yield process
    process.kill()
    process.communicate()
    until(lambda: not served.commands())


def test_ctrl_c_keeps_what_is_finished(long_run: subprocess.Popen[bytes], tmp_path: Path) -> None:
    time.sleep(0.3)
    long_run.send_signal(signal.SIGINT)
    _, said = long_run.communicate(timeout=60)
    assert (long_run.returncode, said) == (130, b"interrupted: what was finished is kept\n")
    assert not (tmp_path / "run").exists() and (tmp_path / "run.partial").is_dir()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_client_that_dies_takes_its_command_along(served: Place, long_run, number: signal.Signals, tmp_path: Path) -> None:
    assert served.commands()
    long_run.send_signal(number)
    _, said = long_run.communicate(timeout=60)
    assert (long_run.returncode, said) == (-number, b"")
    until(lambda: not served.commands())
    assert not (tmp_path / "run").exists() and (tmp_path / "run.partial").is_dir()


def test_a_reader_that_has_gone(served: Place, tmp_path: Path) -> None:
    end, write = os.pipe()
    os.close(end)
    process = served.start("tables", cwd=tmp_path, stdout=write)
    os.close(write)
    _, complained = process.communicate(timeout=240)
    assert (process.returncode, complained) == (1, b"")


def test_a_terminal_is_one(served: Place, tmp_path: Path) -> None:
    """Drawn in a server as alone: with rich's lines, as wide as the terminal is."""
    shown = []
    for more in ({}, {"PROBE_NO_SERVER": "1"}):
        ours, theirs = pty.openpty()
        process = served.start("tables", "tokens", cwd=tmp_path, stdout=theirs, env={"COLUMNS": "70", **more})
        os.close(theirs)
        text = b""
        while True:
            try:
                more_of_it = os.read(ours, 4096)
            except OSError:
                break
            text += more_of_it
        os.close(ours)
        process.communicate()
        shown.append(text)
    assert shown[0] == shown[1] and "─".encode() in shown[0]


@pytest.mark.slow
def test_a_second_server_is_refused_and_a_dead_one_replaced(place: Place, tmp_path: Path) -> None:
    first = place.begin()
    code, _, complained = place.run("serve", *TINY, cwd=tmp_path)
    assert code == 1 and b"a server is there already" in complained
    first.kill()
    first.communicate()
    code, said, complained = place.run("--version", cwd=tmp_path)
    assert (code, complained) == (0, b"") and said.startswith(b"probe ")
    place.begin()
    code, said, _ = place.run("serve", "--status", "--json", cwd=tmp_path)
    told = json.loads(said)["summary"]
    assert [one["name"] for one in told["models"]] == ["tiny:llama"] and told["running"] == 0
    assert place.run("serve", "--stop", cwd=tmp_path)[0] == 0
    assert place.server is not None and place.server.wait(timeout=60) == 0
    assert not list((place.runtime / "probe").glob("*.sock"))
    code, _, complained = place.run("serve", "--status", cwd=tmp_path)
    assert code == 1 and complained == b"error: no server is there\nhint: probe serve starts one\n"


@pytest.mark.slow
def test_a_server_that_dies_meanwhile_leaves_its_command_alone(place: Place, tmp_path: Path) -> None:
    """One whose process dies as well ends with a line; one that dies by itself ends as it would alone."""
    server = place.begin()

    def begun(name: str) -> tuple[subprocess.Popen[bytes], int]:
        before = set(place.commands())
        process = place.start("trace", "-", *TINY, "--out", name, cwd=tmp_path, stdin=subprocess.PIPE)
        until(lambda: len(place.commands()) > len(before))
        (command,) = set(place.commands()) - before
        return process, int(command)

    one, killed = begun("a")
    time.sleep(0.5)  # until their clients have heard which process is theirs
    os.kill(killed, signal.SIGKILL)
    assert one.wait(timeout=60) == -signal.SIGKILL
    one.communicate()
    (left, _), (other, lost) = begun("run"), begun("b")
    time.sleep(0.5)
    server.kill()
    server.wait()
    os.kill(lost, signal.SIGKILL)
    _, complained = other.communicate(timeout=60)
    assert (other.returncode, complained) == (1, b"error: the server ended, and the command with it\n")
    said, complained = left.communicate(b"one\n", timeout=240)
    assert left.returncode == 0, complained
    assert said.endswith(b"run: run\n")


@pytest.mark.slow
def test_it_ends_when_nobody_comes(place: Place, tmp_path: Path) -> None:
    """But not while a command is at work, however long."""
    server = place.begin("--idle", "3s", *TINY)
    process = place.start("trace", "-", *TINY, cwd=tmp_path, stdin=subprocess.PIPE)
    until(lambda: bool(place.commands()))
    time.sleep(4)
    assert server.poll() is None
    assert process.communicate(b"one\n", timeout=240)[1] == b""
    said, _ = server.communicate(timeout=60)
    assert server.returncode == 0 and "nothing came for 3s" in said


@pytest.mark.slow
def test_files_that_changed_are_read_again(place: Place, tmp_path: Path) -> None:
    """The weights on the disk are those of a command, not those in the server."""
    from probe.tiny import tiny

    model, tokenizer = tiny("llama")
    model.save_pretrained(tmp_path / "m"), tokenizer.save_pretrained(tmp_path / "m")
    place.begin("--model", str(tmp_path / "m"))
    words = ("trace", "Hello", "--model", str(tmp_path / "m"), "--json", "--out")
    first = json.loads(place.run(*words, "a", cwd=tmp_path)[1])
    model.lm_head.weight.data *= 2
    model.save_pretrained(tmp_path / "m")
    second = json.loads(place.run(*words, "b", cwd=tmp_path)[1])
    assert first["summary"]["logprob"] != second["summary"]["logprob"]
    made = (json.loads((tmp_path / name / "manifest.json").read_text())["model"]["files"] for name in "ab")
    assert next(made) != next(made)


@pytest.mark.slow
def test_a_package_that_was_installed_meanwhile_ends_it(place: Place, tmp_path: Path) -> None:
    beside = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    server = place.begin(**beside)
    assert place.run("--version", cwd=tmp_path, env=beside)[2] == b""
    (tmp_path / "torch-99.dist-info").mkdir()
    code, said, complained = place.run("--version", cwd=tmp_path, env=beside)
    assert (code, said[:6]) == (0, b"probe ") and b"a package, has changed" in complained
    assert "the server ends" in server.communicate(timeout=60)[0]
    assert place.run("--version", cwd=tmp_path, env=beside)[2] == b""


def test_what_it_waits_for_is_a_time(served: Place, tmp_path: Path) -> None:
    for idle in ("0s", "soon", "5"):
        code, _, complained = served.run("serve", "--idle", idle, cwd=tmp_path)
        assert code == 1 and f"'{idle}' is no time to wait" in complained.decode()
