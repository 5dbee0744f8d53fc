"""A teacher for tests: a real HTTP server that speaks the chat-completions protocol, in a process.

    python -m tests.corpus.teacher_server

prints its base URL and serves until it is killed. `POST /control` with {"plan": {word: [behaviour,
...]}, "default": behaviour} says how to treat requests whose letter holds a word: the behaviours in
turn, then the default. `GET /requests` lists what was asked since.

Behaviours: a key of `REPLIES` (a reply with that text), a name in `_Handler._reply` or
`_Handler._fault`, or a status such as "500"; some take a value after a colon ("slow:0.2").
"""

import json
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from empathy_jax import chain_of_empathy
from empathy_jax.chain_of_empathy import LAYERS, Chain

ROOT = Path(__file__).parents[2]

KEY, MODEL = "sk-test-0123456789", "teacher-1"
PROMPT_TOKENS, COMPLETION_TOKENS = 700, 300

ANSWER = "读到你写的这些，我能感到你已经撑了很久，而且几乎是一个人。" * 6
GOOD = Chain(
    "疲惫、委屈，夹着一点不敢说出口的怨。",
    "可能一直相信只有不麻烦别人才值得被爱。",
    "主要想被看见，其次才是办法。",
    "先接住疲惫，再轻轻谈那个信念，不急着给建议。",
    ANSWER,
)


def _without(name: str) -> str:
    """The good chain with one element taken away."""
    whole = chain_of_empathy.render(GOOD)
    return "\n".join(line for line in whole.split("\n") if f"<{name}>" not in line)


REPLIES = {
    "good": chain_of_empathy.render(GOOD),
    "no_layer": _without(LAYERS[1]),
    "prose": "好的，下面是我的想法：" + ANSWER,
    "fenced": "```\n" + chain_of_empathy.render(GOOD) + "\n```",
    "control": chain_of_empathy.render(Chain(*LAYERS, ANSWER + "<|im_end|>")),
    "short": chain_of_empathy.render(Chain(GOOD.L1, GOOD.L2, GOOD.L3, GOOD.L4, "抱抱你。")),
    "long": chain_of_empathy.render(Chain(GOOD.L1, GOOD.L2, GOOD.L3, GOOD.L4, ANSWER * 40)),
    "thin": chain_of_empathy.render(Chain(GOOD.L1, GOOD.L2, "无", GOOD.L4, ANSWER)),
    "refusal": "抱歉，我无法协助处理这个请求。",
    "machine": chain_of_empathy.render(
        Chain(GOOD.L1, GOOD.L2, GOOD.L3, GOOD.L4, "作为一个AI，我无法回应。" + ANSWER)
    ),
    "empty": "",
}


def _obey(letter: str) -> str:
    """As if the teacher did what a letter says: the chain that stands in it, else the letter."""
    start, end = letter.find(chain_of_empathy.TAGS[0]), letter.find(chain_of_empathy.TAGS[-1])
    if start < 0 or end < 0:
        return letter
    return letter[start : end + len(chain_of_empathy.TAGS[-1])]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._send(200, self.server.requests)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/control":
            with self.server.lock:
                self.server.plan, self.server.default = body["plan"], body["default"]
                self.server.requests = []
            return self._send(200, {})
        letter = body["messages"][1]["content"]
        with self.server.lock:
            self.server.in_flight += 1
            behaviour = self._next_behaviour(letter)
            self.server.requests.append(
                {
                    "body": body,
                    "key": self.headers["Authorization"].removeprefix("Bearer "),
                    "behaviour": behaviour,
                    "time": time.monotonic(),
                    "in_flight": self.server.in_flight,
                }
            )
        try:
            self._answer(body, behaviour, letter)
        finally:
            with self.server.lock:
                self.server.in_flight -= 1

    def _answer(self, body: dict, behaviour: str, letter: str) -> None:
        if self.headers["Authorization"] != f"Bearer {KEY}":
            text = f"Incorrect API key provided: {self.headers['Authorization']}."
            return self._error(401, text, "invalid_api_key")
        if body["model"] != MODEL:
            return self._error(404, f"The model {body['model']} does not exist.", "not_found")
        name, _, value = behaviour.partition(":")
        if name in REPLIES or name in ("slow", "parrot", "length", "filter", "field", "no_usage"):
            return self._reply(name, value, letter)
        return self._fault(name, value)

    def _next_behaviour(self, letter: str) -> str:
        for word, behaviours in self.server.plan.items():
            if word in letter and behaviours:
                return behaviours.pop(0)
        return self.server.default

    def _reply(self, name: str, value: str, letter: str) -> None:
        if name == "slow":
            time.sleep(float(value))
        text = _obey(letter) if name == "parrot" else REPLIES.get(name, REPLIES["good"])
        reason = {"length": "length", "filter": "content_filter"}.get(name, "stop")
        if name == "length":
            text = text[: len(text) // 2]
        message = {"role": "assistant", "content": text}
        if name == "field":
            message = {"role": "assistant", "content": None, "refusal": "I can't help with that."}
        value = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": MODEL,
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": {
                "prompt_tokens": PROMPT_TOKENS,
                "completion_tokens": COMPLETION_TOKENS,
                "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
            },
        }
        if name == "no_usage":
            del value["usage"]
        self._send(200, value)

    def _fault(self, name: str, value: str) -> None:
        if name == "hang":
            time.sleep(float(value or 60))
        elif name == "trickle":
            self.send_response(200)
            self.send_header("Content-Length", "5000")
            self.end_headers()
            for _ in range(30):
                self.wfile.write(b" ")
                time.sleep(0.1)
            self.close_connection = True
        elif name == "reset":
            # Linger 0: the socket is closed with a reset instead of an end.
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.close_connection = True
            self.connection.close()
            self.wfile = self.rfile = _Nothing()
        elif name == "truncated":
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(b'{"choices": [{"message": {"content": "')
            self.close_connection = True
        elif name == "malformed":
            self._send_bytes(200, b'{"choices": [{"message": {"content": "abc')
        elif name == "echo_key":  # the body is cut within a key that comes late, if it is cut early
            self._send_bytes(200, b"x" * int(value) + self.headers["Authorization"].encode())
        elif name == "no_choices":
            self._send(200, {"choices": []})
        elif name == "busy":
            self._error(429, "Too many requests.", "rate_limit", {"Retry-After": value})
        elif name == "quota":
            self._error(429, "You exceeded your current quota.", "insufficient_quota")
        else:
            self._error(int(name), f"Status {name} as planned.", None)

    def _error(
        self, status: int, message: str, code: str | None, headers: dict[str, str] | None = None
    ) -> None:
        self._send(status, {"error": {"message": message, "code": code}}, headers or {})

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send_bytes(status, json.dumps(value).encode(), headers or {})

    def _send_bytes(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": len(data)} | (
            headers or {}
        )
        for name, text in headers.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing is printed: the tests ask for the requests."""


class _Nothing:
    """Takes the place of the streams of a socket that is gone."""

    closed = True

    def flush(self) -> None: ...

    def close(self) -> None: ...


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()
        self.plan: dict[str, list[str]] = {}
        self.default = "good"
        self.requests: list[dict] = []
        self.in_flight = 0

    def handle_error(self, *_: Any) -> None:
        """A client that was killed or gave up is part of the tests."""


class Teacher:
    """What a test sees of the server: how it shall behave, and what it was asked."""

    def __init__(self, address: str):
        self._address = address
        self.base_url = f"{address}/v1"

    def plan(self, plan: dict[str, list[str]] | None = None, default: str = "good") -> None:
        """Sets the behaviours and forgets earlier requests."""
        self._call("/control", {"plan": plan or {}, "default": default})

    def requests(self) -> list[dict]:
        return self._call("/requests")

    def _call(self, path: str, value: Any = None) -> Any:
        data = None if value is None else json.dumps(value).encode()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self._address + path, data, timeout=10) as response:
            return json.loads(response.read())


@contextmanager
def serving() -> Iterator[Teacher]:
    """The server in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield Teacher(process.stdout.readline().strip())
        finally:
            process.kill()


if __name__ == "__main__":
    server = _Server()
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()
