"""What a rewind's run holds: rows of the original, the effects and the re-scored tail, and the totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from probe import answers, stats
from probe.over_problems import COLUMNS, effect_tables
from probe.requests.options import plain
from probe.rewinding.effects import labels
from probe.rewinding.rollouts import ORIGINAL
from probe.store import Writer
from probe.texts import Trajectory, copy_prompts, step_columns, token_columns

if TYPE_CHECKING:
    from probe.language_model import LanguageModel
    from probe.rewinding.preparing import LeftOut, OpenedRun, Origin, RewindPlan
    from probe.running import Running
    from probe.store import Run


UNRESOLVED = {"budget": ": the budget is spent", "limit": ", which is as many as may be drawn"}


class MeasuredPlace(NamedTuple):
    """What one place of one problem came to: all that is to be said of it, or its line among several."""

    prompt_id: int
    summary: dict[str, Any]


def write_original(writer: Writer, origin: Origin, branch: int) -> None:
    """The sequence that was rewound, as branch 0, so that the run needs no other."""
    source, original, outcome = origin.opened.source, origin.original, origin.outcome
    prompt = original.prompt_id
    if writer.done(f"original-{prompt}"):
        return
    with writer.unit(f"original-{prompt}"):
        copy_prompts(source, writer, [prompt])
        if branch == ORIGINAL:
            writer.write("tokens", source.scan("tokens", prompt_id=prompt, branch=ORIGINAL))
        else:
            writer.write("tokens", token_columns(prompt, original.ids, original.pieces, original.n_prompt))
        writer.write("steps", step_columns(prompt, original.steps))
        writer.write("branches", {
            "prompt_id": [prompt], "branch": [ORIGINAL], "parent": [-1], "arm": ["original"], "sample": [-1],
            "fork_pos": [0], "draw_pos": [original.n_prompt], "n_prompt": [original.n_prompt], "edit": [""],
            "text": [original.completion], "n_tokens": [len(original.ids) - original.n_prompt],
            "outcome": [outcome.key], "answer": [outcome.text], "rule": [outcome.rule], "confidence": [outcome.confidence],
        })  # fmt: skip


def write_failed(run: Running, source: Run, failed: Sequence[LeftOut]) -> None:
    """The prompts of which nothing could be measured, with the reason in `error`, whether it was found before or after their
    own rows were written."""
    for prompt, _ in failed:
        if not run.writer.done(f"original-{prompt}"):
            with run.writer.unit(f"original-{prompt}"):
                copy_prompts(source, run.writer, [prompt])
    reasons = {prompt: error.message for prompt, error in failed}

    def told(rows: pa.Table) -> pa.Table:
        at = rows.schema.get_field_index("error")
        prompts, errors = rows["prompt_id"].to_pylist(), rows["error"].to_pylist()
        found = [reasons.get(prompt, error) for prompt, error in zip(prompts, errors, strict=True)]
        return rows.set_column(at, rows.schema.field(at), pa.array(found, pa.string()))

    if failed:
        run.writer.amend("prompts", told)
        run.warn(f"{len(failed)} prompts were left out: the column 'error' of the table 'prompts' says why")


def write_effects(writer: Writer, prompt: int, step: int | None, rows: Sequence[dict[str, Any]]) -> None:
    """One row a measured difference at one place."""
    if rows:
        about = {"prompt_id": prompt, "step": step}
        writer.write("effects", {**about, **{name: [row.get(name) for row in rows] for name in rows[0]}})


def write_over_problems(run: Running, *, seed: int) -> dict[str, Any]:
    """The tables over problems, of the effects that the run holds; what a summary says of them."""
    over = effect_tables(run.frame("effects"), *(run.frame(name, columns) for name, columns in COLUMNS.items()), seed=seed)
    run.write_all(over.tables, unit="over-problems")
    return over.summary


def write_rescored(writer: Writer, plan: RewindPlan, scored: tuple[np.ndarray, np.ndarray] | None) -> None:
    """One row for each token of the original behind the edited step, as it was and with the edit before it."""
    if scored is None or not len(scored[0]):
        return
    kept, edited = scored
    original, first = plan.origin.original, len(plan.arms.control)
    positions = np.arange(first, first + len(kept), dtype=np.int32)
    step = [next((i for i, s in enumerate(original.steps) if s.start <= p < s.end), None) for p in positions]
    writer.write("rescored", {
        "prompt_id": [original.prompt_id] * len(kept), "edited_step": plan.step, "pos": positions,
        "token_id": np.asarray(original.ids[first : first + len(kept)], dtype=np.int32),
        "token": original.pieces.tokens[first : first + len(kept)],
        "step": pa.array(step, pa.int32()), "logprob": kept, "logprob_edited": edited, "difference": edited - kept,
    })  # fmt: skip


def sampled_ids(branches: pa.Table, tokens: pa.Table, arm: str) -> list[list[int]]:
    """The ids that were drawn in an arm of one problem, in order of samples."""
    chosen = branches.filter(pc.equal(branches["arm"].cast(pa.string()), arm)).sort_by("sample")
    tokens = tokens.filter(pc.is_in(tokens["branch"], chosen["branch"].combine_chunks()))
    tokens = tokens.sort_by([("branch", "ascending"), ("pos", "ascending")])
    owner, pos, ids = (tokens[name].to_numpy() for name in ("branch", "pos", "token_id"))
    found = []
    for number, start in zip(chosen["branch"].to_pylist(), chosen["draw_pos"].to_pylist(), strict=True):
        own = slice(*np.searchsorted(owner, [number, number + 1]))
        found.append(ids[own][pos[own] >= start].tolist())
    return found


def parent_of(opened: OpenedRun, branch: int, *, prompt_id: int | None = None, position: int | None = None) -> dict[str, Any]:
    """The manifest's `parent`: the run, prompt (None: several) and branch that was gone back into, and at which token."""
    return {**opened.source.reference, "prompt_id": prompt_id, "branch": branch, "position": position}


def summarize(
    plan: RewindPlan, branches: pa.Table, rows: list[dict[str, Any]],
    scored: tuple[np.ndarray, np.ndarray] | None, far: dict[str, Any] | None, n: int, *, paired: bool,
    stopped: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """JSON-able; probabilities are shares of samples, log-probs and entropies are in nats."""
    lm, original, target, arms = plan.origin.lm, plan.origin.original, plan.fork.target, plan.arms
    shares = {arm.name: _arm(branches, arm.name, None if arm.name == "before" else n) for arm in plan.named}
    before = next((arm.name for arm in plan.named if arm.prefix == arms.before), None)
    headline = next((row for row in rows if row["metric"] == "share" and row["outcome"] == plan.reference), None)
    return {
        "step": target.step, "position": target.start, "mid_token": target.mid_token, "edit": plan.what,
        "old": _text(lm, original.ids[: target.start], arms.old or original.ids[target.start : target.end]),
        "new": _text(lm, arms.before, arms.new), "same_length": len(arms.old) == len(arms.new), "samples": n,
        "max_new": plan.rollout.max_new, "answers": plan.request.answer, "reference": plan.reference,
        "expected": plan.expected, "arms": shares, "headroom": shares[before]["entropy"] if before else None,
        "rules": _rules(branches, n),
        "difference": headline,
        "resolution": _resolution(branches, plan.reference, n, paired=paired, stopped=stopped) if headline else None,
        "paired": paired,
        "effects": rows, "off_policy": far, "rescored": _rescored(lm, original, len(arms.control), scored),
        "sampling": plain(plan.origin.opened.sampling),
        "examples": _examples(branches, n), "no_answer": _no_answer(shares),
    }  # fmt: skip


LINE = ("step", "edit", "samples", "reference", "expected", "headroom", "difference", "resolution", "paired")


def line_of(summary: dict[str, Any]) -> dict[str, Any]:
    """Of what is to be said of a place, what is said of it among several."""
    return {name: summary[name] for name in LINE}


def summarize_all(found: Sequence[MeasuredPlace], failed: Sequence[LeftOut]) -> dict[str, Any]:
    """What is to be said of several places: a line each."""
    return {
        "prompts": len({one.prompt_id for one in found}) + len(failed), "errors": len(failed),
        "places": [{"prompt_id": one.prompt_id, **one.summary} for one in found],
    }  # fmt: skip


def _text(lm: LanguageModel, before: tuple[int, ...], ids: tuple[int, ...]) -> str:
    """What ids read as after a prefix."""
    window = list(before[-8:])
    return lm.pieces([*window, *ids]).text[len(lm.pieces(window).text) :]


def _arm(branches: pa.Table, arm: str, n: int | None) -> dict[str, Any]:
    found = labels(branches, arm, n)
    counts = Counter(found)
    own = branches.filter(pc.equal(branches["arm"].cast(pa.string()), arm)).sort_by("sample")
    outcomes = []
    for outcome, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        interval = stats.wilson(count, len(found))
        outcomes.append(
            {"outcome": outcome, "count": count, "share": count / len(found), "low": interval.low, "high": interval.high}
        )
    return {
        "n": len(found), "outcomes": outcomes, "entropy": float(stats.entropy(np.asarray(list(counts.values())))),
        "tokens": float(np.mean(own["n_tokens"].to_numpy()[: len(found)])), "cut_off": counts[answers.TRUNCATED],
    }  # fmt: skip


def _resolution(branches: pa.Table, reference: str, n: int, *, paired: bool, stopped: str | None) -> str:
    """Whether the difference in P(reference) is told from zero; in rounds why no more was drawn."""
    if stopped is not None:
        return f"not resolved at n = {n}{UNRESOLVED[stopped]}" if stopped in UNRESOLVED else f"{stopped} at n = {n}"
    control, edited = (np.asarray(labels(branches, arm, n)) == reference for arm in ("control", "edited"))
    return stats.resolution(control, edited, paired=paired)


def _rescored(
    lm: LanguageModel, original: Trajectory, first: int, scored: tuple[np.ndarray, np.ndarray] | None
) -> dict[str, Any] | None:
    if scored is None or not len(scored[0]):
        return None
    difference = (scored[1] - scored[0]).astype(np.float64)
    worst = int(difference.argmin())
    begin, end = original.offsets[first + worst]
    token = lm.label(original.ids[first + worst], original.text[begin:end])
    return {
        "tokens": len(difference), "logprob": float(scored[0].sum(dtype=np.float64)),
        "logprob_edited": float(scored[1].sum(dtype=np.float64)), "difference": float(difference.sum()),
        "most_changed": {"pos": first + worst, "token": token, "difference": float(difference[worst])},
    }  # fmt: skip


def _examples(branches: pa.Table, n: int) -> dict[str, Any]:
    """One continuation of each arm: the first sample whose outcome differs between them, else the first."""
    arms = {name: labels(branches, name, n) for name in ("control", "edited")}
    pairs = list(zip(arms["control"], arms["edited"], strict=False))
    sample = next((i for i, (a, b) in enumerate(pairs) if a != b), 0)
    chosen = branches.filter(pc.equal(branches["sample"], sample)).to_pylist()
    return {
        row["arm"]: {"sample": sample, "text": row["text"], "outcome": row["outcome"]} for row in chosen if row["arm"] in arms
    }


def _rules(branches: pa.Table, n: int) -> dict[str, int]:
    """How often each rule found the answer of a drawn continuation, the commonest first."""
    drawn = branches.filter(pc.and_(pc.greater_equal(branches["sample"], 0), pc.less(branches["sample"], n)))
    return dict(Counter(rule for rule in drawn["rule"].cast(pa.string()).to_pylist() if rule).most_common())


def _no_answer(shares: dict[str, Any]) -> bool:
    """Whether no continuation at all gave an answer."""
    silent = {answers.NONE, answers.TRUNCATED}
    return all(row["outcome"] in silent for arm in shares.values() for row in arm["outcomes"])
