"""Tables of what heads are: kinds, kernels, memories, and the space of their keys."""

from __future__ import annotations

from probe.tables.columns import BRANCH, HEAD, LAYER, PROMPT, Column, Table, f32, i32, words
from probe.tables.observed import HEAD_STATISTICS

WHICH = Column("input", words(), "text, or repeated: random tokens, twice over", since=4)

RULE = Column(
    "rule", words(), "sum: pairs are added; delta: a write corrects what is read; softmax: the head's own kernel", since=4
)


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
    Table("head_memory", "a head's output beside its linearised memory, by stored pairs",
          ("prompt_id", "branch", "layer", "head", "rule", "pairs"), _since4(
        PROMPT, BRANCH, LAYER, HEAD, RULE, i32("pairs", "queries that see at most so many keys, and more than the step before"),
        i32("rows", "query positions in the step"),
        f32("error", "sqrt(sum |read - z|^2 / sum |z|^2) over them, z the head's output before W_O"),
        f32("cosine", "mean cosine of read and z"),
    ), verbs=("heads",),
       example="select layer, head, rule, pairs, error, cosine from 'RUN/head_memory.parquet' order by error limit 10"),
    Table("head_retrieval", "what comes back when each stored key is read, by stored pairs",
          ("prompt_id", "branch", "layer", "head", "rule", "pairs"), _since4(
        PROMPT, BRANCH, LAYER, HEAD._replace(doc="the first head that has these keys"), RULE,
        i32("pairs", "keys and values stored: the text's first, without a window"),
        f32("error", "sqrt(sum |read - v|^2 / sum |v|^2) over all of them"),
        f32("right", "share of reads to which no stored value is nearer than the key's own"),
        f32("interference", "mean share of a read's weight that falls on other pairs; null for delta, where all error is that"),
        f32("effective_rank", "exp(entropy of the keys' singular values, as shares of their sum)"),
        i32("d_head", "width of a key: more independent keys than that must interfere where features are linear in them"),
        Column("features", words(), "the feature map: elu, dpfp:N or favor:M", since=4),
    ), verbs=("heads",),
       example="select layer, head, pairs, error, interference from 'RUN/head_retrieval.parquet' where rule = 'softmax'"),
)
# fmt: on
