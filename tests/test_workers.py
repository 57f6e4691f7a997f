"""Work on several threads: its order, its errors, and that the numbers do not depend on how many there are."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import probe
from probe.capturing import AttentionSpec, MemorySink, read
from probe.workers import each, in_order

CPU = torch.device("cpu")


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_results_come_in_order_from_threads_that_are_one_each() -> None:
    def work(item: int) -> tuple[int, int, bool, int]:
        time.sleep(0.002 * (7 - item % 8))  # the later ones are ready first
        return item, torch.get_num_threads(), torch.is_grad_enabled(), threading.get_ident()

    for _ in range(2):  # a pool that was used before is used again
        found = list(in_order(work, list(range(40)), CPU))
        assert [item for item, *_ in found] == list(range(40))
        assert {threads for _, threads, *_ in found} == {1} and torch.get_num_threads() == 3
        assert {grad for *_, grad, _ in found} == {False}
        assert 1 < len({ident for *_, ident in found}) <= 3


@pytest.mark.usefixtures("three_threads")
def test_an_error_comes_out_and_nothing_goes_on_behind_it() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.01)
        if item == 4:
            raise ValueError("four")
        return item

    got = []
    with pytest.raises(ValueError, match="four"):
        got.extend(in_order(work, list(range(100)), CPU))
    after = len(begun)
    time.sleep(0.05)
    assert len(begun) == after < 30


@pytest.mark.usefixtures("three_threads")
def test_each_item_is_worked_on_once_and_an_error_ends_it() -> None:
    done: list[tuple[int, int, int]] = []

    def work(item: int) -> None:
        time.sleep(0.002 * (item % 3))
        if item == 77:
            raise IndexError("seventy-seven")  # also the error of an empty queue
        done.append((item, torch.get_num_threads(), threading.get_ident()))

    each(work, range(40), CPU)
    assert sorted(item for item, *_ in done) == list(range(40))
    assert {threads for _, threads, _ in done} == {1} and 1 < len({ident for *_, ident in done}) <= 3
    with pytest.raises(IndexError, match="seventy-seven"):
        each(work, range(70, 1000), CPU)
    after = len(done)
    time.sleep(0.05)
    assert len(done) == after < 60


@pytest.mark.usefixtures("three_threads")
@pytest.mark.filterwarnings("ignore:This process")
def test_a_forked_process_has_threads_of_its_own() -> None:
    assert list(in_order(str, [1, 2, 3], CPU)) == ["1", "2", "3"]
    child = os.fork()
    if not child:
        signal.alarm(20)
        os._exit(0 if list(in_order(str, [1, 2, 3], CPU)) == ["1", "2", "3"] else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "gemma2"])
def test_attention_is_the_same_from_one_thread_and_from_three(family: str) -> None:
    """Several blocks of queries a head; whole rows and all statistics of two prompts."""
    lm = probe.load(f"tiny:{family}")
    ids = torch.randint(20, 60, (2, 600), generator=torch.Generator().manual_seed(5))
    before, found = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            found.append([MemorySink() for _ in range(2)])
            for sink, spec in zip(found[-1], ("full", "topk:5"), strict=True):
                read(lm, ids, [600, 333], attention=AttentionSpec.parse(spec), sink=sink)
        finally:
            torch.set_num_threads(before)
    (full, top), (full_3, top_3) = found
    for prompt, n in enumerate((600, 333)):
        for layer in range(lm.anatomy.n_layers):
            for head in range(lm.anatomy.n_heads("pattern", layer)):
                for one, three in ((full, full_3), (top, top_3)):
                    a, b = (sink.pattern(layer, head, n, prompt=prompt) for sink in (one, three))
                    np.testing.assert_allclose(a, b, atol=2e-6)
            for one, three in ((full, full_3), (top, top_3)):
                expected = three.row_pieces[prompt, layer]
                for name, values in one.row_pieces[prompt, layer].items():
                    np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=2e-5, err_msg=name)
