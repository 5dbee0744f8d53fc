"""One conversation answered: all that is asked of the model and all that it says passes through here.

`begin` examines a request and puts it in line; `Conversation.events` is what comes back, in order.
Whatever should look at a question before the model reads it, or at a reply before a person does, has
its place in these two.
"""

import asyncio
import dataclasses
import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from empathy_jax import chain_of_empathy
from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.generation.continuous import Sample
from empathy_jax.generation.sampling import SamplingConfig
from empathy_jax.serving import journal
from empathy_jax.serving.protocol import ChatRequest, Refused
from empathy_jax.serving.sample_text import Delta, SampleText
from empathy_jax.serving.worker import Failed, Full, Job, Tokens, Worker
from empathy_jax.training import completions

# Fast tokenizers may not encode in two threads at a time.
_ENCODER = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")


@dataclasses.dataclass(frozen=True)
class Policy:
    """The decoder that answers.

    Attributes:
      name: under which clients ask for it.
      tokenizer: with our chat template.
      worker: owns the device.
      defaults: of sampling; `max_new_tokens` is the longest completion that may be asked for.
      max_prompt_tokens: the longest conversation.
      deadline: seconds that a request may take.
      log_texts: whether conversations are written to the log.
    """

    name: str
    tokenizer: PreTrainedTokenizerFast
    worker: Worker
    defaults: SamplingConfig
    max_prompt_tokens: int
    deadline: float
    log_texts: bool


class Ended(NamedTuple):
    """The end of a sample.

    Attributes:
      reason: "stop" or "length".
      chain: the four layers by name; None unless the completion is a valid chain.
      rule: the first rule it breaks; None when valid.
      tokens: that were made.
    """

    reason: str
    chain: Mapping[str, str] | None
    rule: str | None
    tokens: int


class Event(NamedTuple):
    """Something that happened to a sample: more text, or its end."""

    sample: int
    what: Delta | Ended


@dataclasses.dataclass(frozen=True)
class Conversation:
    """A request in line.

    Attributes:
      prompt_tokens: how many it has.
      events: of all its samples, as they happen. Closing it gives up what is not done.

    `events` raises `Refused` past the deadline, and when the worker ends.
    """

    prompt_tokens: int
    events: AsyncGenerator[Event]


async def begin(policy: Policy, request: ChatRequest) -> Conversation:
    """Examines a request and puts it in line.

    Raises:
      Refused: for a request that this model cannot serve, or a full line.
    """
    samples, worker = _samples(policy, request), policy.worker
    try:
        worker.reserve(len(samples))
    except Full as full:
        raise too_many(full) from full
    try:
        prompt = await _prompt(policy, request)
    except BaseException:
        worker.release(len(samples))
        raise
    loop, inbox = asyncio.get_running_loop(), asyncio.Queue()
    job = Job(
        prompt,
        samples,
        time.monotonic() + policy.deadline,
        lambda happened: loop.call_soon_threadsafe(inbox.put_nowait, happened),
    )
    worker.submit(job)
    return Conversation(len(prompt), _events(policy, request, job, inbox))


async def _prompt(policy: Policy, request: ChatRequest) -> list[int]:
    """The token ids of a conversation."""
    messages = [message.plain() for message in request.messages]
    encode = asyncio.get_running_loop().run_in_executor
    prompt = await encode(_ENCODER, tokenizers.conversation_ids, policy.tokenizer, messages)
    if len(prompt) > policy.max_prompt_tokens:
        raise Refused(
            400,
            f"the conversation has {len(prompt)} tokens; allowed are {policy.max_prompt_tokens}",
            "context_length_exceeded",
            "messages",
        )
    return prompt


def too_many(full: Full) -> Refused:
    """The answer to a request that finds the line full."""
    after = {"Retry-After": str(full.retry_after)}
    return Refused(429, "too many requests are waiting; try again later", "busy", headers=after)


def _samples(policy: Policy, request: ChatRequest) -> list[Sample]:
    """What each row is asked for."""
    if request.model != policy.name:
        raise Refused(404, "there is no such model; see /v1/models", "model_not_found", "model")
    defaults, n = policy.defaults, request.n or 1
    if n > policy.worker.rows:
        raise Refused(400, f"n may be {policy.worker.rows} at most", "n_too_large", "n")
    limit = request.max_completion_tokens or request.max_tokens or defaults.max_new_tokens
    if limit > defaults.max_new_tokens:
        raise Refused(
            400,
            f"max_tokens may be {defaults.max_new_tokens} at most",
            "max_tokens_too_large",
            "max_tokens",
        )
    temperature = defaults.temperature if request.temperature is None else request.temperature
    top_p = defaults.top_p if request.top_p is None else request.top_p
    seed = secrets.randbits(62) if request.seed is None else request.seed
    return [Sample(completions.stream_number(seed, i), limit, temperature, top_p) for i in range(n)]


async def _events(
    policy: Policy, request: ChatRequest, job: Job, inbox: asyncio.Queue
) -> AsyncGenerator[Event]:
    texts = [SampleText(policy.tokenizer, request.stops()) for _ in job.samples]
    unfinished = set(range(len(texts)))
    try:
        while unfinished:
            for happened in await inbox.get():
                if isinstance(happened, Failed):
                    raise failed(happened.reason)
                if happened.sample in unfinished:
                    text = texts[happened.sample]
                    for what in _heard(text, happened):
                        yield Event(happened.sample, what)
                    if happened.reason or text.stopped:
                        unfinished.remove(happened.sample)
                        if policy.log_texts:
                            messages = [message.plain() for message in request.messages]
                            journal.note(messages=messages, completion=text.completion())
                    if text.stopped and not happened.reason:
                        policy.worker.cancel(job, happened.sample)
    finally:
        if unfinished:
            policy.worker.cancel(job)


def _heard(text: SampleText, happened: Tokens) -> list[Delta | Ended]:
    """What some more tokens of a sample come to."""
    deltas = text.feed(happened.tokens)
    reason = "stop" if text.stopped else happened.reason
    if reason is None:
        return deltas
    deltas += text.close()
    verdict = text.verdict()
    chain = verdict.chain and {n: getattr(verdict.chain, n) for n in chain_of_empathy.LAYERS}
    return [*deltas, Ended(reason, chain, verdict.rule, text.tokens)]


def failed(reason: str) -> Refused:
    """The answer to a request that nothing more will come of; see `worker.Failed`."""
    if reason == "deadline":
        return Refused(408, "the request was not done by its deadline", reason)
    return Refused(503, "the server is going down", reason, headers={"Retry-After": "5"})
