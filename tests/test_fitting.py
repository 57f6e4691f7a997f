"""A batch that does not fit into memory is run by halves: tables as they were, nothing lost or twice, one line if none fits."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import probe
from probe.decoding.rollouts import LocalEngine, Rollout
from probe.decoding.teacher_forced import suffix_logprobs
from probe.errors import OutOfMemory
from probe.fitting import HALVED, fitting, halving
from probe.interventions import save_direction
from tests.test_rewind import written

TEXTS = ["One two three", "Four five six seven eight", "Nine", "Ten eleven twelve", "A dog and a fox", "And so on", "The end"]


@pytest.fixture(scope="module")
def lm() -> probe.LanguageModel:
    return probe.load("tiny:llama", device="cpu")


@contextlib.contextmanager
def holding(lm: probe.LanguageModel, tokens: int, *, rows: int = 10**9) -> Iterator[list[tuple[int, int]]]:
    """A device with room for so many tokens (rows times positions) or rows of one forward; the forwards that did not fit."""
    refused: list[tuple[int, int]] = []

    def check(_: object, args: tuple, kwargs: dict) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids.numel() > tokens or len(ids) > rows:
            refused.append(tuple(ids.shape))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    hook = lm.model.register_forward_pre_hook(check, with_kwargs=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="a batch did not fit")
            yield refused
    finally:
        hook.remove()


def alike(run: probe.Run, other: probe.Run) -> None:
    """The same rows, whatever the order in which they were written; numbers to rounding."""
    assert run.tables == other.tables
    for table in run.tables:
        one, two = (_sorted(getattr(each, table)) for each in (run, other))
        pd.testing.assert_frame_equal(one, two, rtol=2e-4, atol=2e-5, check_exact=False)


def _sorted(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.drop(columns=["run_id", "duration"], errors="ignore")
    keys = [n for n in ("prompt_id", "pair_id", "branch", "layer", "head", "pos", "step", "query", "rank") if n in frame]
    return frame.sort_values(keys, kind="stable").reset_index(drop=True) if keys else frame


VERBS: dict[str, Callable[..., probe.Run]] = {
    "trace": lambda lm, **how: probe.trace(
        lm, TEXTS, generate=3, temperature=1.0, seed=1, capture=["resid_post@1"], attention="heads", **how
    ),
    "top": lambda lm, **how: probe.top(lm, TEXTS, at=["resid_post@1"], top=2, **how),
    "means": lambda lm, **how: probe.means(lm, TEXTS, at=["resid_post@1"], **how),
    "heads": lambda lm, **how: probe.heads(lm, TEXTS, sequences=2, length=8, **how),
    "patch": lambda lm, **how: probe.patch(
        lm, clean="A dog is red", corrupt="A cat is red", answer="Q", against="z", sites=["resid_pre@0", "z@1"], **how
    ),
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_by_halves_the_tables_are_the_same(lm: probe.LanguageModel, verb: str, tmp_path: Path) -> None:
    whole = VERBS[verb](lm, out=tmp_path / "whole")
    longest = max(len(lm.encode(text).ids) for text in TEXTS)
    with holding(lm, 3 * longest if verb != "heads" else 40, rows=3) as refused:
        parts = VERBS[verb](lm, out=tmp_path / "parts")
    assert refused
    alike(whole, parts)


def failing_once(lm: probe.LanguageModel, run: Callable[[], probe.Run]) -> tuple[probe.Run, probe.Run]:
    """What it gives, and what it gives where memory runs out once, in the middle of its forwards of several rows."""
    forwards, fails = [0], list[int]()

    def check(_: object, args: tuple, kwargs: dict) -> None:
        forwards[0] += len(kwargs.get("input_ids", args[0] if args else None)) > 1
        if fails and forwards[0] == fails[0]:
            fails.clear()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="a batch did not fit")
        hook = lm.model.register_forward_pre_hook(check, with_kwargs=True)
        try:
            run()  # what is found out about a model is found once
            forwards[0] = 0
            whole = run()
            assert forwards[0]
            fails.append((forwards[0] + 1) // 2)
            forwards[0] = 0
            parts = run()
            assert not fails
        finally:
            hook.remove()
    return whole, parts


PAIR = {"clean": "A dog is red", "corrupt": "A cat is red", "answer": "Q", "against": "z"}
SOLVED = [{"id": str(i), "prompt": text, "answer": "4"} for i, text in enumerate(TEXTS[:3])]
ONCE: dict[str, Callable[..., probe.Run]] = {
    "heads of random tokens": lambda lm: probe.heads(lm, sequences=2, length=6),
    "sample": lambda lm: probe.sample(lm, SOLVED, samples=3, max_new=4),
    "rewind": lambda lm: probe.rewind(written(lm, REASONING), lm=lm, to="step1", delete=True, samples=3, max_new=4),
    "importance": lambda lm: probe.importance(written(lm, REASONING), lm=lm, samples=2, max_new=3),
    "patch a path": lambda lm: probe.patch(lm, **PAIR, path="z@0->q@2"),
    "steer": lambda lm: probe.steer(lm, "d.safetensors", TEXTS[1], answer="a", at="resid_post@1:all", **FEW),
    "steer what is written": lambda lm: probe.steer(lm, "d.safetensors", TEXTS[1], answer="a", generate=3, **FEW),
    "look": lambda lm: probe.look(lm, "One two three, and two three again", controls=8),
}  # fmt: skip
REASONING = "A fox and a dog. So it is two. The answer is 2."
FEW = {"controls": 1, "strengths": [0.0, 1.0]}


@pytest.mark.parametrize("verb", ONCE)
def test_memory_that_runs_out_once_loses_nothing(lm: probe.LanguageModel, verb: str, tmp_path: Path) -> None:
    """Of what runs several rows of a model at once, beside the verbs above: the others run one text by itself."""
    save_direction(tmp_path / "d.safetensors", lm, torch.ones(lm.width("resid_post", 1)), site="resid_post", layer=1)
    with contextlib.chdir(tmp_path):
        alike(*failing_once(lm, lambda: ONCE[verb](lm)))


def test_a_resume_with_more_memory_writes_nothing_twice(lm: probe.LanguageModel, tmp_path: Path) -> None:
    """What was recorded by halves before is not recorded as a whole again."""

    def stop(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    whole, wanted = tmp_path / "run", VERBS["trace"](lm, out=tmp_path / "wanted", batch_tokens=60)
    with holding(lm, 60, rows=1), pytest.raises(KeyboardInterrupt):
        VERBS["trace"](lm, out=whole, batch_tokens=60, progress=stop)
    alike(VERBS["trace"](lm, out=whole, batch_tokens=60, resume=True), wanted)


def test_one_text_that_does_not_fit_is_one_row_and_alone_one_line(lm: probe.LanguageModel) -> None:
    long = " ".join(["word"] * 60)
    with holding(lm, 100):
        run = probe.trace(lm, [*TEXTS, long], attention="none")
        with pytest.raises(OutOfMemory, match=r"a text of [\d,]+ tokens does not fit into memory") as caught:
            probe.trace(lm, long)
        with pytest.raises(OutOfMemory, match="a window of"):
            probe.means(lm, [long], at=["resid_post@1"])
    assert caught.value.hint
    errors = run.prompts["error"].tolist()
    assert [bool(error) for error in errors] == [False] * len(TEXTS) + [True]
    assert json.loads((run.path / "manifest.json").read_text())["warnings"] == [HALVED] if run.path else True


def test_rollouts_lose_nothing(lm: probe.LanguageModel) -> None:
    """Each is told of once, with the tokens that it has where all fit."""
    some = [Rollout(tuple(lm.encode(text).ids), i, 4 + 3 * i, 7) for text in TEXTS for i in range(3)]

    def drawn() -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}

        def end(place: int, one: probe.Continuation) -> None:
            assert place not in found
            found[place] = one.ids

        LocalEngine(lm).draw(some, probe.Sampling(1.0), done=end)
        return found

    wanted = drawn()
    with holding(lm, 10**9, rows=5) as refused:
        assert drawn() == wanted
    assert refused
    with holding(lm, 3), pytest.raises(OutOfMemory, match="a continuation to"):
        drawn()


def test_scores_of_suffixes_are_the_same(lm: probe.LanguageModel) -> None:
    prefix, suffixes = lm.encode(TEXTS[0]).ids, [lm.encode(text).ids for text in TEXTS]
    wanted = suffix_logprobs(lm, prefix, suffixes)
    with holding(lm, 10**9, rows=2):
        for one, other in zip(suffix_logprobs(lm, prefix, suffixes), wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_what_is_out_of_memory() -> None:
    for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError()):
        with pytest.raises(OutOfMemory, match="it does not fit"), fitting("it", hint="less"):
            raise error
    with pytest.raises(OutOfMemory), fitting("it", hint="less"):
        torch.empty(2**50)  # a CPU's own words
    with pytest.raises(RuntimeError, match="another"), fitting("it", hint="less"):
        raise RuntimeError("another")


def test_halves_come_in_order_and_are_told_of() -> None:
    def run(some: list[int]) -> int:
        if len(some) > 2:
            raise torch.OutOfMemoryError
        return sum(some)

    with pytest.warns(UserWarning, match="halved"):
        assert list(halving(list(range(5)), run, what="one", hint="")) == [([0, 1], 1), ([2], 2), ([3, 4], 7)]
