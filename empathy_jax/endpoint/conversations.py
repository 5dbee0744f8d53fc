"""Many conversations with one endpoint: at once, within a budget, tried again, never paid twice.

A request is written to the journal before it is sent, and its reply before anything else is done
with it. So a run that is killed at any moment goes on with the first request that has no reply: no
reply is paid for twice, and what was in flight at the kill, at most `concurrency` requests, is all
that can be lost. It counts against the budget.
"""

import asyncio
import dataclasses
import math
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import openai

from empathy_jax import files
from empathy_jax.endpoint import client as clients
from empathy_jax.endpoint import journal
from empathy_jax.endpoint.client import Endpoint, Failure, Message, Reply
from empathy_jax.endpoint.journal import Budget, Cost, OverBudget, Past, Prices

# Longer than that nobody waits unseen: the run stops and says so.
LONGEST_WAIT = 600.0
_LONGEST_BACKOFF = 60.0

GO_ON = "the same command goes on from here"


@dataclasses.dataclass(frozen=True)
class Terms:
    """On which terms an endpoint is asked.

    Attributes:
      endpoint: the model.
      prices: of the endpoint.
      max_tokens, max_money: the budget of the journal, earlier runs included.
      concurrency: requests in flight at most.
      retries: further tries of a request that failed for a passing reason.
      backoff: seconds before the first of them, doubled for each further one (up to a minute).
      max_failures: conversations in a row that may end without any reply before the run stops.
    """

    endpoint: Endpoint
    prices: Prices
    max_tokens: int
    max_money: float
    concurrency: int = 8
    retries: int = 5
    backoff: float = 1.0
    max_failures: int = 10

    def budget(self, past: Past) -> Budget:
        """What is left of the budget of a journal."""
        return Budget(Cost(self.max_tokens, self.max_money), past.spent + past.possible)


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages and replies in turn.

    Attributes:
      id: of the conversation in the journal.
      messages: what to send next, given the replies so far; None where the conversation is over.
    """

    id: str
    messages: Callable[[list[Reply]], list[Message] | None]


@dataclasses.dataclass
class _Run:
    """What the workers share: the client, the budget, and how far they are."""

    terms: Terms
    path: Path
    client: openai.AsyncOpenAI
    budget: Budget
    replies: dict[str, list[Reply]]
    should_stop: Callable[[], bool]
    on_end: Callable[[str, list[Reply], Failure | None], None]
    failures_in_a_row: int = 0
    stopped: str | None = None


class _Stopped(Exception):
    """The run has stopped, and the conversation at hand stays open."""


def check(terms: Terms) -> None:
    """Refuses terms that cannot work.

    Raises:
      ValueError: names the field, its value and what is allowed.
    """
    clients.check(terms.endpoint)
    option = terms.endpoint.option
    for name in ("prompt", "completion"):
        price = getattr(terms.prices, name)
        if not 0 <= price < math.inf:
            raise ValueError(
                f"{option(f'{name}_price')} is {price}; give the price of a million tokens, 0"
                " for an endpoint that charges nothing"
            )
    for name in ("max_tokens", "concurrency", "max_failures"):
        if getattr(terms, name) < 1:
            raise ValueError(f"{option(name)} is {getattr(terms, name)}; it must be 1 or more")
    for name in ("max_money", "retries", "backoff"):
        if not 0 <= getattr(terms, name) < math.inf:
            raise ValueError(f"{option(name)} is {getattr(terms, name)}; it must be 0 or more")


async def hold(
    conversations: Iterable[Conversation],
    terms: Terms,
    folder: Path,
    budget: Budget,
    replies: dict[str, list[Reply]],
    should_stop: Callable[[], bool],
    on_end: Callable[[str, list[Reply], Failure | None], None],
) -> str | None:
    """Holds the conversations to their ends.

    Args:
      conversations: in the order in which they begin.
      terms: see `Terms`.
      folder: of the journal, which `journal.resume` keeps open.
      budget: of the journal; several endpoints may share it.
      replies: by conversation, those that the journal has; gets the new ones.
      should_stop: looked at before each conversation; true ends the run after those in flight.
      on_end: called with each conversation's id, its replies, and the failure that ended it if any.

    Returns:
      Why it stopped before the end, else None.
    """
    async with clients.connect(terms.endpoint) as client:
        path = folder / journal.NAME
        run = _Run(terms, path, client, budget, replies, should_stop, on_end)
        left = iter(conversations)
        # One alone first: a wrong key or model then costs one request, not `concurrency` of them.
        await _worker(run, left, most=1)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(terms.concurrency):
                    group.create_task(_worker(run, left))
        except ExceptionGroup as errors:  # such as a full disk, which each worker meets
            raise errors.exceptions[0] from errors
    return run.stopped


async def _worker(run: _Run, left: Iterator[Conversation], most: int | None = None) -> None:
    """Takes conversations until there are none, the run stops, or `most` are done."""
    done = 0
    while done != most:
        if run.should_stop():
            run.stopped = run.stopped or f"it was told to stop; {GO_ON}"
        if run.stopped is not None or (conversation := next(left, None)) is None:
            return
        try:
            failure = await _converse(run, conversation)
        except _Stopped:
            return
        run.on_end(conversation.id, run.replies[conversation.id], failure)
        _count_failures(run, failure)
        done += 1


async def _converse(run: _Run, conversation: Conversation) -> Failure | None:
    """Takes one conversation to its end; returns the failure that ended it, if any.

    Raises:
      _Stopped: when the run stops before.
    """
    replies = run.replies.setdefault(conversation.id, [])
    while (messages := conversation.messages(replies)) is not None:
        result = await _turn(run, conversation.id, len(replies) + 1, messages)
        if isinstance(result, Failure):
            return result
        replies.append(result)
    return None


def _count_failures(run: _Run, failure: Failure | None) -> None:
    run.failures_in_a_row = run.failures_in_a_row + 1 if failure is not None else 0
    if run.failures_in_a_row >= run.terms.max_failures:
        run.stopped = run.stopped or (
            f"{run.failures_in_a_row} questions in a row got no reply"
            f" ({run.terms.endpoint.option('max_failures')}); the last: {failure.kind}:"
            f" {failure.message}. When the endpoint answers again, {GO_ON} and asks these again"
        )


async def _turn(run: _Run, id_: str, turn: int, messages: list[Message]) -> Reply | Failure:
    """One turn of a conversation, tried until there is a reply or no hope of one.

    Raises:
      _Stopped: when the run stops before the turn has ended.
    """
    for attempt in range(run.terms.retries + 1):
        if attempt:
            await _pause(run, result, attempt)
        result = await _try(run, id_, turn, messages)
        if isinstance(result, Failure) and result.fatal:
            run.stopped = run.stopped or _fatal(result, run.terms.endpoint)
            raise _Stopped
        if isinstance(result, Reply) or not result.retry:
            return result
    return result


async def _try(run: _Run, id_: str, turn: int, messages: list[Message]) -> Reply | Failure:
    """One request, within the budget, written to the journal before and after."""
    terms, endpoint = run.terms, run.terms.endpoint
    most = most_cost(terms, messages)
    try:
        await run.budget.reserve(most)
    except OverBudget as error:
        run.stopped = run.stopped or _over_budget(terms, most)
        raise _Stopped from error
    used = most
    try:
        if run.stopped is not None:
            used = Cost()
            raise _Stopped
        files.append_jsonl(run.path, [journal.asked(id_, turn, most)])
        result = await clients.ask(run.client, endpoint, messages)
        if isinstance(result, Reply):
            known = result.prompt_tokens is not None and result.completion_tokens is not None
            if known:
                used = terms.prices.cost(result.prompt_tokens, result.completion_tokens)
            event = journal.answered(id_, turn, endpoint.model, result, used, not known)
        else:
            used = most if result.billed else Cost()
            event = journal.failed(id_, turn, result.kind, result.message, used)
        files.append_jsonl(run.path, [event])
    finally:
        await run.budget.settle(most, used)
    return result


def most_cost(terms: Terms, messages: list[Message]) -> Cost:
    """What a request costs at most."""
    return terms.prices.cost(journal.prompt_bound(messages), terms.endpoint.max_completion_tokens)


async def _pause(run: _Run, failure: Failure, attempt: int) -> None:
    """Waits before another try: as long as the endpoint asks, else longer each time, with jitter.

    Raises:
      _Stopped: when the run stops meanwhile, or would have to wait unreasonably long.
    """
    doubled = min(run.terms.backoff * 2 ** (attempt - 1), _LONGEST_BACKOFF)
    wait = random.uniform(0.5, 1.0) * doubled if failure.wait is None else failure.wait
    if wait > LONGEST_WAIT:
        run.stopped = run.stopped or (
            f"the endpoint asks to wait {wait:.0f} s ({failure.message}); {GO_ON} later"
        )
    end = asyncio.get_running_loop().time() + wait
    while run.stopped is None and not run.should_stop():
        left = end - asyncio.get_running_loop().time()
        if left <= 0:
            return
        await asyncio.sleep(min(left, 0.5))
    raise _Stopped


def _fatal(failure: Failure, endpoint: Endpoint) -> str:
    ways = {
        "401": f"check the key in the environment variable {endpoint.api_key_env!r}"
        f" ({endpoint.option('api_key_env')})",
        "404": f"check {endpoint.option('model')} ({endpoint.model!r}) and"
        f" {endpoint.option('base_url')}",
    }
    way = ways.get(failure.kind, "check the credit of the account")
    return f"{endpoint.base_url} answered {failure.kind}: {failure.message}; {way}"


def _over_budget(terms: Terms, most: Cost) -> str:
    option = terms.endpoint.option
    return (
        f"the budget of {terms.max_tokens} tokens and {terms.max_money:g} in money"
        f" ({option('max_tokens')}, {option('max_money')}) has no room for the next"
        f" request, which takes up to {most.tokens} tokens and {most.money:.4g}; raise it, and"
        f" {GO_ON}"
    )
