"""Tables of what heads are: kinds, kernels, memories, and the space of their keys."""

from __future__ import annotations

from probe.tables.columns import BRANCH, HEAD, LAYER, PROMPT, Column, Table, f32, i32, words
from probe.tables.observed import HEAD_STATISTICS

WHICH = Column("input", words(), "text, or repeated: random tokens, twice over", since=4)


def _since4(*columns: Column) -> tuple[Column, ...]:
    return tuple(column._replace(since=4) for column in columns)


# fmt: off
HEAD_VIEWS: tuple[Table, ...] = (
    Table("head_kinds", "a head, over all texts", ("input", "layer", "head"), (
        WHICH, *_since4(LAYER, HEAD),
        Column("kind", words(), "induction, duplicate, previous-token, sink, local, broad or mixed; null without a text of 32 "
               "tokens", since=4),
        *_since4(i32("texts", "texts averaged"), *HEAD_STATISTICS),
    ), verbs=("heads",),
       example="select layer, head, induction from 'RUN/head_kinds.parquet' where kind = 'induction' order by induction desc"),
    Table("head_means", "a head's statistic, over all texts", ("input", "layer", "head", "statistic"), (
        WHICH, *_since4(LAYER, HEAD),
        Column("statistic", words(), "a column of heads or head_kernels", since=4),
        f32("mean", "over texts, each of one weight", since=4),
        f32("low", "of its 95 % interval, Student's t over texts; null of one text", since=4),
        f32("high", "of its 95 % interval", since=4), i32("texts", "texts that have it", since=4),
    ), verbs=("heads",),
       example="select layer, head, mean, low, high from 'RUN/head_means.parquet' where statistic = 'induction'"),
    Table("head_kernels", "a head as a kernel smoother", ("prompt_id", "branch", "layer", "head"), _since4(
        PROMPT, BRANCH, LAYER, HEAD, i32("rows", "query positions looked at"),
        f32("similarity", "share of the within-row variance of log-weights that -s|q-k|^2/2 has, s the call's scaling"),
        f32("popularity", "share of it that s|k|^2/2 has"),
        f32("covariance", "share of it that both have together; can be < 0"),
        f32("bandwidth", "of the Gaussian kernel of |q-k| nearest to a row's weights, median; null where it is infinite"),
        f32("bandwidth_ratio", "bandwidth / s^-1/2, that of the similarity itself"),
        f32("gaussian_r2", "1 - KL(weights || that Gaussian) / KL(weights || uniform)"),
        f32("flat", "share of rows that no Gaussian fits better than uniform weights"),
        f32("effective_keys", "mean over rows of exp(entropy), of weights on keys alone"),
        f32("output_error", "|output without popularity - output| / |output|, over the rows"),
    ), verbs=("heads",),
       example="select layer, head, similarity, popularity, output_error from 'RUN/head_kernels.parquet' order by popularity"),
)
# fmt: on
