"""A long text read in chunks of positions gives what one forward gives, within fp32 rounding; what it holds is told before."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import probe
from probe import tables
from probe.requests import Trace
from probe.tracing.memory import CHUNK, chunk_of, memory, unchunked
from probe.tracing.resolving import resolved

TEXT = "We add 17 and 25. So the sum is 42, but wait: let me check this again. 17 plus 20 is 37, and 5 more is 42. " * 2
ASKED = {"capture": ("resid_post@all", "z@1", "k@1", "v@2.0:3,70..90", "mlp_out@0:-1"), "attention": "topk:4", "lens": True}
# of sums that are added in another order: logits of the families here are below 10
CLOSE = {"rtol": 1e-4, "atol": 2e-5}


def rows(run: probe.Run, table: str) -> pd.DataFrame:
    found = run.table_arrow(table).to_pandas().drop(columns="run_id")
    words = {name: str for name in found if found[name].dtype == "category"}
    return found.astype(words).sort_values(list(tables.TABLES[table].keys), ignore_index=True)


def assert_same(whole: probe.Run, chunked: probe.Run) -> None:
    """All tables of two runs, within rounding; distances, which are sums of up to hundreds, to as many digits."""
    assert whole.tables == chunked.tables
    for name in whole.tables:
        a, b = rows(whole, name), rows(chunked, name)
        assert len(a) == len(b), name
        for column in a:
            if a[column].dtype.kind == "f":
                np.testing.assert_allclose(a[column], b[column], **CLOSE, err_msg=f"{name}.{column}")
            elif len(a) and isinstance(a[column].iloc[0], np.ndarray):
                same = [np.allclose(x, y, **CLOSE) for x, y in zip(a[column], b[column], strict=True)]
                assert all(same), f"{name}.{column}"
            else:
                assert a[column].equals(b[column]), f"{name}.{column}"


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "qwen2_moe"])
def test_chunks_give_what_one_forward_gives(family: str) -> None:
    """Grouped queries, windows, caps, sinks and experts: every table, whatever stands at a chunk's edge."""
    lm, asked = probe.load(f"tiny:{family}"), dict(ASKED)
    if family == "qwen2_moe":
        asked["capture"] += ("router@all",)
    whole, chunked = (probe.trace(lm, TEXT, prefill_chunk_size=n, **asked) for n in (0, 64))
    assert not chunked.manifest["warnings"]
    assert_same(whole, chunked)


def test_scores_add_up_from_any_chunking() -> None:
    """The log-prob of a text is the sum over its tokens, wherever it is cut; a chunk that holds it all is one forward to the
    bit."""
    lm = probe.load("tiny:llama")
    totals = [probe.trace(lm, TEXT, attention="none", prefill_chunk_size=n).summary["logprob"] for n in (0, 1, 7, 64, 214)]
    assert totals == pytest.approx([totals[0]] * 5, abs=1e-3)
    whole, fits, short = (probe.trace(lm, TEXT, attention="topk:4", prefill_chunk_size=n) for n in (0, 1000, None))
    for name in whole.tables:
        assert rows(whole, name).equals(rows(fits, name)) and rows(whole, name).equals(rows(short, name))


def test_whole_rows_and_logits_in_chunks() -> None:
    """Rows up to the query, and what is read out again when all is read: sets of tokens, and how a token was chosen."""
    lm = probe.load("tiny:llama")
    asked = {"attention": "full", "capture": "logits", "answer_set": "re:^[0-9]$", "explain": "70..72", "top": 3}
    assert_same(*(probe.trace(lm, TEXT[:90], prefill_chunk_size=n, **asked) for n in (0, 32)))


def test_edits_hold_by_absolute_position_in_chunks() -> None:
    """A change in the second chunk, one of a head everywhere, and a cut of later queries from an early key."""
    lm = probe.load("tiny:llama")
    edits = ("resid_post@0:80=zero", "z@1.2=zero", "pattern@2:100..120=cut:5")
    plain = probe.trace(lm, TEXT, attention="heads", prefill_chunk_size=64)
    whole, chunked = (probe.trace(lm, TEXT, attention="heads", edit=edits, prefill_chunk_size=n) for n in (0, 64))
    assert_same(whole, chunked)
    apart = (plain.tokens["logprob"] - chunked.tokens["logprob"]).abs()
    assert apart[81:].max() > 1e-3


@pytest.mark.parametrize(("family", "why"), [("jamba", "keys and values alone"), ("bloom", "weights that it returns")])
def test_what_cannot_be_read_in_chunks_is_read_whole(family: str, why: str) -> None:
    """One line says so, and the numbers are those of one forward."""
    lm = probe.load(f"tiny:{family}")
    whole, chunked = (probe.trace(lm, TEXT, prefill_chunk_size=n) for n in (0, 64))
    assert rows(whole, "tokens").equals(rows(chunked, "tokens"))
    assert [why in text for text in chunked.manifest["warnings"]].count(True) == 1


def test_chunks_are_chosen_where_they_hold_less() -> None:
    """Eager attention has all scores of a forward, and a text of 30,000 tokens is read in chunks; without masks it is not."""
    n = 30_000
    for family, chunk in (("gpt_oss", CHUNK), ("llama", None)):
        lm = probe.load(f"tiny:{family}")
        tracing = resolved(lm, Trace(TEXT))
        assert chunk_of(lm, tracing, n) == chunk and not unchunked(lm, tracing, n)
        assert chunk_of(lm, tracing, CHUNK) is None
        whole, cut = (sum(memory(lm, tracing, n, size)) for size in (None, CHUNK))
        assert (cut < whole) is (chunk is not None)


MEASURED = """
import json, sys
import probe
from probe.requests import Trace
from probe.memory import peak_memory
from probe.tiny import tiny
from probe.tracing import plan_trace

found = []
for family, n, asked in json.loads(sys.argv[1]):
    model, tokenizer = tiny(family, max_position_embeddings=n, hidden_size=128, num_attention_heads=4)
    tokenizer.model_max_length = n
    lm = probe.LanguageModel(model, tokenizer, name=family)
    text = ("17 and 25 are 42. " * n)[: n - 1]
    plan = plan_trace(lm, Trace(text, **asked))["peak_memory_bytes"]
    probe.trace(lm, text, out=f"{sys.argv[2]}/{len(found)}", **asked)
    found.append([plan, peak_memory()])
print(json.dumps(found))
"""


@pytest.mark.slow
def test_memory_is_told_before(tmp_path: Path) -> None:
    """The peak of a process against what was told, within a quarter: whole and in chunks, and eager attention in one forward.

    One process after another thing, each of which holds more than the one before: its peak never falls.
    """
    summary = {"attention": "topk:4"}
    asked = [
        ("llama", 2_000, {**summary, "prefill_chunk_size": 0}),
        ("llama", 4_000, {"attention": "summary", "lens": True, "prefill_chunk_size": 256}),
        ("gpt_oss", 3_000, {**summary, "prefill_chunk_size": 0}),
    ]
    words = [sys.executable, "-c", MEASURED, json.dumps(asked), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    for plan, peak in json.loads(done.stdout.splitlines()[-1]):
        assert plan == pytest.approx(peak, rel=0.25)
