"""Tables of a first look: ranked findings."""

from __future__ import annotations

from probe.tables.columns import HEAD, LAYER, POS, PROMPT, Column, Table, f64, i32, text, words

# fmt: off
FINDINGS: tuple[Table, ...] = (
    Table("findings", "a fact about a text, with its control", ("prompt_id", "rank"), (
        PROMPT._replace(since=4), i32("rank", "from 0, the order in which they are told", since=4),
        Column("kind", words(), "cause, part, writer, settled, surprise, uncertain, massive or sink", since=4),
        text("finding", "the fact in words", since=4),
        text("place", "where it is; empty where it has no place of a model", since=4),
        LAYER._replace(since=4), HEAD._replace(since=4),
        POS._replace(doc="position, -1 where it is of none", since=4), text("token", "the token there", since=4),
        f64("value", "the number", since=4), Column("unit", words(), "what it counts", since=4),
        f64("control", "the number where nothing is special", since=4), text("control_of", "what that is of", since=4),
        text("command", "what to type next", since=4),
    ), verbs=("look",),
       example="select rank, kind, finding, value, control from 'RUN/findings.parquet' order by rank"),
)
# fmt: on
