"""What a run says about itself: manifest, versions, commit, README. Knows no rows."""

from __future__ import annotations

import math
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from probe.tables import SCHEMA_VERSION, TABLES

_PACKAGES = ("torch", "transformers", "pyarrow", "pandas", "numpy", "safetensors")


def now() -> str:
    """UTC, to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def state(
    command: str, arguments: Mapping[str, Any], resolved: Mapping[str, Any], *, run_id: str, typed: str | None
) -> dict[str, Any]:
    """What is known when a run starts."""
    if typed is None:
        typed = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv[0] else command
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "command": command,
        "typed": typed,
        "arguments": jsonable(arguments),
        "resolved": jsonable(resolved),
        "started": now(),
        "versions": versions(),
    }


def jsonable(value: Any) -> Any:
    """The same as plain JSON: NumPy as numbers and lists, paths as text, NaN and infinities as null."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(jsonable(item) for item in value)
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes)):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide the numbers; read from their metadata, nothing is imported."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for key, package in (("probe", "mechprobe"), *((name, name) for name in _PACKAGES)):
        try:
            found[key] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit(folder: Path) -> dict[str, Any] | None:
    """Git commit of a working directory and whether tracked files differ from it; None outside of git."""
    if not any((parent / ".git").exists() for parent in (folder, *folder.parents)):
        return None
    try:
        head = _git(folder, "rev-parse", "HEAD")
        dirty = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": head, "dirty": bool(dirty)}


def _git(folder: Path, *args: str) -> str:
    command = ["git", "--no-optional-locks", *args]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()


def peak_memory() -> int | None:
    """Bytes of resident memory at the highest, of this process."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def slug(text: str) -> str:
    """Only the characters that break no glob, shell or file system: A-Z a-z 0-9 . _ = -"""
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", text).strip("-.") or "run"


def readme(manifest: Mapping[str, Any]) -> str:
    """README.md whose header lets Hugging Face `datasets` load each table by its name."""
    lines = ["---", "configs:"]
    for name, table in sorted(manifest["tables"].items()):
        files = f"{name}/*.parquet" if TABLES[name].large else f"{name}.parquet"
        lines += [f"- config_name: {name}", f"  data_files: {files}"]
        if name == "tokens":
            lines.append("  default: true")
        assert table["files"], f"table {name} without a file"
    if not manifest["tables"]:
        lines[-1] = "configs: []"
    lines += ["---", "", f"# {manifest['run_id']}", "", f"Made by `{manifest['command']}` of probe. Tables:", ""]
    for name, table in sorted(manifest["tables"].items()):
        where = f"{name}/" if TABLES[name].large else f"{name}.parquet"
        lines.append(f"- `{where}`: {table['rows']} rows, one is {TABLES[name].row}")
    lines += [
        "",
        "The files' metadata says what each column means; `manifest.json` how they were made.",
        "",
    ]
    return "\n".join(lines)
