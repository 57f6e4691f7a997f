"""Where things are: what is a URL, what its parts are, and the folder of what probe made itself. Asks no server."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, TypeGuard

SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file")  # of which pyarrow knows the file system
FSSPEC = "fsspec+"  # before a protocol of fsspec
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(\S*)")


def is_url(given: Any) -> TypeGuard[str]:
    """Whether a value is text with a scheme before it, as URLs have one."""
    return isinstance(given, str) and _URL.match(given) is not None


def leads_to_runs(given: Any) -> TypeGuard[str]:
    """Whether a text can be nothing but a URL at which runs may be: of a scheme that there is a file system for."""
    found = _URL.fullmatch(given) if isinstance(given, str) else None
    return found is not None and (found[1].lower() in SCHEMES or found[1].lower().startswith(FSSPEC))


def authority(url: str) -> str:
    """What stands between scheme and path: the bucket, or the server, and perhaps who asks it."""
    return url.partition("://")[2].partition("?")[0].partition("/")[0]


def inside(url: str, name: str) -> str:
    """The URL of something under one."""
    before, mark, options = url.partition("?")
    return f"{before.rstrip('/')}/{name}{mark}{options}"


def last_name(url: str) -> str:
    """What a URL calls the thing that it leads to."""
    return url.partition("?")[0].rstrip("/").rpartition("/")[2]


def home() -> Path:
    """Where probe keeps what it made itself: `$PROBE_HOME`, else the platform's cache directory. Not created by asking."""
    if given := os.environ.get("PROBE_HOME"):
        return Path(given).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("probe"))
