"""How often this process would wait for a GPU: never once a token, never once a layer. Without one: see `another_device`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

TEXTS = ["One two three four, and two three four again.", "One two", "A fox, a dog; the fox again"]
LOOKS = 4  # tokens, after which they are looked at here


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seen() -> dict[str, list]:
    """name -> [waits of a short (or shallow) one, waits of a long (or deep) one, whether both are what the CPU gives]."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip("this torch has no backends in Python")
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_synchronisation"], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["greedy", "top-p", "penalty", "edited", "rollouts"])
def test_no_token_is_waited_for(seen: dict[str, list], name: str) -> None:
    """Two stretches of tokens more are two looks more, and the tokens are those of the CPU."""
    short, long, same = seen[name]
    assert len(long) - len(short) == 2, long
    assert len(short) <= 8, short
    assert same


@pytest.mark.parametrize("name", ["activations", "trace", "edits", "lens", "rows", "means"])
def test_no_layer_is_waited_for(seen: dict[str, list], name: str) -> None:
    """A model of twice as many layers is read, and edited, with as many waits."""
    few, many, same = seen[name]
    assert len(many) == len(few), sorted(set(many) - set(few))
    assert same


def main(device) -> None:
    """Run everything here and there, and print what was seen as JSON."""
    from copy import deepcopy

    import numpy as np
    import torch

    import probe
    from probe import devices
    from probe.capturing import MemorySink, read
    from probe.decoding import Sampling, decode, draws
    from probe.decoding.rollouts import LocalEngine, Rollout
    from probe.sites import parse_places

    def sent(tensors):
        """As a stream of its own would: nothing waits before it is asked to."""
        copies = [one.to("cpu", non_blocking=True) for one in tensors]
        return lambda: copies

    def fetched(tensors):
        device.count("fetched")
        return sent(tensors)()

    devices.sent, devices.fetched, draws.AHEAD = sent, fetched, LOOKS
    small = probe.load("tiny:llama", device="cpu")

    def there(lm: probe.LanguageModel) -> probe.LanguageModel:
        found = probe.LanguageModel(device.moved(deepcopy(lm.model)), lm.tokenizer, name=lm.name)
        found.__dict__["anatomy"] = lm.anatomy
        return found

    def deeper() -> probe.LanguageModel:
        config = deepcopy(small.model.config)
        config.num_hidden_layers, config.layer_types = 6, None
        torch.manual_seed(0)
        return probe.LanguageModel(type(small.model)(config), small.tokenizer, name="deeper")

    def drawn(n: int, **sampling):
        return lambda lm: [
            (one.ids, one.stop_reason, one.kept)
            for one in decode(lm, [lm.encode(text).ids for text in TEXTS], max_new=n, sampling=Sampling(**sampling))
        ]

    def written(n: int):
        """A decode loop under edits."""

        def run(lm):
            own = {"edit": ["attn_out@1=scale:0.5", "pattern@2:4..=cut:1"], "attention": "none", "temperature": 0.0}
            return probe.trace(lm, TEXTS[0], generate=n, **own).tokens["token_id"].tolist()

        return run

    def rollouts(n: int):
        def run(lm):
            found = {}
            some = [Rollout(tuple(lm.encode(text).ids), i, n, 7) for text in TEXTS for i in range(3)]
            LocalEngine(lm).draw(some, Sampling(1.0), done=lambda place, one: found.update({place: one.ids}))
            return found

        return run

    def recorded(lm):
        ids, sink = torch.tensor([lm.encode(TEXTS[0]).ids] * 2), MemorySink()
        cells = lm.anatomy.cells([*parse_places("resid_post@all"), *parse_places("z@all")])
        return read(lm, ids, [ids.shape[1], ids.shape[1] - 3], sink=sink, cells=cells).scores[0].logprob.tolist()

    def traced(lm):
        run = probe.trace(lm, TEXTS[0], capture=["resid_post@all", "z@all:last"], attention="topk:2")
        return [float(run.activations["norm"].mean()), float(run.attention_rows["entropy"].mean())]

    def edited(lm):
        """Every layer, of vectors, of heads, of edges; with noise; at some positions and at all."""
        edits = ["attn_out@all:2..=scale:0.5", "z@all=scale:0.9", "resid_post@all=noise:0.1:1", "pattern@all:4..=cut:1"]
        run = probe.trace(lm, TEXTS[0], edit=edits, attention="none", lens=True)
        return [*run.tokens["entropy"], *run.lens["entropy"]]

    def lensed(lm):
        run = probe.lens(lm, TEXTS[0], answer="a", against="b")
        return [*run.lens["kl_to_final"], *run.lens["target_logprob"], *run.lens["target_rank"]]

    def rows(lm):
        """Whole rows of patterns and scores."""
        run = probe.trace(lm, TEXTS[0], capture=["scores@all.1"], attention="full")
        weights, scores = run.table("attention")["weights"], run.table("scores")["scores"]
        return [*(float(one[0]) for one in weights), *(float(one[-1]) for one in scores)]

    def means(lm):
        run = probe.means(lm, TEXTS, at=["resid_post@all"])
        return [*run.table("means")["mean_norm"], *run.table("means")["norm_of_mean"]]

    def both(run, lm) -> tuple[list[str], bool]:
        other, wanted = others[lm.name], run(lm)
        with device.Counting():
            run(other)  # what is found out about a model is found once
        with device.Counting() as counting:
            found = run(other)
        close = found == wanted or (
            isinstance(found, list) and np.allclose(found, wanted, rtol=1e-4, atol=1e-5, equal_nan=True)
        )
        return counting.waits, bool(close)

    deep, result = deeper(), {}
    others = {lm.name: there(lm) for lm in (small, deep)}
    ways = {
        "greedy": {}, "top-p": {"temperature": 1.0, "top_p": 0.9},
        "penalty": {"temperature": 0.7, "top_k": 5, "repetition_penalty": 1.3, "suppress": (3, 4)},
    }  # fmt: skip
    for name, sampling in ways.items():
        short, long = both(drawn(LOOKS, **sampling), small), both(drawn(3 * LOOKS, **sampling), small)
        result[name] = short[0], long[0], short[1] and long[1]
    for name, made in {"edited": written, "rollouts": rollouts}.items():
        short, long = both(made(LOOKS + (name == "rollouts")), small), both(made(3 * LOOKS + (name == "rollouts")), small)
        result[name] = short[0], long[0], short[1] and long[1]
    readers = {"activations": recorded, "trace": traced, "edits": edited, "lens": lensed, "rows": rows, "means": means}
    for name, run in readers.items():
        few, many = both(run, small), both(run, deep)
        result[name] = few[0], many[0], few[1] and many[1]
    print(json.dumps(result))


if __name__ == "__main__":
    from tests import another_device  # before anything of probe

    main(another_device)
