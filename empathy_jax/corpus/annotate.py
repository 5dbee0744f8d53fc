"""Chains of Empathy for questions, written by a teacher model behind an OpenAI-compatible endpoint.

    folder/requests.jsonl   the journal: every request and every reply (annotation.journal)
    folder/chains.jsonl     chain records, with "teacher"
    folder/rejected.jsonl   questions without a chain, the reason, and what the teacher wrote
    folder/report.json      cost and quality (annotation.reporting)

A reply is written to the journal before anything else is done with it, and chains.jsonl and
rejected.jsonl follow from the journal alone. So a run killed at any moment goes on with the first
request that has no reply: no reply is paid for twice, and what was in flight at the kill, at most
`concurrency` requests, is all that can be lost. It counts against the budget.

A question has at most two turns: the first, and one repair in which the broken text goes back with
the rule that it breaks. Each turn is tried `1 + retries` times. A question whose tries all failed
("model_error") is asked again when the run is started again.
"""

import asyncio
import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import openai

from empathy_jax import files
from empathy_jax.corpus.annotation import journal, judging, prompts, reporting, teacher
from empathy_jax.corpus.annotation.journal import Budget, Cost, OverBudget, Past, Prices
from empathy_jax.corpus.annotation.judging import Limits
from empathy_jax.corpus.annotation.teacher import Endpoint, Failure, Reply
from empathy_jax.corpus.records import Record

# Longer than that nobody waits unseen: the run stops and says so.
LONGEST_WAIT = 600.0
_LONGEST_BACKOFF = 60.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to annotate.

    Attributes:
      endpoint: the teacher.
      language: of the instructions, "zh" or "en".
      prices: of the endpoint.
      max_tokens, max_money: the budget of the folder, earlier runs included.
      concurrency: requests in flight at most.
      retries: further tries of a request that failed for a passing reason.
      backoff: seconds before the first of them, doubled for each further one (up to a minute).
      max_failures: questions in a row that may end without any reply before the run stops.
      limits: what a chain must keep to.
    """

    endpoint: Endpoint
    language: str
    prices: Prices
    max_tokens: int
    max_money: float
    concurrency: int = 8
    retries: int = 5
    backoff: float = 1.0
    max_failures: int = 10
    limits: Limits = dataclasses.field(default_factory=Limits)


@dataclasses.dataclass
class _Run:
    """What the workers share: the client, the budget, and how far they are."""

    settings: Settings
    folder: Path
    client: openai.AsyncOpenAI
    budget: Budget
    replies: dict[str, list[Reply]]
    should_stop: Callable[[], bool]
    on_progress: Callable[[int, dict[str, float]], None]
    chains: int
    rejected: int
    failures_in_a_row: int = 0
    stopped: str | None = None


class _Stopped(Exception):
    """The run has stopped, and the question at hand stays open."""


def annotate(
    questions: Sequence[Record],
    folder: Path,
    settings: Settings,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[int, dict[str, float]], None] = lambda done, scalars: None,
) -> dict:
    """Asks the teacher for a chain for every question that has no outcome in `folder` yet.

    Args:
      questions: question records with distinct ids.
      folder: exists; holds what an earlier run of the same questions and settings left, if any.
      settings: see `Settings`.
      should_stop: looked at before each question; true ends the run after those in flight.
      on_progress: called with the number of questions that have an outcome, and some figures.

    Returns:
      The report, as written to report.json. `stopped` is None when every question has an outcome,
      else it says why not and how to go on.

    Raises:
      ValueError: for settings that cannot work, a missing key, or a folder in use or of another teacher.
    """
    check(settings)
    by_id = {question["id"]: question for question in questions}
    if len(by_id) != len(questions):
        raise ValueError(f"{len(questions) - len(by_id)} questions have the id of another one")
    teacher.api_key(settings.endpoint)
    with journal.resume(folder) as past:
        if others := past.teachers - {settings.endpoint.model}:
            raise ValueError(
                f"{folder} holds replies of {', '.join(sorted(others))}, and config.annotate.model"
                f" is {settings.endpoint.model!r}; name the former, or choose another --workdir"
            )
        todo = _outcomes_so_far(by_id, folder, past, settings)
        stopped = asyncio.run(_work(todo, folder, settings, past, should_stop, on_progress))
        _sort_by_question(folder, by_id)
        report = reporting.report(folder, by_id.keys(), settings, stopped)
        files.write_json(folder / "report.json", report)
    return report


def check(settings: Settings) -> None:
    """Refuses settings that cannot work.

    Raises:
      ValueError: names the field, its value and what is allowed.
    """
    teacher.check(settings.endpoint)
    prompts.messages("", settings.language)
    for name in ("prompt", "completion"):
        price = getattr(settings.prices, name)
        if not 0 <= price < math.inf:
            raise ValueError(
                f"config.annotate.{name}_price is {price}; give the price of a million tokens, 0"
                " for an endpoint that charges nothing"
            )
    for name in ("max_tokens", "concurrency", "max_failures"):
        if getattr(settings, name) < 1:
            raise ValueError(
                f"config.annotate.{name} is {getattr(settings, name)}; it must be 1 or more"
            )
    _check_limits(settings.limits)
    for name in ("max_money", "retries", "backoff"):
        if not 0 <= getattr(settings, name) < math.inf:
            raise ValueError(
                f"config.annotate.{name} is {getattr(settings, name)}; it must be 0 or more"
            )


def _check_limits(limits: Limits) -> None:
    for part in ("layer", "answer"):
        least, most = getattr(limits, f"min_{part}"), getattr(limits, f"max_{part}")
        if not 0 <= least <= most:
            raise ValueError(
                f"config.annotate.min_{part}_characters is {least} and"
                f" config.annotate.max_{part}_characters is {most}; they must be 0 or more, the first"
                " no more than the second"
            )
    if not 0 <= limits.max_echo <= 1:
        raise ValueError(f"config.annotate.max_echo is {limits.max_echo}; it must lie in [0, 1]")


def _outcomes_so_far(
    questions: dict[str, Record], folder: Path, past: Past, settings: Settings
) -> list[Record]:
    """Writes chains.jsonl and rejected.jsonl from the journal; returns the questions left."""
    chains, rejects, todo = [], [], []
    for id_, question in questions.items():
        chain, reject = None, None
        if replies := past.replies.get(id_):
            chain, reject = judging.outcome(
                question, replies, settings.limits, settings.endpoint.model
            )
        if chain is not None:
            chains.append(chain)
        elif reject is not None:
            rejects.append(reject)
        else:
            todo.append(question)
    files.write_jsonl(folder / "chains.jsonl", chains)
    files.write_jsonl(folder / "rejected.jsonl", rejects)
    return todo


async def _work(
    todo: list[Record],
    folder: Path,
    settings: Settings,
    past: Past,
    should_stop: Callable[[], bool],
    on_progress: Callable[[int, dict[str, float]], None],
) -> str | None:
    """Annotates what is left; returns why it stopped before the end, else None."""
    limit = Cost(settings.max_tokens, settings.max_money)
    budget = Budget(limit, past.spent + past.possible)
    counts = [len(list(files.read_jsonl(folder / name))) for name in _OUTPUTS]
    async with teacher.connect(settings.endpoint) as client:
        run = _Run(
            settings, folder, client, budget, past.replies, should_stop, on_progress, *counts
        )
        left = iter(todo)
        # One alone first: a wrong key or model then costs one request, not `concurrency` of them.
        await _worker(run, left, most=1)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(settings.concurrency):
                    group.create_task(_worker(run, left))
        except ExceptionGroup as errors:  # such as a full disk, which each worker meets
            raise errors.exceptions[0] from errors
    return run.stopped


_OUTPUTS = ("chains.jsonl", "rejected.jsonl")


async def _worker(run: _Run, left: Iterator[Record], most: int | None = None) -> None:
    """Takes questions until there are none, the run stops, or `most` are done."""
    done = 0
    while done != most:
        if run.should_stop():
            run.stopped = run.stopped or "it was told to stop; the same command goes on from here"
        if run.stopped is not None or (question := next(left, None)) is None:
            return
        try:
            await _annotate_one(run, question)
        except _Stopped:
            return
        done += 1


async def _annotate_one(run: _Run, question: Record) -> None:
    """Asks for one chain, with a repair if need be, and writes the outcome."""
    settings = run.settings
    replies = run.replies.setdefault(question["id"], [])
    while True:
        if replies:
            outcome = judging.outcome(question, replies, settings.limits, settings.endpoint.model)
            if outcome != (None, None):
                break
        result = await _turn(run, question, replies)
        if isinstance(result, Failure):
            detail = f"{result.kind}: {result.message}"
            text = replies[-1].text if replies else ""
            outcome = None, judging.reject(question, "model_error", detail, text)
            break
        replies.append(result)
    _write_outcome(run, *outcome)


def _write_outcome(run: _Run, chain: Record | None, reject: Record | None) -> None:
    if chain is not None:
        files.append_jsonl(run.folder / "chains.jsonl", [chain])
        run.chains += 1
    else:
        files.append_jsonl(run.folder / "rejected.jsonl", [reject])
        run.rejected += 1
    no_reply = reject is not None and reject["reason"] == "model_error"
    run.failures_in_a_row = run.failures_in_a_row + 1 if no_reply else 0
    if run.failures_in_a_row >= run.settings.max_failures:
        run.stopped = run.stopped or (
            f"{run.failures_in_a_row} questions in a row got no reply"
            f" (config.annotate.max_failures); the last: {reject['detail']}. When the endpoint"
            " answers again, the same command goes on from here and asks these again"
        )
    total = run.chains + run.rejected
    run.on_progress(total, {"valid": run.chains / total})


async def _turn(run: _Run, question: Record, replies: list[Reply]) -> Reply | Failure:
    """One turn of a question, tried until there is a reply or no hope of one.

    Raises:
      _Stopped: when the run stops before the turn has ended.
    """
    messages = _messages(question, replies, run.settings)
    for attempt in range(run.settings.retries + 1):
        if attempt:
            await _pause(run, result, attempt)
        result = await _try(run, question["id"], len(replies) + 1, messages)
        if isinstance(result, Failure) and result.fatal:
            run.stopped = run.stopped or _fatal(result, run.settings.endpoint)
            raise _Stopped
        if isinstance(result, Reply) or not result.retry:
            return result
    return result


def _messages(question: Record, replies: list[Reply], settings: Settings) -> list[prompts.Message]:
    text, language = question["question"], settings.language
    if not replies:
        return prompts.messages(text, language)
    verdict = judging.judge(text, replies[-1], settings.limits)
    return prompts.repair_messages(text, language, replies[-1].text, verdict.reason, verdict.detail)


async def _try(run: _Run, id_: str, turn: int, messages: list[prompts.Message]) -> Reply | Failure:
    """One request, within the budget, written to the journal before and after."""
    settings, path = run.settings, run.folder / journal.NAME
    model = settings.endpoint.model
    prompt, completion = journal.prompt_bound(messages), settings.endpoint.max_completion_tokens
    most = settings.prices.cost(prompt, completion)
    try:
        await run.budget.reserve(most)
    except OverBudget as error:
        run.stopped = run.stopped or _over_budget(run, most)
        raise _Stopped from error
    used = most
    try:
        if run.stopped is not None:
            used = Cost()
            raise _Stopped
        files.append_jsonl(path, [journal.asked(id_, turn, most)])
        result = await teacher.ask(run.client, settings.endpoint, messages)
        if isinstance(result, Reply):
            known = result.prompt_tokens is not None and result.completion_tokens is not None
            if known:
                used = settings.prices.cost(result.prompt_tokens, result.completion_tokens)
            event = journal.answered(id_, turn, model, result, used, not known)
        else:
            used = most if result.billed else Cost()
            event = journal.failed(id_, turn, result.kind, result.message, used)
        files.append_jsonl(path, [event])
    finally:
        await run.budget.settle(most, used)
    return result


async def _pause(run: _Run, failure: Failure, attempt: int) -> None:
    """Waits before another try: as long as the endpoint asks, else longer each time, with jitter.

    Raises:
      _Stopped: when the run stops meanwhile, or would have to wait unreasonably long.
    """
    doubled = min(run.settings.backoff * 2 ** (attempt - 1), _LONGEST_BACKOFF)
    wait = random.uniform(0.5, 1.0) * doubled if failure.wait is None else failure.wait
    if wait > LONGEST_WAIT:
        run.stopped = run.stopped or (
            f"the endpoint asks to wait {wait:.0f} s ({failure.message});"
            " the same command goes on from here later"
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
        " (config.annotate.api_key_env)",
        "404": f"check config.annotate.model ({endpoint.model!r}) and config.annotate.base_url",
    }
    way = ways.get(failure.kind, "check the credit of the account")
    return f"{endpoint.base_url} answered {failure.kind}: {failure.message}; {way}"


def _over_budget(run: _Run, most: Cost) -> str:
    settings = run.settings
    return (
        f"the budget of {settings.max_tokens} tokens and {settings.max_money:g} in money"
        f" (config.annotate.max_tokens, config.annotate.max_money) has no room for the next"
        f" request, which takes up to {most.tokens} tokens and {most.money:.4g}; raise it, and the"
        " same command goes on from here"
    )


def _sort_by_question(folder: Path, questions: dict[str, Record]) -> None:
    """Puts the outcomes, written as they came, into the order of the questions."""
    order = {id_: index for index, id_ in enumerate(questions)}
    for path in (folder / name for name in _OUTPUTS):
        rows = sorted(files.read_jsonl(path), key=lambda row: order[row["id"]])
        files.write_jsonl(path, rows)
