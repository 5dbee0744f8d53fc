"""One conversation answered: all that is asked of the model and all that it says passes through here.

`begin` examines a request and puts it in line; `Conversation.events` is what comes back, in order. The
guard has its place in these two: it grades what the user wrote before the model reads it, and reads what
the model says before a person does.
"""

import asyncio
import dataclasses
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from transformers import PreTrainedTokenizerFast

from empathy_jax import chain_of_empathy
from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.generation.continuous import Sample
from empathy_jax.generation.sampling import SamplingConfig
from empathy_jax.safety import guard
from empathy_jax.serving import guarded, journal
from empathy_jax.serving.metrics import Metrics
from empathy_jax.serving.protocol import ChatRequest, Refused
from empathy_jax.serving.sample_text import Delta, SampleText
from empathy_jax.serving.worker import Failed, Full, Job, Tokens, Worker
from empathy_jax.training import completions

# Fast tokenizers may not encode in two threads at a time.
_ENCODER = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
# Grading takes up to a second or two; a short text need not wait for the long ones before it.
_GRADERS = ThreadPoolExecutor(4, thread_name_prefix="guard")


@dataclasses.dataclass(frozen=True)
class Policy:
    """The decoder that answers.

    Attributes:
      name: under which clients ask for it.
      tokenizer: with our chat template.
      form: what the model writes, one of `chain_of_empathy.FORMATS`.
      worker: owns the device.
      defaults: of sampling; `max_new_tokens` is the longest completion that may be asked for.
      max_prompt_tokens: the longest conversation.
      deadline: seconds that a request may take.
      log_texts: whether conversations are written to the log.
      metrics: counts what the guard decides.
      region: whose numbers the guard gives; None: there is no guard.
    """

    name: str
    tokenizer: PreTrainedTokenizerFast
    form: str
    worker: Worker
    defaults: SamplingConfig
    max_prompt_tokens: int
    deadline: float
    log_texts: bool
    metrics: Metrics
    region: str | None


class Ended(NamedTuple):
    """The end of a sample.

    Attributes:
      reason: "stop", "length", or "content_filter" where the guard ended it.
      chain: the four layers by name, as they were told; None unless the completion is a valid chain.
      rule: the first rule of its format that it breaks; None when valid.
      tokens: that were made.
    """

    reason: str
    chain: Mapping[str, str] | None
    rule: str | None
    tokens: int


class HeldBack(NamedTuple):
    """The guard withheld a sentence of a sample; the code says of which kind."""

    code: str


class Event(NamedTuple):
    """Something that happened to a sample: more text, some that was withheld, or its end."""

    sample: int
    what: Delta | HeldBack | Ended


@dataclasses.dataclass(frozen=True)
class Conversation:
    """A request in line.

    Attributes:
      prompt_tokens: how many it has.
      events: of all its samples, as they happen. Closing it gives up what is not done. A message of the
        guard is the first of each sample, before anything has been decoded.
      decision: of the guard; None: there is none.

    `events` raises `Refused` past the deadline, and when the worker ends.
    """

    prompt_tokens: int
    events: AsyncGenerator[Event]
    decision: guard.Decision | None


async def begin(policy: Policy, request: ChatRequest) -> Conversation:
    """Examines a request and puts it in line.

    Raises:
      Refused: for a request that this model cannot serve, or a full line.
    """
    deadline = time.monotonic() + policy.deadline
    samples = _samples(policy, request)
    messages = [message.plain() for message in request.messages]
    decision = await _decide(policy, messages)
    try:
        prompt = await _reserve(policy, messages, len(samples))
    except Refused as refused:
        raise _with_message(refused, decision) from refused
    loop, inbox = asyncio.get_running_loop(), asyncio.Queue()
    job = Job(
        prompt,
        samples,
        deadline,
        lambda happened: loop.call_soon_threadsafe(inbox.put_nowait, happened),
    )
    policy.worker.submit(job)
    return Conversation(len(prompt), _events(policy, request, job, inbox, decision), decision)


async def _decide(policy: Policy, messages: Sequence[Mapping[str, str]]) -> guard.Decision | None:
    """What the guard makes of a conversation: noted and counted by its code."""
    if policy.region is None:
        return None
    grade = asyncio.get_running_loop().run_in_executor
    decision = await grade(_GRADERS, guard.examine, messages, policy.region)
    policy.metrics.guard_decisions.labels(decision.code).inc()
    journal.note(guard=decision.code, grade=decision.grade, about=decision.about)
    return decision


def _with_message(refused: Refused, decision: guard.Decision | None) -> Refused:
    """An error that tells what the guard wants told all the same."""
    if decision is not None and decision.message is not None:
        refused.body["error"]["guard"] = guarded.wire(decision)
    return refused


async def _reserve(
    policy: Policy, messages: Sequence[Mapping[str, str]], samples: int
) -> list[int]:
    """Takes places in line; the token ids of the conversation."""
    try:
        policy.worker.reserve(samples)
    except Full as full:
        raise too_many(full) from full
    try:
        return await _prompt(policy, messages)
    except BaseException:
        policy.worker.release(samples)
        raise


async def _prompt(policy: Policy, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """The token ids of a conversation."""
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
    policy: Policy,
    request: ChatRequest,
    job: Job,
    inbox: asyncio.Queue,
    decision: guard.Decision | None,
) -> AsyncGenerator[Event]:
    stops = request.stops()
    texts = [SampleText(policy.tokenizer, stops, policy.form) for _ in job.samples]
    replies = [decision and guard.Reply(decision.language, policy.region) for _ in job.samples]
    unfinished = set(range(len(texts)))
    try:
        if decision is not None and decision.message is not None:
            for sample in range(len(texts)):
                yield Event(sample, Delta(False, None, decision.message + "\n\n"))
        while unfinished:
            for happened in await inbox.get():
                if isinstance(happened, Failed):
                    raise _with_message(failed(happened.reason), decision)
                if happened.sample in unfinished:
                    text = texts[happened.sample]
                    heard = _heard(text, replies[happened.sample], happened)
                    for what in heard:
                        if isinstance(what, HeldBack):
                            policy.metrics.guard_held_back.labels(what.code).inc()
                            journal.note(guard=decision.code, held_back=what.code)
                        yield Event(happened.sample, what)
                    if heard and isinstance(heard[-1], Ended):
                        unfinished.remove(happened.sample)
                        if policy.log_texts:
                            messages = [message.plain() for message in request.messages]
                            journal.note(messages=messages, completion=text.completion())
                        if not happened.reason:
                            policy.worker.cancel(job, happened.sample)
    finally:
        if unfinished:
            policy.worker.cancel(job)


def _heard(
    text: SampleText, reply: guard.Reply | None, happened: Tokens
) -> list[Delta | HeldBack | Ended]:
    """What some more tokens of a sample come to."""
    deltas = text.feed(happened.tokens)
    reason = "stop" if text.stopped else happened.reason
    if reason is not None:
        deltas += text.close()
    known = len(reply.held_back) if reply else 0
    deltas = guarded.checked(reply, deltas, ends=reason is not None)
    heard = [HeldBack(code) for code in reply.held_back[known:]] if reply else []
    heard += deltas
    if reply and reply.ended:
        reason = "content_filter"
    return heard if reason is None else [*heard, _ended(text, reply, reason)]


def _ended(text: SampleText, reply: guard.Reply | None, reason: str) -> Ended:
    verdict = text.verdict()
    chain = None
    if verdict.valid and text.form == "chain":
        chain = {name: getattr(verdict.chain, name) for name in chain_of_empathy.LAYERS}
    if chain is not None and reply is not None and reply.held_back:
        chain = {name: reply.told.get(name, "").strip() for name in chain_of_empathy.LAYERS}
    return Ended(reason, chain, verdict.rule, text.tokens)


def failed(reason: str) -> Refused:
    """The answer to a request that nothing more will come of; see `worker.Failed`."""
    if reason == "deadline":
        return Refused(408, "the request was not done by its deadline", reason)
    return Refused(503, "the server is going down", reason, headers={"Retry-After": "5"})
