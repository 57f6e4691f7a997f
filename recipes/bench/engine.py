"""What the server engine adds to each request: rollouts through it against the same requests sent bare."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2

import probe
from probe.decoding import Continuation, Sampling
from probe.decoding.rollouts import Rollout
from probe.decoding.teacher_forced import suffix_logprobs
from probe.serving.completions import PATH, body_of, request_seed
from probe.serving.server import ServerEngine

from .trace import text_of

WARM = Sampling(temperature=1.0)
N_PREFIX, N_NEW = 512, 64


def main(model: str, *, repeat: int, quick: bool, only: str | None = None) -> None:
    """Print milliseconds a rollout: against a server that answers at once (`instant`), and, with `--only http://…`, a real one.

    An answer that costs nothing shows what the engine itself takes: seeds, JSON, checks of ids and ends, the order of things.
    """
    lm = probe.load(model)
    n = 64 if quick else 512
    ids = tuple(lm.encode(text_of(lm, N_PREFIX)).ids[:N_PREFIX])
    if only is not None and "://" in only:
        rows = 16 if quick else 64
        measure(ServerEngine(lm, only), [Rollout(ids, s, N_NEW, 1) for s in range(rows)], rounds=1 if quick else 3)
        return
    with instant(lm) as address:
        engine = ServerEngine(lm, address)
        measure(engine, [Rollout(ids, s, N_NEW, 1) for s in range(n)], rounds=max(1, repeat))


def measure(engine: ServerEngine, rollouts: Sequence[Rollout], *, rounds: int) -> None:
    """Both ways in turn, with as many requests in flight and the very same bodies."""
    taken: dict[str, list[tuple[float, float]]] = {"bare": [], "engine": []}
    for _ in range(rounds + 1):
        for name, run in (("bare", bare), ("engine", through)):
            begun, worked = time.perf_counter(), time.process_time()
            tokens = run(engine, rollouts)
            taken[name].append((time.perf_counter() - begun, time.process_time() - worked))
    n, kind = len(rollouts), engine.served.kind
    print(f"{n} rollouts of {N_NEW} tokens from one of {N_PREFIX}, {engine.client.in_flight} in flight ({kind})")
    for name, rows in taken.items():
        wall, cpu = (statistics.median(column) for column in zip(*rows[1:], strict=True))
        print(f"  {name:<8}{1000 * wall / n:>9.2f} ms a rollout{1000 * cpu / n:>9.2f} of cpu{tokens / wall:>10.0f} tokens/s")
    pairs = list(zip(taken["bare"][1:], taken["engine"][1:], strict=True))
    wall, cpu = (statistics.median(ours[i] - plain[i] for plain, ours in pairs) for i in (0, 1))
    print(f"  added   {1000 * wall / n:>9.2f} ms a rollout{1000 * cpu / n:>9.2f} of cpu")


def through(engine: ServerEngine, rollouts: Sequence[Rollout]) -> int:
    """Draw them as a run does; how many tokens came."""
    found: list[Continuation] = []
    engine.draw(rollouts, WARM, done=lambda _, one: found.append(one))
    return sum(len(one.ids) for one in found)


def bare(engine: ServerEngine, rollouts: Sequence[Rollout]) -> int:
    """The same requests from threads that do nothing else; how many tokens came."""
    with httpx2.Client(base_url=engine.client.url, timeout=900.0, trust_env=False) as http, ThreadPoolExecutor(
        engine.client.in_flight
    ) as threads:  # fmt: skip

        def one(rollout: Rollout) -> int:
            body = body_of(
                rollout.prefix, WARM, engine.served, max_tokens=rollout.max_new,
                seed=request_seed(rollout.seed, rollout.sample), eos=engine.lm.eos_ids,
            )  # fmt: skip
            return int(http.post(PATH, json=body).json()["usage"]["completion_tokens"])

        return sum(threads.map(one, rollouts))


@contextmanager
def instant(lm: probe.LanguageModel) -> Iterator[str]:
    """A server that says the model's log-probs of what it is given and draws any ids: the engine's checks pass, and no time
    goes into drawing."""
    texts: dict[str, bytes] = {}
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._send(json.dumps({"data": [{"id": lm.name, "owned_by": "vllm"}]}).encode())

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            body = json.loads(data)
            key = json.dumps([body["prompt"], body["max_tokens"], body["seed"] % 7, "prompt_logprobs" in body])
            with lock:
                if key not in texts:
                    texts[key] = json.dumps(_answer(lm, body)).encode()
            self._send(texts[key])

        def _send(self, data: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()


def _answer(lm: probe.LanguageModel, body: dict[str, Any]) -> dict[str, Any]:
    text = isinstance(body["prompt"], str)
    prefix = list(lm.encode(body["prompt"]).ids) if text else body["prompt"]
    drawn = [100 + (body["seed"] % 7 + 13 * i) % 1000 for i in range(body["max_tokens"])]
    choice: dict[str, Any] = {"token_ids": drawn, "prompt_token_ids": prefix, "finish_reason": "length"}
    choice["logprobs"] = {"token_logprobs": [float(v) for v in suffix_logprobs(lm, prefix, [drawn])[0]]}
    if "prompt_logprobs" in body:
        own = suffix_logprobs(lm, prefix[:1], [prefix[1:]])[0]
        choice["prompt_logprobs"] = [None, *({str(i): {"logprob": float(v)}} for i, v in zip(prefix[1:], own, strict=True))]
    return {"choices": [choice], "usage": {"prompt_tokens": len(prefix), "completion_tokens": len(drawn)}}
