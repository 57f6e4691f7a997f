"""A command that judges: started once, given JSON lines, it answers each with a line. Knows no runs.

Questions go to it as fast as it reads them and no faster, and its answers are used as they come, so it may read all before it
says anything, and nothing is held here but what the pipes hold.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import IO, Any, NamedTuple

from probe.errors import BadJudge
from probe.outcomes.rules import UNLABELLED

AHEAD = 64  # questions that wait to be read
LONGEST = 1 << 20  # bytes of an answer
GRACE = 2.0  # seconds in which it may end by itself, once it has answered all
KEPT = 20  # last lines of its standard error
FORM = """it reads JSON lines and prints one line for each: {"outcome": "refuse"}; what else it says goes to standard error"""
_FIELDS = ("prompt_id", "branch")  # an answer that has them has those of its question


class Judgement(NamedTuple):
    """What a judge says of one completion: its class, and what else it says."""

    outcome: str
    more: dict[str, Any]


def judge_identity(command: str) -> dict[str, Any]:
    """Which judge: its command, its program, and the sha256 of each file that the command names. Raises `BadJudge`."""
    words = _words(command)
    files = {word: hashlib.sha256(Path(word).read_bytes()).hexdigest() for word in words[1:] if _is_file(word)}
    return {"command": command, "program": shutil.which(words[0]) or words[0], "files": files}


def judgements(command: str, questions: Iterable[Mapping[str, Any]], *, timeout: float) -> Generator[Judgement, None, None]:
    """The answer to each question, in order. timeout: seconds in which it must read or say something.

    The last one is given only when it has said no more than it was asked. Raises `BadJudge`; what was given before stays true.
    """
    questions = iter(questions)
    first = next(questions, None)
    if first is None:
        return
    with JudgeProcess(command) as process:
        asked: deque[Mapping[str, Any]] = deque()  # and not answered yet
        waiting: Mapping[str, Any] | None = first
        number, held = 0, None
        try:
            while waiting is not None or asked:
                while waiting is not None and process.ask(waiting):
                    asked.append({name: waiting.get(name) for name in _FIELDS})
                    waiting = next(questions, None)
                if waiting is None:
                    process.no_more()
                line = process.event(timeout, number)
                if line is None:
                    continue
                number += 1
                if held is not None:
                    yield held
                    held = None
                if not asked:
                    raise BadJudge(f"the judge answers before it is asked: its line {number}", hint=FORM)
                held = _judgement(line, number, asked.popleft())
        except BadJudge:
            if held is not None:
                yield held
            raise
        if (more := process.last_words()) is not None:
            raise BadJudge(
                f"the judge says more than the {number:,} lines it was asked for: {_short(more)}",
                hint=f"{FORM}; labels may stand beside the wrong completions: begin anew, without --resume",
            )
        assert held is not None, "there was a question"
        yield held


def _judgement(line: bytes, number: int, question: Mapping[str, Any]) -> Judgement:
    if len(line) > LONGEST:
        raise BadJudge(f"line {number} of the judge has more than {LONGEST:,} bytes", hint=FORM)
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadJudge(f"line {number} of the judge is not JSON: {_short(line)}", hint=FORM) from error
    if not isinstance(found, dict) or "outcome" not in found:
        raise BadJudge(f"line {number} of the judge has no 'outcome': {_short(line)}", hint=FORM)
    outcome = found.pop("outcome")
    if not isinstance(outcome, (str, int, type(None))) or outcome == "":
        raise BadJudge(f"the outcome in line {number} of the judge is no text: {_short(line)}", hint=FORM)
    for name in _FIELDS:
        if name in found and found.pop(name) != question[name]:
            raise BadJudge(
                f"line {number} of the judge is of another {name}: {_short(line)}",
                hint="it answers in the order it is asked in",
            )
    name = outcome if isinstance(outcome, str) else UNLABELLED if outcome is None else json.dumps(outcome)
    return Judgement(name, found)


class JudgeProcess:
    """The command at work: a thread that feeds it, one that hears it, and one that keeps the last of what it complains of."""

    def __init__(self, command: str) -> None:
        self.command = command
        self._questions: Queue[bytes | None] = Queue(AHEAD)
        self._events: Queue[bytes | Event | None] = Queue(AHEAD)  # lines; that there is room for questions; its end
        self._complaints: deque[str] = deque(maxlen=KEPT)
        self._over, self._all_asked = Event(), False
        try:
            self._child = subprocess.Popen(
                _words(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONUNBUFFERED": "1"}, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise BadJudge(f"the judge '{command}' does not start: {error}", hint="is the program there?") from error
        assert self._child.stdin and self._child.stdout and self._child.stderr, "they are pipes"
        parts = ((self._feed, self._child.stdin), (self._hear, self._child.stdout), (self._complain, self._child.stderr))
        self._threads = [Thread(target=work, args=(pipe,), daemon=True) for work, pipe in parts]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> JudgeProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        if self._child.returncode is None:  # else its number may be another's by now
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, signal.SIGKILL)  # with what it has started
        self._child.wait()
        self.no_more()
        for thread in self._threads:
            thread.join(GRACE)

    def ask(self, question: Mapping[str, Any]) -> bool:
        """Whether there was room for the question."""
        try:
            self._questions.put_nowait((json.dumps(question, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass"))
        except Full:
            return False
        return True

    def no_more(self) -> None:
        """Its standard input ends when it has read what it was asked."""
        if not self._all_asked:
            with suppress(Full):
                self._questions.put_nowait(None)
                self._all_asked = True

    def event(self, timeout: float, number: int) -> bytes | None:
        """Its next line, or None where it has read a question instead. Raises `BadJudge` if it ends or says nothing."""
        try:
            found = self._events.get(timeout=timeout)
        except Empty:
            raise BadJudge(
                f"the judge said nothing for {timeout:g} s after {number:,} answers",
                hint="--judge-timeout gives it longer; it must write each answer out at once, or end when its input does",
            ) from None
        if isinstance(found, bytes):
            return found
        if found is None:
            code = self._child.wait()
            self._threads[2].join(GRACE)
            said = f"; it said: {self._complaints[-1]}" if self._complaints else ""
            raise BadJudge(f"the judge ended ({_ended(code)}) after {number:,} answers{said}", hint=f"{FORM}; {RESUMED}")
        return None

    def last_words(self) -> bytes | None:
        """A line that it says after its last answer, in a little while."""
        with suppress(Empty):
            while (found := self._events.get(timeout=GRACE)) is not None:
                if isinstance(found, bytes):
                    return found
        return None

    def _tell(self, what: bytes | Event | None) -> None:
        """To who waits for events; given up when nobody does any more."""
        told = False
        while not told and not self._over.is_set():
            with suppress(Full):
                self._events.put(what, timeout=0.1)
                told = True

    def _feed(self, pipe: IO[bytes]) -> None:
        with suppress(OSError), pipe:  # it has ended: the other thread says so
            while (line := self._questions.get()) is not None:
                pipe.write(line)
                pipe.flush()
                self._tell(self._over)

    def _hear(self, pipe: IO[bytes]) -> None:
        with pipe:
            while line := pipe.readline(LONGEST + 1):
                if line.strip():
                    self._tell(line)
        self._tell(None)

    def _complain(self, pipe: IO[bytes]) -> None:
        with pipe:
            while line := pipe.readline(LONGEST):
                if text := line.decode("utf-8", "replace").strip():
                    self._complaints.append(text[:300])


RESUMED = "what it has said is kept: --resume asks for the rest"


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise BadJudge(f"cannot read the command '{command}': {error}", hint="is a quote left open?") from error
    if not words:
        raise BadJudge("the judge is an empty command", hint="write --judge 'python label.py'")
    return words


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except (OSError, ValueError):
        return False


def _ended(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit {code}"


def _short(line: bytes) -> str:
    text = line.decode("utf-8", "replace").strip()
    return text if len(text) <= 100 else text[:100] + "…"
