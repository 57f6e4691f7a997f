"""Tables of the experts that a token is sent to."""

from __future__ import annotations

from probe.tables.columns import BRANCH, FLOATS, INTS, LAYER, POS, PROMPT, Column, Table, f32, f64, i32

# fmt: off
ROUTING: tuple[Table, ...] = (
    Table("routing", "the experts of one token at one layer", ("prompt_id", "branch", "layer", "pos"), (
        PROMPT._replace(since=4), BRANCH._replace(since=4), LAYER._replace(since=4), POS._replace(since=4),
        Column("experts", INTS, "the experts that it was sent to, the one with the largest weight first", 4),
        Column("weights", FLOATS, "what their outputs are multiplied by, as the model has it", 4),
        f32("entropy", "nats, of the softmax of the router's logits over all experts, however the model makes weights", 4),
    ), verbs=("trace",),
       example="select layer, pos, experts, weights from 'RUN/routing.parquet' order by layer, pos"),
    Table("expert_load", "an expert over all recorded tokens", ("layer", "expert"), (
        LAYER._replace(since=4), i32("expert", "from 0", 4), i32("tokens", "recorded tokens that were sent to it", 4),
        i32("of", "recorded tokens", 4),
        f64("share", "tokens / of", 4),
        f64("low", "of its 95 % interval: bootstrap over texts, below 8 of them t; null where they are alike, or one", 4),
        f64("high", "likewise", 4),
        f64("uniform", "what it would be if all experts were chosen alike: chosen a token / experts", 4),
        f64("mean_weight", "of the tokens that were sent to it; null where none was", 4),
    ), verbs=("trace",),
       example="select layer, expert, share, low, high, uniform from 'RUN/expert_load.parquet' order by share desc"),
    Table("expert_balance", "how evenly the experts of a layer are loaded", ("layer",), (
        LAYER._replace(since=4), i32("experts", "that there are", 4), i32("chosen", "of them a token", 4),
        i32("texts", "whose tokens were recorded", 4), i32("tokens", "recorded", 4),
        i32("never", "experts that no token was sent to", 4), i32("most", "the expert that most tokens were sent to", 4),
        f64("entropy", "nats, of how the sent tokens are shared between the experts", 4),
        f64("max_over_mean", "tokens of the most loaded expert, over the mean of all", 4),
        f64("uniform_entropy", "nats: of equal loads, ln experts; equal loads have a max_over_mean of 1", 4),
        f64("even_entropy", "nats: the mean, were so many independent tokens sent to experts that are all alike", 4),
        f64("even_max_over_mean", "likewise", 4),
    ), verbs=("trace",),
       example="select layer, entropy, even_entropy, max_over_mean, even_max_over_mean from 'RUN/expert_balance.parquet'"),
)
# fmt: on
