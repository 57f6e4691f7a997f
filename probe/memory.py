"""What processes hold of this machine's memory, as its operating system counts it."""

from __future__ import annotations

import sys
from pathlib import Path


def peak_memory(pid: int | None = None) -> int | None:
    """Bytes of resident memory at the highest, of this process or another; None where the system does not say.

    On Linux since it began, or since a 5 was written into its `clear_refs`; elsewhere only of this process.
    """
    status = Path(f"/proc/{pid or 'self'}/status")
    if status.is_file():  # what `getrusage` says on Linux begins with the memory of the process that started this one
        told = (line.split() for line in status.read_text().splitlines())
        return next((int(words[1]) * 1024 for words in told if words[:1] == ["VmHWM:"]), None)
    try:
        import resource
    except ImportError:
        return None
    if pid is not None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
