"""A server in this process that speaks vLLM's dialect of OpenAI's protocol, and misbehaves on request.

A small model answers: ``prompt_logprobs`` are its float64 log-probabilities, completions its greedy
continuations. Chat answers are made up from the conversation and the seed.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

Json = dict[str, Any]
Answer = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""


class CutConnectionError(Exception):
    """Send half of an answer and hang up."""


Fault = Callable[[Json], Answer | Json | None]
"""Meets one POST: an answer of its own, a change of the good answer (given as its argument), or None for a good one."""


def status(code: int, message: str = "no", **headers: str) -> Fault:
    """An error answer with headers (``retry_after="1"``)."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda good: (code, named, json.dumps({"error": {"message": message, "code": code}}).encode())


def body(content: bytes) -> Fault:
    """A 200 with any bytes."""
    return lambda good: (200, {}, content)


def hang(seconds: float) -> Fault:
    """A late answer."""
    return lambda good: time.sleep(seconds)


def cut(good: Json) -> Answer:
    """A connection that ends in the middle of the answer."""
    raise CutConnectionError


class FakeServer:
    """Use :func:`serving`. ``faults`` meet the next POSTs, one each; ``requests`` are all POSTs so far.

    A chat request with one of the fields ``refused`` is answered with 400.
    """

    name = "demo"

    def __init__(self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.key: str | None = None
        self.max_logprobs, self.max_model_len = 20, 256
        self.root = "/models/tiny"
        self.refused: frozenset[str] = frozenset()
        self.faults: deque[Fault] = deque()
        self.always: Fault | None = None
        self.requests: list[tuple[str, Json]] = []
        self.headers: list[dict[str, str]] = []
        self.under_way = self.most_under_way = 0
        self.delay_seconds = 0.0
        self.lock = threading.Lock()
        self.url = ""

    # --- good answers -----------------------------------------------------------------------

    def models(self) -> Json:
        card = {"id": self.name, "object": "model", "root": self.root, "max_model_len": self.max_model_len}
        return {"object": "list", "data": [card]}

    @torch.no_grad()
    def log_probs(self, ids: Sequence[int]) -> torch.Tensor:
        """[T, rows of the head], float64."""
        with self.lock:
            return self.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)

    def completion(self, request: Json) -> Answer | Json:
        ids, k = request["prompt"], request.get("prompt_logprobs")
        if k is not None and k > self.max_logprobs:
            return _refusal(f"Requested prompt logprobs of {k}, which is greater than max allowed: {self.max_logprobs}")
        if len(ids) + request["max_tokens"] > self.max_model_len:
            return _refusal(f"This model's maximum context length is {self.max_model_len} tokens.")
        listed = None if k is None else [None, *(self._entry(row, token, k) for row, token in self._pairs(ids))]
        choice = {"index": 0, "text": self._continued(request), "finish_reason": "length", "prompt_logprobs": listed}
        return {
            "object": "text_completion",
            "model": self.name,
            "choices": [choice],
            "usage": {"prompt_tokens": len(ids)},
        }

    def _pairs(self, ids: Sequence[int]) -> Iterator[tuple[torch.Tensor, int]]:
        return zip(self.log_probs(ids)[:-1], ids[1:], strict=True)

    def _entry(self, row: torch.Tensor, token: int, k: int) -> Json:
        shown = dict.fromkeys([token, *row.topk(min(k, len(row))).indices.tolist()])
        return {
            str(i): {
                "logprob": float(row[i]),
                "rank": int((row > row[i]).sum()) + 1,
                "decoded_token": self.tokenizer.decode([i]),
            }
            for i in shown
        }

    def _continued(self, request: Json) -> str:
        ids, new = list(request["prompt"]), []
        for _ in range(request["max_tokens"] if request.get("prompt_logprobs") is None else 0):
            token = int(self.log_probs(ids)[-1].argmax())
            if token in request.get("stop_token_ids", []):
                break
            ids.append(token)
            new.append(token)
        return str(self.tokenizer.decode(new))

    def chat(self, request: Json) -> Answer | Json:
        for name in sorted(self.refused & set(request)):
            return _refusal(f"Unsupported parameter: {name}")
        said = request["messages"][-1]["content"]
        cut_off = request.get("max_tokens", request.get("max_completion_tokens", 3)) < 3
        with self.lock:
            number = request.get("seed", len(self.requests))
        message = {"role": "assistant", "content": f"{said.upper()} {number}"}
        choice = {"index": 0, "message": message, "finish_reason": "length" if cut_off else "stop"}
        usage = {"prompt_tokens": len(said), "completion_tokens": 3}
        return {"object": "chat.completion", "choices": [choice], "usage": usage}


def _refusal(message: str) -> Answer:
    return 400, {}, json.dumps({"error": {"message": message, "type": "BadRequestError", "code": 400}}).encode()


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._reply(self._refused() or self.fake.models())

    def do_POST(self) -> None:
        fake = self.fake
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with fake.lock:
            fake.requests.append((self.path, request))
            fake.headers.append({name.lower(): value for name, value in self.headers.items()})
            fake.under_way += 1
            fake.most_under_way = max(fake.most_under_way, fake.under_way)
            fault = fake.faults.popleft() if fake.faults else fake.always
        try:
            time.sleep(fake.delay_seconds)
            good = self._refused() or self._answer(request)
            changed = fault(good) if fault is not None else None  # type: ignore[arg-type]
            self._reply(good if changed is None else changed)
        except CutConnectionError:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"choices": [')
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        finally:
            with fake.lock:
                fake.under_way -= 1

    def _answer(self, request: Json) -> Answer | Json:
        if self.path == "/v1/completions":
            return self.fake.completion(request)
        if self.path == "/v1/chat/completions":
            return self.fake.chat(request)
        return 404, {}, b'{"detail": "Not Found"}'

    def _refused(self) -> Answer | None:
        given = self.headers.get("Authorization")
        if self.fake.key is None or given == f"Bearer {self.fake.key}":
            return None
        return 401, {}, json.dumps({"error": {"message": f"Incorrect API key provided: {given}"}}).encode()

    def _reply(self, answer: Answer | Json) -> None:
        code, headers, content = (200, {}, json.dumps(answer).encode()) if isinstance(answer, dict) else answer
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that gave up are part of the tests."""


@contextmanager
def serving(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Iterator[FakeServer]:
    """Serve on a free port of loopback; ``url`` is the API's address."""
    fake = FakeServer(model, tokenizer)
    server = _QuietServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": fake}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
