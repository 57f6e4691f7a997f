"""Compiled loops against numpy in float64: what no model makes sure to show. And when they are loaded at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from probe import kernels
from probe.kernels import loops

RNG = np.random.default_rng(0)
NONE = np.zeros((0, 1), np.float32)


@numba.njit
def powers(values: np.ndarray, out: np.ndarray) -> None:
    for i in range(len(values)):
        out[i] = loops.exp2(values[i])


def test_powers_of_two() -> None:
    x = np.concatenate([np.linspace(-126, 127.4, 100_001), [0, -0.5, 0.5, 126.99]]).astype(np.float32)
    out = np.empty_like(x)
    powers(x, out)
    np.testing.assert_allclose(out, np.exp2(x.astype(np.float64)), rtol=2e-7)
    edges = np.array([-126.1, -1e4, -1e30, -np.inf, np.nan, 0.0], np.float32)
    powers(edges, out[:6])
    np.testing.assert_array_equal(out[:6], np.array([0, 0, 0, 0, np.nan, 1], np.float32))


def attended(
    scores: np.ndarray, *, start: int, low: int, sinks: np.ndarray = NONE, normalized: bool = False, causal: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mass (head, query, key), sums (10, head, query) and largest (head, query) of a block without a token of before."""
    n_heads, n_queries, _ = scores.shape
    mass, none = scores.copy(), np.zeros(start + n_queries, np.int64)
    sums = np.full((10, n_heads, start + n_queries), np.nan, np.float32)
    places = np.full((n_heads, start + n_queries), -1, np.int32)
    loops.attention(mass, sinks, normalized, causal, 0, start, low, none, none, none, sums, places)
    return mass, sums[:, :, start:], places[:, start:]


@pytest.mark.parametrize("shift", [0.0, 300.0, -300.0, 3e4])
@pytest.mark.parametrize("causal", [True, False])
def test_a_block_of_a_window_with_sinks(shift: float, causal: bool) -> None:
    """Keys 5..34 of queries 30..34, scores anywhere: the largest is taken off, sinks too, before powers are taken."""
    start, low, shape = 30, 5, (2, 5, 30)
    scores = (4 * RNG.standard_normal(shape) + shift).astype(np.float32)
    sinks = (RNG.standard_normal((2, 1)) + shift).astype(np.float32)
    mass, sums, places = attended(scores, start=start, low=low, sinks=sinks, causal=causal)
    rows, keys = np.arange(start, start + 5)[:, None], np.arange(low, low + 30)
    real = np.where(keys <= rows if causal else True, np.exp2(scores.astype(np.float64) - shift), 0.0)
    rest = np.exp2(sinks.astype(np.float64) - shift)
    weights = real / (real.sum(-1) + rest)[..., None]
    total = (sums[0] + sums[1]).astype(np.float64)
    np.testing.assert_allclose(mass / total[..., None], weights, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(sums[2] / total, (weights * (rows - keys)).sum(-1), rtol=1e-5)
    np.testing.assert_allclose((sums[3] / total) ** 2, (weights**2).sum(-1), rtol=1e-5)
    np.testing.assert_array_equal(places, low + real.argmax(-1))
    np.testing.assert_allclose(sums[7] / total, weights.max(-1), rtol=1e-6)
    assert (sums[5] == 0).all()  # key 0 is not in the window
    np.testing.assert_allclose(sums[6] / total, weights[:, np.arange(5), start - 1 - low + np.arange(5)], rtol=1e-6)


def test_a_row_without_numbers_says_so() -> None:
    scores = np.zeros((1, 3, 9), np.float32)
    scores[0, 1, 4] = np.nan
    mass, sums, places = attended(scores, start=6, low=0)
    assert np.isnan(mass[0, 1, 4]) and np.isnan(sums[0, 0]).tolist() == [False, True, False]
    assert places.tolist() == [[0, 4, 0]] and np.isnan(sums[7, 0]).tolist() == [False, True, False]


def test_a_row_that_sees_no_key_looks_at_all_of_them() -> None:
    """Padding on the left: its rows are hidden from, and come before, every key of the block."""
    scores = RNG.standard_normal((1, 6, 4)).astype(np.float32)
    mass, sums, places = attended(scores, start=0, low=2, causal=True)
    weights = mass[0] / (sums[0, 0] + sums[1, 0])[:, None]
    np.testing.assert_allclose(weights[:2], 0.25)
    assert places[0, :3].tolist() == [2, 2, 2]
    assert [(weights[q] > 0).sum() for q in range(2, 6)] == [1, 2, 3, 4]
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)


def test_long_rows_lose_no_digits() -> None:
    """A hundred thousand equal weights: a float32 sum of them all would be off by 1e-3."""
    n = 100_003
    _, sums, _ = attended(np.full((1, 1, n), 0.1, np.float32), start=n - 1, low=0)
    np.testing.assert_allclose(sums[0, 0, 0], n, rtol=1e-7)
    np.testing.assert_allclose(sums[2, 0, 0], n * (n - 1) / 2, rtol=1e-6)


def test_whole_rows_have_zeros_where_no_key_was_looked_at() -> None:
    mass = RNG.random((2, 3, 4), np.float32)
    total, lengths = np.full((2, 3), 2.0, np.float32), np.array([3, 9, 5] * 2)
    values, kept = np.full(lengths.sum(), np.nan, np.float32), np.full(6, np.nan, np.float32)
    loops.cut(mass, total, 2, lengths, values, kept)
    rows = np.zeros((6, 9), np.float32)
    rows[:, 2:6] = mass.reshape(6, 4) / 2
    np.testing.assert_array_equal(values, np.concatenate([row[:n] for row, n in zip(rows, lengths, strict=True)]))
    np.testing.assert_allclose(kept, [row[:n].sum() for row, n in zip(rows, lengths, strict=True)], rtol=1e-6)


@pytest.mark.parametrize("n", [1, 7, 33, 400, 1000])
@pytest.mark.parametrize("k", [1, 2, 8, 50])
def test_the_largest_are_in_order_and_among_equals_the_first(n: int, k: int) -> None:
    """Few different values, NaN and both infinities among them: NaN is above all, as in torch's topk."""
    rows = RNG.choice(np.array([-np.inf, -2, -1.5, 0, 1, np.inf, np.nan], np.float32), (40, n), p=[0.1, *[0.17] * 5, 0.05])
    rows = np.where(RNG.random(rows.shape) < 0.5, rows, -rows)  # NaN of either sign
    rows[0] = -np.float32(np.nan)
    k = min(k, n)
    values, places = np.empty((40, k), np.float32), np.empty((40, k), np.int64)
    loops.largest(rows, values, places)
    expected = np.argsort(-np.nan_to_num(rows, nan=1e9, posinf=1e8, neginf=-1e8), axis=-1, kind="stable")[:, :k]
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(rows, expected, -1))


@pytest.mark.slow
@pytest.mark.parametrize("n", [kernels.LONG - 1, kernels.LONG])
def test_only_long_texts_load_the_compiler(n: int) -> None:
    """And without it a long text is read all the same."""
    code = (
        "import sys, numpy as np, torch, probe\n"
        "lm = probe.load('tiny:llama')\n"
        f"ids = torch.randint(lm.anatomy.d_vocab, ({n},), generator=torch.Generator().manual_seed(0)).tolist()\n"
        "from probe.capturing import AttentionSpec, MemorySink, read\n"
        "def entropies():\n"
        "    sink = MemorySink()\n"
        f"    found = read(lm, torch.tensor([ids]), [{n}], attention=AttentionSpec('heads'), sink=sink)\n"
        "    return np.append(found.scores[0].entropy.numpy(), sink.summaries[0]['entropy'].ravel())\n"
        "with_it = entropies()\n"
        f"assert ('numba' in sys.modules) == ({n} >= {kernels.LONG})\n"
        "from probe import kernels\n"
        "kernels.LONG = 10**9\n"
        "np.testing.assert_allclose(with_it, entropies(), rtol=1e-5)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_without_numba_the_numbers_are_the_same_and_a_note_says_once_what_it_would_gain() -> None:
    code = (
        "import sys, warnings, numpy as np, torch, probe\n"
        "lm = probe.load('tiny:gemma2')\n"
        "ids = torch.randint(lm.anatomy.d_vocab, (1, 600), generator=torch.Generator().manual_seed(0))\n"
        "from probe import kernels\n"
        "from probe.capturing import AttentionSpec, MemorySink, read\n"
        "def numbers(spec):\n"
        "    sink = MemorySink()\n"
        "    scores = read(lm, ids, [600], attention=AttentionSpec.parse(spec), sink=sink).scores[0]\n"
        "    rows = [v for layer in sink.row_pieces.values() for v in layer.values()]\n"
        "    full = [sink.pattern(0, 0, 600)] if spec == 'full' else []\n"
        "    return [*(np.asarray(x, float) for x in scores), *rows, *full]\n"
        "expected = [numbers('full'), numbers('topk:4')]\n"
        "assert kernels._installed() and 'numba' in sys.modules\n"
        "kernels._installed.cache_clear()\n"
        "sys.modules['numba'] = None\n"
        "with warnings.catch_warnings(record=True) as said:\n"
        "    warnings.simplefilter('always')\n"
        "    found = [numbers('full'), numbers('topk:4')]\n"
        "said = [str(w.message) for w in said if 'numba' in str(w.message)]\n"
        "assert len(said) == 1 and 'mechprobe[fast]' in said[0], said\n"
        "for one, other in zip(sum(expected, []), sum(found, []), strict=True):\n"
        "    np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_machine_without_a_place_to_keep_them_compiles_them_again(tmp_path: Path) -> None:
    """numba refuses to cache where it cannot write: neither beside the file nor at home."""
    code = (
        "from numba.core import caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "from probe.kernels import loops\n"
        "import numpy as np\n"
        "assert loops.peak_of(np.array([1, 3, 2], np.float32)) == 3\n"
        "assert not loops.peak_of.stats.cache_path, loops.peak_of.stats\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("n", [1, 15, 16, 17, 100])
def test_a_place_is_the_first_one(n: int) -> None:
    for at in {0, n // 2, n - 1}:
        for value in (7.0, np.nan, np.inf, 0.0):
            row = np.full(n, -1.0, np.float32)
            row[at:] = value
            assert loops.place_of(row, np.float32(-value if value == 0 else value)) == at
