"""Who else says what a continuation comes to: a command that is given lines, or a file of labels."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from probe.errors import BadJudge, BadOption, BadPrompt
from probe.outcomes.judging import LONGEST, judge_identity, judgements
from probe.outcomes.labels import read_labels

LOOP = "import sys, json\nfor line in sys.stdin:\n    q = json.loads(line)\n"


def script(tmp_path: Path, body: str) -> str:
    (tmp_path / "label.py").write_text(body)
    return f"{sys.executable} {tmp_path / 'label.py'}"


def questions(n: int) -> list[dict]:
    return [{"prompt_id": i // 10, "branch": i % 10, "completion": f"ä text {i}\n\ud83d half"} for i in range(n)]


def answers(command: str, n: int, timeout: float = 60.0) -> list:
    return list(judgements(command, questions(n), timeout=timeout))


def test_each_question_has_its_answer(tmp_path: Path) -> None:
    command = script(tmp_path, LOOP + "    print(json.dumps({'outcome': str(q['branch']), 'sure': 1, 'branch': q['branch']}))")
    found = answers(command, 500)
    assert [one.outcome for one in found] == [str(i % 10) for i in range(500)]
    assert found[7].more == {"sure": 1}


def test_one_that_reads_all_before_it_speaks_is_heard_too(tmp_path: Path) -> None:
    """More than the pipe and the queue hold."""
    body = "import sys\nlines = sys.stdin.readlines()\nfor i, _ in enumerate(lines): print('{\"outcome\": %d}' % i)"
    asked = ({"completion": "x" * 1000, "prompt_id": 0, "branch": i} for i in range(3000))
    found = list(judgements(script(tmp_path, body), asked, timeout=60))
    assert [one.outcome for one in found] == [str(i) for i in range(3000)]


def test_questions_are_made_no_faster_than_they_are_read(tmp_path: Path) -> None:
    made = 0

    def many():
        nonlocal made
        for i in range(100_000):
            made += 1
            yield {"completion": "x" * 10_000, "prompt_id": 0, "branch": i}

    command = script(tmp_path, LOOP + "    print(json.dumps({'outcome': 'a'}))")
    found = judgements(command, many(), timeout=60)
    for _ in range(5):
        next(found)
    assert made < 1000
    found.close()


def test_nothing_is_started_for_no_question() -> None:
    assert list(judgements("there-is-no-such-program", [], timeout=1)) == []


@pytest.mark.parametrize(
    ("body", "kept", "said"),
    [
        (LOOP + "    if q['branch'] == 5: raise ValueError('out of memory')\n    print('{\"outcome\": 1}')", 5,
         r"ended \(exit 1\) after 5 answers; it said: ValueError: out of memory"),
        (LOOP + "    if q['branch'] == 5: break\n    print('{\"outcome\": 1}')", 5, r"ended \(exit 0\) after 5 answers"),
        (LOOP + "    print('label: 1')", 0, "line 1 of the judge is not JSON: label: 1"),
        (LOOP + "    print('{\"outcome\": 1}' if q['branch'] < 3 else '[1]')", 3, "line 4 of the judge has no 'outcome'"),
        (LOOP + "    print('{\"label\": 1}')", 0, "line 1 of the judge has no 'outcome'"),
        (LOOP + "    print('{\"outcome\": [1]}')", 0, "the outcome in line 1 of the judge is no text"),
        (LOOP + "    print('{\"outcome\": \"\"}')", 0, "the outcome in line 1 of the judge is no text"),
        (LOOP + "    print('{\"outcome\": 1, \"branch\": 0}')", 1, "line 2 of the judge is of another branch"),
        (LOOP + "    print('{\"outcome\": 1}\\n' * (1 + (q['branch'] == 7)))", 7, "says more than the 8 lines"),
        (LOOP + f"    print('x' * {LONGEST + 10})", 0, "more than 1,048,576 bytes"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", 0, r"ended \(signal 9\) after 0 answers"),
    ],
)  # fmt: skip
def test_a_fault_is_one_line_and_what_was_said_before_stays(tmp_path: Path, body: str, kept: int, said: str) -> None:
    """The last label waits for the end: who has said too much is asked again."""
    found = []
    with pytest.raises(BadJudge, match=said) as caught:
        for one in judgements(script(tmp_path, body), questions(8), timeout=60):
            found.append(one)
    assert len(found) == kept and "\n" not in caught.value.message and caught.value.hint


@pytest.mark.slow
def test_one_that_hangs_is_given_up_and_ended_with_what_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    body = (
        f"import os, subprocess, sys, time\nchild = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\ntime.sleep(600)"
    )
    with pytest.raises(BadJudge, match="said nothing for 3 s after 0 answers"):
        answers(script(tmp_path, body), 3, timeout=3)
    time.sleep(0.2)
    for pid in map(int, pids.read_text().split()):
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize(
    ("command", "said"),
    [("there-is-no-such-program", "does not start"), ("python 'x", "cannot read the command"), (" ", "empty command")],
)
def test_one_that_cannot_start_is_said(command: str, said: str) -> None:
    with pytest.raises(BadJudge, match=said):
        answers(command, 1)


def test_which_judge_it_was(tmp_path: Path) -> None:
    command = script(tmp_path, "pass")
    found = judge_identity(command + " --model x")
    assert found["command"] == command + " --model x" and os.access(found["program"], os.X_OK)
    assert found["files"] == {str(tmp_path / "label.py"): hashlib.sha256(b"pass").hexdigest()}


PLACES = [(0, 1), (0, 2), (3, 1)]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_labels_of_a_file(tmp_path: Path, kind: str) -> None:
    rows = [
        {"prompt_id": prompt, "branch": branch, "outcome": outcome, "by": by}
        for prompt, branch, outcome, by in ((0, 1, "yes", "ann"), (0, 2, "no", "bob"), (3, 1, "yes", None), (9, 1, "yes", None))
    ]  # fmt: skip
    path = tmp_path / f"labels.{kind}"
    if kind == "csv":
        lines = [",".join("" if v is None else str(v) for v in row.values()) for row in rows]
        path.write_text("prompt_id,branch,outcome,by\n" + "\n".join(lines))
    elif kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    read = read_labels(path)
    found, said = read.of(PLACES)
    assert {place: (one.outcome, one.more) for place, one in found.items()} == {
        (0, 1): ("yes", {"by": "ann"}), (0, 2): ("no", {"by": "bob"}), (3, 1): ("yes", {}),
    }  # fmt: skip
    assert said == ["1 labels are of no continuation of this run, and were passed over"]
    assert read.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_labels_that_are_missing_or_broken_are_said(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("prompt_id,branch,outcome\n0,1,yes\n0,1.0,yes\n0,2,\n0,x,no\n0,,no\n")
    found, said = read_labels(path).of(PLACES)
    assert list(found) == [(0, 1)]
    assert said[0].startswith("2 rows of") and "row 3: branch is 'x', which is no number" in said[0]
    assert said[1].startswith("2 of 3 continuations have no label")


def test_labels_that_contradict_each_other_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("prompt_id,branch,outcome\n0,1,yes\n0,1,no\n")
    with pytest.raises(BadOption, match=r"branch 1 of prompt 0 two outcomes: 'yes' \(row 0\) and 'no' \(row 1\)"):
        read_labels(path)


def test_labels_of_one_prompt_need_not_name_it(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("branch,outcome\n1,yes\n2,no\n")
    found, said = read_labels(path).of([(4, 1), (4, 2)])
    assert [found[4, 1].outcome, found[4, 2].outcome] == ["yes", "no"] and not said
    with pytest.raises(BadOption, match="name no prompt_id, and the run has 2 prompts"):
        read_labels(path).of(PLACES)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("prompt_id,branch,outcome\n", BadOption, "no label"), ("a,b\n1,2\n", BadOption, "no columns branch and outcome"),
        (None, BadPrompt, "cannot read"),
    ],
)  # fmt: skip
def test_a_file_without_labels_is_an_error(tmp_path: Path, text: str | None, error: type, said: str) -> None:
    path = tmp_path / "labels.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(error, match=said):
        read_labels(path)
    if text is None:
        path.write_text("prompt_id,branch,outcome\n7,7,x\n")
        with pytest.raises(BadOption, match="no label is of a continuation"):
            read_labels(path).of(PLACES)
