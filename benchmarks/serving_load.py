"""Many streaming clients at once: waits, throughput, memory, mixed-up streams; beside other ways.

    PYTHONPATH=. python benchmarks/serving_load.py --model=DIR --clients=32 --seconds=300 --peer

In one run, one after the other: the engine alone on the same prompts (`offline`); the server under
`clients` clients, each sending its next request when its last is answered; with --peer, `generate` of
torch transformers behind FastAPI under the same clients. Every request has a seed, and its answer must
be the one that the same question and seed got before: streams that were mixed up would differ.
Prints a table and, last, one JSON line.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil

from benchmarks import serving_process


@dataclasses.dataclass
class Reply:
    """What a client saw of one request.

    Attributes:
      begun, ended: on the clock of `time.monotonic`.
      arrivals: when parts with text came.
      text: of all parts.
      tokens: that were made.
      error: what went wrong, if anything.
    """

    begun: float
    ended: float = 0.0
    arrivals: list[float] = dataclasses.field(default_factory=list)
    text: str = ""
    tokens: int = 0
    error: str | None = None


async def ask(port: int, body: dict[str, Any]) -> Reply:
    """Sends a streaming request over a connection of its own and reads all of the answer."""
    reply = Reply(time.monotonic())
    raw = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(
            f"{head}Connection: close\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw
        )
        status = await reader.readline()
        if b" 200 " not in status:
            reply.error = status.decode().strip()
        ids, done = set(), False
        while line := await reader.readline():
            if not line.startswith(b"data: {"):
                done = done or line.startswith(b"data: [DONE]")
                continue
            part = json.loads(line[6:])
            if "error" in part:
                reply.error = part["error"]["code"]
                continue
            ids.add(part["id"])
            if part.get("usage"):
                reply.tokens = part["usage"]["completion_tokens"]
            for choice in part["choices"]:
                delta = choice["delta"]
                text = delta.get("content") or delta.get("reasoning_content") or ""
                if text:
                    reply.arrivals.append(time.monotonic())
                    reply.text += text
        if not reply.error and (len(ids) != 1 or not done):
            reply.error = f"{len(ids)} ids in one stream, ended {done}"
    except (OSError, ValueError) as error:
        reply.error = repr(error)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    reply.ended = time.monotonic()
    return reply


async def ask_peer(port: int, prompt_ids: list[int], max_tokens: int, temperature: float) -> Reply:
    """The same for the peer, which does not stream."""
    reply = Reply(time.monotonic())
    raw = json.dumps(
        {"prompt_ids": prompt_ids, "max_tokens": max_tokens, "temperature": temperature}
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /generate HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
    answer = await reader.read()
    writer.close()
    reply.ended = time.monotonic()
    head, _, body = answer.partition(b"\r\n\r\n")
    reply.tokens = len(json.loads(body)["ids"])
    return reply


async def load(asks: Sequence[Any], clients: int, seconds: float) -> list[tuple[int, Reply]]:
    """Requests round and round by `clients` clients, until the time is over; all are waited for."""
    end, replies, turn = time.monotonic() + seconds, [], 0

    async def client() -> None:
        nonlocal turn
        while time.monotonic() < end:
            number, turn = turn % len(asks), turn + 1
            replies.append((number, await asks[number]()))

    await asyncio.gather(*(client() for _ in range(clients)))
    return replies


async def watch_memory(pid: int, samples: list[int]) -> None:
    """Resident bytes of a process, each second."""
    process = psutil.Process(pid)
    while True:
        samples.append(process.memory_info().rss)
        await asyncio.sleep(1)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds."""
    if not values:
        return {}
    return {f"p{p}_ms": round(1e3 * float(np.percentile(values, p)), 1) for p in (50, 99)}


def rates(replies: Sequence[tuple[int, Reply]], seconds: float) -> dict[str, float]:
    """Requests and tokens per second, of what ended within the time."""
    good = [reply for _, reply in replies if not reply.error]
    last = max((reply.ended for reply in good), default=0.0)
    first = min((reply.begun for reply in good), default=0.0)
    wall = max(last - first, seconds)
    tokens = sum(reply.tokens for reply in good)
    return {
        "requests": len(good),
        "seconds": round(wall, 1),
        "requests_per_s": round(len(good) / wall, 3),
        "tokens_per_s": round(tokens / wall, 1),
        "tokens_per_request": round(tokens / max(len(good), 1), 1),
    }


def serve(arguments: argparse.Namespace, questions: list[str]) -> dict[str, Any]:
    """The server under load."""
    fields = [
        f"config.sampling.rows={arguments.rows}",
        "config.serve.max_queue=1024",
        *arguments.field,
    ]
    with serving_process.start(arguments.model, fields) as server:
        url = f"http://127.0.0.1:{server.port}"
        from benchmarks.serving_hostile import fetch

        name = fetch(f"{url}/v1/models")["data"][0]["id"]

        def body(number: int) -> dict[str, Any]:
            return {
                "model": name, "messages": [{"role": "user", "content": questions[number]}],
                "stream": True, "stream_options": {"include_usage": True}, "seed": number,
                "max_tokens": arguments.max_tokens, "temperature": arguments.temperature, "top_p": 1.0,
            }  # fmt: skip

        asks = [lambda n=n: ask(server.port, body(n)) for n in range(len(questions))]
        memory: list[int] = []

        async def all_of_it() -> list[tuple[int, Reply]]:
            watching = asyncio.create_task(watch_memory(server.pid, memory))
            await load(asks, arguments.clients, min(arguments.seconds, 10))  # caches fill
            del memory[:]
            replies = await load(asks, arguments.clients, arguments.seconds)
            watching.cancel()
            return replies

        replies = asyncio.run(all_of_it())
    first: dict[int, str] = {}
    differing, foreign = 0, 0
    for number, reply in replies:
        if not reply.error and first.setdefault(number, reply.text) != reply.text:
            differing += 1
            foreign += reply.text in set(first.values())
    gaps = [b - a for _, r in replies for a, b in zip(r.arrivals, r.arrivals[1:], strict=False)]
    quarter = max(len(memory) // 4, 1)
    return {
        **rates(replies, arguments.seconds),
        "errors": sorted({reply.error for _, reply in replies if reply.error}),
        "failed": sum(reply.error is not None for _, reply in replies),
        "first_token": percentiles([r.arrivals[0] - r.begun for _, r in replies if r.arrivals]),
        "between_parts": percentiles(gaps),
        "repeated": len(replies) - len(first),
        "answers_that_differ": differing,
        "answers_of_another": foreign,
        "memory_mib": {
            "first_quarter": round(statistics.mean(memory[:quarter]) / 2**20, 1),
            "last_quarter": round(statistics.mean(memory[-quarter:]) / 2**20, 1),
            "peak": round(max(memory) / 2**20, 1),
        },
        "exit_status": server.exit_status,
    }


def prompts_of(arguments: argparse.Namespace) -> tuple[list[str], list[list[int]], Any]:
    """Questions that fit, their token ids, and the tokenizer."""
    from empathy_jax.corpus import readers
    from empathy_jax.data import tokenizer as tokenizers

    tokenizer = tokenizers.load(arguments.model, "zh")
    records, _ = readers.read_questions(arguments.questions, "zh")
    both = [(r["question"], tokenizers.prompt_ids(tokenizer, r["question"])) for r in records]
    fitting = [pair for pair in both if len(pair[1]) <= arguments.max_prompt_tokens]
    fitting = fitting[: arguments.distinct]
    return [q for q, _ in fitting], [ids for _, ids in fitting], tokenizer


def offline(
    arguments: argparse.Namespace, prompts: list[list[int]], tokenizer: Any
) -> dict[str, Any]:
    """The engine alone: the same prompts in one call, as many rows; the second of two calls."""
    import jax

    from empathy_jax.generation import engine
    from empathy_jax.models import hf

    config = hf.read_config(arguments.model)
    params = jax.device_put(hf.load_params(arguments.model, config, "float32"))
    sampling = engine.SamplingConfig(arguments.max_tokens, temperature=arguments.temperature)
    for _ in range(2):
        began = time.monotonic()
        done = engine.generate(
            params, config, prompts, key=jax.random.key(0), sampling=sampling,
            eos_ids=(tokenizer.eos_token_id,), pad_id=0, rows=arguments.rows,
        )  # fmt: skip
        seconds = time.monotonic() - began
    tokens = int(done.lengths.sum())
    return {
        "requests": len(prompts),
        "seconds": round(seconds, 1),
        "requests_per_s": round(len(prompts) / seconds, 3),
        "tokens_per_s": round(tokens / seconds, 1),
        "tokens_per_request": round(tokens / len(prompts), 1),
    }


def peer(arguments: argparse.Namespace, prompts: list[list[int]]) -> dict[str, Any]:
    """Torch transformers behind FastAPI, under the same clients."""
    with serving_process.start_peer(arguments.model) as server:
        options = (arguments.max_tokens, arguments.temperature)
        asks = [lambda ids=ids: ask_peer(server.port, ids, *options) for ids in prompts]
        seconds = min(arguments.seconds, arguments.peer_seconds)
        replies = asyncio.run(load(asks, arguments.clients, seconds))
    return rates(replies, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, help="Hugging Face directory")
    parser.add_argument("--questions", default="sample")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--peer-seconds", type=float, default=60)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--max-prompt-tokens", type=int, default=640)
    parser.add_argument(
        "--distinct", type=int, default=128, help="questions, asked round and round"
    )
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument(
        "--field", action="append", default=[], help="config.NAME=VALUE of the server"
    )
    parser.add_argument("--peer", action="store_true")
    arguments = parser.parse_args()
    questions, prompts, tokenizer = prompts_of(arguments)
    result = {
        "benchmark": "serving_load",
        "cores": len(os.sched_getaffinity(0)),
        "load": [round(load, 2) for load in os.getloadavg()],
        "clients": arguments.clients,
        "questions": len(questions),
        "prompt_tokens": round(statistics.mean(map(len, prompts)), 1),
        "max_tokens": arguments.max_tokens,
    }
    result["server"] = serve(arguments, questions)
    result["offline"] = offline(arguments, prompts, tokenizer)
    if arguments.peer:
        result["peer"] = peer(arguments, prompts)
    show(result)
    print(json.dumps(result))


def show(result: dict[str, Any]) -> None:
    """The figures as a table."""
    names = [name for name in ("server", "offline", "peer") if name in result]
    print(f"{'':24}" + "".join(f"{name:>12}" for name in names))
    for figure in ("requests", "requests_per_s", "tokens_per_s", "tokens_per_request"):
        print(f"{figure:24}" + "".join(f"{result[name][figure]:12.2f}" for name in names))
    served = result["server"]
    for figure in ("first_token", "between_parts"):
        print(f"{figure:24}" + "".join(f"  {k} {v}" for k, v in served[figure].items()))
    print(f"{'memory MiB':24}  " + "  ".join(f"{k} {v}" for k, v in served["memory_mib"].items()))
    print(
        f"failed {served['failed']}, differing {served['answers_that_differ']} of "
        f"{served['repeated']} repeated, of another {served['answers_of_another']}"
    )


if __name__ == "__main__":
    main()
