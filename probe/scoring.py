"""What a text scores: log-prob, entropy, rank, alternatives, from logits in blocks of rows. No model inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from probe import kernels
from probe.devices import fetched, uploaded
from probe.errors import NonFinite
from probe.workers import in_order

BLOCK = 64  # rows read out at once: few enough that all logits never exist, many enough for a fast product
CACHED = 2**19  # logits scored at once on a CPU: they stay in its cache from one pass to the next
BITS, NAT = 1.4426950408889634, 0.6931471805599453  # bits in a nat, nats in a bit: 2^x is far cheaper than e^x
STRIDE = 16  # neighbours that share one maximum in the search for the largest
SORTED = 256  # numbers of a row that are sorted sooner than their largest are found


class Scores(NamedTuple):
    """Row t tells of the distribution at t and of the token drawn from it. Nats; rank 0 is the top token. CPU tensors.

    Among equal logits the lower id comes first.
    """

    logprob: Tensor  # (T,)
    entropy: Tensor  # (T,)
    varentropy: Tensor  # (T,) nats^2
    rank: Tensor  # (T,) int
    top_ids: Tensor  # (T, top) int, best first
    top_logprobs: Tensor  # (T, top)


def score_rows(logits: Tensor, targets: Tensor, *, top: int, block_rows: int = BLOCK) -> Scores:
    """Scores of logits (T, d_vocab) against targets (T,), computed in fp32 a block at a time. -inf logits are legal.

    Raises `NonFinite` naming the first row that holds NaN or +inf, or no finite logit.
    """
    return score_hidden(lambda rows: rows, logits, targets, top=top, block_rows=block_rows)


def score_hidden(
    readout: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, *, top: int, block_rows: int = BLOCK
) -> Scores:
    """Scores of `readout(hidden)`: hidden (T, width) -> logits (rows, d_vocab) one block at a time, so all never exist.

    The memory that `readout` returns may be the same at each call.
    """
    found: list[Scores] = []
    for start in range(0, hidden.shape[0], block_rows):
        logits = readout(hidden[start : start + block_rows])
        own = targets[start : start + block_rows].to(logits.device)
        if kernels.worth(len(hidden), logits.device):
            in_order(partial(_score_compiled, logits, own, top), _cached(logits), found.append, logits.device)
        else:
            found.append(score_there(logits, own, top=top))
    scores = Scores(*fetched([torch.cat(parts) for parts in zip(*found, strict=True)]))
    check_rows(scores.entropy)
    return scores


def score_there(logits: Tensor, targets: Tensor, *, top: int) -> Scores:
    """Scores of one block of logits (T, d_vocab) against targets (T,), where the logits are, which are not waited for: whether
    they are finite numbers is for `check_rows` to say of the entropy."""
    found, space = list[Scores](), torch.empty(0)
    for piece in _cached(logits):
        rows = logits[piece].float()
        space = _room(space, 2, rows)
        found.append(_score(rows, targets[piece, None], top, space[: 2 * rows.numel()].view(2, *rows.shape)))
    return Scores(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def check_rows(entropy: Tensor) -> None:
    """Raises `NonFinite` for the first row (T,) whose distribution is none: its logits hold NaN or +inf, or nothing else than
    -inf."""
    if not bool(entropy.isfinite().all()):
        where = int((~entropy.isfinite()).nonzero()[0])
        raise NonFinite(f"the logits at position {where} are not finite numbers", hint="try --dtype float32")


class Distribution(NamedTuple):
    """What others are compared with, by its row: p = 2^shifted / 2^log_total, finite shifted even where p is 0."""

    p: Tensor  # (rows, d_vocab)
    shifted: Tensor  # (rows, d_vocab) bits
    log_total: Tensor  # (rows,) bits


def distribution(logits: Tensor) -> Distribution:
    """logits (rows, d_vocab) -> what they amount to, in fp32."""
    p = logits.to(torch.float32, copy=True)
    shifted = torch.empty_like(p)
    total = torch.cat([_softmax(p[piece], shifted[piece]) for piece in _cached(logits)])
    return Distribution(p.div_(total[:, None]), shifted, total.log2())


def divergence(true: Distribution, logits: Tensor) -> Tensor:
    """KL(true || softmax of logits) in nats, (rows,); logits (rows, d_vocab). 0 for the logits that `true` is of.

    From differences of scores, so that two distributions that are close lose no digits. torch's own log_softmax is not
    good enough: over 50,000 tokens it is off by 5e-5 in fp32.
    """
    found, space = [], torch.empty(0)
    for piece in _cached(logits):
        rows = logits[piece].float()
        space = _room(space, 2, rows)
        work, shifted = space[: 2 * rows.numel()].view(2, *rows.shape)
        total = _softmax(work.copy_(rows), shifted)
        apart = torch.linalg.vecdot(true.p[piece], torch.sub(true.shifted[piece], shifted, out=work))
        found.append((apart + total.log2() - true.log_total[piece]).clamp_(min=0.0) * NAT)
    return torch.cat(found)


def set_logprobs(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """log P(any of ids) in nats, (rows,) float64, of logits (rows, d_vocab): their log-sum-exp less that of all."""
    found = []
    for piece in _cached(logits):
        rows = logits[piece].double()
        found.append(rows[:, uploaded(list(ids), rows.device)].logsumexp(-1) - rows.logsumexp(-1))
    return torch.cat(found)


def kl(logprobs: Tensor, other: Tensor) -> Tensor:
    """KL(p || q) in nats, (…,), of their log-probs (…, d_vocab), for gradients too: what p rules out adds nothing, and it is
    infinite where q rules out what p does not. At a distance of rounding `divergence` keeps more digits."""
    ruled_out = logprobs.isneginf()
    apart = (logprobs - other.masked_fill(ruled_out, 0.0)).masked_fill(ruled_out, 0.0)
    return (logprobs.exp() * apart).sum(-1).clamp(min=0.0)


def _softmax(logits: Tensor, shifted: Tensor) -> Tensor:
    """Sums (rows,) of 2^shifted, which takes the place of the logits (rows, d_vocab); shifted, in bits, is at most 0."""
    torch.sub(logits, logits.amax(-1, keepdim=True), out=shifted).clamp_(min=-1e4).mul_(BITS)
    return torch.exp2(shifted, out=logits).sum(-1)


def _cached(logits: Tensor) -> list[slice]:
    """Slices of the rows of logits (rows, d_vocab), each small enough for a CPU's cache."""
    step = max(1, CACHED // logits.shape[-1]) if logits.device.type == "cpu" else len(logits)
    return [slice(start, start + step) for start in range(0, len(logits), step)]


def _room(space: Tensor, n: int, rows: Tensor) -> Tensor:
    """Flat fp32 memory for n times `rows`: the one there is, if it is large enough."""
    enough = space.numel() >= n * rows.numel() and space.device == rows.device
    return space if enough else torch.empty(n * rows.numel(), device=rows.device)


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row (row, place) and where they are, best first; k' = min(k, places) of them.

    The k largest lie in the k columns of a (STRIDE, columns) arrangement that have the largest maxima, or in the rest.
    """
    n_rows, n = values.shape
    columns = n // STRIDE
    if columns < 2 * k:
        places = _best(values, min(k, n))
        return values.gather(1, places), places
    maxima = values[:, : STRIDE * columns].unflatten(1, (STRIDE, columns)).amax(1)
    places = _best(maxima, k)[:, :, None] + torch.arange(0, STRIDE * columns, columns, device=values.device)
    rest = torch.arange(STRIDE * columns, n, device=values.device).expand(n_rows, -1)
    places = torch.cat([places.flatten(1), rest], dim=1)
    places = places.gather(1, _best(values.gather(1, places), k))
    return values.gather(1, places), places


def _best(values: Tensor, k: int) -> Tensor:
    """Where the k largest of each row are, best first; NaN is larger than all. Short rows by NumPy's vectorised sort."""
    fast = values.device.type == "cpu" and values.dtype in (torch.float32, torch.float64) and values.shape[1] <= SORTED
    if k == 1 or not fast:
        return values.topk(k, dim=-1).indices
    return torch.from_numpy(values.numpy().argsort(axis=-1)[:, : -k - 1 : -1].copy())


def _score(logits: Tensor, targets: Tensor, top: int, space: Tensor) -> Scores:
    """One block (rows, d_vocab), in two buffers of its size: new memory for every pass would cost more than the arithmetic.

    With s = logit - peak in bits and Z = sum 2^s: entropy = log Z - E[s], varentropy = E[s^2] - E[s]^2.
    """
    values, ids = _in_order(*largest(logits, max(1, top)))
    peak, target = values[:, :1], logits.gather(1, targets)
    shifted, work = space
    rank = torch.gt(logits, target, out=work).sum(-1).to(torch.int32)
    if logits.device.type != "cpu":  # to ask whether any are tied would be to wait
        rank += _lower_ties(logits, target, targets)
    elif bool((tied := torch.eq(logits, target, out=work).sum(-1) > 1).any()):
        rank[tied] += _lower_ties(logits[tied], target[tied], targets[tied])
    torch.sub(logits, peak, out=shifted).clamp_(min=-1e4).mul_(BITS)  # 0 * -inf is not 0
    p = torch.exp2(shifted, out=work)
    total = p.sum(-1)
    mean = torch.linalg.vecdot(p, shifted) / total
    second = torch.linalg.vecdot(p.mul_(shifted), shifted) / total
    logz = total.log()
    return Scores(
        (target - peak)[:, 0] - logz, logz - mean * NAT, (second - mean * mean).clamp_(min=0.0) * NAT**2, rank,
        ids[:, :top], (values - peak - logz[:, None])[:, :top],
    )  # fmt: skip


def _score_compiled(logits: Tensor, targets: Tensor, top: int, piece: slice) -> Scores:
    """The same for a piece of a block, by one compiled loop a row."""
    from probe.kernels import loops

    rows = logits[piece].float().contiguous()
    n, k = len(rows), min(max(1, top), rows.shape[1])
    top_logprobs, top_ids = torch.empty(n, k), torch.empty(n, k, dtype=torch.int64)
    logprob, entropy, varentropy = torch.empty(3, n)
    found = Scores(logprob, entropy, varentropy, torch.empty(n, dtype=torch.int32), top_ids, top_logprobs)
    loops.score(rows.numpy(), targets[piece].numpy(), *(values.numpy() for values in found))
    return found._replace(top_ids=top_ids[:, :top], top_logprobs=top_logprobs[:, :top])


def _in_order(values: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """(row, k) best first -> the same with equal values by ascending id, as argmax has it."""
    ids, order = ids.sort(dim=-1)
    values, again = values.gather(1, order).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, again)


def _lower_ties(logits: Tensor, target: Tensor, targets: Tensor) -> Tensor:
    """How many lower ids have exactly the target's logit: they come first, as in argmax. (rows,) int32"""
    lower = torch.arange(logits.shape[-1], device=logits.device) < targets
    return ((logits == target) & lower).sum(-1, dtype=torch.int32)


def rank_of(singular_values: Tensor) -> Tensor:
    """(…, rank) -> (…,): exp of the entropy of the values' shares of their sum, the effective rank (Roy & Vetterli 2007)."""
    shares = singular_values / singular_values.sum(dim=-1, keepdim=True).clamp_min(1e-300)
    return torch.special.entr(shares).sum(dim=-1).exp()
