"""What was asked of models, what came back and what it cost: a journal and a budget.

`requests.jsonl` holds one line before each request is sent and one line when it has ended:

    {"event": "asked", "id", "turn", "tokens", "money"}         at most, were it answered
    {"event": "answered", "id", "turn", "model", "text", "finish_reason", "refusal",
     "prompt_tokens", "completion_tokens", "tokens", "money", "seconds", "estimated"}
    {"event": "failed", "id", "turn", "kind", "message", "tokens", "money"}   0 unless maybe billed

It is the one truth about a run. What a killed run had asked and not seen answered is at most one
request for each of those in flight; such requests count against the budget at their upper bound.
"""

import asyncio
import dataclasses
import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from empathy_jax import files
from empathy_jax.endpoint.client import Message, Reply

NAME = "requests.jsonl"

# Tokens that a chat template adds to the text of a message, generously.
_TEMPLATE_TOKENS = 32


@dataclasses.dataclass(frozen=True)
class Cost:
    """An amount of both things that a budget limits."""

    tokens: int = 0
    money: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.tokens + other.tokens, self.money + other.money)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.tokens - other.tokens, self.money - other.money)


@dataclasses.dataclass(frozen=True)
class Prices:
    """Money for a million tokens, in any one currency."""

    prompt: float
    completion: float

    def cost(self, prompt_tokens: int, completion_tokens: int) -> Cost:
        money = (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6
        return Cost(prompt_tokens + completion_tokens, money)


@dataclasses.dataclass
class Past:
    """What a journal says of the requests so far.

    Attributes:
      replies: by conversation id, the replies in the order of their turns.
      models: who wrote them.
      spent: for answered requests.
      possible: at most, for requests whose end was not seen (timeouts, broken connections, kills).
      open: the requests that were asked and have no end yet, by conversation id.
    """

    replies: dict[str, list[Reply]] = dataclasses.field(default_factory=dict)
    models: set[str] = dataclasses.field(default_factory=set)
    spent: Cost = Cost()
    possible: Cost = Cost()
    open: dict[str, dict] = dataclasses.field(default_factory=dict)


def prompt_bound(messages: list[Message]) -> int:
    """Tokens that a prompt has at most: no vocabulary with byte fallback needs more than its bytes."""
    texts = (message["content"].encode("utf-8") for message in messages)
    return sum(len(text) + _TEMPLATE_TOKENS for text in texts)


def asked(id_: str, turn: int, most: Cost) -> dict:
    """The line before a request."""
    return {"event": "asked", "id": id_, "turn": turn, **dataclasses.asdict(most)}


def answered(id_: str, turn: int, model: str, reply: Reply, cost: Cost, estimated: bool) -> dict:
    """The line after a reply; `estimated` where the endpoint reported no usage."""
    return {
        "event": "answered",
        "id": id_,
        "turn": turn,
        "model": model,
        **dataclasses.asdict(reply),
        **dataclasses.asdict(cost),
        "estimated": estimated,
    }


def failed(id_: str, turn: int, kind: str, message: str, possible: Cost) -> dict:
    """The line after a request without a reply."""
    return {
        "event": "failed",
        "id": id_,
        "turn": turn,
        "kind": kind,
        "message": message,
        **dataclasses.asdict(possible),
    }


def _read(folder: Path) -> list[dict]:
    """The whole lines of the journal of a folder; [] where there is none yet."""
    path = folder / NAME
    return list(files.read_jsonl(path)) if path.exists() else []


def replay(events: Iterable[dict]) -> Past:
    """Sums up a journal."""
    past = Past()
    for event in events:
        cost = Cost(event["tokens"], event["money"])
        if event["event"] == "asked":
            past.open[event["id"]] = event
            continue
        past.open.pop(event["id"], None)
        if event["event"] == "answered":
            reply = Reply(**{field.name: event[field.name] for field in dataclasses.fields(Reply)})
            past.replies.setdefault(event["id"], []).append(reply)
            past.models.add(event["model"])
            past.spent += cost
        else:
            past.possible += cost
    return past


@contextmanager
def resume(folder: Path) -> Iterator[Past]:
    """Opens the journal of a folder for this process alone and yields what it says.

    A line that a killed run left unfinished is cut off, and the requests that it had in flight are
    closed as failed ("killed") at their upper bound.

    Raises:
      ValueError: when another process is writing to the folder.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another process is writing to {folder}; wait for its end, or choose another folder"
            ) from error
        events = _read(folder)
        message = "in flight when the run was killed"
        killed = [
            failed(id_, event["turn"], "killed", message, Cost(event["tokens"], event["money"]))
            for id_, event in replay(events).open.items()
        ]
        files.write_jsonl(folder / NAME, [*events, *killed])
        yield replay([*events, *killed])
    finally:
        os.close(handle)


class OverBudget(Exception):
    """A request cannot be sent without the risk of passing a limit; nothing is in flight."""


class Budget:
    """Hard limits of tokens and money, shared by the requests in flight.

    A request is sent only when what was spent, what may have been spent, and the upper bounds of
    all requests in flight stay within both limits together with its own upper bound.
    """

    def __init__(self, limit: Cost, used: Cost):
        self._limit, self._used = limit, used
        self._reserved, self._in_flight = Cost(), 0
        self._changed = asyncio.Condition()

    async def reserve(self, most: Cost) -> None:
        """Sets `most` aside; waits while requests in flight may still give enough back.

        Raises:
          OverBudget: when it cannot fit any more.
        """
        async with self._changed:
            while not self._fits(most):
                if not self._in_flight:
                    raise OverBudget
                await self._changed.wait()
            self._reserved += most
            self._in_flight += 1

    async def settle(self, most: Cost, used: Cost) -> None:
        """Gives `most` back and counts what the request used."""
        async with self._changed:
            self._in_flight -= 1
            # Without the dust that sums of floats leave.
            self._reserved = self._reserved - most if self._in_flight else Cost()
            self._used += used
            self._changed.notify_all()

    def _fits(self, most: Cost) -> bool:
        total = self._used + self._reserved + most
        return total.tokens <= self._limit.tokens and total.money <= self._limit.money
