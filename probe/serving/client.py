"""Requests to a server, several in flight at once, tried again where that can help. Knows HTTP and no tokens."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

import httpx2

from probe.errors import BadOption, EngineError

Json: TypeAlias = dict[str, Any]
KEY = "PROBE_ENGINE_KEY"  # the environment's name of what the server wants as a bearer token
AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}  # what a later try may mend
LONGEST = 120.0  # seconds that a server may ask to wait


class Refused(EngineError):
    """An answer that no later try will mend. `status` is that of HTTP."""

    def __init__(self, message: str, *, status: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


class Patience(NamedTuple):
    """How long is waited: seconds for an answer, how often a request is sent, seconds before the second time (then doubled)."""

    answer: float = 900.0
    tries: int = 7
    pause: float = 0.5

    def before(self, attempt: int, asked: float | None) -> float:
        """Seconds before a later try; `asked` is what the server's Retry-After says."""
        own = self.pause * 2 ** (attempt - 1)
        return min(LONGEST, own if asked is None else asked)


PATIENCE = Patience()


class _Passing(Exception):
    """What went wrong in one try, and how many seconds the server asks to be left alone."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class Client:
    """One server by its address. Nothing is open between two calls."""

    def __init__(self, url: str, *, in_flight: int, patience: Patience = PATIENCE) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise BadOption(f"'{url}' is no address of a server", hint="as in http://127.0.0.1:8000")
        path = parts.path.rstrip("/").removesuffix("/v1")
        self.url, self.model = f"{parts.scheme}://{parts.netloc}{path}", parts.fragment
        self.in_flight, self.patience = in_flight, patience
        # a proxy that the environment names for the web does not know this machine's own ports
        self._trust_env = parts.hostname not in ("localhost", "127.0.0.1", "::1")

    def get(self, path: str) -> Json | None:
        """The JSON object at a path; None where the server has none. Raises `EngineError` if nobody answers."""
        try:
            with httpx2.Client(**self._settings(httpx2.Timeout(30.0, connect=10.0))) as http:
                response = http.get(path)
                found = response.json() if response.status_code == 200 else None
        except ValueError:
            return None
        except httpx2.RequestError as error:
            raise self._dead(_said(error)) from error
        if response.status_code in (401, 403):
            raise self._refused(response)
        return found if isinstance(found, dict) else None

    def post(self, path: str, bodies: Sequence[Json]) -> list[Json]:
        """The answers to some requests, in their order."""
        found: dict[int, Json] = dict(self.each(path, len(bodies), bodies.__getitem__))
        return [found[i] for i in range(len(bodies))]

    def each(self, path: str, n: int, body: Callable[[int], Json]) -> Iterator[tuple[int, Json]]:
        """The answers to n requests as they come, each with its number; `in_flight` of them are under way at once.

        One that fails for good ends the rest: no other is begun, those under way are given once they are there, then it is
        raised. Whoever stops listening breaks off what is under way. Raises `EngineError`.
        """
        answers: SimpleQueue[tuple[int, Json] | BaseException | None] = SimpleQueue()
        loop = asyncio.new_event_loop()
        task = loop.create_task(self._drive(path, n, body, answers.put))

        def run() -> None:  # in a thread with a loop of its own: a notebook's is running already
            try:
                loop.run_until_complete(task)
                answers.put(None)
            except asyncio.CancelledError:
                answers.put(None)
            except BaseException as error:  # all of it is raised where it is listened to
                answers.put(error)
            finally:
                loop.close()

        thread = threading.Thread(target=run, name="requests", daemon=True)
        thread.start()
        try:
            while (answer := answers.get()) is not None:
                if isinstance(answer, BaseException):
                    raise answer
                yield answer
        finally:
            if not loop.is_closed():
                try:
                    loop.call_soon_threadsafe(task.cancel)
                except RuntimeError:  # it was closed in between
                    assert loop.is_closed(), "a loop that is open takes calls"
            thread.join()

    async def _drive(self, path: str, n: int, body: Callable[[int], Json], put: Callable[[Any], None]) -> None:
        waiting, failures = iter(range(n)), list[EngineError]()
        limits = httpx2.Limits(max_connections=self.in_flight, max_keepalive_connections=self.in_flight)
        timeout = httpx2.Timeout(self.patience.answer, connect=10.0)

        async def work(http: httpx2.AsyncClient) -> None:
            for i in waiting:  # the workers share it
                if failures:
                    return
                try:
                    put((i, await self._answer(http, path, body(i), failures)))
                except EngineError as error:
                    failures.append(error)

        async with httpx2.AsyncClient(**self._settings(timeout), limits=limits) as http, asyncio.TaskGroup() as group:
            for _ in range(min(n, self.in_flight)):
                group.create_task(work(http))
        if failures:
            raise failures[0]

    async def _answer(self, http: httpx2.AsyncClient, path: str, body: Json, failures: Sequence[EngineError]) -> Json:
        """The answer to one request. Raises `EngineError` when it was tried often enough, or another has failed."""
        for attempt in range(1, self.patience.tries + 1):
            try:
                return self._read(await http.post(path, json=body))
            except (httpx2.RequestError, _Passing) as error:
                if failures or attempt == self.patience.tries:
                    raise self._dead(_said(error), attempt) from error
                await asyncio.sleep(self.patience.before(attempt, getattr(error, "wait", None)))
        raise AssertionError("a request is sent at least once")

    def _read(self, response: httpx2.Response) -> Json:
        if response.status_code in AGAIN:
            why = f"it answers {response.status_code}: {_message(response)}"
            raise _Passing(why, _seconds(response.headers.get("retry-after")))
        if response.status_code != 200:
            raise self._refused(response)
        try:
            found = json.loads(response.content)
        except ValueError as error:
            raise _Passing("its answer breaks off") from error
        if not isinstance(found, dict):
            raise Refused(f"the server at {self.url} answers with no JSON object", status=200, hint="is it an OpenAI-like one?")
        if "choices" not in found and "error" in found:  # an error that was met when the headers had gone out
            raise _Passing(f"it answers: {str(found['error'])[:200]}")
        return found

    def _settings(self, timeout: httpx2.Timeout) -> Json:
        key = os.environ.get(KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return {"base_url": self.url, "timeout": timeout, "headers": headers, "trust_env": self._trust_env}

    def _dead(self, why: str, tries: int = 1) -> EngineError:
        often = f" ({tries} tries)" if tries > 1 else ""
        return EngineError(
            f"the server at {self.url} does not answer: {why}{often}",
            hint="see whether it runs; what was drawn is kept, and --resume goes on from there",
        )

    def _refused(self, response: httpx2.Response) -> Refused:
        hints = {401: f"set {KEY}", 403: f"set {KEY}", 404: "it has no completions of that model: give ADDRESS#MODEL"}
        return Refused(
            f"the server at {self.url} refuses ({response.status_code}): {_message(response)}",
            status=response.status_code, hint=hints.get(response.status_code, "see its log; what was drawn is kept"),
        )  # fmt: skip


def _message(response: httpx2.Response) -> str:
    """What a server says of an error, in one line."""
    try:
        found = response.json()
        error = found.get("error", found)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        text = response.text
    return " ".join(text.split())[:300] or response.reason_phrase


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _seconds(header: str | None) -> float | None:
    """Retry-After, which is a number of seconds or a date."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        try:
            return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
        except (TypeError, ValueError):
            return None
