"""What test_tensor_parallel.py has torchrun start twice: commands on models that both share, and what is refused of these."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from probe.cli.main import app

import probe
from probe.errors import ProbeError

REFUSED: dict[str, Callable[[probe.LanguageModel], Any]] = {
    "weights": lambda lm: probe.weights(lm),
    "attribute": lambda lm: probe.attribute(lm, "a b"),
    "look": lambda lm: probe.look(lm, "a b"),
    "edit_weights": lambda lm: probe.edit_weights(lm, "z@0.0=zero", "never written"),
    "gradients": lambda lm: probe.patch(lm, clean="a b", corrupt="a c", answer="d", method="attribution"),
    "resume": lambda lm: probe.trace(lm, "a b", out="never begun", resume=True),
    "engine": lambda lm: probe.trace(lm, ["a", "b"], out="never begun", engine="ray"),
}


def main(commands: list[list[str]], folder: str) -> None:
    """Each command, as the shell would; then on one model a file that both write, what it refuses, and a forward."""
    for words in commands:
        with suppress(SystemExit):
            app(words)
    lm = probe.load(folder, tp_plan="auto")
    probe.make_direction(lm, ["a b", "a c"], ["b a", "c a"], at="resid_post@1", to=f"{folder}.safetensors")
    told: dict[str, Any] = {}
    for name, asked in REFUSED.items():
        try:
            asked(lm)
        except ProbeError as error:
            told[name] = [error.message, error.hint]
    ids = torch.tensor([lm.encode("a b c").ids])
    with torch.no_grad():
        told["forward"] = lm.model(ids).logits.tolist()
    if torch.distributed.get_rank() == 0:
        print(f"\n{json.dumps(told)}")


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
