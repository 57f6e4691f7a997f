"""Where the server of this installation listens, and how the two sides talk: frames of JSON, with file descriptors beside them.

Every command reads it before anything else: it imports little.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket

SWITCH = "PROBE_NO_SERVER"
_LENGTH = 4  # bytes before a frame that say how long it is
_LONGEST = 1 << 26


def address() -> Path:
    """The socket of this installation: another environment, or another copy of probe, has another.

    It lies in the user's runtime folder, else in a folder of the user's own beside temporary files."""
    from zlib import crc32

    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(runtime, "probe") if runtime else Path(os.environ.get("TMPDIR") or "/tmp", f"probe-{os.getuid()}")
    installation = f"{sys.prefix} {Path(__file__).absolute().parent}"
    return folder / f"{crc32(os.fsencode(installation)):08x}.sock"


def is_private(folder: Path) -> bool:
    """Whether a folder is one (no link to one) of this user, that nobody else may look into."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not stat.S_IMODE(found.st_mode) & 0o077


def connected(seconds: float) -> socket.socket | None:
    """A connection to the server of this installation; None if there is none that is surely this user's.

    seconds: how long it may be silent."""
    path = address()
    if not path.exists() or not is_private(path.parent):
        return None
    import socket

    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(seconds)
        connection.connect(str(path))
    except OSError:
        connection.close()
        return None
    if peer(connection) != os.getuid():
        connection.close()
        return None
    return connection


def peer(connection: socket.socket) -> int:
    """The user at the other end."""
    import socket
    import struct

    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return int(user)


def send(connection: socket.socket, document: dict[str, Any], files: tuple[int, ...] = ()) -> None:
    """One frame, and file descriptors with it."""
    import json
    import socket

    text = json.dumps(document).encode()
    whole = len(text).to_bytes(_LENGTH, "big") + text
    sent = socket.send_fds(connection, [whole], files) if files else 0
    connection.sendall(whole[sent:])


def receive(connection: socket.socket, files: int = 0) -> tuple[dict[str, Any] | None, list[int]]:
    """The next frame and the file descriptors that came with it, at most so many; None if the other side has gone."""
    import json
    import socket

    data = b""
    found: list[int] = []
    while len(data) < _LENGTH or len(data) < _LENGTH + (size := int.from_bytes(data[:_LENGTH], "big")):
        if len(data) >= _LENGTH and size > _LONGEST:
            return None, found
        try:
            # one frame at a time: what follows it stays where it is
            more = _LENGTH - len(data) if len(data) < _LENGTH else _LENGTH + size - len(data)
            got, fresh, *_ = socket.recv_fds(connection, more, files)
        except ConnectionError:
            return None, found
        found += fresh
        if not got:
            return None, found
        data += got
    return json.loads(data[_LENGTH:]), found
