"""Laws that hold on a CPU, on an accelerator: larger things, and memory that really ends.

Left out where there is none, unless `-m gpu` asks for them: then the same code goes through on the CPU, at tiny size.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import probe
from probe.capturing import AttentionSpec, MemorySink, read
from probe.decoding import Sampling, branch
from probe.decoding.rollouts import LocalEngine, Rollout
from probe.devices import Readback, free_bytes, uploaded
from probe.fitting import fitting
from probe.instrument import tapping
from probe.sites import parse_places
from recipes.bench.gpu import made, texts

pytestmark = pytest.mark.gpu
DEVICE = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")


@pytest.fixture(scope="module")
def lm() -> probe.LanguageModel:
    """A billion parameters in bf16 where there is a GPU."""
    return made("1B" if DEVICE.type != "cpu" else "tiny", DEVICE)


@pytest.fixture(scope="module")
def exact() -> probe.LanguageModel:
    """A small one in fp32, for what is to be equal to rounding."""
    return probe.load("tiny:llama", device=DEVICE.type, dtype="float32")


def test_capturing_changes_nothing(lm: probe.LanguageModel) -> None:
    ids = texts(lm, 2, 300)
    with torch.no_grad():
        plain = lm.model(ids, use_cache=False).logits
    sink = MemorySink()
    cells = lm.anatomy.cells([*parse_places("resid_post@all"), *parse_places("logits")])
    read(lm, ids, [300, 300], sink=sink, cells=cells, attention=AttentionSpec("topk", 4))
    assert torch.equal(sink.activations["logits", -1, None], plain)


def test_captures_are_what_hooks_see_and_come_back_whole(lm: probe.LanguageModel) -> None:
    """Of all layers, read back beside the forward: no vector is one that was overwritten or not there yet."""
    text = lm.tokenizer.decode(texts(lm, 1, 400)[0])
    ids = torch.tensor([lm.encode(text).ids], device=lm.device)
    taps = [lm.anatomy.tap("resid_post", layer) for layer in range(lm.anatomy.n_layers)]
    kept: dict[int, torch.Tensor] = {}
    with (
        torch.no_grad(),
        tapping(lm.model, {tap: lambda value, i=i: kept.update({i: value.clone()}) for i, tap in enumerate(taps)}),
    ):
        lm.model(ids, use_cache=False)
    for _ in range(5):
        run = probe.trace(lm, text, capture=["resid_post@all"], attention="none")
        for layer, own in run.activations.groupby("layer"):
            vectors = np.stack(own.sort_values("pos")["vector"].to_list())
            assert np.array_equal(vectors, kept[layer][0].float().cpu().numpy()), layer


def test_what_is_read_back_is_in_order_and_bounded() -> None:
    found: list[int] = []
    readback = Readback(most=1 << 20)
    for i in range(200):
        readback.put([torch.full((1 << 14,), i, device=DEVICE)], lambda value: found.append(int(value[0]) + int(value[-1])))
    readback.finish()
    assert found == [2 * i for i in range(200)]
    assert uploaded([1, 2, 3], DEVICE).tolist() == [1, 2, 3]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(1.0, top_p=0.9), Sampling(0.8, top_k=20)])
def test_a_fork_has_the_tokens_from_scratch(exact: probe.LanguageModel, sampling: Sampling) -> None:
    """And those of the CPU, for the noise is the same function there."""
    prefixes = [exact.encode("One two three four").ids, exact.encode("A dog").ids]
    together = branch(exact, prefixes, [0, 1, 2], max_new=40, sampling=sampling)
    cpu = probe.load("tiny:llama", device="cpu")
    for i, prefix in enumerate(prefixes):
        for j in range(3):
            (alone,), (there,) = (branch(one, [prefix], [j], max_new=40, sampling=sampling)[0] for one in (exact, cpu))
            assert together[i][j].ids == alone.ids == there.ids


def test_a_sweep_is_that_of_the_cpu(exact: probe.LanguageModel) -> None:
    """Of cells of the stream and of heads."""
    cpu, sites = probe.load("tiny:llama", device="cpu"), ["resid_pre@all", "z@1"]
    asked = {"clean": "A dog is red", "corrupt": "A cat is red", "answer": "Q", "against": "z", "sites": sites}
    here, there = (probe.patch(lm, **asked).patches for lm in (cpu, exact))
    np.testing.assert_allclose(there["change"], here["change"], rtol=1e-2, atol=1e-4)


@pytest.mark.filterwarnings("ignore:a batch did not fit")
def test_memory_that_ends_is_a_smaller_batch(lm: probe.LanguageModel) -> None:
    """Most of the memory is taken: what does not fit at once comes by halves, with the tokens that it would have had."""
    some = [Rollout(tuple(ids.tolist()), i, 24, 3) for i, ids in enumerate(texts(lm, 48, 200))]

    def drawn() -> dict[int, int]:
        found: dict[int, int] = {}
        LocalEngine(lm).draw(some, Sampling(1.0), done=lambda place, one: found.update({place: len(one.ids)}))
        return found

    wanted, free = drawn(), free_bytes(lm.device)
    if free is None:
        pytest.skip("nobody says what is free")
    torch.get_device_module().empty_cache()
    taken = torch.empty(int(free_bytes(lm.device) - (1 << 28)), dtype=torch.uint8, device=lm.device)
    try:
        assert drawn() == wanted
    finally:
        del taken
    with pytest.raises(probe.ProbeError, match="does not fit"), fitting("it", hint=""):
        torch.empty(1 << 50, dtype=torch.uint8, device=lm.device)


def test_two_devices_give_what_one_gives(exact: probe.LanguageModel, tmp_path) -> None:
    if not torch.accelerator.is_available() or torch.accelerator.device_count() < 2:
        pytest.skip("there is one device")
    folder = tmp_path / "model"
    exact.model.save_pretrained(folder)
    exact.tokenizer.save_pretrained(folder)
    spread = probe.load(str(folder), dtype="float32", device_map="balanced")
    one, two = (probe.trace(each, "One two three", capture=["resid_post@all"]) for each in (exact, spread))
    np.testing.assert_allclose(np.stack(one.activations["vector"]), np.stack(two.activations["vector"]), rtol=1e-4, atol=1e-5)
