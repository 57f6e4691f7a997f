"""Tables of what a model does with a text."""

from __future__ import annotations

import pyarrow as pa

from probe.tables.columns import (
    BRANCH,
    FLOATS,
    HEAD,
    INTS,
    LAYER,
    POS,
    PROMPT,
    QUERY,
    Column,
    Table,
    f32,
    f64,
    i32,
    list_of,
    text,
    words,
)

# fmt: off
HEAD_STATISTICS = (
    f32("entropy", "nats, of the row"),
    f32("perplexity", "effective number of keys exp(entropy)"),
    f32("ess", "effective number of keys 1/sum(w^2)"),
    f32("sink", "weight on position 0"),
    f32("prev", "weight on the position before"),
    f32("duplicate", "weight on earlier positions holding the query's own token"),
    f32("induction", "weight on positions whose predecessor holds the query's own token"),
    f32("distance", "mean of query - key, tokens"),
)

OBSERVED = (
    Table("prompts", "an input", ("prompt_id",), (
        PROMPT, text("text", "as given"), text("rendered", "as the model saw it, after the chat template"),
        i32("n_tokens", "tokens of the prompt"),
        Column("stop_reason", words(), "eos, stop, length or context; null where nothing was generated"),
        text("completion", "what was generated; null where nothing was asked for", since=2),
        i32("scored", "tokens that the next three columns tell of: generated ones; without any, the prompt's but its template",
            since=2),
        f64("logprob", "nats, their sum; null where none is scored", since=2),
        f64("perplexity", "exp of minus their mean log-prob", since=2),
        f64("mean_entropy", "nats, of the distributions they came from", since=2),
        text("expect", "the right answer, as the file of the problems has it; null where it has none", since=3),
        Column("choices", list_of(pa.string()), "the options to choose from, likewise", since=3),
        text("error", "why this prompt was not run; empty if it was"),
    ), verbs=("trace", "rewind", "importance", "speculate", "patch", "compare", "lens", "attribute", "steer"),
       example="select prompt_id, n_tokens, perplexity, error from 'RUN/prompts.parquet'"),
    Table("tokens", "a position of a sequence", ("prompt_id", "branch", "pos"), (
        PROMPT, BRANCH, POS,
        i32("token_id", "vocabulary id"), text("token", "text of the token as decoded in context"),
        i32("text_start", "first character in the decoded text"), i32("text_end", "one past the last character"),
        Column("segment", words(), "prompt, completion, or edit (put in by a rewind)"),
        Column("template", pa.bool_(), "written by the chat template, not by a message; null where there is no chat", since=2),
        i32("step", "reasoning step; null in the prompt"),
        f32("logprob", "nats, given all earlier tokens; null at a first token"),
        f32("entropy", "nats, of the distribution this token was drawn from"),
        f32("varentropy", "nats^2, variance of the surprisal under that distribution"),
        i32("rank", "0 is the most probable token"), f32("prob", "exp(logprob)"), f32("surprisal", "-logprob, nats"),
        Column("top_ids", INTS, "most probable tokens here, best first"),
        Column("top_logprobs", FLOATS, "their log-probs, nats"),
        f32("sample_logprob", "nats, after temperature and filters; null unless sampled here"),
        i32("kept", "tokens left after the filters; null unless generated here"),
        f32("noise", "the exponential that decided the race; null unless sampled here"),
    ), verbs=("trace", "rewind", "importance", "speculate", "patch", "lens"),
       example="select pos, token, surprisal, rank from 'RUN/tokens.parquet' order by surprisal desc limit 10"),
    Table("steps", "a reasoning step", ("prompt_id", "branch", "step"), (
        PROMPT, BRANCH, i32("step", "from 0"),
        i32("start", "first token position"), i32("end", "one past the last token position"),
        i32("text_start", "first character"), i32("text_end", "one past the last character"),
        Column("kind", words(), "heuristic label of what the step does"), text("text", "the step"),
        Column("mid_token", pa.bool_(), "the boundary fell inside a token"),
        Column("logprob", pa.float64(), "nats, summed over its tokens"),
        f32("mean_entropy", "nats"), f32("max_entropy", "nats"),
    ), verbs=("trace", "rewind", "importance", "speculate"),
       example="select step, kind, logprob, mean_entropy, text from 'RUN/steps.parquet' order by step"),
    Table("activations", "one site at one position", ("prompt_id", "branch", "site", "layer", "head", "pos"), (
        PROMPT, BRANCH, Column("site", words(), "see sites.py"), LAYER, HEAD, POS,
        Column("vector", FLOATS, "the activation"), f32("norm", "its Euclidean norm"),
    ), large=True, verbs=("trace",),
       example="select layer, pos, norm from 'RUN/activations/*.parquet' where site = 'resid_post'"),
    Table("heads", "a head's summary", ("prompt_id", "branch", "layer", "head"), (
        PROMPT, BRANCH, LAYER, HEAD, i32("rows", "query positions averaged"), *HEAD_STATISTICS,
    ), verbs=("trace",),
       example="select layer, head, induction from 'RUN/heads.parquet' order by induction desc limit 10"),
    Table("attention_rows", "one row of a pattern, summarised", ("prompt_id", "branch", "layer", "head", "query"), (
        PROMPT, BRANCH, LAYER, HEAD, QUERY, *HEAD_STATISTICS,
        i32("max_key", "position with the largest weight"), f32("max_weight", "that weight"),
    ), large=True, verbs=("trace",),
       example="select layer, head, avg(sink) as sink from 'RUN/attention_rows/*.parquet' group by all"),
    Table("attention", "one row of a pattern", ("prompt_id", "branch", "layer", "head", "query"), (
        PROMPT, BRANCH, LAYER, HEAD, QUERY,
        Column("keys", INTS, "positions looked at; null where weights has every position"),
        Column("weights", FLOATS, "their weights"), f32("kept_mass", "sum of the weights kept"),
    ), large=True, verbs=("trace",),
       example="select layer, head, query, kept_mass from 'RUN/attention/*.parquet' where kept_mass < 0.5"),
    Table("scores", "one row of attention scores before the softmax", ("prompt_id", "branch", "layer", "head", "query"), (
        PROMPT, BRANCH, LAYER, HEAD, QUERY, Column("scores", FLOATS, "scaled and capped, one a visible key"),
    ), large=True, verbs=("trace",),
       example="select layer, head, query, list_max(scores) as greatest from 'RUN/scores/*.parquet'"),
    Table("lens", "a layer's guess at a position", ("prompt_id", "branch", "layer", "pos"), (
        PROMPT, BRANCH, LAYER, POS, Column("top_ids", INTS, "best first"), Column("top_logprobs", FLOATS, "nats"),
        i32("target_id", "the token that follows"), i32("target_rank", "0 is the top"), f32("target_logprob", "nats"),
        f32("entropy", "nats"), f32("kl_to_final", "nats, KL(final || this layer)"),
    ), verbs=("trace", "lens"),
       example="select layer, avg(kl_to_final) as kl from 'RUN/lens.parquet' group by layer order by layer"),
    Table("lens_positions", "a position under the lens", ("prompt_id", "branch", "pos"), (
        PROMPT, BRANCH, POS, i32("token_id", "vocabulary id"), text("token", "its text"),
        i32("final_id", "the last layer's top token"), text("final_token", "its text"),
        Column("settled_layer", pa.int16(), "first layer from which on the top token no longer changes"),
        i32("target_id", "the token that is followed here"), text("target_token", "its text"),
    ), verbs=("lens",),
       example="select pos, token, final_token, settled_layer from 'RUN/lens_positions.parquet' order by pos"),
    Table("stages", "a stage of one token's choice", ("prompt_id", "branch", "pos", "order", "stage"), (
        PROMPT, BRANCH, POS, Column("order", words(), "whose order of stages: hf is what happened"),
        i32("stage", "0 is what the model gave"), Column("name", words(), "what the stage is"),
        f32("setting", "its value; null for the logits"), i32("kept", "tokens left after it"),
        i32("removed", "tokens it took out"),
        f64("kept_mass", "what those left had before this stage"), f64("raw_mass", "what those left have by the model alone"),
        f64("entropy", "nats, after it"), i32("token_id", "the token that stands in the text"),
        i32("rank", "its rank after the stage; null once it is out"), f64("prob", "its probability after it"),
        Column("removed_ids", INTS, "the best of those it took out, best first"),
        Column("removed_probs", FLOATS, "what they had before it"),
    ), verbs=("trace",),
       example="select pos, name, kept, raw_mass from 'RUN/stages.parquet' order by pos, stage"),
    Table("candidates", "a token that could have been chosen", ("prompt_id", "branch", "pos", "order", "token_id"), (
        PROMPT, BRANCH, POS, Column("order", words(), "whose order of stages"),
        i32("token_id", "vocabulary id"), text("token", "its text"), i32("rank", "by the model's logits"),
        f64("raw_prob", "by the model's logits"), f64("final_prob", "after all stages; 0 if it is out"),
        Column("removed_by", words(), "the stage that took it out; null if none did"),
        f32("noise", "its exponential; null unless sampled here"),
        f64("race", "noise / final_prob: the smallest wins; null if it is out"),
        Column("actual", pa.bool_(), "it stands in the text"), Column("chosen", pa.bool_(), "it wins; null in a prompt"),
    ), verbs=("trace",),
       example="select token, raw_prob, final_prob, removed_by from 'RUN/candidates.parquet' order by rank"),
)
# fmt: on
