"""The verb `sample`: many answers to each problem, and how many of them are right. Knows the order of things."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe import stats
from probe import store as stores
from probe.decoding import differences
from probe.decoding.costs import DrawingSource, cost_of, pace_of
from probe.decoding.rollouts import Engine
from probe.errors import NonFinite, ProbeError
from probe.labelling import label, labellers
from probe.outcomes import SILENT
from probe.requests import OutcomeOptions, Sample, public
from probe.requests.options import plain
from probe.requests.sample import parse_percents
from probe.rewinding.rollouts import blocks, draw
from probe.running import Running, running
from probe.sampling.problems import ProblemSource
from probe.sampling.screening import Screened, screen, write_problems
from probe.sampling.statistics import COLUMNS, Attempts, columns_of, drawn, mean_rows, sampled_row
from probe.serving import engine_of, remarks
from probe.texts import Failed, TokenSequence

if TYPE_CHECKING:
    from probe.language_model import LanguageModel
    from probe.store import Writer


def run_sample(lm: LanguageModel, request: Sample) -> stores.Run:
    """Draw many answers to each problem from its prompt, and say how often they are right and what most of them say.

    Of one problem: accuracy (Wilson), pass@k (unbiased, Chen et al. 2021), the majority's answer, entropy of the answers. Over
    problems: means with intervals that draw problems anew. The right answer is `expect`, or the problem's own (the column
    `expect` of its file). One problem that cannot be run is an error; of several, a row of `prompts` with the reason.

    Tables: `sampled`, `sampled_means`, `branches` (arm `sample`), `tokens` (branch 0: the prompt), `prompts`, `labels`.
    Raises `BadPrompt`, `BadOption`, `BadJudge`, `NonFinite`, `RunError`.
    """
    source = ProblemSource.of(lm, request)
    engine = engine_of(lm, request.engine)
    came_to = {
        **source.resolved(), "max_new": source.max_new, "generate": source.max_new,
        "sampling": plain(source.sampling),
        "engine": engine.identity, **labellers(request),
    }  # fmt: skip
    seen = None if source.seen is None else source.seen._replace(failed=[])
    with running(request, lm, word=f"n{request.samples}", resolved=came_to, found=seen) as run:
        run.warn(*differences(lm, source.sampling), *remarks(engine, source.sampling))
        source.extend(run)
        failed = _draw_all(run, source, engine)
        if failed:
            run.warn(f"{failed} problems were left out: the column 'error' of the table 'prompts' says why")
        given = label(run, request)
        parent = None if source.run is None else source.run.reference
        summary = measure(run, request, request.ks, given, seed=source.sampling.seed)
        about = {
            "prompts": len(source), "errors": failed, "samples": request.samples, "max_new": source.max_new,
            "sampling": came_to["sampling"],
        }  # fmt: skip
        if request.keep is not None:
            about["kept"] = _kept(run.writer, request, given)._asdict()
        made = run.finish({**summary, **about}, seed=source.sampling.seed, parent=parent)
    if request.keep is not None:
        write_problems(made, keep_problems(made, request).kept, Path(request.keep))
    return made


sample = public(run_sample, Sample)


def plan_sample(lm: LanguageModel, request: Sample) -> dict[str, Any]:
    """What `sample` would do. Decodes a few tokens to time them; writes nothing.

    `half_width`: of the 95 % interval of the accuracy of one problem at ½; `half_width_mean`: of their mean, where problems
    differ as much as they can. Both are the widest that is to be expected.
    """
    source = ProblemSource.of(lm, request)
    sequences, failed = [source.sequence(place) for place in source.fit], source.failed
    if not sequences:
        raise failed[0].error
    wanted = [source.wanted(one) for one in sequences]
    sources = [DrawingSource(one.arms[0].prefix, source.max_new, one.rollout.sampling.seed) for one in wanted]
    pace = pace_of(engine_of(lm, request.engine), sources, source.sampling)
    low, high = stats.wilson(request.samples / 2, request.samples)[1:]
    return {
        "model": lm.name, "problems": len(sequences), "failed": len(failed),
        **cost_of(sources, request.samples, pace).plan(),
        "half_width": round((high - low) / 2, 3), "half_width_mean": round(0.98 / len(sequences) ** 0.5, 3),
    }  # fmt: skip


def _draw_all(run: Running, source: ProblemSource, engine: Engine) -> int:
    """Draw the answers to all problems, some of them at once, and write their rows; how many problems failed."""
    failed = source.failed

    def lose(places: list[int], error: ProbeError) -> None:
        failed.extend(Failed(source.inputs[place], error) for place in places)

    some_ran = False
    sized = ((source.request.samples, place) for place in source.fit)
    for places in run.share("problems", blocks(sized), total=len(source), size=len, lost=lose):
        unit = f"prompts-{source.inputs[places[0]].prompt_id}"
        if run.writer.done(unit) and all(source.is_drawn(run, place) for place in places):
            some_ran = True
            continue
        some = [source.sequence(place) for place in places]
        broken = _draw_block(run, source, engine, some)
        failed += broken
        ran = [one for one in some if one.prompt.prompt_id not in {f.prompt.prompt_id for f in broken}]
        some_ran = some_ran or bool(ran)
        if not run.writer.done(unit):
            with run.writer.unit(unit):
                source.write(run, ran, [])
    if not some_ran:
        raise failed[0].error
    if failed and not run.writer.done("failed"):
        with run.writer.unit("failed"):
            source.write(run, [], failed)
    return len(failed)


def _draw_block(run: Running, source: ProblemSource, engine: Engine, some: list[TokenSequence]) -> list[Failed]:
    """Draw a block; where a problem of it makes NaN, each by itself. Those that do."""
    wanted = [source.wanted(one) for one in some]
    try:
        draw(run, engine, wanted)
    except NonFinite as error:
        if len(source) == 1:
            raise
        if len(some) == 1:
            return [Failed(some[0].prompt, error.with_traceback(None))]
        return [failed for one in some for failed in _draw_block(run, source, engine, [one])]
    return []


def measure(
    run: Running, options: OutcomeOptions, ks: tuple[int, ...], given: set[str], *, seed: int, before: str | None = None
) -> dict[str, Any]:
    """Write `sampled` and `sampled_means` from what the run's `branches` hold, and sum them up.

    given: outcomes of others; before: see `expected_of_all`.
    """
    found, expected = _drawn(run.writer), expected_of_all(run.writer, options, given, before)
    rows = [sampled_row(prompt, own, expected[prompt], ks) for prompt, own in found.items()]
    means = mean_rows(rows, seed=seed)
    if not run.writer.done("sampled"):
        with run.writer.unit("sampled"):
            run.write("sampled", columns_of(rows))
            run.write("sampled_means", columns_of(means))
    unknown = [prompt for prompt, right in expected.items() if right is None and prompt in found]
    if unknown and len(unknown) < len(found):
        run.warn(f"{len(unknown)} of {len(found)} problems have no right answer: they count where none is needed")
    if not any(one not in SILENT for own in found.values() for one in own.outcomes):
        run.warn("no answer was found in any continuation: --max-new gives them more room, --answer another rule")
    return {"problems": len(rows), "with_expected": len(found) - len(unknown), "means": means, "answers": options.answer}


def keep_problems(run: stores.Run, request: Sample) -> Screened:
    """Which problems of a finished run are kept, and why the others are not."""
    return _kept(run, request, _given(run))


def _given(run: stores.Run) -> set[str]:
    if "labels" not in run.tables:
        return set()
    return set(run.scan("labels", columns=["outcome"])["outcome"].to_pylist())


def _kept(run: stores.Run | Writer, request: Sample, given: set[str]) -> Screened:
    assert request.keep_accuracy is not None, "some are to be kept"
    expected = expected_of_all(run, request, given)
    bounds = parse_percents(request.keep_accuracy)
    return screen(_drawn(run), expected, list(expected), bounds, hold_out=request.hold_out)


def _drawn(run: stores.Run | Writer) -> dict[int, Attempts]:
    """What was drawn of the problems that were drawn to the end."""
    pieces = run.batches("branches") if isinstance(run, stores.Run) else run.batches("branches", COLUMNS)
    found, errors = drawn(pieces), _prompts(run)
    return {prompt: own for prompt, own in found.items() if not errors[prompt]["error"]}


def expected_of_all(
    run: stores.Run | Writer, options: OutcomeOptions, given: set[str], before: str | None = None
) -> dict[int, str | None]:
    """The class of right answers of each problem. before: what was expected of all of them when they were drawn."""
    found = {}
    for prompt, row in _prompts(run).items():
        classes = (options.expected(own, known=given) for own in (before, row["expect"]))
        found[prompt] = next((one for one in classes if one is not None), None)
    return found


def _prompts(run: stores.Run | Writer) -> Mapping[int, dict[str, Any]]:
    names = ["prompt_id", "expect", "error"]
    pieces = run.batches("prompts") if isinstance(run, stores.Run) else run.batches("prompts", names)
    rows = [row for piece in pieces for row in piece.select(names).to_pylist()]
    return {row["prompt_id"]: row for row in sorted(rows, key=itemgetter("prompt_id"))}
