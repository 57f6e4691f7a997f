"""Prompts come in as they were written: from texts, chats and files of four kinds; a bad row keeps its place."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from probe.errors import BadPrompt
from probe.tracing.prompts import as_prompts, parse_prompts, read_prompts

CHAT = [{"role": "user", "content": "Hi"}]
ROWS = [{"prompt": 'a, "b"\nc'}, {"prompt": "日本 \u2028 x"}]


def texts(prompts) -> list[str]:
    return [p.text for p in prompts]


def test_every_format_holds_the_same_prompts(tmp_path: Path) -> None:
    frame = pd.DataFrame(ROWS)
    frame.to_parquet(tmp_path / "p.parquet")
    frame.to_csv(tmp_path / "p.csv", index=False)
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in ROWS), encoding="utf-8")
    for name in ("p.parquet", "p.csv", "p.jsonl"):
        assert texts(read_prompts(tmp_path / name)) == [r["prompt"] for r in ROWS], name


def test_a_line_ends_at_a_newline_and_nowhere_else() -> None:
    assert texts(parse_prompts("one\u2028still one\r\n\n  two  \n")) == ["one\u2028still one", "  two  "]


def test_messages_in_json_csv_and_python(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"messages": CHAT}))
    pd.DataFrame({"messages": [json.dumps(CHAT)]}).to_csv(tmp_path / "p.csv", index=False)
    pd.DataFrame({"messages": [CHAT]}).to_parquet(tmp_path / "p.parquet")
    for given in (tmp_path / "p.jsonl", tmp_path / "p.csv", tmp_path / "p.parquet", CHAT, [CHAT]):
        assert as_prompts(given)[0].content == CHAT, given


def test_a_bad_row_keeps_its_place_and_says_why() -> None:
    prompts = parse_prompts('{"prompt": "a"}\n{torn\n{"text": "b"}\n{"prompt": 3}\n{"prompt": "c"}', ".jsonl")
    assert [bool(p.error) for p in prompts] == [False, True, True, True, False]
    assert [p.prompt_id for p in prompts] == [0, 1, 2, 3, 4]
    assert "JSON" in prompts[1].error and "text" in prompts[2].error and "int" in prompts[3].error


@pytest.mark.parametrize("given", [[], Path("none.txt"), Path("x.xls")])
def test_nothing_to_run_is_refused(given) -> None:
    with pytest.raises(BadPrompt) as caught:
        as_prompts(given)
    assert caught.value.hint


def test_a_file_without_the_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("question\nwhat?\n")
    with pytest.raises(BadPrompt, match="question"):
        read_prompts(tmp_path / "p.csv")
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe bad \x80")
    with pytest.raises(BadPrompt, match="cannot read"):
        read_prompts(tmp_path / "p.txt")


def test_half_a_parquet_file_is_asked_to_be_whole(tmp_path: Path) -> None:
    pd.DataFrame({"prompt": ["a", "b"]}).to_parquet(tmp_path / "p.parquet")
    (tmp_path / "p.parquet").write_bytes((tmp_path / "p.parquet").read_bytes()[:-9])
    with pytest.raises(BadPrompt) as found:
        read_prompts(tmp_path / "p.parquet")
    assert found.value.hint == "is it there, and is it whole?"
