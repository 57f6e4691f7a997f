"""Tables of what heads are: kinds, kernels, memories, and the space of their keys."""

from __future__ import annotations

import pyarrow as pa

from probe.tables.columns import BRANCH, FLOATS, HEAD, INTS, LAYER, POS, PROMPT, Column, Table, f32, i32, list_of, text, words
from probe.tables.observed import HEAD_STATISTICS

WHICH = Column("input", words(), "text, or repeated: random tokens, twice over", since=4)

RULE = Column(
    "rule", words(), "sum: pairs are added; delta: a write corrects what is read; softmax: the head's own kernel", since=4
)

SPACE = Column("space", words(), "before or after rotation; before alone where nothing is rotated", since=4)
KEY_HEAD = HEAD._replace(doc="the first head that has these keys")
TEXTS = list_of(pa.string())


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
    Table("head_keys", "the keys of a head, or of heads that share them, in clusters", ("space", "layer", "head"),
          _since4(
        SPACE, LAYER, KEY_HEAD, i32("heads", "heads that share these keys"), i32("n", "keys, each at length 1"),
        i32("k", "clusters: as asked for, or those with the largest silhouette"),
        f32("silhouette", "mean over keys, by cosine distance; null of one cluster"),
        f32("stability", "mean normalised mutual information with the clusters of other starts"),
        Column("clusters", INTS, "the cluster of each key, in the order of head_key_tokens by prompt_id and pos"),
    ), verbs=("heads",),
       example="select layer, head, k, silhouette from 'RUN/head_keys.parquet' where space = 'before' order by silhouette"),
    Table("head_key_agreement", "clusters of keys beside labels of their tokens, and what is held fixed as these are shuffled",
          ("space", "layer", "head", "labels", "shuffled"), _since4(
        SPACE, LAYER, KEY_HEAD,
        Column("labels", words(), "tag; position: one of 8 intervals; frequency: of the token in all texts, one of 5"),
        Column("shuffled", words(), "text, position, tag: labels change places among keys of one text, of nearly one position, "
               "of one tag; type: among different tokens, each of which keeps its labels wherever it stands"),
        i32("n", "keys that have a label"),
        f32("nmi", "normalised mutual information of clusters and labels, 2 I / (H + H)"),
        f32("floor", "its mean over shuffled labels"), f32("floor_sd", "its standard deviation over them"),
        f32("excess", "nmi - floor"), f32("low", "of its 95 % interval, a jackknife over texts; null of one text"),
        f32("high", "of its 95 % interval"), f32("p", "share of shuffles that come as high, the real labels among them"),
        f32("resid_nmi", "nmi of as many clusters of the residual stream that goes into the layer"),
        f32("resid_excess", "their excess"),
    ), verbs=("heads",),
       example="select layer, head, nmi, floor, excess from 'RUN/head_key_agreement.parquet' where labels = 'position' "
               "and shuffled = 'text' and space = 'before' order by excess desc"),
    Table("head_key_clusters", "a cluster of a head's keys", ("space", "layer", "head", "cluster"), _since4(
        SPACE, LAYER, KEY_HEAD, i32("cluster", "the largest is 0"), i32("size", "keys"),
        Column("tokens", TEXTS, "its most frequent tokens"), Column("token_shares", FLOATS, "their shares of the cluster"),
        Column("tags", TEXTS, "its most frequent tags"), Column("tag_shares", FLOATS, "their shares of the cluster"),
        i32("pos_first", "the first position"), f32("pos_median", "the median position"), i32("pos_last", "the last position"),
    ), verbs=("heads",),
       example="select layer, head, cluster, size, tokens from 'RUN/head_key_clusters.parquet' order by layer, head, cluster"),
    Table("head_key_tokens", "a token whose keys are in the clusters", ("prompt_id", "branch", "pos"), _since4(
        PROMPT, BRANCH, POS, i32("token_id", "id in the vocabulary"), text("token", "its text"),
        text("tag", "its tag; null where it has none"),
    ), verbs=("heads",),
       example="select tag, count(*) from 'RUN/head_key_tokens.parquet' group by tag order by 2 desc"),
    Table("kept_keys", "the keys of a text's tokens in one layer, in a run that is not finished (RUN.partial)",
          ("site", "layer", "prompt_id"), _since4(
        Column("site", words(), "see sites.py"), LAYER, PROMPT, Column("values", pa.binary(), "float32, (token, width)"),
    ), passing=True, verbs=("heads",), example="select site, layer from 'RUN/kept_keys.parquet'"),
)
# fmt: on
