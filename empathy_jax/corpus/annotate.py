"""Chains of Empathy for questions, written by a teacher model behind an OpenAI-compatible endpoint.

    folder/requests.jsonl   the journal: every request and every reply (endpoint.journal)
    folder/chains.jsonl     chain records, with "teacher"
    folder/rejected.jsonl   questions without a chain, the reason, and what the teacher wrote
    folder/report.json      cost and quality (annotation.reporting)

chains.jsonl and rejected.jsonl follow from the journal alone, so a run killed at any moment goes on
where it was (see `endpoint.conversations`).

A question has at most two turns: the first, and one repair in which the broken text goes back with
the rule that it breaks. Each turn is tried `1 + retries` times. A question whose tries all failed
("model_error") is asked again when the run is started again.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from empathy_jax import files
from empathy_jax.corpus.annotation import judging, prompts, reporting
from empathy_jax.corpus.annotation.judging import Limits
from empathy_jax.corpus.records import Record
from empathy_jax.endpoint import client, conversations, journal
from empathy_jax.endpoint.client import Failure, Message, Reply
from empathy_jax.endpoint.conversations import Conversation, Terms
from empathy_jax.endpoint.journal import Past


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to annotate.

    Attributes:
      terms: the teacher, and on which terms it is asked.
      language: of the instructions, "zh" or "en".
      limits: what a chain must keep to.
    """

    terms: Terms
    language: str
    limits: Limits = dataclasses.field(default_factory=Limits)


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
    client.api_key(settings.terms.endpoint)
    with journal.resume(folder) as past:
        if others := past.models - {settings.terms.endpoint.model}:
            raise ValueError(
                f"{folder} holds replies of {', '.join(sorted(others))}, and config.annotate.model"
                f" is {settings.terms.endpoint.model!r}; name the former, or choose another --workdir"
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
    conversations.check(settings.terms)
    prompts.messages("", settings.language)
    _check_limits(settings.limits)


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
                question, replies, settings.limits, settings.terms.endpoint.model
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
    questions = {question["id"]: question for question in todo}
    chains, rejected = (len(list(files.read_jsonl(folder / name))) for name in _OUTPUTS)

    def on_end(id_: str, replies: list[Reply], failure: Failure | None) -> None:
        nonlocal chains, rejected
        chain, reject = _outcome(questions[id_], replies, failure, settings)
        if chain is not None:
            files.append_jsonl(folder / "chains.jsonl", [chain])
            chains += 1
        else:
            files.append_jsonl(folder / "rejected.jsonl", [reject])
            rejected += 1
        on_progress(chains + rejected, {"valid": chains / (chains + rejected)})

    return await conversations.hold(
        [_conversation(question, settings) for question in todo],
        settings.terms,
        folder,
        settings.terms.budget(past),
        past.replies,
        should_stop,
        on_end,
    )


_OUTPUTS = ("chains.jsonl", "rejected.jsonl")


def _conversation(question: Record, settings: Settings) -> Conversation:
    """The question, and one repair if need be."""

    def messages(replies: list[Reply]) -> list[Message] | None:
        text, language = question["question"], settings.language
        if not replies:
            return prompts.messages(text, language)
        if _outcome(question, replies, None, settings) != (None, None):
            return None
        verdict = judging.judge(text, replies[-1], settings.limits)
        return prompts.repair_messages(
            text, language, replies[-1].text, verdict.reason, verdict.detail
        )

    return Conversation(question["id"], messages)


def _outcome(
    question: Record, replies: list[Reply], failure: Failure | None, settings: Settings
) -> tuple[Record | None, Record | None]:
    """A chain record or a reject; neither while the repair round is still due."""
    if failure is not None:
        detail = f"{failure.kind}: {failure.message}"
        text = replies[-1].text if replies else ""
        return None, judging.reject(question, "model_error", detail, text)
    return judging.outcome(question, replies, settings.limits, settings.terms.endpoint.model)


def _sort_by_question(folder: Path, questions: dict[str, Record]) -> None:
    """Puts the outcomes, written as they came, into the order of the questions."""
    order = {id_: index for index, id_ in enumerate(questions)}
    for path in (folder / name for name in _OUTPUTS):
        rows = sorted(files.read_jsonl(path), key=lambda row: order[row["id"]])
        files.write_jsonl(path, rows)
