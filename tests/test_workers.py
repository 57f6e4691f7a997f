"""Work on several threads: its order, its errors, and that the numbers do not depend on how many there are."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import probe
from probe import workers
from probe.capturing import AttentionSpec, MemorySink, read
from probe.workers import each, in_order

CPU = torch.device("cpu")


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


pytestmark = pytest.mark.usefixtures("three_threads")


def in_list(work: Callable[[int], Any], items: Iterable[int]) -> list[Any]:
    found: list[Any] = []
    in_order(work, items, found.append, CPU)
    return found


def test_results_come_in_order_from_all_threads() -> None:
    users: set[int] = set()

    def work(item: int) -> tuple[int, int, bool, int]:
        time.sleep(0.002 * (7 - item % 8))  # the later ones are ready first
        return item, torch.get_num_threads(), torch.is_grad_enabled(), threading.get_ident()

    for _ in range(2):  # threads are as they were afterwards
        found: list[tuple[int, int, bool, int]] = []

        def use(result: tuple[int, int, bool, int], found: list[tuple[int, int, bool, int]] = found) -> None:
            users.add(threading.get_ident())
            found.append(result)

        in_order(work, range(40), use, CPU)
        assert [item for item, *_ in found] == list(range(40))
        assert torch.get_num_threads() == 3 and torch.is_grad_enabled()
        assert {threads for _, threads, *_ in found} == {1}
        assert {grad for *_, grad, _ in found} == {False}
        assert 1 < len({ident for *_, ident in found}) <= 3
    assert users == {threading.get_ident()}


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_an_operation_within_has_one_thread() -> None:
    """Three of them at once begin no others, as one does in a thread that comes anew."""
    together_now, values = threading.Barrier(3), torch.ones(1500, 1500)
    counts: list[int] = []

    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    def work(computes: bool) -> None:
        together_now.wait(20)  # each has one
        if computes:
            values.exp() @ values
        counts.append(threads())
        together_now.wait(20)

    each(work, [False] * 3, CPU)
    each(work, [True] * 3, CPU)
    assert max(counts[3:]) == max(counts[:3])

    def alone() -> None:
        values.exp() @ values
        counts.append(threads())

    thread = threading.Thread(target=alone)
    thread.start()
    thread.join()
    assert counts[-1] >= max(counts[:3])  # without those three, with its own


def test_few_results_wait_for_their_turn() -> None:
    begun: list[int] = []
    ahead: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        return item

    def use(item: int) -> None:
        time.sleep(0.0005)
        ahead.append(len(begun) - item)

    in_order(work, range(400), use, CPU)
    assert len(ahead) == 400 and 1 < max(ahead) <= workers.AHEAD * 3 + 1


def test_an_error_comes_out_and_nothing_goes_on_behind_it() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.01)
        if item == 4:
            raise ValueError("four")
        return item

    got: list[int] = []
    with pytest.raises(ValueError, match="four"):
        in_order(work, range(100), got.append, CPU)
    after = len(begun)
    time.sleep(0.05)
    assert got == [0, 1, 2, 3] and len(begun) == after < 30


def test_an_error_of_what_uses_results_or_makes_items_comes_out() -> None:
    def broken(item: int) -> None:
        raise OSError(f"no room for {item}")

    def items() -> Iterator[int]:
        yield from range(5)
        raise MemoryError("six")

    with pytest.raises(OSError, match="no room for 0"):
        in_order(lambda item: item, range(1000), broken, CPU)
    with pytest.raises(MemoryError, match="six"):
        in_list(lambda item: item, items())


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """What a terminal's programs do with it; those begun in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_it() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 20:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.002)
        return item

    for run in (in_list, lambda work, items: each(work, items, CPU)):
        begun.clear()
        with pytest.raises(KeyboardInterrupt):
            run(work, range(5000))
            time.sleep(5)  # it may come right behind
        assert len(begun) < 5000


def test_each_item_is_worked_on_once_and_an_error_ends_it() -> None:
    done: list[tuple[int, int, int]] = []

    def work(item: int) -> None:
        time.sleep(0.002 * (item % 3))
        if item == 77:
            raise IndexError("seventy-seven")  # also the error of an empty queue
        done.append((item, torch.get_num_threads(), threading.get_ident()))

    each(work, range(40), CPU)
    assert sorted(item for item, *_ in done) == list(range(40))
    assert 1 < len({ident for *_, ident in done}) <= 3
    assert {threads for _, threads, _ in done} == {1}
    with pytest.raises(IndexError, match="seventy-seven"):
        each(work, range(70, 1000), CPU)
    after = len(done)
    time.sleep(0.05)
    assert len(done) == after < 60


@pytest.mark.filterwarnings("ignore:This process")
def test_a_forked_process_has_threads_of_its_own() -> None:
    assert in_list(str, [1, 2, 3]) == ["1", "2", "3"]
    child = os.fork()
    if not child:
        signal.alarm(20)
        os._exit(0 if in_list(str, [1, 2, 3]) == ["1", "2", "3"] else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.slow
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
