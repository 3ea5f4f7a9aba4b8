"""A server that speaks as vLLM or SGLang do, makes its responses up, and fails as it is told to.

Run as a script with the arguments of `vllm serve`, it stands in for vLLM's own process. It imports
neither torch nor cropi, so that it is there at once.
"""

from __future__ import annotations

import json
import os
import random
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VOCABULARY = 48
Sampler = Callable[[dict[str, Any], int], list[tuple[list[int], list[float]]]]
"""From a request in vLLM's terms and a number of responses, their ids and log-probs."""
Fault = Callable[["Handler"], None]
"""Answers one request in place of the server."""


def made_up(body: dict[str, Any], n: int) -> list[tuple[list[int], list[float]]]:
    """Random tokens that depend on prompt and seed, an eos in between, one certain with top_k 1."""
    eos, responses = body["stop_token_ids"][0], []
    for k in range(n):
        draw = random.Random(f"{body['prompt']} {body['seed']} {k}")
        ids = [draw.randrange(2, VOCABULARY) for _ in range(body["max_tokens"])]
        ids = ids[: draw.randint(1, len(ids))]
        if len(ids) < body["max_tokens"] or draw.random() < 0.5:
            ids[-1] = eos
        certain = body["top_k"] == 1
        responses.append((ids, [0.0 if certain else -draw.random() - 0.01 for _ in ids]))
    return responses


@dataclass
class FakeServer:
    """What the server is, what it has been asked, and the faults that come first."""

    sampler: Sampler = made_up
    model: str = "pocket"
    owner: str = "vllm"
    key: str | None = None
    context: int = 64
    faults: list[Fault] = field(default_factory=list)
    change: Callable[[Any], Any] = lambda answer: answer
    """Applied to every answer before it is sent."""
    text: Callable[[list[int]], str] | None = None
    """Turns ids into text, on a server that returns nothing else, one response at a time."""
    asked: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    at_once: int = 0
    most_at_once: int = 0

    @property
    def sampled(self) -> list[dict[str, Any]]:
        """The requests for responses, those that only look at log-probs left out."""
        return [body for body in self.asked if body.get("top_k", 0) != 1]


class Handler(BaseHTTPRequestHandler):
    """Answers requests as the `fake` of its class says."""

    fake: FakeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def send_json(self, status: int, value: Any) -> None:
        self.send(status, json.dumps(value).encode())

    def do_GET(self) -> None:
        if self.path == "/health":
            self.send(200, b"")
        elif self._allowed():
            card = {"id": self.fake.model, "root": self.fake.model, "owned_by": self.fake.owner}
            self.send_json(200, {"data": [{**card, "max_model_len": self.fake.context}]})

    def do_POST(self) -> None:
        fake = self.fake
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._allowed():
            return
        with fake.lock:
            fake.asked.append(body)
            fake.at_once += 1
            fake.most_at_once = max(fake.most_at_once, fake.at_once)
            fault = fake.faults.pop(0) if fake.faults else None
        try:
            if fault is not None:
                fault(self)
            else:
                self.send_json(200, fake.change(self._answer(body)))
        finally:
            with fake.lock:
                fake.at_once -= 1

    def _allowed(self) -> bool:
        if self.fake.key and self.headers.get("Authorization") != f"Bearer {self.fake.key}":
            self.send_json(401, {"error": "Unauthorized"})
            return False
        return True

    def _answer(self, body: dict[str, Any]) -> Any:
        if self.path == "/generate":
            return [self._sglang(body, k) for k in range(len(body["input_ids"]))]
        assert self.path == "/v1/completions", self.path
        if self.fake.text is not None:
            return {"choices": [self._as_text(body, self.fake.text)]}
        responses = self.fake.sampler(body, body["n"])
        choices = [
            {
                "index": index,
                "text": "",
                "token_ids": ids,
                "prompt_token_ids": body["prompt"],
                "logprobs": {"token_logprobs": logprobs},
                "finish_reason": "stop" if ids[-1] in body["stop_token_ids"] else "length",
            }
            for index, (ids, logprobs) in enumerate(responses)
        ]
        return {"choices": choices[::-1]}

    def _as_text(self, body: dict[str, Any], text: Callable[[list[int]], str]) -> Any:
        ((ids, _),) = self.fake.sampler(body, 1)
        stopped = ids[-1] in body["stop_token_ids"]
        answer = text(ids[:-1] if stopped else ids)
        return {"index": 0, "text": answer, "finish_reason": "stop" if stopped else "length"}

    def _sglang(self, body: dict[str, Any], k: int) -> Any:
        settings = body["sampling_params"][k]
        as_vllm = {
            "prompt": body["input_ids"][k],
            "seed": settings["sampling_seed"],
            "max_tokens": settings["max_new_tokens"],
            **settings,
        }
        ((ids, logprobs),) = self.fake.sampler(as_vllm, 1)
        rows = [[logprob, token, None] for logprob, token in zip(logprobs, ids, strict=True)]
        reason = "stop" if ids[-1] in settings["stop_token_ids"] else "length"
        about = {"output_token_logprobs": rows, "finish_reason": {"type": reason}}
        return {"text": "", "meta_info": about}


@contextmanager
def serving(fake: FakeServer) -> Iterator[FakeServer]:
    """Serve on a free port of the loopback interface."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"fake": fake}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()


def status(code: int, **headers: str) -> Fault:
    """An answer with this status; `Retry_After` becomes Retry-After."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    message = json.dumps({"error": {"message": f"failed on purpose with {code}"}}).encode()
    return lambda handler: handler.send(code, message, named)


def hang(seconds: float) -> Fault:
    """No answer for a while."""
    return lambda handler: time.sleep(seconds)


def truncated(handler: Handler) -> None:
    """An answer that is whole for HTTP and cut off as JSON."""
    handler.send(200, b'{"choices": [{"token_ids": [3, 4')


def cut_off(handler: Handler) -> None:
    """A connection that breaks in the middle of an answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.close_connection = True


def serve(arguments: list[str]) -> None:
    """Stand in for `python -m vllm.entrypoints.cli.main serve MODEL FLAGS`."""
    place = arguments.index("serve")
    flags = arguments[place + 2 :]
    values = {flag: flags[n + 1] for n, flag in enumerate(flags[:-1]) if flag.startswith("--")}
    print(f"serving {arguments[place + 1]}", " ".join(flags), flush=True)
    if message := os.environ.get("FAKE_VLLM_FAILS"):
        print(f"(EngineCore pid=7) ERROR 11-28 10:00:00 [core.py:1] {message}", flush=True)
        sys.exit(1)
    fake = FakeServer(model=values["--served-model-name"], key=os.environ["VLLM_API_KEY"])
    handler = type("Bound", (Handler,), {"fake": fake})
    socketserver.TCPServer.allow_reuse_address = True
    ThreadingHTTPServer((values["--host"], int(values["--port"])), handler).serve_forever()


def interpreter(folder: Any) -> str:
    """A file that can be run as an interpreter whose vLLM is this module."""
    path = folder / "python-with-vllm"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" "$@"\n')
    path.chmod(0o755)
    return str(path)


if __name__ == "__main__":
    serve(sys.argv[1:])
