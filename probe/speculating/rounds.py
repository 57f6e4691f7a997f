"""The loop: propose a block, let the target read it in one pass, keep what holds. Knows no table and no text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from probe.decoding import Continuation, Sampling
from probe.decoding.draws import ended
from probe.decoding.engine import check
from probe.decoding.sampler import distribution
from probe.errors import BadOption
from probe.speculating.drafts import NOTHING, Address, Draft, Proposal, history, slow
from probe.speculating.readers import CachedModel
from probe.speculating.verifying import Settled, settle

if TYPE_CHECKING:
    from probe.language_model import LanguageModel

FIRST, LONGEST = 4, 16  # of an adaptive block
UP, DOWN = 2, 1  # as transformers' heuristic schedule: after a block kept whole, and after another


class Blocks(NamedTuple):
    """How many tokens are drafted at once: always `first`, or, if adaptive, more after a success and fewer after a failure."""

    first: int
    adaptive: bool = False

    @classmethod
    def parse(cls, text: str | int) -> Blocks:
        """`4`, or `adaptive`. Raises `BadOption`."""
        if text == "adaptive":
            return cls(FIRST, adaptive=True)
        if not str(text).isascii() or not str(text).isdigit() or int(text) < 1:
            raise BadOption(f"cannot read the block length '{text}'", hint="a number from 1 on, or adaptive")
        return cls(int(text))

    def after(self, length: int, drafted: int, accepted: int) -> int:
        """The length that follows a block of which `accepted` were kept."""
        if not self.adaptive or not drafted:
            return length
        return min(LONGEST, length + UP) if accepted == drafted else max(1, length - DOWN)


ALWAYS = Blocks(FIRST)


class Round(NamedTuple):
    """One pass of the target. Distributions p (block + 1, d_vocab), raw logits likewise; `kept` tokens of it joined the text.

    `text` is what stood before it. A first round drafts nothing: its pass reads the prompt.
    """

    number: int
    text: list[int]
    proposal: Proposal
    logits: Tensor
    p: Tensor
    settled: Settled
    kept: int

    @property
    def accepted(self) -> int:
        """How many of the drafted tokens were accepted, be they kept or beyond the end of the text."""
        return int(self.settled.accepted[0])


@dataclass
class Clock:
    """Seconds of drafting, of the target's passes with what decides, and what they made, the prompt's pass left out."""

    drafting: float = 0.0
    passing: float = 0.0
    passes: int = 0
    drafted: int = 0
    tokens: int = 0


@dataclass
class Speculation:
    """What was added to one prompt, and how long it took."""

    found: Continuation = field(default_factory=Continuation)
    clock: Clock = field(default_factory=Clock)
    warnings: tuple[str, ...] = ()


@torch.inference_mode()
def speculate_ids(
    lm: LanguageModel, draft: Draft, prompt: Sequence[int], *, max_new: int, sampling: Sampling, sample: int = 0,
    blocks: Blocks = ALWAYS, seen: Callable[[Round], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Speculation:  # fmt: skip
    """Continue a prompt (token ids) by at most `max_new` tokens of the target's distribution, with a draft's help.

    Noise is keyed by (seed, sample, step, purpose): a run is the same whatever ran before it. Where nothing is drafted the
    tokens are those of plain decoding. seen(round) is called after each pass. Raises `NonFinite`, `BadModel`.
    """
    check(lm)
    target, result, text = CachedModel(lm), Speculation(), list(prompt)
    found, length, number = result.found, blocks.first, 0
    while not found.stop_reason:
        room = _room(lm, text, max_new - len(found.ids))
        if room < 1:
            found.stop_reason = "length" if len(found.ids) >= max_new else "context"
            break
        block = 0 if number == 0 else _block(min(length, room - 1), draft, text)
        begun = time.perf_counter()
        if number == 0:
            draft.begin(target, prompt)
        at = Address(sampling, sample, len(found.ids))
        proposal = draft.propose(text, block, at) if block else NOTHING
        drafted = time.perf_counter()
        one = _pass(target, text, proposal, at, number)
        done = time.perf_counter()
        kept = _append(lm, found, one, sampling)
        one, text = one._replace(kept=kept), [*text, *found.ids[len(found.ids) - kept :]]
        if number:
            _count(result.clock, one, drafted - begun, done - drafted)
        length, number = blocks.after(length, len(proposal.tokens), one.accepted), number + 1
        if seen:
            seen(one)
        if progress:
            progress(len(found.ids))
    limit = draft.limit(text)
    outgrown = limit.why if limit.most == 0 else ""
    result.warnings = tuple(told for told in (draft.warning, outgrown, "" if target.goes_back else slow(lm, "target")) if told)
    return result


def _room(lm: LanguageModel, text: Sequence[int], wanted: int) -> int:
    """How many tokens may still be added."""
    return wanted if lm.context_length is None else min(wanted, lm.context_length - len(text))


def _block(wanted: int, draft: Draft, text: Sequence[int]) -> int:
    """How many tokens are drafted."""
    most = draft.limit(text).most
    return wanted if most is None else min(wanted, most)


def _pass(target: CachedModel, text: list[int], proposal: Proposal, at: Address, number: int) -> Round:
    """The target reads the block, and it is settled."""
    n = len(proposal.tokens)
    logits = target.logits([*text, *proposal.tokens], n + 1)
    past = history(text, proposal.tokens, at.sampling)
    p = distribution(
        logits, None if past is None else past.to(logits.device), at.sampling,
        samples=[at.sample] * (n + 1), steps=range(at.step, at.step + n + 1),
    )  # fmt: skip
    tokens = torch.tensor([proposal.tokens], dtype=torch.long, device=p.device)
    settled = settle(
        p[None], proposal.distributions[None].to(p.device), tokens,
        seed=at.sampling.seed, samples=[at.sample], steps=[at.step],
    )  # fmt: skip
    return Round(number, text, proposal, logits, p, settled, 0)


def _append(lm: LanguageModel, found: Continuation, one: Round, sampling: Sampling) -> int:
    """Add what was kept and the token after it, up to what ends the text; how many were added."""
    tokens = [*one.proposal.tokens[: one.accepted], int(one.settled.token[0])]
    for i, token in enumerate(tokens):
        found.ids.append(token)
        found.sample_logprob.append(float(one.p[i, token].log()))
        found.kept.append(int((one.p[i] > 0).sum()))
        found.noise.append(None)
        found.stop_reason = ended(lm, found.ids, sampling.stop)
        if found.stop_reason:
            return i + 1
    return len(tokens)


def _count(clock: Clock, one: Round, drafting: float, passing: float) -> None:
    clock.drafting += drafting
    clock.passing += passing
    clock.passes += 1
    clock.drafted += len(one.proposal.tokens)
    clock.tokens += one.kept
