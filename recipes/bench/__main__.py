"""`python -m recipes.bench NAME`: prints ratios against a named baseline, measured in the same process."""

from __future__ import annotations

import argparse

from . import branches, budget, engine, faults, gpu, inside, long, patch, peers, problems, scale, serve, speculate, trace, view

BENCHES = {
    "branches": branches.main,
    "budget": budget.main,
    "engine": engine.main,
    "faults": faults.main,
    "gpu": gpu.main,
    "inside": inside.main,
    "long": long.main,
    "patch": patch.main,
    "peers": peers.main,
    "problems": problems.main,
    "scale": scale.main,
    "serve": serve.main,
    "speculate": speculate.main,
    "trace": trace.main,
    "view": view.main,
}


def main() -> None:
    """Run one bench by its name."""
    parser = argparse.ArgumentParser(prog="python -m recipes.bench", description=__doc__)
    parser.add_argument("name", choices=sorted(BENCHES))
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--repeat", type=int, default=5, help="timed rounds after one for warming up")
    parser.add_argument("--quick", action="store_true", help="short texts, to see that it runs")
    parser.add_argument("--only", help="a part of it: one of its functions, such as captures or decoding")
    given = parser.parse_args()
    BENCHES[given.name](given.model, repeat=given.repeat, quick=given.quick, only=given.only)


if __name__ == "__main__":
    main()
