"""Every comparison asked of every judge, in both orders; what they said, from the journal.

    folder/requests.jsonl     the journal: every request and every reply (endpoint.journal)
    folder/judgements.jsonl   what each request came to, with the systems' names put back

A request has an id made of the judge and of the very words that are sent. So nothing is asked
twice: not after a kill, nor when a system is added, nor for answers that two systems share. One
repair is tried where a reply is not what was asked for; then the request counts as failed. A
request that got no reply at all is asked again when the command is.

A comparison is shown twice, the second time in the reverse order. Pairs are pairs of different
answers; a list shows all different answers to a question, in orders that put each system in each
place equally often.
"""

import asyncio
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from empathy_jax import files
from empathy_jax.corpus import records
from empathy_jax.endpoint import client, conversations, journal
from empathy_jax.endpoint.client import Failure, Message, Reply
from empathy_jax.endpoint.conversations import Conversation, Terms
from empathy_jax.endpoint.journal import Cost, Past
from empathy_jax.evaluation.judge import prompts, replies
from empathy_jax.evaluation.judge.replies import Verdict
from empathy_jax.evaluation.ranking import design
from empathy_jax.evaluation.ranking.study import Question

NO_REPLY = "no_reply"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compared, and how.

    Attributes:
      mode: one of `MODES`.
      language: of the instructions, "zh" or "en".
      seed: of the orders in which lists are shown.
    """

    mode: str
    language: str
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Showing:
    """Answers to one question in one order.

    Attributes:
      question: index.
      places: for each place the systems whose answer stands there (several where they are equal).
    """

    question: int
    places: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What one judge said of one showing.

    Attributes:
      id: of the request in the journal.
      verdict: None where there is none.
      fault: a key of `replies.FAULTS` or `NO_REPLY` where there is no verdict, else None.
      turns: replies that it took.
    """

    id: str
    judge: str
    showing: Showing
    verdict: Verdict | None
    fault: str | None
    turns: int


def showings(questions: Sequence[Question], systems: int, settings: Settings) -> list[Showing]:
    """All showings; the two orders of a comparison stand side by side."""
    rng = np.random.default_rng(settings.seed)
    orders = design.display_orders(rng, len(questions), systems)
    return [
        Showing(index, tuple(order))
        for index, question in enumerate(questions)
        for places in _comparisons(question, orders[index], settings.mode)
        for order in (places, places[::-1])
    ]


def _comparisons(
    question: Question, order: Sequence[int], mode: str
) -> Iterator[tuple[tuple[int, ...], ...]]:
    owners = {system: tuple(group) for group in question.cards().values() for system in group}
    cards = tuple(dict.fromkeys(owners[int(system)] for system in order))
    yield from itertools.combinations(cards, 2) if mode == "pairwise" else [cards]


def run(
    questions: Sequence[Question],
    systems: Sequence[str],
    judges: Mapping[str, Terms],
    settings: Settings,
    folder: Path,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[list[Judgement], Past, str | None]:
    """Asks what has no reply in `folder` yet, and writes judgements.jsonl.

    Args:
      questions: of `ranking.study.read_questions`.
      systems: names, in the order of the answers.
      judges: name to terms; the budget of the first one is that of all.
      settings: see `Settings`.
      folder: exists.
      say: told how far it is, now and then.

    Returns:
      The judgements that there are, in the order of the showings; what the journal says; and why
      it stopped before the end, else None.

    Raises:
      ValueError: for settings that cannot work, a missing key, or a folder in use.
    """
    for terms in judges.values():
        conversations.check(terms)
        client.api_key(terms.endpoint)
    shown = showings(questions, len(systems), settings)
    asked = {
        name: _requests(name, terms, shown, questions, settings) for name, terms in judges.items()
    }
    with journal.resume(folder) as past:
        say(_outlook(asked, judges, past, settings.mode))
        failed, stopped = asyncio.run(_hold(asked, judges, settings, folder, past, say))
        spent = journal.replay(files.read_jsonl(folder / journal.NAME))
    found = [
        _judgement(request, name, past.replies.get(request.id, []), settings.mode)
        for name, requests in asked.items()
        for request in requests
        if request.id in failed
        or _is_over(request, past.replies.get(request.id, []), settings.mode)
    ]
    lines = [_line(judgement, questions, systems) for judgement in found]
    files.write_jsonl(folder / "judgements.jsonl", lines)
    return found, spent, stopped


@dataclasses.dataclass(frozen=True)
class _Request:
    """A showing with its words and their id."""

    id: str
    showing: Showing
    messages: list[Message]


def _requests(
    name: str,
    terms: Terms,
    shown: Sequence[Showing],
    questions: Sequence[Question],
    settings: Settings,
) -> list[_Request]:
    found = []
    for showing in shown:
        question = questions[showing.question]
        answers = [question.answers[place[0]] for place in showing.places]
        words = prompts.messages(question.text, answers, settings.mode, settings.language)
        of = [name, terms.endpoint.model, terms.endpoint.extra_body, words]
        found.append(_Request(records.content_id(files.dumps(of)), showing, words))
    return found


def _is_over(request: _Request, said: list[Reply], mode: str) -> bool:
    """Whether there is a verdict, or a fault that the one repair has not mended or cannot mend."""
    if not said:
        return False
    found = replies.parse(said[-1], mode, len(request.showing.places))
    return isinstance(found, Verdict) or len(said) > 1 or found == "refusal"


async def _hold(
    asked: Mapping[str, Sequence[_Request]],
    judges: Mapping[str, Terms],
    settings: Settings,
    folder: Path,
    past: Past,
    say: Callable[[str], None],
) -> tuple[set[str], str | None]:
    """Asks all judges at once, out of one budget; returns requests without reply, and the stop."""
    left = {name: _left(requests, past, settings) for name, requests in asked.items()}
    failed: set[str] = set()
    total, done = sum(map(len, left.values())), 0

    def on_end(id_: str, _: list[Reply], failure: Failure | None) -> None:
        nonlocal done
        done += 1
        if failure is not None:
            failed.add(id_)
        if done == total or done % max(total // 20, 1) == 0:
            say(f"{done} of {total} requests are done")

    budget = next(iter(judges.values())).budget(past)
    stops = await asyncio.gather(
        *(
            conversations.hold(
                left[name], terms, folder, budget, past.replies, lambda: False, on_end
            )
            for name, terms in judges.items()
        )
    )
    reasons = [f"{name}: {stop}" for name, stop in zip(judges, stops, strict=True) if stop]
    return failed, "; ".join(reasons) or None


def _left(requests: Sequence[_Request], past: Past, settings: Settings) -> list[Conversation]:
    """Conversations that are not over, each once."""
    left = {
        request.id: _conversation(request, settings)
        for request in requests
        if not _is_over(request, past.replies.get(request.id, []), settings.mode)
    }
    return list(left.values())


def _conversation(request: _Request, settings: Settings) -> Conversation:
    def messages(said: list[Reply]) -> list[Message] | None:
        if not said:
            return request.messages
        if _is_over(request, said, settings.mode):
            return None
        fault = replies.parse(said[-1], settings.mode, len(request.showing.places))
        return prompts.repair(request.messages, replies.FAULTS[fault], settings.language)

    return Conversation(request.id, messages)


def _judgement(request: _Request, name: str, said: list[Reply], mode: str) -> Judgement:
    showing = request.showing
    found = replies.parse(said[-1], mode, len(showing.places)) if said else NO_REPLY
    verdict = found if isinstance(found, Verdict) else None
    fault = None if verdict is not None else found
    return Judgement(request.id, name, showing, verdict, fault, len(said))


def _line(
    judgement: Judgement, questions: Sequence[Question], systems: Sequence[str]
) -> dict[str, Any]:
    """The line of judgements.jsonl; `orders` hold groups of systems, the best first."""
    places = [[systems[system] for system in place] for place in judgement.showing.places]
    verdict = judgement.verdict
    return {
        "id": judgement.id,
        "judge": judgement.judge,
        "question": questions[judgement.showing.question].id,
        "shown": places,
        "turns": judgement.turns,
        "fault": judgement.fault,
        "reason": verdict.reason if verdict else None,
        "orders": {
            dimension: [[name for place in group for name in places[place]] for group in order]
            for dimension, order in verdict.orders.items()
        }
        if verdict
        else None,
    }


def _outlook(
    asked: Mapping[str, Sequence[_Request]],
    judges: Mapping[str, Terms],
    past: Past,
    mode: str,
) -> str:
    """What is left to ask, and what it costs at most where no reply needs a repair."""
    parts = []
    for name, requests in asked.items():
        left = [r for r in requests if not _is_over(r, past.replies.get(r.id, []), mode)]
        costs = (conversations.most_cost(judges[name], request.messages) for request in left)
        most = sum(costs, Cost())
        parts.append(
            f"{name}: {len(left)} of {len(requests)} requests are left, at most {most.tokens:,}"
            f" tokens and {most.money:.4g} in money"
        )
    return "; ".join(parts)
