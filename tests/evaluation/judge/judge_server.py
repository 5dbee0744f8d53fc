"""Judges for tests: a real HTTP server that speaks the chat-completions protocol."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from empathy_jax.evaluation.judge.prompts import LABELS
from empathy_jax.evaluation.ranking import DIMENSIONS

PROMPT_TOKENS, COMPLETION_TOKENS = 900, 100

_REPLY = re.compile(r"=== 回信 (\w) 开始 (\w{16}) ===\n(.*?)\n=== 回信 \1 结束 \2 ===", re.S)

# A model's name to what it writes, given the messages.
Judges = dict[str, Callable[[list[dict]], str]]


def shown(messages: list[dict]) -> list[str]:
    """The replies between their marks, in the order of the page."""
    return [text for _, _, text in _REPLY.findall(messages[-1]["content"])]


def outside(messages: list[dict]) -> str:
    """What the user message says outside all marks."""
    return _REPLY.sub("", messages[-1]["content"])


def prefer(best_first: list[int]) -> str:
    """The strict reply for places in order, the best first: of a pair or of a list."""
    labels = [LABELS[place] for place in best_first]
    value = labels[0] if len(labels) == 2 else labels
    return json.dumps({"reason": "因为……", **dict.fromkeys(DIMENSIONS, value)}, ensure_ascii=False)


def by_words(words: str) -> Callable[[list[dict]], str]:
    """A judge that prefers answers by the first of `words` that they hold."""

    def judge(messages: list[dict]) -> str:
        marks = [min(words.index(c) for c in text if c in words) for text in shown(messages)]
        return prefer(sorted(range(len(marks)), key=marks.__getitem__))

    return judge


class Server(ThreadingHTTPServer):
    """Knows what it was asked: `asked` holds (model, messages)."""

    daemon_threads = True

    def __init__(self, judges: Judges):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.judges = judges
        self.asked: list[tuple[str, list[dict]]] = []
        self.base_url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((body["model"], body["messages"]))
        text = self.server.judges[body["model"]](body["messages"])
        status, value = (
            200,
            {
                "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS},
            },
        )
        if text.isdecimal():
            status, value = int(text), {"error": {"message": "as planned"}}
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@contextmanager
def serving(judges: Judges) -> Iterator[Server]:
    server = Server(judges)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
