"""The tables of a run: their columns, types and units. The only module that names columns; it writes nothing."""

from __future__ import annotations

import json
from typing import NamedTuple

import pyarrow as pa

SCHEMA_VERSION = 1


class Column(NamedTuple):
    """One column: its Arrow type and what a value means (unit or range)."""

    name: str
    type: pa.DataType
    doc: str


class Table(NamedTuple):
    """One table. `keys` order and identify its rows; a `large` table stays a folder of part files."""

    name: str
    row: str
    keys: tuple[str, ...]
    columns: tuple[Column, ...]
    large: bool = False


def _list(value: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", value, nullable=False))


def _words() -> pa.DataType:
    return pa.dictionary(pa.int32(), pa.string())


INTS, FLOATS = _list(pa.int32()), _list(pa.float32())

RUN = Column("run_id", _words(), "the run's id")
PROMPT = Column("prompt_id", pa.int32(), "which prompt of the run")
BRANCH = Column("branch", pa.int32(), "which continuation of the prompt")
POS = Column("pos", pa.int32(), "position, 0 is the first token")
LAYER = Column("layer", pa.int16(), "layer, from 0; -1 where a site has none")
HEAD = Column("head", pa.int16(), "head, from 0; -1 where a site has none")
QUERY = Column("query", pa.int32(), "position that looks")


def _f(name: str, doc: str) -> Column:
    return Column(name, pa.float32(), doc)


def _i(name: str, doc: str) -> Column:
    return Column(name, pa.int32(), doc)


def _d(name: str, doc: str) -> Column:
    return Column(name, pa.float64(), doc)


def _s(name: str, doc: str) -> Column:
    return Column(name, pa.string(), doc)


_HEAD_STATISTICS = (
    _f("entropy", "nats, of the row"),
    _f("perplexity", "effective number of keys exp(entropy)"),
    _f("ess", "effective number of keys 1/sum(w^2)"),
    _f("sink", "weight on position 0"),
    _f("prev", "weight on the position before"),
    _f("duplicate", "weight on earlier positions holding the query's own token"),
    _f("induction", "weight on positions whose predecessor holds the query's own token"),
    _f("distance", "mean of query - key, tokens"),
)

# fmt: off
_TABLES = (
    Table("prompts", "an input", ("prompt_id",), (
        PROMPT, _s("text", "as given"), _s("rendered", "as the model saw it, after the chat template"),
        _i("n_tokens", "tokens of the prompt"),
        Column("stop_reason", _words(), "eos, stop, length or context; null where nothing was generated"),
        _s("error", "why this prompt was not run; empty if it was"),
    )),
    Table("tokens", "a position of a sequence", ("prompt_id", "branch", "pos"), (
        PROMPT, BRANCH, POS,
        _i("token_id", "vocabulary id"), _s("token", "text of the token as decoded in context"),
        _i("text_start", "first character in the decoded text"), _i("text_end", "one past the last character"),
        Column("segment", _words(), "prompt, completion, or edit (put in by a rewind)"),
        _i("step", "reasoning step; null in the prompt"),
        _f("logprob", "nats, given all earlier tokens; null at a first token"),
        _f("entropy", "nats, of the distribution this token was drawn from"),
        _f("varentropy", "nats^2, variance of the surprisal under that distribution"),
        _i("rank", "0 is the most probable token"), _f("prob", "exp(logprob)"), _f("surprisal", "-logprob, nats"),
        Column("top_ids", INTS, "most probable tokens here, best first"),
        Column("top_logprobs", FLOATS, "their log-probs, nats"),
        _f("sample_logprob", "nats, after temperature and filters; null unless sampled here"),
        _i("kept", "tokens left after the filters; null unless generated here"),
        _f("noise", "the exponential that decided the race; null unless sampled here"),
    )),
    Table("steps", "a reasoning step", ("prompt_id", "branch", "step"), (
        PROMPT, BRANCH, _i("step", "from 0"),
        _i("start", "first token position"), _i("end", "one past the last token position"),
        _i("text_start", "first character"), _i("text_end", "one past the last character"),
        Column("kind", _words(), "heuristic label of what the step does"), _s("text", "the step"),
        Column("mid_token", pa.bool_(), "the boundary fell inside a token"),
        Column("logprob", pa.float64(), "nats, summed over its tokens"),
        _f("mean_entropy", "nats"), _f("max_entropy", "nats"),
    )),
    Table("activations", "one site at one position", ("prompt_id", "branch", "site", "layer", "head", "pos"), (
        PROMPT, BRANCH, Column("site", _words(), "see sites.py"), LAYER, HEAD, POS,
        Column("vector", FLOATS, "the activation"), _f("norm", "its Euclidean norm"),
    ), large=True),
    Table("heads", "a head's summary", ("prompt_id", "branch", "layer", "head"), (
        PROMPT, BRANCH, LAYER, HEAD, _i("rows", "query positions averaged"), *_HEAD_STATISTICS,
    )),
    Table("attention_rows", "one row of a pattern, summarised", ("prompt_id", "branch", "layer", "head", "query"), (
        PROMPT, BRANCH, LAYER, HEAD, QUERY, *_HEAD_STATISTICS,
        _i("max_key", "position with the largest weight"), _f("max_weight", "that weight"),
    ), large=True),
    Table("attention", "one row of a pattern", ("prompt_id", "branch", "layer", "head", "query"), (
        PROMPT, BRANCH, LAYER, HEAD, QUERY,
        Column("keys", INTS, "positions looked at; null where weights has every position"),
        Column("weights", FLOATS, "their weights"), _f("kept_mass", "sum of the weights kept"),
    ), large=True),
    Table("scores", "one row of attention scores before the softmax", ("prompt_id", "branch", "layer", "head", "query"), (
        PROMPT, BRANCH, LAYER, HEAD, QUERY, Column("scores", FLOATS, "scaled and capped, one a visible key"),
    ), large=True),
    Table("lens", "a layer's guess at a position", ("prompt_id", "branch", "layer", "pos"), (
        PROMPT, BRANCH, LAYER, POS, Column("top_ids", INTS, "best first"), Column("top_logprobs", FLOATS, "nats"),
        _i("target_id", "the token that follows"), _i("target_rank", "0 is the top"), _f("target_logprob", "nats"),
        _f("entropy", "nats"), _f("kl_to_final", "nats, KL(final || this layer)"),
    )),
    Table("lens_positions", "a position under the lens", ("prompt_id", "branch", "pos"), (
        PROMPT, BRANCH, POS, _i("token_id", "vocabulary id"), _s("token", "its text"),
        _i("final_id", "the last layer's top token"), _s("final_token", "its text"),
        Column("settled_layer", pa.int16(), "first layer from which on the top token no longer changes"),
        _i("target_id", "the token that is followed here"), _s("target_token", "its text"),
    )),
    Table("projections", "a text along a direction", ("prompt_id",), (
        PROMPT, Column("label", _words(), "positive or negative"), _d("projection", "on the unit direction"),
        Column("correct", pa.bool_(), "on its own side of the direction of the other texts; null if none can be left out"),
    )),
    Table("steering", "a text with so much of a direction added", ("prompt_id", "control", "strength"), (
        PROMPT, _i("control", "0 the direction, else the number of a random one"), _d("strength", "times the vector"),
        _d("value", "log-prob of the answer (less that of against), nats; or 1 where the continuation matches, else 0"),
        _d("kl", "nats, KL(plain || steered) after the last token"), _d("lost", "nats a token of the prompt, more than plain"),
        _s("text", "the continuation, if one was written"),
    )),
    Table("steering_means", "one strength, over all texts", ("strength",), (
        _d("strength", "times the vector"), _d("value", "mean over texts"), _d("effect", "mean of value - value at 0"),
        _d("ci_low", "bootstrap over texts; null for one text"), _d("ci_high", "same"),
        _d("control_mean", "the same effect, mean over random directions"), _d("control_low", "least of them"),
        _d("control_high", "greatest of them"), _d("p_value", "share of directions with an effect as large, add-one"),
        _d("kl", "nats, mean"), _d("lost", "nats a token, mean"), _i("n", "texts"),
    )),
    Table("attribution", "one component's write towards the answer", ("prompt_id", "pos", "component", "layer", "head"), (
        PROMPT, POS, Column("component", _words(), "embed, attn, mlp, attn_bias, head_bias, …: what wrote"), LAYER, HEAD,
        _d("contribution", "logits before the cap, of the answer or of answer - against"),
        _d("share", "of their sum; null where that is 0"),
    )),
    Table("attribution_sources", "where a head's write came from", ("prompt_id", "pos", "layer", "head", "source"), (
        PROMPT, POS, LAYER, HEAD, _i("source", "position whose value the head read"),
        _d("contribution", "logits before the cap; a head's sources sum to its contribution"),
    )),
    Table("branches", "one continuation", ("prompt_id", "branch"), (
        PROMPT, BRANCH, _i("parent", "the branch it forks from; -1 for the sequence that was rewound"),
        Column("arm", _words(), "original, before (the step), control (the step kept) or edited"),
        _i("sample", "address of its noise; arms with the same sample share it; -1 for the original"),
        _i("fork_pos", "position from which its tokens are its own: those before are the parent's"),
        _i("draw_pos", "position of its first drawn token; an edit's tokens stand before"),
        _i("n_prompt", "tokens of its prompt"), _s("edit", "what was put in, empty if nothing"),
        _s("text", "what was drawn"), _i("n_tokens", "tokens drawn"),
        Column("stop_reason", _words(), "eos, stop, length or context"),
        Column("outcome", _words(), "class of its answer; <none> and <truncated> are classes"),
        _s("answer", "the answer as written; null where none was found"),
        Column("logprob", pa.float64(), "nats after the filters, summed over the drawn tokens; 0 where greedy"),
    )),
    Table("stages", "a stage of one token's choice", ("prompt_id", "branch", "pos", "order", "stage"), (
        PROMPT, BRANCH, POS, Column("order", _words(), "whose order of stages: hf is what happened"),
        _i("stage", "0 is what the model gave"), Column("name", _words(), "what the stage is"),
        _f("setting", "its value; null for the logits"), _i("kept", "tokens left after it"),
        _i("removed", "tokens it took out"),
        _d("kept_mass", "what those left had before this stage"), _d("raw_mass", "what those left have by the model alone"),
        _d("entropy", "nats, after it"), _i("token_id", "the token that stands in the text"),
        _i("rank", "its rank after the stage; null once it is out"), _d("prob", "its probability after it"),
        Column("removed_ids", INTS, "the best of those it took out, best first"),
        Column("removed_probs", FLOATS, "what they had before it"),
    )),
    Table("candidates", "a token that could have been chosen", ("prompt_id", "branch", "pos", "order", "token_id"), (
        PROMPT, BRANCH, POS, Column("order", _words(), "whose order of stages"),
        _i("token_id", "vocabulary id"), _s("token", "its text"), _i("rank", "by the model's logits"),
        _d("raw_prob", "by the model's logits"), _d("final_prob", "after all stages; 0 if it is out"),
        Column("removed_by", _words(), "the stage that took it out; null if none did"),
        _f("noise", "its exponential; null unless sampled here"),
        _d("race", "noise / final_prob: the smallest wins; null if it is out"),
        Column("actual", pa.bool_(), "it stands in the text"), Column("chosen", pa.bool_(), "it wins; null in a prompt"),
    )),
    Table("effects", "one measured difference", ("edit", "metric", "outcome"), (
        Column("edit", _words(), "what was put in"), Column("metric", _words(), "what was measured"),
        Column("outcome", _words(), "of which class of answers; empty where it is of all"),
        _d("control", "in the control arm"), _d("edited", "in the edited arm"), _d("difference", "edited - control"),
        _d("ci_low", "of the difference, or of the value where there is no difference"), _d("ci_high", "same"),
        _d("p_value", "that chance alone makes it as large"), _d("null_high", "95 % quantile of the value if nothing differs"),
        _i("n", "pairs"), Column("method", _words(), "how interval and p were computed"),
    )),
    Table("rescored", "a token of the original after the edit", ("prompt_id", "pos"), (
        PROMPT, POS, _i("token_id", "vocabulary id"), _s("token", "its text"), _i("step", "reasoning step"),
        _f("logprob", "nats, as it was"), _f("logprob_edited", "nats, with the edit in the step's place"),
        _f("difference", "nats, edited - as it was"),
    )),
    Table("importance", "one step's importance by one method", ("method", "step"), (
        Column("method", _words(), "how it was measured"), _i("step", "reasoning step"),
        _d("estimate", "the importance, in the method's unit"), _d("ci_low", "95 % interval"), _d("ci_high", "same"),
        _d("p_value", "under no effect"), _d("q_value", "Benjamini-Hochberg over the steps"),
        _d("control", "the method's control, in the same unit"), _i("n", "samples"),
        Column("unit", _words(), "what the estimate counts"),
        Column("kind", _words(), "heuristic label of what the step does"), _s("text", "the step"),
    )),
    Table("comparison", "a position under two models", ("prompt_id", "pos"), (
        PROMPT, POS, _i("token_id", "vocabulary id, A's"), _s("token", "text of the token as decoded in context"),
        _i("text_start", "first character in the decoded text"), _i("text_end", "one past the last character"),
        _f("logprob_a", "nats, of this token by A; null at a first token"), _f("logprob_b", "nats, by B"),
        _f("difference", "nats, logprob_b - logprob_a"),
        _d("kl_ab", "nats, KL(A || B) of the distributions this token comes from; null where they aren't compared"),
        _d("kl_ba", "nats, KL(B || A)"), _d("js", "nats, Jensen-Shannon, at most ln 2"),
        _d("tv", "total variation, 0 to 1"),
        _d("accept", "1 - tv: P that a token drafted by one is accepted by the other"),
        Column("same_top", pa.bool_(), "both have the same most probable token"),
        _i("top_a", "A's most probable token"), _i("top_b", "B's"),
        _i("rank_a", "rank of this token by A, 0 is the top"), _i("rank_b", "by B"),
        _f("entropy_a", "nats"), _f("entropy_b", "nats"),
    )),
    Table("segments", "characters between two boundaries that both tokenizers share", ("prompt_id", "segment"), (
        PROMPT, _i("segment", "from 0"), _i("text_start", "first character"), _i("text_end", "one past the last character"),
        _s("text", "the characters"), _i("tokens_a", "A's tokens in it"), _i("tokens_b", "B's"),
        _d("logprob_a", "nats, summed over A's tokens"), _d("logprob_b", "nats, summed over B's"),
        _d("difference", "nats, logprob_b - logprob_a"),
    )),
    Table("similarity", "one layer's residual stream in two models", ("site", "layer"), (
        Column("site", _words(), "see sites.py"), LAYER,
        _d("cosine", "mean over positions; null where the widths differ"), _d("cosine_min", "the smallest of them"),
        _d("distance", "mean of |b - a| / |a|; null where the widths differ"),
        _d("cka", "linear CKA (Kornblith et al. 2019): towards 1 where there are fewer positions than dimensions"),
        _d("cka_debiased", "the same from the unbiased HSIC (Song et al. 2012); null under 4 positions"),
        _i("n", "positions; the first of each text is left out"),
    )),
    Table("dependence", "how one step depends on an earlier one", ("method", "source", "target"), (
        Column("method", _words(), "how it was measured"), _i("source", "the step that was changed"),
        _i("target", "the later step that was looked at"),
        _d("value", "nats a token that the later step's mean log-prob (rescore) or distribution (suppression) lost"),
    )),
    Table("proposals", "a token that a draft proposed, or the target added", ("prompt_id", "round", "index"), (
        PROMPT, _i("round", "pass of the target; 0 reads the prompt and drafts nothing"),
        _i("index", "place in the block"), POS, _i("token_id", "vocabulary id"), _s("token", "its text"),
        Column("kind", _words(), "word start, continuation, number, punctuation, space, special or bytes"),
        Column("verdict", _words(), "accepted, rejected, discarded (after a rejection or the end) or bonus (the target's own)"),
        Column("accepted", pa.bool_(), "whether it was accepted; null unless tested"),
        _d("p", "the target's probability, after temperature and filters"), _d("q", "the draft's, likewise; null for a bonus"),
        _d("accept_prob", "min(1, p / q)"), _d("uniform", "accepted if at most accept_prob; null unless tested"),
        _i("correction_id", "drawn from norm(max(p - q, 0)) in its place; null unless rejected"), _s("correction", "its text"),
        _f("tv", "total variation of p and q; 1 - tv = sum of min(p, q) is the chance of acceptance before the draft is drawn"),
        _f("kl", "nats, KL(p || q); infinite where q cannot draw what p can"), _f("kl_reverse", "nats, KL(q || p)"),
        _f("logprob", "nats, the target's own, before temperature and filters"), _f("entropy", "nats, likewise"),
        _i("rank", "likewise; 0 is the most probable token"),
        _f("draft_logprob", "nats, the draft's own, likewise; null where it has no logits"), _f("draft_entropy", "nats"),
        _i("draft_rank", "likewise"),
    )),
    Table("patches", "one cell of a sweep", ("pair", "site", "layer", "head", "pos", "step", "receiver"), (
        _i("pair", "which pair of texts: prompts 2 pair (clean) and 2 pair + 1 (corrupt)"),
        Column("site", _words(), "see sites.py"), LAYER,
        Column("head", pa.int16(), "head, from 0; -1: the whole width"),
        _i("pos", "position in the text that is patched; -1: several at once"),
        _i("step", "reasoning step; -1 where there is none, or several at once"),
        _i("positions", "how many are patched at once"), _i("source_pos", "where the patch comes from; -1: several"),
        _s("token", "the token that is patched; null for several"),
        _d("clean", "the sweep's metric in the clean run"), _d("corrupt", "in the corrupt run"), _d("patched", "patched"),
        _d("effect", "share of clean - corrupt that the patch carries; null where they do not differ"),
        _d("logit_diff", "patched, logits, answer - against"), _d("logprob", "patched, nats, of the answer"),
        _d("prob", "patched, of the answer"), _d("kl", "nats, KL(clean || patched)"),
        Column("passed", pa.bool_(), "the model was run for it; else it is known to be as unpatched, or foretold"),
        Column("receiver", _words(), "on a path, what the cell was sent to; empty where it acts on all that follows"),
        _d("exact", "where the metric is foretold from a gradient: patched, by a forward, for the cells of the sample"),
    )),
    Table("patch_means", "one cell of a sweep over several pairs", ("site", "layer", "head", "pos", "step", "receiver"), (
        Column("site", _words(), "see sites.py"), LAYER,
        Column("head", pa.int16(), "head, from 0; -1: the whole width"),
        _i("pos", "position; where the texts differ in length, from the end (-1 the last)"), _i("step", "as in patches"),
        _d("effect", "mean over pairs"), _d("ci_low", "95 %, bootstrap over pairs"), _d("ci_high", "same"),
        _d("patched", "mean of the metric, patched"), _i("n", "pairs"), Column("receiver", _words(), "as in patches"),
    )),
)
# fmt: on

TABLES: dict[str, Table] = {t.name: t for t in _TABLES}


def schema(name: str) -> pa.Schema:
    """Arrow schema of a table, `run_id` first, with units in its metadata (keys `probe` and `PANDAS_ATTRS`)."""
    table = TABLES[name]
    units = {c.name: c.doc for c in (RUN, *table.columns)}
    probe = {"schema_version": SCHEMA_VERSION, "table": name, "row": table.row, "units": units}
    metadata = {"probe": json.dumps(probe), "PANDAS_ATTRS": json.dumps({"probe": probe})}
    return pa.schema([pa.field(c.name, c.type) for c in (RUN, *table.columns)], metadata=metadata)
