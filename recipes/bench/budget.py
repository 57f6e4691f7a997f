"""What drawing by budget saves against the same number of rollouts everywhere, and how often its intervals hold.

Problems are small Markov chains: a state is what has been thought so far, a few states are answers. What comes out of each
boundary is then known by solving a linear system, and rollouts share their noise as a model's do (a race of exponentials,
addressed by sample and step).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

import probe
from probe import stats
from probe.stats.sequential import confidence_sequence

STATES, ANSWERS, STEPS, LONGEST = 12, 3, 6, 48
MOST, SAMPLES = 1024, 16
SAME = 0.4  # share of steps that only say the same in other words
LOOKS = (16, 32, 64, 128, 256, 512, 1024)


def main(model: str, *, repeat: int, quick: bool, only: str | None = None) -> None:
    """Print what was saved and what was covered."""
    if only in (None, "simulated"):
        simulated(repeat if quick else 4 * repeat, problems=4 if quick else 12)
    if only in (None, "real"):
        real(model, budget=3000 if quick else 12_000)


class Chains(NamedTuple):
    """Outcomes (boundary, sample), tokens (boundary, sample), the boundaries of each step, and its true difference."""

    hits: np.ndarray
    tokens: np.ndarray
    ends: np.ndarray
    true: np.ndarray


def chain(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Transition probabilities (state, state + answer), and those of each answer in the end (state, answer), exactly."""
    weights = random.dirichlet(np.full(STATES + ANSWERS, 0.25), size=STATES)
    inner, out = weights[:, :STATES], weights[:, STATES:]
    out = out + 0.02  # none goes on for ever
    scale = inner.sum(1, keepdims=True) + out.sum(1, keepdims=True)
    inner, out = inner / scale, out / scale
    return np.concatenate([inner, out], axis=1), np.linalg.solve(np.eye(STATES) - inner, out)


def rollouts(
    random: np.random.Generator, move: np.ndarray, starts: Sequence[tuple[int, int]], n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Answers and lengths (start, n) of chains from (state, wording), which share noise: sample s at step k has one race for
    all. In another wording the same states have other noise, and only the answers are the same words."""
    state = np.repeat([[state] for state, _ in starts], n, axis=1)
    other = np.array([[wording] for _, wording in starts]) > 0
    length = np.zeros(state.shape, np.int64)
    while (state < STATES).any():
        race = random.exponential(size=(n, 2 * STATES + ANSWERS))
        noise = np.where(other[..., None], race[:, STATES:], np.concatenate([race[:, :STATES], race[:, 2 * STATES :]], axis=1))
        alive = state < STATES
        with np.errstate(divide="ignore"):
            drawn = (noise / move[np.minimum(state, STATES - 1)]).argmin(axis=-1)
        state = np.where(alive, drawn, state)
        length += alive
    return state - STATES, length


def chains(random: np.random.Generator, problems: int) -> Chains:
    """Problems of STEPS steps each, told by whether the likeliest answer of the first state comes out."""
    hits: list[np.ndarray] = []
    tokens: list[np.ndarray] = []
    ends, true = [], []
    for _ in range(problems):
        move, final = chain(random)
        path = [(int(random.integers(STATES)), 0)]
        while len(path) <= STEPS:
            state, wording = path[-1]
            inner = move[state, :STATES]
            said = random.random() < SAME
            path.append((state, 1 - wording) if said else (int(random.choice(STATES, p=inner / inner.sum())), wording))
        answer = int(final[path[0][0]].argmax())
        answers, lengths = rollouts(random, move, path, MOST)
        ends += [(len(hits) + k, len(hits) + k + 1) for k in range(STEPS)]
        hits += list(answers == answer)
        tokens += list(8.0 * lengths)
        true += list(np.diff(final[[state for state, _ in path], answer]))
    return Chains(np.array(hits), np.array(tokens), np.array(ends), np.array(true))


def adaptive(here: Chains, rule: stats.StoppingRule, budget: float | None = None) -> stats.Allocation:
    """Rounds of drawing until every step is known, or the budget is spent."""
    found = stats.Allocation(here.ends, np.full(len(here.hits), 8.0 * LONGEST), rule, MOST)
    target: np.ndarray | None = found.first(SAMPLES)
    while target is not None:
        hits, tokens = ([x[:n] for x, n in zip(own, target, strict=True)] for own in (here.hits, here.tokens))
        found.record(tokens)
        found.look(hits)
        target = found.next(None if budget is None else max(0.0, budget - float(found.spent.sum())))
    return found


def counts(here: Chains, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Down, up and all of the first `pairs` (step,) of each step."""
    both = [(here.hits[a][:n], here.hits[b][:n]) for (a, b), n in zip(here.ends, pairs, strict=True)]
    return np.array([(a & ~b).sum() for a, b in both]), np.array([(~a & b).sum() for a, b in both]), pairs


class Looked(NamedTuple):
    """What 95 % intervals of one look say of each step where they are looked at again and again: bounds when they stop, and
    whether one look at each of LOOKS would have stopped there (look, step)."""

    low: np.ndarray
    high: np.ndarray
    would: np.ndarray


def repeated(here: Chains, rule: stats.StoppingRule) -> Looked:
    """By the same rule as `adaptive`, as if each look were the only one."""
    found = [[stats.paired(here.hits[a][:n], here.hits[b][:n]) for a, b in here.ends] for n in LOOKS]
    low, high = (np.array([[getattr(one, name) for one in row] for row in found]) for name in ("low", "high"))
    would = rule.reasons(low, high) != ""
    at = np.where(would.any(axis=0), would.argmax(axis=0), len(LOOKS) - 1)
    steps = np.arange(len(here.ends))
    return Looked(low[at, steps], high[at, steps], would)


def simulated(worlds: int, *, problems: int) -> None:
    """Steps of chains whose differences are known exactly."""
    print(f"{worlds} runs of {problems} problems of {STEPS} steps; shares of tokens, of steps, and of steps that do nothing")
    print(
        f"  {'stops at':<26}{'saved':>8}{'one look':>10}{'known':>7}{'covers':>8}{'told 0':>8}{'naive covers':>14}{'told 0':>8}"
    )
    for w in (0.2, 0.1):
        rule = stats.StoppingRule(differs=True, smaller=w)
        random = np.random.default_rng(0)
        tokens, shares = np.zeros(3), []
        for _ in range(worlds):
            here = chains(random, problems)
            found, naive = adaptive(here, rule), repeated(here, rule)
            known = found.stopped[0] != "limit"
            enough = naive.would.mean(axis=1) >= known.mean()  # one look, at the number that an oracle has named
            once = LOOKS[int(enough.argmax())] if enough.any() else MOST
            tokens += (found.spent.sum(), found.uniform(), once * here.tokens.mean(1).sum())
            row = [known]
            for low, high in (confidence_sequence(*counts(here, found.pairs[0]))[1:3], naive[:2]):
                row += [(low <= here.true) & (here.true <= high), ((low > 0) | (high < 0))[here.true == 0]]
            shares.append(row)
        of = [f"{np.concatenate(column).mean():.1%}" for column in zip(*shares, strict=True)]
        print(
            f"  {f'differs, or inside ±{w:g}':<26}{1 - tokens[0] / tokens[1]:>8.0%}{1 - tokens[0] / tokens[2]:>10.0%}"
            f"{of[0]:>7}{of[1]:>8}{of[2]:>8}{of[3]:>14}{of[4]:>8}"
        )


def real(model: str, *, budget: int) -> None:
    """Two sums that the model works out: which of their steps are known for so many tokens."""
    lm = probe.load(model)
    prompts = [
        "Tom has 12 apples and buys 7 more. How many apples has he?",
        "A box holds 6 eggs. How many eggs are in 9 boxes?",
    ]
    source = probe.trace(lm, prompts, chat=True, generate=64, attention="none")
    begun = time.perf_counter()
    done = probe.importance(source, lm=lm, samples=8, max_new=48, budget=budget, until=0.2)
    took, drawing = time.perf_counter() - begun, done.summary["drawing"]
    print(
        f"\n{model}, {len(prompts)} problems, {budget:,} tokens, ±0.2: {drawing['continuations']} continuations in {took:.0f} s"
    )
    print(
        f"  {drawing['tokens']:,} tokens drawn, as many everywhere {drawing['uniform_tokens']:,}: {drawing['saved']:.0%} saved"
    )
    print(f"  stopped: {', '.join(f'{why} {n}' for why, n in drawing['stopped'].items())}")
