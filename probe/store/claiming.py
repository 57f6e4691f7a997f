"""One process at a time writes a run at a URL, whatever machine it is on. Knows nothing of what is written.

An object store has no locks, and pyarrow no call that creates a file only where there is none. So each process first writes a
claim of its own and then looks who else has one: of two that come at the same moment at least one sees the other, and gives up.
A claim is written anew while its process lives, and is worth nothing when that has not happened for `STALE` seconds by the
server's clock, or when its process is known to be dead, as one of this machine is. Where that was wrong (a machine slept), the
process whose claim is gone finds that out before it writes the next record.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import secrets
import threading
import time
from contextlib import suppress
from typing import Any

from probe.errors import ProbeError, RunError, StorageFull
from probe.store import manifest
from probe.store.layout import CLAIMS
from probe.store.remote import RemoteFolder, StoredFile

BEAT = 20.0  # seconds between two writings of a claim
STALE = 120.0  # seconds
_OWN: set[str] = set()  # the claims of this process


class Claim:
    """This process writes at a URL, until `release`. RunError where another does."""

    def __init__(self, remote: RemoteFolder) -> None:
        self._remote = remote
        self._name = f"{CLAIMS}/{secrets.token_hex(8)}.json"
        self._over = threading.Event()
        self._text = json.dumps(_who()).encode()
        _OWN.add(self._name)
        try:
            remote.write(self._name, self._text)
            self._alone()
        except BaseException:
            self.release()
            raise
        threading.Thread(target=self._renew, daemon=True).start()

    def _alone(self) -> None:
        found = self._remote.files(CLAIMS)
        own = found.pop(self._name, None)
        for name, stored in found.items():
            who = _read(self._remote, name)
            if who is not None and not _dead(name, who, own, stored):
                raise _taken(self._remote.url, who)
            self._remote.clear([name])

    def check(self) -> None:
        """Raises `StorageFull` where another process took this one for dead, and writes now."""
        if self._remote.there(self._name) is None:
            hint = "that process completes the run; this one's work since then is not in it"
            raise StorageFull(f"'{self._remote.url}' was taken over by another process", hint=hint)

    def _renew(self) -> None:
        while not self._over.wait(BEAT):
            with suppress(ProbeError):  # of a server that does not answer, the next record tells
                if self._remote.there(self._name) is None:
                    return
                self._remote.write(self._name, self._text)

    def release(self) -> None:
        """Let others write."""
        self._over.set()
        _OWN.discard(self._name)
        with suppress(ProbeError):
            self._remote.clear([self._name])


def alive(pid: int) -> bool:
    """Whether a process of this machine lives."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def claimed(remote: RemoteFolder) -> dict[str, Any] | None:
    """Who writes at a URL now, by this machine's clock; None where nobody does."""
    for name, stored in remote.files(CLAIMS).items():
        if (who := _read(remote, name)) is not None and not _dead(name, who, StoredFile(0, time.time()), stored):
            return who
    return None


def _who() -> dict[str, Any]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # of a user without a name
        user = str(os.getuid())
    return {"user": user, "host": platform.node(), "pid": os.getpid(), "since": manifest.now()}


def _read(remote: RemoteFolder, name: str) -> dict[str, Any] | None:
    """What a claim says; None where it is gone."""
    text = remote.read(name)
    try:
        found = None if text is None else json.loads(text)
    except ValueError:
        found = {}
    return found if found is None or isinstance(found, dict) else {}


def _dead(name: str, who: dict[str, Any], own: StoredFile | None, theirs: StoredFile | None) -> bool:
    if own and theirs and own.seconds is not None and theirs.seconds is not None and own.seconds - theirs.seconds > STALE:
        return True
    if who.get("host") != platform.node() or not isinstance(who.get("pid"), int):
        return False
    return name not in _OWN if who["pid"] == os.getpid() else not alive(who["pid"])


def _taken(url: str, who: dict[str, Any]) -> RunError:
    one = f"{who.get('user')} on {who.get('host')} (process {who.get('pid')}, since {who.get('since')})"
    hint = f"wait for it, or choose another --out; one that died is forgotten {STALE:.0f} s after its last sign of life"
    return RunError(f"'{url}' is being written by {one}", hint=hint)
