"""A server in a process of its own, for the benchmarks of serving."""

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence


@dataclasses.dataclass
class Server:
    """A running server.

    Attributes:
      pid: of its process.
      port: on this machine.
      exit_status: once it has ended.
    """

    pid: int
    port: int
    exit_status: int | None = None


@contextlib.contextmanager
def start(model: str, fields: Sequence[str] = (), size: str = "small") -> Iterator[Server]:
    """Serves a model on a free port until the block ends, then sends SIGTERM and waits.

    Args:
      model: directory or hub id.
      fields: further "config.NAME=VALUE" of the phase serve.
      size: of configs/serve.py.
    """
    with tempfile.TemporaryDirectory() as workdir:
        command = [
            sys.executable, "-m", "empathy_jax.main", f"--config=configs/serve.py:{size}",
            f"--workdir={workdir}", f"--config.model.init={model}", "--config.serve.port=0",
            *(f"--{field}" for field in fields),
        ]  # fmt: skip
        yield from _running(command, rb"http://127\.0\.0\.1:(\d+)")


@contextlib.contextmanager
def start_peer(model: str) -> Iterator[Server]:
    """The same for `transformers` behind FastAPI."""
    yield from _running([sys.executable, "benchmarks/serving_peer.py", model], rb"port (\d+)")


def _running(command: list[str], ready: bytes) -> Iterator[Server]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    try:
        for line in process.stdout:
            if found := re.search(ready, line):
                break
        else:
            raise RuntimeError(f"the server has ended with status {process.wait()}")
        # What it says from now on is a line for each request.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        server = Server(process.pid, int(found.group(1)))
        yield server
        process.send_signal(signal.SIGTERM)
        server.exit_status = process.wait(120)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
