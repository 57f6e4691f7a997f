"""Classes of answers that a computer algebra system finds equal, merged: `math-verify`, an extra, in a process of its own.

Only a merge step: its `verify` is not symmetric and may hang, so that it cannot define classes. Two classes become one
where it says so both ways; a pair that takes too long stays two.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from probe.answers.extraction import NONE, TRUNCATED
from probe.errors import BadOption

_WORKER = """
import json, sys
from math_verify import parse, verify
keys = json.load(sys.stdin)
parsed = [parse("$" + key + "$", parsing_timeout=2) for key in keys]
for i, a in enumerate(parsed):
    for j in range(i):
        b = parsed[j]
        if a and b and verify(a, b, timeout_seconds=2) and verify(b, a, timeout_seconds=2):
            print(json.dumps([j, i]), flush=True)
"""


def merge(keys: Sequence[str], *, timeout: float = 60.0) -> dict[str, str]:
    """Each key -> the key of its merged class: the first of them. What is not said within `timeout` seconds is not merged.

    Works in any thread: the timeouts that need the main one are the process's own. Raises `BadOption` without the extra.
    """
    if find_spec("math_verify") is None:
        raise BadOption("math-verify is not installed", hint="pip install 'mechprobe[math]', or drop --merge-answers")
    real = [key for key in dict.fromkeys(keys) if key not in (NONE, TRUNCATED)]
    first = {key: key for key in keys}
    for j, i in _equal(real, timeout):
        one, other = sorted((first[real[j]], first[real[i]]), key=real.index)
        first = {key: one if root == other else root for key, root in first.items()}
    return first


def _equal(keys: Sequence[str], timeout: float) -> list[tuple[int, int]]:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _WORKER],
            input=json.dumps(list(keys)),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        said = done.stdout
    except subprocess.TimeoutExpired as error:
        said = (error.stdout or b"").decode() if isinstance(error.stdout, bytes) else error.stdout or ""
    return [(j, i) for line in said.splitlines() if line.endswith("]") for j, i in [json.loads(line)]]
