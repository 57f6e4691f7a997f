"""Tables of many answers to each problem, and of what others say of them."""

from __future__ import annotations

import pyarrow as pa

from probe.tables.columns import BRANCH, INTS, PROMPT, Column, Table, f64, i32, list_of, text, words

# fmt: off
SAMPLED = (
    Table("sampled", "a problem of which many answers were drawn", ("prompt_id",), (
        PROMPT._replace(since=3), i32("n", "answers drawn", since=3),
        text("expected", "class of the right answer; null where none was given, and with it all that depends on it", since=3),
        i32("correct", "answers of that class", since=3), f64("accuracy", "correct / n", since=3),
        f64("ci_low", "of accuracy, 95 %, Wilson", since=3), f64("ci_high", "same", since=3),
        Column("k", INTS, "attempts that pass_at_k is of", since=3),
        Column("pass_at_k", list_of(pa.float64()), "chance that one of k is right, unbiased (Chen et al. 2021)", since=3),
        text("majority", "the class that most answers have (<none>, <truncated> have no vote); the first seen where they tie",
            since=3),
        i32("votes", "answers of that class", since=3),
        i32("tied", "classes that have so many; 0 where no answer was found, 1 without a tie", since=3),
        f64("majority_correct", "1 if the majority is right, 0 if not; 1 / tied where it is one of a tie", since=3),
        f64("entropy", "nats, of all classes, <none> and <truncated> among them: plug-in, too low by (classes - 1) / 2n",
            since=3),
        i32("classes", "different outcomes, those two among them", since=3),
        f64("truncated", "share that ran out of tokens", since=3), f64("none", "share in which no answer was found", since=3),
        f64("tokens", "drawn, mean", since=3),
    ), verbs=("sample", "answers"),
       example="select prompt_id, accuracy, ci_low, ci_high, majority, entropy from 'RUN/sampled.parquet' order by accuracy"),
    Table("sampled_means", "a measure over all problems", ("metric", "k"), (
        Column("metric", words(), "accuracy, pass_at_k, majority_correct, entropy, truncated, none or tokens", since=3),
        i32("k", "attempts, of pass_at_k; 0 of the others", since=3),
        f64("estimate", "mean over problems, each counted once", since=3),
        f64("ci_low", "95 %, over problems (clusters); null where there is none", since=3), f64("ci_high", "same", since=3),
        i32("problems", "that it is the mean of", since=3), i32("rollouts", "that were drawn of them", since=3),
        Column("method", words(), "how the interval was had; null where there is none", since=3),
    ), verbs=("sample", "answers"),
       example="select metric, k, estimate, ci_low, ci_high, problems from 'RUN/sampled_means.parquet'"),
    Table("labels", "what somebody else says a continuation comes to", ("prompt_id", "branch"), (
        PROMPT._replace(since=3), BRANCH._replace(since=3),
        Column("outcome", words(), "the class; it is the outcome in branches too", since=3),
        Column("source", words(), "judge (a command) or file", since=3),
        text("more", "what else was said of it, as JSON; null if nothing", since=3),
    ), verbs=("sample", "rewind", "importance", "answers"),
       example="select outcome, count(*) as n from 'RUN/labels.parquet' group by outcome order by n desc"),
)
# fmt: on
