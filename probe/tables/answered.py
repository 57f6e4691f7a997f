"""The table of answers that are given, and scored."""

from __future__ import annotations

import pyarrow as pa

from probe.tables.columns import FLOATS, INTS, PROMPT, Column, Table, f64, i32, text

# fmt: off
ANSWERED = (
    Table("answers", "an answer that was given, scored as what follows a prompt", ("prompt_id", "answer"), (
        PROMPT._replace(since=3), i32("answer", "which of the prompt's answers, from 0", since=3),
        text("text", "the answer as given", since=3), text("lead", "what was put between the prompt and it", since=3),
        i32("start", "position of its first token; before the prompt's end where, encoded together, that is cut anew", since=3),
        Column("token_ids", INTS, "of prompt and answer encoded together, from start on", since=3),
        Column("logprobs", FLOATS, "nats, of each of them given all before", since=3),
        f64("logprob", "nats, their sum", since=3),
        f64("before", "nats, of the prompt's last tokens from where another of its answers starts; logprob + before is "
            "compared", since=3),
        i32("tokens", "of the answer, from start on", since=3), i32("characters", "of its text", since=3),
        i32("bytes", "of its text in UTF-8", since=3),
        f64("per_token", "nats, logprob / tokens", since=3), f64("per_character", "nats, logprob / characters", since=3),
        f64("per_byte", "nats, logprob / bytes", since=3),
        f64("prior", "nats, the answer after the neutral prompt; null unless calibrated", since=3),
        f64("calibrated", "nats, logprob + before - prior (Holtzman et al. 2021)", since=3),
        Column("set", pa.bool_(), "any of token_ids will do: logprobs are theirs after the prompt, logprob their log-sum-exp",
            since=4),
        Column("correct", pa.bool_(), "it is the right one; null where that is not known", since=3),
        text("error", "why it was not scored; empty if it was", since=3),
    ), verbs=("trace",),
       example="select prompt_id, text, logprob, per_byte, correct from 'RUN/answers.parquet' order by 1, 3 desc"),
)
# fmt: on
