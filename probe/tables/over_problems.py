"""Tables of what holds over the problems of a run, and of answers that were asked for early."""

from __future__ import annotations

from functools import partial

import pyarrow as pa

from probe.tables import columns
from probe.tables.columns import PROMPT, Column, Table, words

f64, i32 = (partial(kind, since=3) for kind in (columns.f64, columns.i32))
word = partial(Column, type=words(), since=3)
PROBLEM = PROMPT._replace(since=3)

# fmt: off
GROUP = (
    word("grouped_by", doc="what steps are taken together by: all, kind (of step), quarter or tenth (of the reasoning)"),
    word("value", doc="which of them: a kind, or where in the reasoning its steps begin, in percent; empty for all"),
)
BEHIND = (
    i32("problems", "with such a step that was measured"), i32("steps", "measured, of all problems"),
    i32("rollouts", "continuations that were drawn for them; 0 where none were needed"),
    word("interval", doc="how it was had: bootstrap of problems, or t under 8 of them; null where there is none"),
)

OVER_PROBLEMS = (
    Table("early_answers", "what the model would answer if it had to, after so many steps", ("prompt_id", "boundary"), (
        PROBLEM, i32("boundary", "steps that it had; 0: none"), i32("pos", "position after them, where it was asked"),
        word("answer", doc="class of what it said, greedily; <none> where that holds no answer"),
        Column("match", pa.bool_(), "whether that is the answer that is counted", since=3),
        f64("chance", "probability of the counted answer among all candidates; null where there is no other"),
    ), verbs=("importance", "answers"),
       example="select boundary, answer, match, chance from 'RUN/early_answers.parquet' order by prompt_id, boundary"),
    Table("importance_means", "importance of a group of steps by a method, over problems", ("method", "grouped_by", "value"), (
        word("method", doc="how it was measured"), *GROUP,
        word("unit", doc="what the estimate counts"),
        f64("estimate", "mean over problems of the mean over such steps"),
        f64("ci_low", "95 %, over problems"), f64("ci_high", "same"),
        f64("floor", "the same mean of the floors: the estimate where nothing differs; null where a method has none"),
        f64("above", "mean of estimate - floor; null where a method has no floor"),
        f64("above_low", "95 %, over problems"), f64("above_high", "same"),
        f64("control", "the same mean of the method's controls"),
        i32("discovered", "steps with q at most 0.05, Benjamini-Hochberg over all steps of all problems"),
        *BEHIND,
    ), verbs=("importance", "answers"),
       example="select method, value, estimate, ci_low, ci_high, problems from 'RUN/importance_means.parquet' "
               "where grouped_by = 'kind'"),
    Table("effect_means", "an edit's effect on a group of steps, over problems", ("edit", "metric", "grouped_by", "value"), (
        word("edit", doc="what was done to the steps"),
        word("metric", doc="as in effects; share is that of the original's own answer"), *GROUP,
        f64("control", "mean over problems of the mean over such steps, control arm; null where it is of both arms"),
        f64("edited", "same, edited arm"), f64("difference", "same, edited - control, or the value itself"),
        f64("ci_low", "95 %, over problems"), f64("ci_high", "same"),
        f64("null_high", "mean of the 95 % quantiles of single values if nothing differs"),
        i32("discovered", "steps with q at most 0.05, Benjamini-Hochberg over all steps of all problems"),
        *BEHIND,
    ), verbs=("rewind", "answers"),
       example="select value, difference, ci_low, ci_high, problems, steps from 'RUN/effect_means.parquet' "
               "where metric = 'share' and grouped_by = 'kind'"),
    Table("covariates", "what a step's importance goes along with", ("method", "design", "term"), (
        word("method", doc="how importance was measured"),
        word("design", doc="covariates, or kinds: the covariates and the kind of step"),
        word("term", doc="entropy, position, length, truncated, budget, intercept, kind: and a kind of step, all kinds"),
        word("unit", doc="of what the coefficient is the change, by one; of a kind: importance at the mean of the covariates"),
        f64("coefficient", "least squares, problems weighing the same; null where the term does not vary by itself"),
        f64("ci_low", "95 %, over problems"), f64("ci_high", "same"),
        f64("partial_r2", "share explained of what all other terms leave; of all kinds together, adjusted for their number"),
        f64("r2", "of the whole design"),
        word("halves", doc="crossed: entropy and importance were read from different draws; none: importance was not drawn; "
                           "shared: they were read from the same draws, whose noise is in both"),
        *BEHIND,
    ), verbs=("importance", "answers"),
       example="select term, coefficient, ci_low, ci_high, partial_r2 from 'RUN/covariates.parquet' "
               "where design = 'covariates'"),
    Table("curves", "a curve over the reasoning, at one share of it, over problems", ("curve", "along", "share"), (
        word("curve", doc="what was measured after each part of the reasoning: early-answer, rollouts, or an edit of the step"),
        word("along", doc="steps: every step counts the same; tokens: by length"),
        f64("share", "of the reasoning that was kept, 0 to 1"),
        f64("estimate", "mean over problems, each between its own boundaries on a straight line"),
        f64("ci_low", "95 %, over problems"), f64("ci_high", "same"),
        i32("problems", "whose boundaries reach there"),
        word("interval", doc="how it was had; null where there is none"),
    ), verbs=("importance", "rewind", "answers"),
       example="select curve, share, estimate, ci_low, ci_high from 'RUN/curves.parquet' where along = 'steps'"),
)
# fmt: on
