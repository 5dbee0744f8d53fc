"""Servers for tests: the real application on a real port, over a model that says what it is told."""

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Iterator, Sequence

import uvicorn

from empathy_jax import chain_of_empathy
from empathy_jax.chain_of_empathy import Chain
from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.generation.continuous import Made, Prompt, Sample
from empathy_jax.generation.sampling import SamplingConfig
from empathy_jax.safety import guard
from empathy_jax.serving import app as apps
from empathy_jax.serving import chat, limits
from empathy_jax.serving.metrics import Metrics
from empathy_jax.serving.rewards import Rewards
from empathy_jax.serving.worker import Worker

CHAIN = Chain(
    "难过，睡不着😔", "觉得自己不够好", "想被听见", "先接住", "听起来你很累。\n我在这里。"
)
MODEL = "counsellor"


def make_tokenizer():
    """A small byte-level tokenizer: most characters take several tokens."""
    texts = [chain_of_empathy.render(CHAIN), chain_of_empathy.system_prompt("zh"), "user assistant"]
    return tokenizers.set_chat_template(tokenizers.train(texts * 20, 400), "zh")


class ScriptedBatch:
    """As `ContinuousBatch`, but every completion is the same text, and a slice takes its time."""

    def __init__(self, tokenizer, text: str, rows: int = 4, slice_seconds: float = 0.0):
        self.script = tokenizers.completion_ids(tokenizer, text)
        self.rows, self.slice_seconds = rows, slice_seconds
        self.prompts: list[list[int]] = []
        self._running: dict[int, list[int]] = {}  # row to [tokens told, limit]
        self.error: Exception | None = None

    @property
    def free(self) -> int:
        return self.rows - len(self._running)

    def prefill(self, tokens: Sequence[int]) -> Prompt:
        self.prompts.append(list(tokens))
        return Prompt(None, len(tokens) - 1, tokens[-1])

    def start(self, prompt: Prompt, sample: Sample) -> int:
        row = next(row for row in range(self.rows) if row not in self._running)
        self._running[row] = [0, sample.limit]
        return row

    def stop(self, row: int) -> None:
        del self._running[row]

    def decode(self, steps: int, enough: int) -> list[Made]:
        if self.error is not None:
            raise self.error
        made = []
        if self._running:
            time.sleep(self.slice_seconds)
        for row, (told, limit) in list(self._running.items()):
            end = min(told + steps, limit, len(self.script))
            stopped = end == len(self.script)
            made.append(Made(row, self.script[told:end], stopped, stopped or end == limit))
            self._running[row][0] = end
            if made[-1].done:
                del self._running[row]
        return made


@dataclasses.dataclass
class Served:
    """A running server."""

    url: str
    port: int
    worker: Worker
    batch: object
    metrics: Metrics

    def settle(self, seconds: float = 5.0) -> None:
        """Waits until nothing runs and nothing waits."""
        end = time.monotonic() + seconds
        while self.worker.running or self.worker.waiting:
            assert time.monotonic() < end, (self.worker.running, self.worker.waiting)
            time.sleep(0.01)


@contextlib.contextmanager
def serve(
    batch,
    tokenizer,
    *,
    token: str = "",
    max_queue: int = 8,
    deadline: float = 30.0,
    max_body_bytes: int = 20_000,
    log_texts: bool = False,
    scorer=None,
    config=None,
    limit: int = 400,
    region: str | None = "cn",
) -> Iterator[Served]:
    """The application on a free port of this machine, until the block ends."""
    metrics = Metrics()
    worker = Worker(batch, max_queue, metrics)
    defaults = SamplingConfig(limit, temperature=0.8, top_p=0.95)
    policy = chat.Policy(
        MODEL, tokenizer, "chain", worker, defaults, 600, deadline, log_texts, metrics, region
    )
    guard.examine([{"role": "user", "content": "a"}], "cn")  # reads the rules, which takes a while
    rewards = None
    if scorer is not None:
        rewards = Rewards(f"{MODEL}-reward", scorer, worker, config, deadline)
    app = apps.make_app(policy, rewards, metrics, token, max_body_bytes)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    # Its own setup of logging would close a stream that pytest captures.
    server = uvicorn.Server(
        uvicorn.Config(
            app, http=limits.PatientProtocol, ws="none", lifespan="off", access_log=False,
            log_level="critical", log_config=None, timeout_graceful_shutdown=2,
        )
    )  # fmt: skip
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield Served(f"http://127.0.0.1:{port}", port, worker, batch, metrics)
    finally:
        server.should_exit = True
        thread.join(10)
        worker.close()
        listener.close()
