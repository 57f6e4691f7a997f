"""Prompts come in as they were written: from texts, chats and files of four kinds; a bad row keeps its place."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path

import pandas as pd
import pytest

import probe
from probe.errors import BadOption, BadPrompt
from probe.texts import as_prompts, read_prompts

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


def given(text: str, kind: str | None = None, column: str | None = None):
    return read_prompts(io.BytesIO(text.encode()), kind=kind, column=column)


def test_a_line_ends_at_a_newline_and_nowhere_else() -> None:
    assert texts(given("one\u2028still one\r\n\n  two  \n")) == ["one\u2028still one", "  two  "]


def test_blank_rows_keep_their_numbers() -> None:
    """A prompt's id is the number of its row in the file."""
    for text in ("a\n\n \nb\n", '{"prompt": "a"}\n\n\n{"prompt": "b"}', "prompt\na\n\n\nb\n"):
        assert [(p.prompt_id, p.text) for p in given(text)] == [(0, "a"), (3, "b")], text


CONTENT = [
    ('{"prompt": "a"}\n{"prompt": "b"}\n', ["a", "b"]),
    ('[{"prompt": "a"},\n {"prompt": "b"}]', ["a", "b"]),
    ('{\n "prompt": "a"\n}', ["a"]),
    ('\ufeffprompt,n\n"a\r\nA",1\nb,2\n', ["a\r\nA", "b"]),
    ("n\tprompt\n1\ta, b\n", ["a, b"]),
    ("Is {1} in {1, 2}?\n[1, 2]\n", ["Is {1} in {1, 2}?", "[1, 2]"]),
    ("A prompt, and more\nx\n", ["A prompt, and more", "x"]),
]


@pytest.mark.parametrize(("text", "expected"), CONTENT)
@pytest.mark.parametrize("name", [None, "prompts", "PROMPTS.dat"])
def test_a_text_is_read_by_its_content(tmp_path: Path, text: str, expected: list[str], name: str | None) -> None:
    if name is None:
        assert texts(given(text)) == expected
        return
    (tmp_path / name).write_bytes(text.encode())
    assert texts(read_prompts(tmp_path / name)) == expected


def test_parquet_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    pd.DataFrame(ROWS).to_parquet(tmp_path / "rows")
    assert texts(read_prompts(io.BytesIO((tmp_path / "rows").read_bytes()))) == [r["prompt"] for r in ROWS]


def test_the_format_that_is_told_wins_and_endings_may_be_of_any_case(tmp_path: Path) -> None:
    line = '{"prompt": "a"}'
    (tmp_path / "P.JSONL").write_text(line)
    assert texts(read_prompts(tmp_path / "P.JSONL")) == ["a"]
    assert texts(read_prompts(tmp_path / "P.JSONL", kind="txt")) == [line] == texts(given(line, "txt"))
    assert texts(given('["a", "b"]', "json")) == ["a", "b"]
    with pytest.raises(BadOption, match="unknown format 'yaml'"):
        given(line, "yaml")
    for text, kind in ((line, "parquet"), ("{", "json"), ('"', "csv")):
        with pytest.raises(BadPrompt) as caught:
            given(text, kind)
        assert caught.value.hint


def test_another_column() -> None:
    rows = [{"text": "a", "prompt": "no"}, {"text": json.dumps(CHAT)}, {"text": CHAT}, {"prompt": "no"}]
    found = given("\n".join(map(json.dumps, rows)), column="text")
    assert [p.content for p in found] == ["a", CHAT, CHAT, ""] and "no column 'text'" in found[3].error
    with pytest.raises(BadPrompt, match="no column 'messages' or 'prompt'") as caught:
        given('{"text": "a"}\n{"text": "b"}')
    assert "--column" in caught.value.hint
    with pytest.raises(BadOption, match="there is no column 'text'"):
        given("a\nb", column="text")


def test_messages_that_are_none_are_no_text() -> None:
    found = given('{"messages": "[torn"}\n{"messages": [{"role": "user", "content": "Hi"}]}\n' + "[" * 100_000)
    assert found[0].error and found[1].content == CHAT and found[2].error


def test_messages_in_json_csv_and_python(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"messages": CHAT}))
    pd.DataFrame({"messages": [json.dumps(CHAT)]}).to_csv(tmp_path / "p.csv", index=False)
    pd.DataFrame({"messages": [CHAT]}).to_parquet(tmp_path / "p.parquet")
    for given in (tmp_path / "p.jsonl", tmp_path / "p.csv", tmp_path / "p.parquet", CHAT, [CHAT]):
        assert as_prompts(given)[0].content == CHAT, given


def test_a_bad_row_keeps_its_place_and_says_why() -> None:
    prompts = given('{"prompt": "a"}\n{torn\n{"text": "b"}\n{"prompt": 3}\n{"prompt": "c"}')
    assert [bool(p.error) for p in prompts] == [False, True, True, True, False]
    assert [p.prompt_id for p in prompts] == [0, 1, 2, 3, 4]
    assert "JSON" in prompts[1].error and "text" in prompts[2].error and "int" in prompts[3].error


@pytest.mark.parametrize("name", ["tools", "documents"])
def test_what_stands_beside_messages_is_for_the_template(name: str) -> None:
    chat = '"messages": [{"role": "user", "content": "a"}]'
    with_it, empty, other = f'"{name}": [{{"x": 1}}]', f'"{name}": []', '"id": 3'
    rows = [f"{{{chat}, {beside}}}" for beside in (with_it, empty, other)] + [f'{{"prompt": "a", {with_it}}}']
    prompts = given("\n".join(rows))
    assert [dict(p.beside) for p in prompts] == [{name: [{"x": 1}]}, {}, {}, {name: [{"x": 1}]}]
    assert prompts[0].columns == {name: '[{"x": 1}]'} and prompts[2].columns == {"id": 3}


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


def test_what_is_no_unicode_is_an_error_row() -> None:
    found = given('{"prompt": "a \\ud800"}\n{"prompt": "b"}')
    run = probe.trace(probe.load("tiny:llama"), found, out=None)
    assert run.prompts["text"].tolist() == ["a \\ud800", "b"] and "not valid text" in run.prompts["error"][0]


@pytest.mark.slow
def test_prompts_of_a_file_are_held_in_little_more_than_the_file() -> None:
    """100 bytes a prompt: a million of them stay below 300 MB while they are read, and half of that afterwards."""
    n = 20_000
    rows = [{"prompt": f"{i:06d} " + "é\ud83d" * 30} for i in range(n)]
    data = io.BytesIO("\n".join(json.dumps(row) for row in rows).encode())
    tracemalloc.start()
    try:
        found = read_prompts(data)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [p.content for p in found] == [row["prompt"] for row in rows]
    assert found[-1].prompt_id == n - 1 and found[1:3] == [found[1], found[2]]
    per = len(rows[0]["prompt"].encode("utf-8", "surrogatepass"))
    assert held < n * (per + 60) and peak - held < 3 * data.getbuffer().nbytes
    chats = read_prompts(io.BytesIO("\n".join(json.dumps({"messages": CHAT}) for _ in range(3)).encode()))
    assert [(p.prompt_id, p.content) for p in chats] == [(i, CHAT) for i in range(3)]
