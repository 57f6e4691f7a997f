"""Tables of a place over a file of texts: what moves it most, its means and variances."""

from __future__ import annotations

import pyarrow as pa

from probe.tables.columns import FLOATS, INTS, Column, Table, f32, f64, i32, text, words

# fmt: off
_PLACE = Column("place", words(), "as it is written: mlp_post@5.n7, z@5.3, resid_post@12 or direction:FILE", 4)

CORPORA: tuple[Table, ...] = (
    Table("top", "a text in which a place is largest or smallest, or one of a random sample", ("place", "kind", "rank"), (
        _PLACE, Column("kind", words(), "top (largest first), bottom (smallest first) or random (texts drawn blindly)", 4),
        i32("rank", "0 is the first; equal values are in the order of the texts", 4),
        f32("value", "the place's number at the token: see the measure in top_values", 4),
        Column("prompt_id", pa.int32(), "which text: its row in the file, or running over all files", 4),
        text("row_id", "the text's own id: its row's column `id`; null where the file has none", 4),
        i32("window", "which piece of a text that is cut because it is longer than the window", 4),
        i32("pos", "position in the text, 0 is the first token", 4),
        i32("token_id", "vocabulary id of the token at which the value is the text's largest (of bottom: smallest)", 4),
        text("token", "its text; a part of a character as its bytes", 4),
        text("before", "the text before it, of --context tokens at most", 4), text("after", "the text after it, likewise", 4),
    ), verbs=("top",),
       example="select rank, value, before, token, after from 'RUN/top.parquet' where kind = 'top' order by place, rank"),
    Table("top_values", "a place over all tokens that were counted", ("place",), (
        _PLACE, Column("site", words(), "its site", 4),
        Column("layer", pa.int16(), "layer, from 0; -1 where a site has none", 4),
        Column("head", pa.int16(), "head, from 0; -1 where it is none of one head", 4),
        i32("unit", "which entry of the site's last axis: a neuron, an expert; -1 where it is no single one", 4),
        Column("measure", words(), "its number: activation (of one unit), norm (Euclidean) or projection (h·v/‖v‖)", 4),
        Column("n", pa.int64(), "tokens counted", 4), f64("mean", "over them", 4), f64("sd", "standard deviation over them", 4),
        f32("minimum", "over them", 4), f32("maximum", "over them", 4), f64("above_zero", "share of them above 0", 4),
        *(f32(name, f"{share} % of the values are smaller; to about 1 % of its size", 4) for name, share in
          (("q1", 1), ("q25", 25), ("q50", 50), ("q75", 75), ("q99", 99), ("q999", 99.9))),
    ), verbs=("top",), example="select place, mean, sd, q999, maximum, above_zero from 'RUN/top_values.parquet'"),
    Table("top_histogram", "an interval of a place's values", ("place", "bin"), (
        _PLACE, i32("bin", "from 0 at the smallest value; all are of one width", 4), f32("low", "where it begins", 4),
        f32("high", "where it ends", 4), Column("count", pa.int64(), "tokens whose value lies there", 4),
    ), verbs=("top",), example="select low, high, count from 'RUN/top_histogram.parquet' where place = 'z@5.3' order by bin"),
    Table("means", "a site over all tokens of a file of texts", ("site", "layer", "head"), (
        Column("site", words(), "see sites.py", 4), Column("layer", pa.int16(), "layer, from 0; -1 where a site has none", 4),
        Column("head", pa.int16(), "head, from 0; -1 where a site has none", 4),
        Column("units", INTS, "which entries of the site's last axis; null where it is all of them", 4),
        Column("n", pa.int64(), "tokens counted", 4), Column("mean", FLOATS, "the mean vector", 4),
        Column("variance", FLOATS, "of each entry, dividing by n", 4), Column("minimum", FLOATS, "of each entry", 4),
        Column("maximum", FLOATS, "of each entry", 4), f64("mean_norm", "mean of the Euclidean norms", 4),
        f64("norm_of_mean", "Euclidean norm of the mean vector", 4),
    ), verbs=("means",),
       example="select site, layer, head, n, mean_norm, norm_of_mean from 'RUN/means.parquet' order by layer, head"),
    Table("unfinished", "what one part of the work came to, in a run that is not finished (RUN.partial)", ("part",), (
        Column("part", pa.string(), "which part", 4),
        Column("state", pa.binary(), "NumPy's .npz: its sums and candidates, or the neurons that are patched; or JSON: what is "
               "said of it in the summary", 4),
    ), passing=True, verbs=("top", "means", "patch", "rewind", "importance"),
       example="select part from 'RUN/unfinished.parquet'"),
)
# fmt: on
