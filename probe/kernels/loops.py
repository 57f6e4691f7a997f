"""The loops themselves. All in one file, because numba's cache on disk sees that this file changed, and no other one.

NaN goes through every sum to its result. Arrays are C-contiguous, and none of them may share memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

F: Any = np.float32
I: Any = np.int32  # noqa: E741
OPTIONS: dict[str, Any] = {
    "nogil": True, "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz"},  # sums in any order; NaN and infinity stay what they are
}  # fmt: skip
ROUND = F(1.5 * 2**23 + 127)  # a float32 this large has no room for halves; its lowest bits are the exponent of 1
STRIDE = 16  # values of a row that share one maximum in the search for the largest
STRIP = 64  # values compared together in the search for one of them
LARGEST = I(0x7FFFFFFF)  # int32
CHUNK = 1024  # values summed in float32 before float64 takes over
BITS, NAT = 1.4426950408889634, 0.6931471805599453  # bits in a nat, nats in a bit
FLOOR = -1e4  # bits below a row's largest score from which all are alike: -inf * 0 is not 0


def compiled(signature: str) -> Callable[[Callable[..., Any]], Any]:
    """Compile a loop for these types, or take it from this machine's cache."""

    def compile(loop: Callable[..., Any]) -> Any:
        try:
            return numba.njit(signature, cache=True, **OPTIONS)(loop)
        except RuntimeError:  # there is no folder to keep it in
            return numba.njit(signature, **OPTIONS)(loop)

    return compile


inlined = numba.njit(inline="always", **OPTIONS)


@numba.njit(**OPTIONS | {"fastmath": {"contract"}})
def exp2(x: Any) -> Any:
    """2^x of a float32 to 1e-7, 0 below -126: a minimax polynomial of 2^f, |f| <= 1/2, times a power made of its bits.

    x + ROUND - ROUND is x rounded, and x + ROUND ends in the power's bits: so here sums must keep their order.
    """
    shifted = F(x + ROUND)
    f = x - (shifted - ROUND)
    p = F(1.5353362e-4)
    p = p * f + F(1.33988744e-3)
    p = p * f + F(9.61843736e-3)
    p = p * f + F(5.55033247e-2)
    p = p * f + F(2.40226479e-1)
    p = p * f + F(6.93147203e-1)
    p = p * f + F(1.0)
    return F(0.0) if x < F(-126.0) else p * I(shifted.view(I) << I(23)).view(F)


@inlined
def key_of(x: Any) -> Any:
    """An int32 for a float32, in the order of floats: both zeros are one, and NaN, whatever its sign, is above infinity."""
    bits = F(x).view(I)
    size = I(bits & LARGEST)
    return LARGEST if x != x else size if bits >= I(0) else I(-size)


@inlined
def float_of(key: Any) -> Any:
    return I(key).view(F) if key >= I(0) else -I(-key).view(F)


@compiled("float32(float32[::1])")
def peak_of(row: Any) -> Any:
    """The largest value of a row, NaN if there is one."""
    best = key_of(F(-np.inf))
    for j in range(len(row)):
        best = max(best, key_of(row[j]))
    return float_of(best)


@compiled("int64(float32[::1], float32)")
def place_of(row: Any, value: Any) -> Any:
    """Where a row first has a value that it has."""
    at = 0
    if value != value:
        while row[at] == row[at]:
            at += 1
        return at
    while at + STRIP <= len(row):
        strip, found = row[at : at + STRIP], I(0)
        for j in range(STRIP):
            found |= I(strip[j] == value)
        if found:
            break
        at += STRIP
    while row[at] != value:
        at += 1
    return at


@compiled("int64(int32, int64, int32[::1], int64[::1], int64)")
def _insert(key: Any, place: Any, keys: Any, places: Any, held: Any) -> Any:
    """Put one where it belongs among the `held` best so far, the last one out if there is no room; how many they are now."""
    at = held
    while at > 0 and (keys[at - 1] < key or (keys[at - 1] == key and places[at - 1] > place)):
        if at < len(keys):
            keys[at], places[at] = keys[at - 1], places[at - 1]
        at -= 1
    if at < len(keys):
        keys[at], places[at] = key, place
    return min(held + 1, len(keys))


@compiled("void(float32[::1], int32[::1], int32[::1], int64[::1])")
def _largest(row: Any, maxima: Any, keys: Any, places: Any) -> None:
    """Keys and places of the largest of a row, best first, lower place first among equals. `maxima` is room to work in.

    They lie in the columns of a (STRIDE, columns) arrangement whose maximum reaches the k-th largest maximum, or in the rest.
    """
    k, columns, held = len(keys), len(row) // STRIDE, 0
    if columns >= 2 * k:
        best = maxima[:columns]
        for c in range(columns):
            best[c] = key_of(row[c])
        for start in range(columns, STRIDE * columns, columns):
            strip = row[start : start + columns]
            for c in range(columns):
                best[c] = max(best[c], key_of(strip[c]))
        for c in range(columns):
            if held < k or best[c] > keys[held - 1]:
                held = _insert(best[c], c, keys, places, held)
        least, held = keys[k - 1], 0
        for c in range(columns):
            if best[c] >= least:
                for j in range(c, STRIDE * columns, columns):
                    key = key_of(row[j])
                    if key >= least:
                        held = _insert(key, j, keys, places, held)
    for j in range(STRIDE * columns if held else 0, len(row)):
        held = _insert(key_of(row[j]), j, keys, places, held)


@compiled("void(float32[:,::1], float32[:,::1], int64[:,::1])")
def largest(rows: Any, values: Any, places: Any) -> None:
    """The k largest of each row (row, n), best first: values and places (row, k), k <= n. Lower place first among equals."""
    keys, maxima = np.empty(values.shape[1], I), np.empty(rows.shape[1] // STRIDE, I)
    for r in range(len(rows)):
        row = rows[r]
        if len(keys) == 1:
            values[r, 0] = peak_of(row)
            places[r, 0] = place_of(row, values[r, 0])
            continue
        _largest(row, maxima, keys, places[r])
        for i in range(len(keys)):
            values[r, i] = float_of(keys[i])


@compiled(
    "void(float32[:,:,::1], float32[:,::1], boolean, boolean, int64, int64, int64, int64[::1], int64[::1], int64[::1],"
    "float32[:,:,::1], int32[:,::1])"
)
def attention(
    scores: Any, sinks: Any, normalized: Any, causal: Any, head: Any, start: Any, low: Any, places: Any, firsts: Any,
    counts: Any, sums: Any, peaks: Any,
) -> None:  # fmt: skip
    """Scores (head, query, key) in bits become mass, 2^(score - the row's largest); its `sums` (10, heads, n) are filled.

    Of a block: its first head, query and key are head, start and low of the layer. sinks (head, query or 1): scores of a
    column without a key; of no head, if there are none. normalized: mass is 2^score, and what is missing to 1 goes to no
    key. causal: keys after the query are hidden, whatever their scores. Earlier positions with the token of position i are
    places[firsts[i] : firsts[i] + counts[i]]. sums: of mass, what goes to no key, mass * (query - key), sqrt of mass^2,
    mass * score, of key 0, of the previous one, the largest, of the earlier positions, of those after them. peaks
    (heads, n): the key with the largest mass, the first one among equals; not asked for if it is empty.
    """
    n_heads, n_queries, n_keys = scores.shape
    for h in range(n_heads):
        for q in range(n_queries):
            i = start + q
            seen = min(n_keys, i + 1 - low) if causal else n_keys
            if seen <= 0:  # it sees nothing, and looks at all alike, as a softmax of equal scores does
                scores[h, q] = F(0.0)
                seen = n_keys
            row = scores[h, q, :seen]
            scores[h, q, seen:] = F(0.0)
            sink = F(-np.inf) if len(sinks) == 0 else sinks[h, min(q, sinks.shape[1] - 1)]
            peak = F(0.0) if normalized and len(peaks) == 0 else peak_of(row)
            if len(peaks):
                peaks[head + h, i] = low + place_of(row, peak)
            top = F(0.0) if normalized else max(peak, sink)
            kept = back = square = score = 0.0
            for a in range(0, seen, CHUNK):
                part = row[a : min(a + CHUNK, seen)]
                distance = F(i - low - a)
                s0, s1, s2, s3 = F(0), F(0), F(0), F(0)
                for j in range(len(part)):
                    x = part[j] - top
                    e = exp2(x)
                    part[j] = e
                    s0 += e
                    s1 += e * distance
                    s2 += e * e
                    s3 += e * x
                    distance -= F(1.0)  # a conversion of j would cost a quarter of the loop
                kept += s0
                back += s1
                square += s2
                score += s3
            same = after = 0.0
            for m in range(firsts[i], firsts[i] + counts[i]):
                j = places[m] - low
                if 0 <= j < seen:
                    same += row[j]
                if 0 <= j + 1 < seen:
                    after += row[j + 1]
            out = sums[:, head + h, i]
            out[0], out[2], out[3], out[4] = kept, back, np.sqrt(square), score
            out[1] = 1.0 - kept if normalized else exp2(sink - top)
            out[5] = row[0] if low == 0 else F(0.0)
            out[6] = row[i - 1 - low] if 0 <= i - 1 - low < seen else F(0.0)
            out[7] = row[peaks[head + h, i] - low] if len(peaks) else F(0.0)
            out[8], out[9] = same, after


@compiled("void(float32[:,:,::1], float32[:,::1], int64, int64[::1], float32[::1], float32[::1])")
def cut(mass: Any, total: Any, low: Any, lengths: Any, values: Any, kept: Any) -> None:
    """Whole rows one after another: mass (head, query, key) / total (head, query) at keys from `low` on, 0 elsewhere.

    lengths (head * query,): of the rows, from key 0 on. values: as long as all of them. kept (head * query,): their sums.
    """
    n_heads, n_queries, n_keys = mass.shape
    at = 0
    for h in range(n_heads):
        for q in range(n_queries):
            r = h * n_queries + q
            row, out, scale = mass[h, q], values[at : at + lengths[r]], F(1.0) / total[h, q]
            held = max(0, min(len(out) - low, n_keys))
            out[: min(low, len(out))] = F(0.0)
            here, sum = out[low : low + held], F(0)
            for j in range(held):
                w = row[j] * scale
                here[j] = w
                sum += w
            out[low + held :] = F(0.0)
            kept[r] = sum
            at += lengths[r]


@compiled(
    "void(float32[:,::1], int64[::1], float32[::1], float32[::1], float32[::1], int32[::1], int64[:,::1], float32[:,::1])"
)
def score(
    logits: Any, targets: Any, logprob: Any, entropy: Any, varentropy: Any, rank: Any, top_ids: Any, top_logprobs: Any
) -> None:
    """What logits (row, d_vocab) say of targets (row,), in nats: see `probe.scoring.Scores`. Entropy is NaN if they are none.

    With s = logit - peak in bits and Z = sum 2^s: entropy = log Z - E[s], varentropy = E[s^2] - E[s]^2.
    """
    n_rows, n = logits.shape
    keys, maxima = np.empty(top_ids.shape[1], I), np.empty(n // STRIDE, I)
    for r in range(n_rows):
        row, own = logits[r], logits[r, targets[r]]
        _largest(row, maxima, keys, top_ids[r])
        peak = float_of(keys[0])
        above = I(0)
        for j in range(n):
            above += I(row[j] > own)
        earlier = row[: targets[r]]
        for j in range(len(earlier)):
            above += I(earlier[j] == own)
        total = first = second = 0.0
        for a in range(0, n, CHUNK):
            part = row[a : min(a + CHUNK, n)]
            s0, s1, s2 = F(0), F(0), F(0)
            for j in range(len(part)):
                x = (part[j] - peak) * F(BITS)
                x = F(FLOOR) if x < F(FLOOR) else x
                e = exp2(x)
                s0 += e
                s1 += e * x
                s2 += e * x * x
            total += s0
            first += s1
            second += s2
        log, mean = np.log(total), first / total
        logprob[r] = (own - peak) - log
        entropy[r] = log - mean * NAT
        varentropy[r] = max(0.0, second / total - mean * mean) * NAT * NAT
        rank[r] = above
        for i in range(len(keys)):
            top_logprobs[r, i] = (float_of(keys[i]) - peak) - log
