"""Transcripts that another engine wrote: read, rendered and cut as our own generations are; how far off-policy is said."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probe.cli import main as program
from typer.testing import CliRunner

import probe
from probe import store
from probe.errors import BadOption, BadPrompt
from probe.requests import FileOptions
from probe.texts import as_prompts
from tests.test_problems import jsonl

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m.reasoning_content and loop.last %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m['content'] }}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}<call>{{ c.function.name }}</call>{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DROPS = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'].split('</think>')[-1] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]<think>\n{% endif %}"
)
SAMPLED = probe.Sampling(temperature=1.0, seed=3)


@pytest.fixture(scope="module")
def lm() -> Any:
    return probe.load("tiny:llama")


@pytest.fixture(scope="module")
def smol() -> Any:
    return probe.load("smollm2")


@pytest.fixture(scope="module")
def own(lm: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of ours over two problems."""
    path = jsonl(tmp_path_factory.mktemp("own") / "p.jsonl", [{"prompt": "a b c", "expect": 4}, {"prompt": "d e f", "id": "x"}])
    return probe.trace(lm, path, generate=12, sampling=SAMPLED, split="token", attention="none", out=path.with_name("run"))


def ids_of(run: Any, prompt: int = 0) -> tuple[list[int], list[int]]:
    rows = run.tokens[run.tokens["prompt_id"] == prompt].sort_values("pos")
    written = rows["segment"] == "completion"
    return rows[~written]["token_id"].tolist(), rows[written]["token_id"].tolist()


def given(*rows: Any, **how: Any) -> list[Any]:
    return list(as_prompts(list(rows), FileOptions(**how), transcripts=True))


def form(run: Any, kind: str, path: Path) -> Path:
    """A run of ours in one of the forms in which it can be given back."""
    if kind == "run":
        return Path(run.path)
    if kind in ("tokens.jsonl", "tokens.csv", "tokens.parquet"):
        store.export(run, "tokens", path / kind)
        return path / kind
    rows = [dict(zip(("prompt_ids", "completion_ids"), ids_of(run, i), strict=True)) for i in (0, 1)]
    return jsonl(path / "ids.jsonl", rows)


@pytest.mark.parametrize("kind", ["run", "tokens.jsonl", "tokens.csv", "tokens.parquet", "ids"])
def test_our_own_run_given_back_is_the_run(lm: Any, own: Any, kind: str, tmp_path: Path) -> None:
    run = probe.trace(lm, form(own, kind, tmp_path), split="token", attention="none", out=None)
    columns = [
        "prompt_id",
        "branch",
        "pos",
        "token_id",
        "token",
        "text_start",
        "text_end",
        "segment",
        "step",
        "logprob",
        "entropy",
        "rank",
    ]
    mine, theirs = (one.table_arrow("tokens").select(columns) for one in (run, own))
    assert mine.to_pylist() == theirs.to_pylist()
    drop = ["run_id"]
    assert run.table_arrow("steps").drop_columns(drop).to_pylist() == own.table_arrow("steps").drop_columns(drop).to_pylist()
    assert run.prompts["completion"].tolist() == own.prompts["completion"].tolist()
    assert run.prompts["logprob"].tolist() == own.prompts["logprob"].tolist()
    if kind == "run":
        assert run.prompts["expect"].tolist() == own.prompts["expect"].tolist() and run.prompts["id"].tolist()[1] == "x"
        assert run.prompts["stop_reason"].tolist() == own.prompts["stop_reason"].tolist()


def test_importance_on_it_is_the_runs_own(lm: Any, own: Any, tmp_path: Path) -> None:
    run = probe.trace(lm, form(own, "ids", tmp_path), split="token", attention="none", out=None)
    found = [
        probe.importance(one, lm=lm, prompt_id=0, split="token", samples=2, max_new=3, sampling=SAMPLED, out=None)
        for one in (own, run)
    ]
    for table in ("importance", "branches"):
        mine, theirs = (one.table_arrow(table).drop_columns(["run_id"]) for one in found)
        assert mine.equals(theirs), table


@pytest.mark.slow
def test_a_text_is_encoded_together_with_its_prompt(smol: Any, tmp_path: Path) -> None:
    rows = [
        {"prompt": "The capital of France is", "completion": " Paris, and I lo"},
        {"prompt": "The capital of Fra", "completion": "nce"},
    ]
    run = probe.trace(smol, jsonl(tmp_path / "p.jsonl", rows), attention="none", out=None)
    whole = smol.encode(rows[0]["prompt"] + rows[0]["completion"]).ids
    assert [*ids_of(run)[0], *ids_of(run)[1]] == whole and len(ids_of(run)[0]) == len(smol.encode(rows[0]["prompt"]).ids)
    assert run.prompts["completion"].tolist() == [" Paris, and I lo", "nce"]
    assert ids_of(run, 1)[1] == smol.ids_of("nce") and "across the end of the prompt" in run.prompts["left_out"][1]
    assert run.prompts["left_out"][0] == "" and run.prompts["stop_reason"].isna().all()


@pytest.mark.slow
def test_how_far_the_model_would_have_written_it(smol: Any, tmp_path: Path) -> None:
    """Against one plain forward in float64."""
    rows = [{"prompt": "The capital of France is", "completion": " Paris. Zebra quantum the"}]
    run = probe.trace(smol, jsonl(tmp_path / "p.jsonl", rows), attention="none", out=None)
    prompt, written = ids_of(run)
    with torch.no_grad():
        logits = smol.model(torch.tensor([prompt + written])).logits[0].double()
    before = logits[len(prompt) - 1 : -1].log_softmax(-1)
    nats = before[torch.arange(len(written)), torch.tensor(written)].numpy()
    row = run.prompts.iloc[0]
    assert row["mean_logprob"] == pytest.approx(nats.mean(), abs=1e-4) and row["scored"] == len(written)
    assert row["top1_agreement"] == np.mean(before.argmax(-1).numpy() == np.asarray(written)) > 0
    rare = int((nats < math.log(0.01)).sum())
    assert row["below_1pct"] == rare / len(written) and 0 < rare < len(written)
    said = run.summary["transcripts"]
    assert said["n"] == 1 and said["tokens"] == len(written) and said["tokens_below_1pct"] == rare
    assert said["mean_logprob"] == pytest.approx(nats.mean(), abs=1e-4)
    plain = probe.trace(smol, "The capital of France is", generate=2, attention="none", out=None)
    assert (
        plain.prompts[["mean_logprob", "left_out", "differs_at"]].isna().all(axis=None) and "transcripts" not in plain.summary
    )


def test_ids_that_are_not_those_of_their_text_are_told(smol: Any) -> None:
    letters = [smol.ids_of(letter)[0] for letter in "Paris"]
    prompt = smol.encode("The capital is").ids
    run = probe.trace(
        smol, [{"prompt_ids": prompt, "completion_ids": [smol.ids_of(" ")[0], *letters]}], attention="none", out=None
    )
    assert run.prompts["differs_at"].tolist() == [len(prompt)] and run.summary["transcripts"]["ids_differ_in"] == [0]
    assert run.prompts["completion"][0] == " Paris" and run.prompts["text"][0] == "The capital is"
    same = probe.trace(smol, [{"prompt_ids": prompt, "completion_ids": smol.ids_of(" Paris")}], attention="none", out=None)
    assert same.prompts["differs_at"].isna().all() and same.summary["transcripts"]["ids_differ"] == 0
    other = probe.trace(
        smol, [{"prompt_ids": prompt, "completion": "x y", "completion_ids": letters}], attention="none", out=None
    )
    assert "the ids say something else" in other.prompts["left_out"][0]


@pytest.mark.slow
def test_an_assistants_turn_is_the_generation(smol: Any, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}]
    run = probe.trace(smol, jsonl(tmp_path / "p.jsonl", [{"messages": chat}]), attention="none", out=None)
    prompt, written = ids_of(run)
    assert prompt == smol.render(chat[:1], probe.requests.ChatOptions(chat=True)).ids
    assert smol.tokenizer.decode(written) == "It is 4.<|im_end|>" and written[-1] in smol.eos_ids
    assert run.prompts["completion"][0].startswith("It is 4.") and run.prompts["stop_reason"].tolist() == ["eos"]
    assert json.loads(run.prompts["text"][0]) == chat and run.steps["text"].tolist()[0].startswith("It is 4.")
    assert run.tokens[run.tokens["segment"] == "completion"]["template"].tolist() == [False] * len(written)
    done = probe.rewind(run, lm=smol, to="step0", delete=True, samples=2, max_new=4, out=None)
    assert set(done.branches["arm"]) >= {"original", "edited"}
    cut = probe.trace(smol, [{"messages": chat, "finish_reason": "length"}], attention="none", out=None)
    assert smol.tokenizer.decode(ids_of(cut)[1]) == "It is 4." and cut.prompts["stop_reason"].tolist() == ["length"]


THOUGHT = [{"role": "user", "content": "2?"}, {"role": "assistant", "content": "4", "reasoning_content": "two and two"}]


@pytest.mark.slow
@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_thinking_is_written_as_the_template_writes_it(smol: Any, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smol.tokenizer, "chat_template", CHATML)
    turn = {"role": "assistant", "content": "4", key: "two and two"}
    parts = {"role": "assistant", "content": [{"type": "thinking", "thinking": "two and two"}, {"type": "text", "text": "4"}]}
    run = probe.trace(smol, [{"messages": [THOUGHT[0], one]} for one in (turn, parts)], attention="none", out=None)
    for prompt in (0, 1):
        assert smol.tokenizer.decode(ids_of(run, prompt)[1]) == "<think>\ntwo and two\n</think>\n\n4<|im_end|>"
    assert run.prompts["left_out"].tolist() == ["", ""]


def test_thinking_that_the_template_drops_stands_where_the_model_wrote_it(smol: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of R1's distillations: the generation prompt opens the thinking, and a past turn is rendered without it."""
    monkeypatch.setattr(smol.tokenizer, "chat_template", DROPS)
    raw = [THOUGHT[0], {"role": "assistant", "content": "<think>\ntwo and two\n</think>\n\n4"}]
    run = probe.trace(smol, [{"messages": THOUGHT}, {"messages": raw}], attention="none", out=None)
    for prompt in (0, 1):
        before, written = (smol.tokenizer.decode(one) for one in ids_of(run, prompt))
        assert before.endswith("[assistant]<think>\n") and written == "two and two\n</think>\n\n4"
    assert "between <think> and </think>" in run.prompts["left_out"][0] and run.prompts["left_out"][1] == ""


def test_tool_calls_are_written_or_said(smol: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": {"x": "7"}}}
    chat = [{"role": "user", "content": "2?"}, {"role": "assistant", "content": "Let me add.", "tool_calls": [call]}]
    run = probe.trace(smol, [{"messages": chat}], attention="none", out=None)
    assert run.prompts["left_out"].tolist() == ["tool calls"] and run.summary["transcripts"]["left_out"] == {"tool calls": 1}
    monkeypatch.setattr(
        smol.tokenizer, "chat_template", CHATML.replace("c.function.name }}", "c.function.name }}:{{ c.function.arguments.x }}")
    )
    run = probe.trace(smol, [{"messages": chat}], attention="none", out=None)
    assert (
        smol.tokenizer.decode(ids_of(run)[1]) == "Let me add.<call>add:7</call><|im_end|>" and run.prompts["left_out"][0] == ""
    )


def test_a_broken_row_is_an_error_row(lm: Any, tmp_path: Path) -> None:
    rows = [
        {"prompt": "a b", "completion": " c d"}, {"prompt": "a", "completion": 3}, {"prompt": "a", "completion_ids": [1, "x"]},
        {"prompt": "a", "completion_ids": [10**7]}, {"completion": "alone"}, {"prompt": "a", "completion": ""},
        {"messages": [{"role": "assistant", "content": "unasked"}]}, {"prompt_ids": [1, 2]},
        {"prompt": "a", "completion_ids": [-4]},
        {"prompt": "plain"}, {"prompt": "a", "completion": "\ud800"},
    ]  # fmt: skip
    run = probe.trace(lm, jsonl(tmp_path / "p.jsonl", rows), attention="none", out=None)
    errors = dict(zip(run.prompts["prompt_id"], run.prompts["error"], strict=True))
    expected = {1: "int", 2: "no list of token ids", 3: "rows", 4: "no prompt", 5: "nothing was written",
                6: "nothing was asked",
                7: "without a completion", 8: "no token id", 10: "not valid text"}  # fmt: skip
    assert {prompt for prompt, error in errors.items() if error} == set(expected)
    for prompt, words in expected.items():
        assert words in errors[prompt], (prompt, errors[prompt])
    with pytest.raises(BadPrompt, match="nothing was written"):
        probe.trace(lm, [rows[5]], attention="none", out=None)


def test_a_csv_of_transcripts_and_prompts(smol: Any, tmp_path: Path) -> None:
    text = 'prompt,completion,completion_ids,right\n2 + 2 =, 4,,4\n3 + 3 =,,"[5, 6]",6\n4 + 4 =,,,8\n'
    (tmp_path / "p.csv").write_text(text)
    run = probe.trace(smol, tmp_path / "p.csv", expect_column="right", attention="none", out=None)
    assert [ids_of(run, i)[1] for i in range(3)] == [smol.ids_of(" 4"), [5, 6], []]
    assert run.prompts["expect"].tolist() == ["4", "6", "8"] and run.prompts["right"].tolist() == [4, 6, 8]
    assert run.prompts["mean_logprob"].isna().tolist() == [False, False, True] and run.summary["transcripts"]["n"] == 2


def test_a_token_that_nobody_drew_here_is_explained_without_a_draw(lm: Any) -> None:
    run = probe.trace(lm, [{"prompt": "a b", "completion": " c d"}], explain="completion", attention="none", out=None)
    assert run.manifest["warnings"] == [] and len(run.stages) > 0 and not run.candidates["chosen"].any()


def test_transcripts_are_not_gone_on_with(lm: Any, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", [{"prompt": "a b"}, {"prompt": "a b", "completion": " c d"}])
    with pytest.raises(BadOption, match="prompt 1 has its generation already") as caught:
        probe.trace(lm, path, generate=3, out=None)
    assert "--generate" in caught.value.hint and "rewind" in caught.value.hint


def test_a_plan_and_a_resume_know_them(lm: Any, own: Any, tmp_path: Path) -> None:
    path = form(own, "ids", tmp_path)
    planned = probe.tracing.plan_trace(lm, probe.requests.Trace(path, attention="none"))
    run = probe.trace(lm, path, attention="none", batch_tokens=8, out=tmp_path / "whole")
    assert planned["tokens"] == len(run.tokens) and planned["decode_steps"] == 0

    def stop(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe.trace(lm, path, attention="none", batch_tokens=8, out=tmp_path / "r", progress=stop)
    again = probe.trace(lm, path, attention="none", batch_tokens=8, out=tmp_path / "r", resume=True)
    for table in ("tokens", "prompts", "steps"):
        mine, theirs = (one.table_arrow(table).drop_columns(["run_id"]) for one in (again, run))
        assert mine.equals(theirs)


@pytest.mark.parametrize("kind", ["text", "ids", "turn"])
def test_a_replay_has_them(smol: Any, kind: str, tmp_path: Path) -> None:
    """Also where the manifest has no file to read again."""
    chat = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}]
    row = {
        "text": {"prompt": "2 + 2 =", "completion": " 4", "id": 7}, "turn": {"messages": chat},
        "ids": {"prompt_ids": [5, 6], "completion_ids": [7, 8], "stop_reason": "length"},
    }[kind]  # fmt: skip
    run = probe.trace(smol, given(row), attention="none", out=tmp_path / "r")
    about = json.loads((tmp_path / "r" / "manifest.json").read_text())
    run.manifest["arguments"] = {**about["arguments"], "prompts": {"table": "prompts"}}
    again = probe.replay(smol, run)
    for table in ("tokens", "prompts", "steps"):
        mine, theirs = (one.table_arrow(table).drop_columns(["run_id"]) for one in (again, run))
        assert mine.to_pylist() == theirs.to_pylist(), table


def test_an_edit_holds_while_a_transcript_is_read(lm: Any, own: Any, tmp_path: Path) -> None:
    path = form(own, "ids", tmp_path)
    plain, edited = (probe.trace(lm, path, attention="none", edit=edit, out=None) for edit in ((), "mlp_out@1=zero"))
    assert edited.tokens["token_id"].tolist() == plain.tokens["token_id"].tolist()
    assert not np.allclose(edited.prompts["mean_logprob"], plain.prompts["mean_logprob"])


# ---- the records of other programs, as their documentation and sources have them


def chat_response(text: str = "It is 4.", **more: Any) -> dict[str, Any]:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "org/model", "choices": [choice],
            "usage": {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}, **more}  # fmt: skip


QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]


def batch_input(i: str, **body: Any) -> dict[str, Any]:
    return {
        "custom_id": i,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "m", "messages": QUESTION, **body},
    }


def batch_output(i: str, body: Any, error: Any = None) -> dict[str, Any]:
    return {
        "id": f"batch_req_{i}",
        "custom_id": i,
        "response": {"status_code": 200, "request_id": "r", "body": body},
        "error": error,
    }


def test_a_batch_is_joined_with_its_requests(smol: Any, tmp_path: Path) -> None:
    (tmp_path / "batch").mkdir()
    jsonl(tmp_path / "batch" / "input.jsonl", [batch_input(i) for i in ("a", "b", "c")])
    failed = batch_output("b", {"error": {"message": "too long"}}) | {"error": None}
    jsonl(tmp_path / "batch" / "output.jsonl", [failed, batch_output("a", chat_response())])
    run = probe.trace(smol, tmp_path / "batch", attention="none", out=None)
    rows = {row["custom_id"]: row for row in run.scan("prompts").to_pylist()}
    assert (
        rows["a"]["completion"].startswith("It is 4.") and rows["a"]["error"] == "" and rows["a"]["source_model"] == "org/model"
    )
    assert "too long" in rows["b"]["error"] and "no response" in rows["c"]["error"]
    assert rows["a"]["stop_reason"] == "eos" and rows["a"]["n_tokens"] == len(smol.render_chat(QUESTION).ids)
    with pytest.raises(BadPrompt, match="does not say what was asked"):
        probe.trace(smol, jsonl(tmp_path / "alone.jsonl", [batch_output("a", chat_response())]), out=None)


def test_responses_with_their_requests(smol: Any, tmp_path: Path) -> None:
    two = chat_response()
    two["choices"] = [
        {**two["choices"][0], "index": 1},
        {**two["choices"][0], "message": {"role": "assistant", "content": "4", "reasoning": "so"}},
    ]
    text = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "usage": {},
            "choices": [{"index": 0, "text": " 4.", "logprobs": None, "finish_reason": "length"}]}  # fmt: skip
    rows = [
        {"request": {"messages": QUESTION}, "response": two, "id": 7}, {"request": {"prompt": "2 + 2 ="}, "response": text},
        {**chat_response(), "messages": QUESTION},
    ]  # fmt: skip
    run = probe.trace(smol, jsonl(tmp_path / "log.jsonl", rows), attention="none", out=None)
    found = run.scan("prompts").to_pylist()
    assert "1 other choices" in found[0]["left_out"] and "so\n</think>" in found[0]["completion"] and found[0]["id"] == 7
    assert found[1]["completion"] == " 4." and found[1]["stop_reason"] == "length" and found[1]["text"] == "2 + 2 ="
    assert found[2]["completion"].startswith("It is 4.") and [row["error"] for row in found] == ["", "", ""]


def test_ids_of_vllm(smol: Any, tmp_path: Path) -> None:
    """`return_token_ids`: the prompt's beside the choices of a chat, in the choice of a completion."""
    prompt, written = smol.render_chat(QUESTION).ids, [*smol.ids_of("It is 4."), 2]
    chat = chat_response(prompt_token_ids=prompt)
    chat["choices"][0]["token_ids"] = written
    text = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m", "choices": [
        {"index": 0, "text": "It is 4.", "finish_reason": "stop", "stop_reason": None, "token_ids": written,
         "prompt_token_ids": prompt}]}  # fmt: skip
    run = probe.trace(smol, jsonl(tmp_path / "log.jsonl", [chat, text]), attention="none", out=None)
    for i in (0, 1):
        assert ids_of(run, i) == (prompt, written)
    assert run.prompts["stop_reason"].tolist() == ["eos", "eos"] and run.prompts["differs_at"].isna().all()


def sample(i: int, **more: Any) -> dict[str, Any]:
    """As inspect_ai 0.3 writes one."""
    asked = {"id": "m1", "role": "user", "content": "What is 2 + 2?", "source": "input"}
    content = [{"type": "reasoning", "reasoning": "two and two", "redacted": False}, {"type": "text", "text": "It is 4."}]
    answer = {"id": "m2", "role": "assistant", "content": content, "source": "generate", "model": "org/m"}
    output = {"model": "org/m", "choices": [{"message": answer, "stop_reason": "stop"}], "completion": "It is 4."}
    return {"id": i, "epoch": 1, "input": "What is 2 + 2?", "target": "4", "messages": [asked, answer], "output": output,
            "scores": {"match": {"value": "C", "answer": "4"}}, "metadata": {"level": 2}, "store": {}, "events": [],
            "attachments": {}, **more}  # fmt: skip


LOG = {
    "version": 2,
    "status": "success",
    "eval": {"model": "vllm/org/m", "task": "sums"},
    "plan": {},
    "results": {},
    "stats": {},
}


@pytest.mark.parametrize("kind", ["eval", "json"])
def test_inspect_logs(smol: Any, kind: str, tmp_path: Path) -> None:
    long = sample(2, target=["4"], attachments={"abc": "What is 3 + 1?"})
    long["messages"] = [
        {**long["messages"][0], "content": "attachment://abc"},
        long["messages"][1],
        {"role": "user", "content": "ok"},
    ]
    image = sample(3)
    image["messages"][0] = {
        "role": "user",
        "content": [{"type": "text", "text": "What?"}, {"type": "image", "image": "data:x"}],
    }
    broken = sample(4, messages=[], error={"message": "timed out", "traceback": ""})
    samples = [sample(1), long, image, broken]
    path = tmp_path / f"log.{kind}"
    if kind == "json":
        path.write_text(json.dumps({**LOG, "samples": samples}))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("_journal/start.json", "{}")
            for one in samples:
                archive.writestr(f"samples/{one['id']}_epoch_1.json", json.dumps(one))
            archive.writestr("summaries.json", "[]")
            archive.writestr("header.json", json.dumps(LOG))
    run = probe.trace(smol, path, attention="none", out=None)
    rows = sorted(run.scan("prompts").to_pylist(), key=lambda row: row["id"])
    assert [row["expect"] for row in rows] == ["4"] * 4 and [row["score_match"] for row in rows] == ["C"] * 4
    assert (
        rows[0]["completion"].startswith("<think>\ntwo and two\n</think>\n\nIt is 4.")
        and rows[0]["source_model"] == "vllm/org/m"
    )
    assert "What is 3 + 1?" in rows[1]["rendered"] and "1 messages after" in rows[1]["left_out"]
    assert "a part of type 'image'" in rows[2]["left_out"] and "timed out" in rows[3]["error"]
    assert rows[0]["metadata"] == {"level": 2}


def test_a_zip_that_is_no_log(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.eval", "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(BadPrompt, match="without samples"):
        as_prompts(tmp_path / "x.eval", transcripts=True)
    whole = (tmp_path / "x.eval").read_bytes()
    (tmp_path / "x.eval").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadPrompt, match="cannot read") as caught:
        as_prompts(tmp_path / "x.eval", transcripts=True)
    assert "--to json" in caught.value.hint


def test_lm_eval_samples(smol: Any, tmp_path: Path) -> None:
    doc = {"question": "2 + 2?", "answer": "So 4.\n#### 4"}
    today = {"doc_id": 0, "doc": doc, "target": doc["answer"],
             "arguments": {"gen_args_0": {"arg_0": "Q: 2 + 2?\nA:", "arg_1": {"until": ["Q:"]}}},
             "resps": [[" So 4.", " five"]], "filtered_resps": ["4"], "filter": "strict-match", "metrics": ["exact_match"],
             "doc_hash": "d", "prompt_hash": "p", "target_hash": "t", "exact_match": 1.0}  # fmt: skip
    before = {**today, "doc_id": 1, "arguments": [["Q: 2 + 2?\nA:", {"until": ["Q:"]}]], "target": "4", "resps": [[" 4"]]}
    chat = {**today, "doc_id": 2, "arguments": {"gen_args_0": {"arg_0": json.dumps(QUESTION), "arg_1": {}}}}
    choice = {**today, "doc_id": 3, "arguments": {"gen_args_0": {"arg_0": "Q", "arg_1": " A"}}, "resps": [[["-1.5", "False"]]]}
    run = probe.trace(smol, jsonl(tmp_path / "samples_gsm8k.jsonl", [today, before, choice]), attention="none", out=None)
    rows = {row["doc_id"]: row for row in run.scan("prompts").to_pylist()}
    assert [rows[i]["completion"] for i in (0, 1)] == [" So 4.", " 4"] and [rows[i]["expect"] for i in (0, 1)] == ["4", "4"]
    assert rows[0]["text"] == "Q: 2 + 2?\nA:" and rows[0]["left_out"] == "1 other choices" and rows[0]["exact_match"] == 1.0
    assert "log-likelihoods" in rows[3]["error"] and rows[0]["answer"] == "4" and rows[0]["doc"]["question"] == "2 + 2?"
    assert "doc_hash" not in rows[0]
    (found,) = as_prompts(jsonl(tmp_path / "c.jsonl", [chat]), transcripts=True)
    assert found.content == QUESTION and found.given is not None and found.given.text == " So 4."


@pytest.mark.slow
def test_solutions_of_thought_anchors(smol: Any, tmp_path: Path) -> None:
    prompt = "Solve this math problem step by step. Problem: What is 2 + 2? Solution: \n<think>\n"
    for number, with_prompt in ((3, True), (12, False)):
        folder = tmp_path / "correct_base_solution" / f"problem_{number}"
        (folder / "chunk_0").mkdir(parents=True)
        base = {
            "prompt": prompt,
            "solution": "Add. It is 4.",
            "full_cot": prompt + "Add. It is 4.",
            "answer": "4",
            "is_correct": True,
        }
        (folder / "base_solution.json").write_text(
            json.dumps(base if with_prompt else {k: v for k, v in base.items() if k != "prompt"})
        )
        problem = {"problem": "What is 2 + 2?", "level": "Level 5", "type": "Algebra", "gt_solution": "4", "gt_answer": "4"}
        (folder / "problem.json").write_text(json.dumps(problem))
        chunks = {"source_text": prompt + "Add. It is 4.", "solution_text": "Add. It is 4.", "chunks": ["Add.", "It is 4."]}
        (folder / "chunks.json").write_text(json.dumps(chunks))
        (folder / "chunk_0" / "solutions.json").write_text("[]")
    (tmp_path / "correct_base_solution" / "problem_40").mkdir()
    for source, numbers in (
        (tmp_path / "correct_base_solution", [3, 12]),
        (tmp_path / "correct_base_solution" / "problem_3", [3]),
    ):
        run = probe.trace(smol, source, attention="none", out=None)
        rows = run.scan("prompts").to_pylist()
        assert [row["prompt_id"] for row in rows] == numbers
        for row in rows:
            assert (row["text"], row["completion"], row["expect"]) == (prompt, "Add. It is 4.", "4")
            assert row["chunks"] == ["Add.", "It is 4."] and row["is_correct"] is True and row["level"] == "Level 5"
            assert row["left_out"] == "rollouts of 1 chunks"
    alone = probe.trace(
        smol, tmp_path / "correct_base_solution" / "problem_3" / "base_solution.json", attention="none", out=None
    )
    assert alone.prompts["completion"].tolist() == ["Add. It is 4."]


@pytest.mark.slow
def test_prompts_of_a_run_as_they_are_exported(smol: Any, tmp_path: Path) -> None:
    rows = [{"messages": QUESTION, "id": "q", "expect": "4"}]
    run = probe.trace(smol, jsonl(tmp_path / "p.jsonl", rows), generate=8, attention="none", out=tmp_path / "r")
    for suffix in ("jsonl", "csv", "parquet"):
        store.export(run, "prompts", tmp_path / f"x.{suffix}")
        again = probe.trace(smol, tmp_path / f"x.{suffix}", attention="none", out=None)
        row = again.scan("prompts").to_pylist()[0]
        assert row["completion"] == run.prompts["completion"][0] and row["id"] == "q" and row["expect"] == "4", suffix
        assert ids_of(again)[0] == ids_of(run)[0]


def test_a_folder_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadPrompt, match="a folder without prompts") as caught:
        as_prompts(tmp_path / "empty", transcripts=True)
    assert "thought-anchors" in caught.value.hint


def test_the_command_says_how_far_off_they_are(tmp_path: Path) -> None:
    rows = [
        {"prompt": "The capital of France is", "completion": " Paris. Zebra"},
        {"prompt": "a b", "completion_ids": [5, 6, 7]},
    ]
    asked = ["trace", "-f", str(jsonl(tmp_path / "p.jsonl", rows)), "-m", "tiny:llama", "-o", str(tmp_path / "r")]
    shown = CliRunner().invoke(program.app, asked)
    assert shown.exit_code == 0, shown.output
    for words in ("transcripts", "nats a token", "top token", "below 1 % probability"):
        assert words in shown.output
    wrong = CliRunner().invoke(program.app, [*asked[:-1], str(tmp_path / "s"), "-n", "3"])
    assert wrong.exit_code == 1 and "has its generation already" in wrong.output
    text = (tmp_path / "p.jsonl").read_text()
    piped = CliRunner().invoke(
        program.app, ["trace", "-f", "-", "-m", "tiny:llama", "-o", str(tmp_path / "t"), "-q"], input=text
    )
    assert piped.exit_code == 0 and store.open_run(tmp_path / "t").summary["transcripts"]["n"] == 2
