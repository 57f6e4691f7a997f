"""Tables of the weights themselves: matrices, heads' circuits, neurons."""

from __future__ import annotations

from probe.tables.columns import FLOATS, HEAD, INTS, LAYER, Column, Table, f64, i32, text, words

_LAYER, _HEAD = LAYER._replace(since=4), HEAD._replace(since=4)
_NAME = text("name", "path of the parameter", since=4)
_ROLE = Column("role", words(), "embedding, W_Q, W_K, W_V, W_O, W_gate, W_in, W_out, router, …; else the rest of its path", 4)
_EXPERT = i32("expert", "which slice of a stack of matrices; -1 where it is none", since=4)

# fmt: off
WEIGHTS: tuple[Table, ...] = (
    Table("matrices", "a matrix of the model", ("name", "expert"), (
        _NAME, _ROLE, _LAYER, _EXPERT,
        i32("rows", "first axis, as it is stored", since=4), i32("columns", "second axis", since=4),
        f64("frobenius", "Frobenius norm", since=4), f64("spectral", "the largest singular value", since=4),
        f64("stable_rank", "frobenius^2 / spectral^2", since=4),
        f64("effective_rank", "exp of the entropy of the singular values' shares (Roy & Vetterli 2007)", since=4),
        f64("condition", "largest / smallest singular value; infinite where that is under 1e-7 of the largest", since=4),
        f64("mean", "of the entries", since=4), f64("sd", "of the entries", since=4),
        f64("max_abs", "the largest entry", since=4), f64("zeros", "share of entries that are 0", since=4),
        Column("singular_values", FLOATS, "the largest first, as many as asked for", 4),
        text("tied", "other paths of the same parameter; empty if there are none", since=4),
    ), verbs=("weights",),
       example="select name, role, spectral, effective_rank from 'RUN/matrices.parquet' order by stable_rank"),
    Table("norm_gains", "a norm's gain", ("name",), (
        text("name", "path of the module", since=4), Column("role", words(), "where it stands in its layer", 4), _LAYER,
        i32("width", "channels", since=4), f64("mean", "of the gain", since=4), f64("sd", "of the gain", since=4),
        f64("least", "the smallest gain", since=4), f64("greatest", "the largest gain", since=4),
        i32("greatest_channel", "channel of the gain that is largest in size", since=4),
        f64("bias", "Euclidean norm of what is added", since=4),
    ), verbs=("weights",),
       example="select layer, role, mean, least, greatest from 'RUN/norm_gains.parquet' order by layer"),
    Table("head_circuits", "a head's two circuits", ("layer", "head"), (
        _LAYER, _HEAD, i32("kv_head", "the key-value head that it reads", since=4),
        f64("qk_norm", "Frobenius norm of W_Q^T W_K, the norm's gain folded in", since=4),
        f64("qk_rank", "effective rank of the same", since=4),
        f64("ov_norm", "Frobenius norm of W_O W_V, likewise", since=4), f64("ov_rank", "effective rank of the same", since=4),
        f64("matching", "sum of eigenvalues / sum of their sizes of W_E W_QK W_E^T: 1, a token attends to itself", since=4),
        f64("matching_z", "trace in units of its sd under random rotations of the head", since=4),
        f64("matching_p", "two-sided, of that z", since=4),
        f64("copying", "the same of W_U W_OV W_E: 1, attending to a token raises it (Elhage et al. 2021)", since=4),
        f64("copying_z", "as matching_z", since=4), f64("copying_p", "two-sided, of that z", since=4),
        text("absent", "why a circuit is not there; empty if both are", since=4),
    ), verbs=("weights",),
       example="select layer, head, copying, copying_z from 'RUN/head_circuits.parquet' order by copying desc limit 10"),
    Table("token_circuits", "a token in a head's circuits", ("layer", "head", "token_id"), (
        _LAYER, _HEAD, i32("token_id", "vocabulary id", since=4), text("token", "its text", since=4),
        Column("attends_ids", INTS, "keys with the highest scores where the token is the query", 4),
        Column("attends_scores", FLOATS, "their scores, as before the softmax", 4),
        f64("own_score", "score of the token with itself", since=4),
        Column("raises_ids", INTS, "tokens that attending to the token raises most", 4),
        Column("raises", FLOATS, "logits, at a final norm's scale of 1", 4),
        Column("lowers_ids", INTS, "tokens that it lowers most", 4), Column("lowers", FLOATS, "logits, likewise", 4),
        f64("own_logit", "logits that it gives the token itself, likewise", since=4),
        text("attends", "the first of attends_ids", since=4), text("writes", "the first of raises_ids", since=4),
    ), verbs=("weights",),
       example="select layer, head, token, attends, writes from 'RUN/token_circuits.parquet'"),
    Table("neuron_weights", "a direction that a neuron reads or writes", ("layer", "neuron", "direction"), (
        _LAYER, i32("neuron", "entry of mlp_post", since=4),
        Column("direction", words(), "in or gate: what it reads, act(gate . x) * (in . x), or act(in . x) where there is no "
                                     "gate; out: what it writes", 4),
        f64("norm", "Euclidean; of in and gate with the norm's gain folded in", since=4),
        f64("with_out", "cosine of in (gate) and out; null of out", since=4),
        f64("cosine", "with the token nearest to it or to its opposite: its embedding; of out its unembedding", since=4),
        f64("p_value", "at most how probable so large a cosine with any token is for a random direction", since=4),
        Column("up_ids", INTS, "tokens with the largest numbers in up", 4),
        Column("up", FLOATS, "of in and gate: dot product with the token's embedding through the layer's norm, biases with it; "
                             "of out: logits at a final norm's scale of 1", 4),
        Column("down_ids", INTS, "tokens with the smallest", 4), Column("down", FLOATS, "likewise", 4),
        text("up_token", "the first of up_ids", since=4), text("down_token", "the first of down_ids", since=4),
    ), verbs=("weights",),
       example="select layer, neuron, direction, cosine, up_token from 'RUN/neuron_weights.parquet' order by p_value limit 10"),
    Table("compositions", "a head that reads what an earlier one writes", ("kind", "layer", "head", "writer_layer", "writer"), (
        Column("kind", words(), "Q, K or V: through which of the reader's matrices", 4), _LAYER, _HEAD,
        i32("writer_layer", "layer of the head that writes", since=4), i32("writer", "the head that writes", since=4),
        f64("score", "|A W_OV| / (|A| |W_OV|), A: W_QK^T, W_QK or W_OV of the reader", since=4),
        f64("baseline", "root mean square under random rotations: 1 / sqrt(d_model)", since=4),
        f64("z", "score^2 in units of its sd under them", since=4),
        f64("p_value", "that a rotation gives as much: a beta distribution of that mean and variance", since=4),
        f64("q_value", "Benjamini-Hochberg over all pairs of the run", since=4),
    ), verbs=("weights",),
       example="select kind, writer_layer, writer, layer, head, z from 'RUN/compositions.parquet' order by z desc limit 10"),
    Table("matrix_differences", "a matrix in two models", ("name", "expert"), (
        _NAME, _ROLE, _LAYER, _EXPERT, f64("relative", "|B - A| / |A|, Frobenius", since=4),
        f64("frobenius", "of B - A", since=4), f64("spectral", "largest singular value of B - A", since=4),
        f64("effective_rank", "of B - A", since=4),
        i32("rank", "singular values of B - A above 1e-4 of the largest", since=4),
        f64("changed", "share of entries that differ", since=4),
    ), verbs=("weights",),
       example="select name, relative, rank from 'RUN/matrix_differences.parquet' where relative > 0 order by relative desc"),
)
# fmt: on
