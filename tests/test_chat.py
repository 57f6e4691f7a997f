"""What messages say stands in what a chat template writes, or it is said what is gone; a template cannot take the tool down."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import probe
from probe.errors import BadOption, BadPrompt, ProbeError
from probe.language_model import LanguageModel, chat
from probe.language_model.messages import locate
from probe.requests import ChatOptions
from probe.requests.groups import parse_options

PLAIN = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
TRIMMED = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}\n{% endfor %}"
PARTS = "{% for m in messages %}[{{ m['role'] }}] {% for c in m['content'] %}{{ c['text'] }}{% endfor %}{{ '\n' }}{% endfor %}"
UNTHOUGHT = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'].split('</think>')[-1] }}\n{% endfor %}"
REWRITTEN = (  # as Qwen3's: the reasoning is taken out and written again
    "{% for m in messages %}{% set c = m['content'] %}{% set r = '' %}{% if '</think>' in c %}"
    "{% set r = c.split('</think>')[0].split('<think>')[-1].strip() %}{% set c = c.split('</think>')[-1].strip() %}{% endif %}"
    "[{{ m['role'] }}] {% if r %}<think>\n{{ r }}\n</think>\n\n{% endif %}{{ c }}\n{% endfor %}"
)
CALLED = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% for t in m['tool_calls'] or [] %}"
    "{{ t['function'] | tojson }}{% endfor %}\n{% endfor %}"
)
RECORDED = "<think>\n12 and 30\ngives 42.\n</think>\n\nThe answer is 42."


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def user(content: Any, role: str = "user", **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@pytest.fixture
def lm() -> LanguageModel:
    return probe.load("tiny:llama")


def rendered(lm: LanguageModel, template: str, *messages: dict[str, Any], **how: Any) -> Any:
    lm.tokenizer.chat_template = template
    return lm.render(list(messages), ChatOptions(chat=True, **how), add_generation_prompt=False)


@pytest.mark.parametrize("template", [PLAIN, TRIMMED, PARTS])
def test_parts_of_a_content_are_joined(lm: LanguageModel, template: str) -> None:
    """Also for a template that reads nothing but parts, which a text reaches as one."""
    said = rendered(lm, template, user(parts("Where is", " Rome?")), user("Here.", "assistant"))
    assert said.text == "[user] Where is Rome?\n[assistant] Here.\n"
    assert [said.text[slice(*span)] for span in said.spans] == ["Where is Rome?", "Here."]
    assert lm.pieces(said.ids).text == said.text


def test_a_part_that_is_no_text_is_refused(lm: LanguageModel) -> None:
    with pytest.raises(BadPrompt, match="message 1 has a part of type 'image_url'"):
        rendered(lm, PLAIN, user("a"), user([*parts("b"), {"type": "image_url", "image_url": "x"}]))


LOSSES = [
    (UNTHOUGHT, [user("a?"), user(RECORDED, "assistant")], "message 1 (assistant): '<think> 12 and 30 gives 42. </think>'"),
    ("{{ messages[-1]['content'] }}", [user("Be brief.", "system"), user("a?")], "drops the system message: 'Be brief.'"),
    ("{{ messages[-1]['content'] }}", [user("a?"), user("a?")], "message 0 (user): 'a?'"),
    ("You are kind. {{ messages[-1]['content'] }}", [user("You", "system"), user("a?")], "drops the system message: 'You'"),
    (PLAIN, [user("b", "assistant", reasoning_content="since a")], "message 0 (assistant, reasoning): 'since a'"),
    (PLAIN, [user("", tool_calls=[{"function": {"name": "add", "arguments": {"x": "12"}}}])], "(user, tool call): 'add'"),
    ("{{ messages[0]['content'][:9] }}", [user("one two three")], "message 0 (user): 'one two three'"),
]


@pytest.mark.parametrize(("template", "messages", "gone"), LOSSES)
def test_what_is_left_out_is_named(lm: LanguageModel, template: str, messages: list[Any], gone: str) -> None:
    with pytest.raises(BadPrompt) as caught:
        rendered(lm, template, *messages)
    assert gone in caught.value.message and "--allow-template-loss" in caught.value.hint
    assert any(gone in note for note in rendered(lm, template, *messages, allow_template_loss=True).notes)


def test_what_is_written_another_way_is_not_lost(lm: LanguageModel) -> None:
    said = rendered(lm, REWRITTEN, user("a?"), user(RECORDED, "assistant"))
    assert said.text[slice(*said.spans[-1])] == RECORDED and said.notes == []
    closer = rendered(lm, REWRITTEN, user("a?"), user(RECORDED.replace("\n\n", ""), "assistant"))
    assert closer.text == said.text and closer.notes == [
        "the chat template of 'tiny:llama' changes the white space of message 1 (assistant)"
    ]
    call = [{"function": {"name": "add", "arguments": json.dumps({"x": 'a "b"'})}}]
    assert 'a \\\\\\"b' in rendered(lm, CALLED, user("é", tool_calls=call)).text


def test_a_text_stands_where_it_was_put_and_not_where_the_template_says_the_same(lm: LanguageModel) -> None:
    said = rendered(lm, TRIMMED, user(" user "), user("user"))
    assert said.spans == [(7, 11), (19, 23)] and said.text == "[user] user\n[user] user\n"


def test_texts_never_stand_on_each_other() -> None:
    assert locate(["a b", "b", "b"], "a  b, b") == [(0, 4), (6, 7), None]
    assert locate(['say "hi"', ""], 'x say \\"hi\\"') == [(2, 12), None]
    assert locate(["ab"], "ab ab", taken=[(0, 2)]) == [(3, 5)]


ENDLESS = "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 1 / 0 }}", "fails (ZeroDivisionError): division by zero"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails (RecursionError)"),
        ("{{ raise_exception('roles\nalternate') }}", "refuses these messages: roles alternate"),
        ("{% if x %}", "refuses these messages: Unexpected end of template."),
        (ENDLESS, "does not end within 0.2 s"),
        ("{% macro f(n) %}{% for i in range(9) %}{{ f(n - 1) if n else '' }}{% endfor %}{% endmacro %}{{ f(99) }}", "0.2 s"),
    ],
)
def test_a_template_that_fails_is_one_line(lm: LanguageModel, monkeypatch: Any, template: str, said: str) -> None:
    """Off the main thread too, where no signal reaches."""
    monkeypatch.setattr(chat, "SECONDS", 0.2)
    found: list[ProbeError] = []

    def ask() -> None:
        with pytest.raises(ProbeError) as caught:
            rendered(lm, template, user("hi"))
        found.append(caught.value)

    begun = time.monotonic()
    other = threading.Thread(target=ask)
    other.start()
    other.join()
    assert time.monotonic() - begun < 10
    ask()
    for error in found:
        assert said in error.message and "\n" not in error.message and error.hint
    assert len(found) == 2


def test_template_options(lm: LanguageModel) -> None:
    template = PLAIN + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    options = parse_options(["enable_thinking=false"])
    assert options == {"enable_thinking": False}
    assert rendered(lm, template, user("a"), template_options=options).text == "[user] a\n<think></think>"
    assert parse_options(["a=[1]", "b=x=y"]) == {"a": [1], "b": "x=y"}
    for wrong, said in (({"thinking": 1}, "does not read 'thinking'"), ({"tokenize": True}, "no option of a chat template")):
        with pytest.raises(BadOption, match=said):
            rendered(lm, template + "{{ tokenize }}", user("a"), template_options=wrong)
    for text in ("thinking", "=1", "a b=1"):
        with pytest.raises(BadOption, match="no template option"):
            parse_options([text])


@pytest.mark.slow
def test_a_file_of_chats(shell: Any, tmp_path: Path) -> None:
    """A chat that loses something is a row with the reason; what a template was told stands in the manifest."""
    lm = probe.load("tiny:llama")
    lm.tokenizer.chat_template = UNTHOUGHT + "{{ mood }}"
    lm.model.save_pretrained(tmp_path / "m")
    lm.tokenizer.save_pretrained(tmp_path / "m")
    rows = [[user("a?"), user(RECORDED, "assistant"), user("c?")], [user(parts("b", "?"))]]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"messages": row}) for row in rows))
    words = ("trace", "--file", "c.jsonl", "--model", "m", "--template-option", 'mood="calm"')
    shell(*words, "--out", "run")
    prompts = probe.open_run(tmp_path / "run").prompts
    assert "gives 42" in prompts["error"][0] and prompts["rendered"][1] == "[user] b?\ncalm"
    arguments = probe.open_run(tmp_path / "run").manifest["arguments"]
    assert arguments["template_options"] == {"mood": "calm"} and arguments["allow_template_loss"] is False
    done = shell(*words, "--out", "lossy", "--allow-template-loss")
    assert done.returncode == 0 and "warning: the chat template of 'm' leaves out" in done.stderr
    done = shell("trace", "hi", "--model", "m", "--template-option", "mood=calm", "--out", "raw")
    assert done.returncode == 1 and "--chat" in done.stderr


def test_a_token_that_the_model_does_not_have_is_an_error_of_that_prompt(lm: LanguageModel) -> None:
    lm.tokenizer.add_tokens(["<new>"])
    rows = lm.model.get_input_embeddings().weight.shape[0]
    assert lm.tokenizer.convert_tokens_to_ids("<new>") == rows
    run = probe.trace(lm, ["fine", "a <new>"], out=None)
    assert run.prompts["error"][0] == "" and "none for '<new>'" in run.prompts["error"][1]
    with pytest.raises(BadPrompt, match="none for '<new>'"):
        probe.attribute(lm, "fine", answer="<new>", out=None)


def test_another_prompt_goes_through_the_template_as_the_first_did(lm: LanguageModel) -> None:
    """The run's system message and options hold for `prompt_b` too; a rewind says at what temperature it drew."""
    lm.tokenizer.chat_template = PLAIN + "{{ mood }}"
    run = probe.trace(
        lm, "a?", chat=True, system="Be brief.", template_options={"mood": "calm"}, generate=6, attention="none", out=None
    )
    done = probe.rewind(run, lm=lm, to=str(len(run.tokens) - 2), split="token", prompt_b="b?", samples=2, out=None)
    edited = done.branches[done.branches["arm"] == "edited"].iloc[0]
    own = done.tokens[done.tokens["branch"] == edited["branch"]].sort_values("pos")
    prefix = "".join(own["token"]).removeprefix("<s>")
    assert prefix.startswith("[system] Be brief.\n[user] b?\ncalm")
    assert done.summary["sampling"]["temperature"] == 0.6


@pytest.mark.parametrize("content", ["Be brief.", parts("Be ", "brief.")])
def test_another_prompt_beside_messages_keeps_their_system_message(lm: LanguageModel, content: Any, tmp_path: Path) -> None:
    """Messages of a file go through the template unasked: so does `prompt_b`, also of a run that was rewound before."""
    lm.tokenizer.chat_template = PLAIN
    rows = [{"messages": [user("first?")]}, {"messages": [user(content, "system"), user("a?")]}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = probe.trace(lm, tmp_path / "p.jsonl", generate=6, attention="none", out=None)
    once = probe.rewind(run, lm=lm, prompt_id=1, to="-1", split="token", prompt_b="b?", samples=2, out=None)
    again = probe.rewind(once, lm=lm, to="-1", split="token", prompt_b="b?", samples=2, out=None)
    first = probe.rewind(run, lm=lm, prompt_id=0, to="-1", split="token", prompt_b="b?", samples=2, out=None)
    for done, begin in ((once, "[system] Be brief.\n"), (again, "[system] Be brief.\n"), (first, "")):
        edited = done.branches[done.branches["arm"] == "edited"].iloc[0]
        own = done.tokens[done.tokens["branch"] == edited["branch"]].sort_values("pos")
        assert "".join(own["token"]).removeprefix("<s>").startswith(f"{begin}[user] b?\n")
