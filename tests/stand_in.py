"""A server for tests: the completions protocol over http.server, with a tiny model of ours behind it, and faults on request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any

import torch

from probe.decoding import decode
from probe.decoding.teacher_forced import suffix_logprobs
from probe.requests import Sampling

DROPPED = object()  # no answer: the connection is closed
KNOWN: dict[str, str] = {}


@dataclass
class StandIn:
    """What the server does. `change`: the body of a request, its number and the answer -> another answer, a status with
    headers, or None for half an answer; `deaf` settings are passed over; `heard` are the bodies that came."""

    lm: Any
    deaf: tuple[str, ...] = ()
    change: Callable[[dict, int, dict], Any] = lambda body, number, answer: answer
    seed_of: Callable[[int], int] = lambda seed: seed
    models: tuple[str, ...] = ("tiny",)
    owner: str = "vllm"
    context: int | None = None
    scores: bool = True
    heard: list[dict] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    numbers: Iterator[int] = field(default_factory=count)
    lock: Any = field(default_factory=threading.Lock)
    down: bool = False

    def sampling(self, body: Mapping[str, Any]) -> Sampling:
        """The settings that are obeyed."""
        has = {k: v for k, v in body.items() if k not in self.deaf}
        warm = has["temperature"] > 0
        return Sampling(
            temperature=has["temperature"], top_k=has["top_k"] if warm and has.get("top_k", -1) > 0 else None,
            top_p=has.get("top_p") if warm else None, min_p=has.get("min_p") if warm else None,
            repetition_penalty=has.get("repetition_penalty", 1.0), suppress=tuple(map(int, has.get("logit_bias", {}))),
            stop=tuple(has.get("stop", ())), seed=self.seed_of(body["seed"]),
        )  # fmt: skip

    def drawn(self, prefix: list[int], body: Mapping[str, Any], sampling: Sampling) -> Any:
        """A continuation by our own decoder, whose noise is addressed."""
        return decode(self.lm, [prefix], max_new=body["max_tokens"], sampling=sampling, samples=[0])[0]

    def answer(self, body: dict) -> dict:
        """A whole answer, as vLLM words it; what is asked again and again is computed once."""
        sampling = self.sampling(body)
        key = json.dumps([id(self.lm), str(sampling), self.scores, body], sort_keys=True)
        if key not in KNOWN:
            KNOWN[key] = json.dumps(self.computed(body, sampling))
        return json.loads(KNOWN[key])

    @torch.inference_mode()
    def computed(self, body: dict, sampling: Sampling) -> dict:
        text = isinstance(body["prompt"], str)
        prefix = list(self.lm.encode(body["prompt"]).ids) if text else body["prompt"]
        found = self.drawn(prefix, body, sampling)
        logprobs = [float(v) for v in suffix_logprobs(self.lm, prefix, [found.ids])[0]]
        choice: dict[str, Any] = {
            "index": 0, "text": self.lm.pieces(found.ids).text, "prompt_token_ids": prefix, "token_ids": found.ids,
            "finish_reason": "length" if found.stop_reason == "length" else "stop",
            "stop_reason": found.ids[-1] if found.stop_reason == "eos" else None,
        }  # fmt: skip
        if body.get("logprobs") is not None:
            choice["logprobs"] = {"tokens": [f"token_id:{i}" for i in found.ids], "token_logprobs": logprobs}
        if self.scores and (body.get("echo") or "prompt_logprobs" in body):
            own = [float(v) for v in suffix_logprobs(self.lm, prefix[:1], [prefix[1:]])[0]]
            if body.get("echo"):
                choice["logprobs"]["token_logprobs"] = [None, *own, *logprobs]
            else:
                choice["prompt_logprobs"] = [None, *({str(i): {"logprob": v}} for i, v in zip(prefix[1:], own, strict=True))]
        return {"choices": [choice], "usage": {"prompt_tokens": len(prefix), "completion_tokens": len(found.ids)}}


class Handler(BaseHTTPRequestHandler):
    protocol_version, timeout = "HTTP/1.1", 20
    stand_in: StandIn

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        one = {"owned_by": self.stand_in.owner, "max_model_len": self.stand_in.context}
        known = {"/v1/models": {"data": [{"id": name, **one} for name in self.stand_in.models]}, "/version": {"version": "0"}}
        self.send(200 if self.path in known else 404, known.get(self.path, {}))

    def do_POST(self) -> None:
        server = self.stand_in
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            number = next(server.numbers)
            server.heard.append(body)
            server.keys.append(self.headers.get("Authorization"))
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        time.sleep(0.002)  # so that others come meanwhile
        try:
            with server.lock:
                answer: Any = DROPPED if server.down else server.answer(body)
            if answer is not DROPPED:
                answer = server.change(body, number, answer)
        finally:
            with server.lock:
                server.at_once -= 1
        if server.down or answer is DROPPED:
            self.close_connection = True
        elif answer is None:
            self.half(json.loads(KNOWN[next(reversed(KNOWN))]))
        elif isinstance(answer, tuple):
            self.send(*answer)
        else:
            self.send(200, answer)

    def send(self, status: int, answer: dict, headers: Mapping[str, str] | None = None) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def half(self, answer: dict) -> None:
        """The headers promise more than there comes."""
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])
        self.close_connection = True


class Server(ThreadingHTTPServer):
    daemon_threads, request_queue_size = False, 100

    def handle_error(self, *_: Any) -> None:
        """A client that went away is no news."""


@contextmanager
def serving(stand_in: StandIn, port: int = 0) -> Iterator[str]:
    """Its address while it runs."""
    server = Server(("127.0.0.1", port), type("Handler", (Handler,), {"stand_in": stand_in}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
