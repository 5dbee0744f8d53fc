"""The guard where a model is used: its settings, its decisions on the wire, in rows and in deltas."""

from collections.abc import Iterable, Sequence
from typing import Any

from ml_collections import ConfigDict

from empathy_jax import chain_of_empathy
from empathy_jax.safety import guard
from empathy_jax.serving.sample_text import Delta


def region(config: ConfigDict) -> str | None:
    """Whose numbers the guard gives; None: it is off.

    Raises:
      ValueError: for a region that there is not.
    """
    guard.check_region(config.guard.region)
    return config.guard.region if config.guard.on else None


def announce(phase: str, region: str | None) -> None:
    """Says on the screen whether there is a guard."""
    if region is None:
        print(
            f"[{phase}] WARNING: the guard is OFF (config.guard.on=False): no risk is graded, no help is "
            "put before a reply, nothing is held back. Do not let people in distress talk to it.",
            flush=True,
        )
    else:
        print(f"[{phase}] guard on, region {region}", flush=True)


def wire(decision: guard.Decision, held_back: Iterable[str] = ()) -> dict[str, Any]:
    """The field `guard` of a reply or an error."""
    return {"code": decision.code, "message": decision.message, "held_back": list(held_back)}


def checked(reply: guard.Reply | None, deltas: Sequence[Delta], ends: bool) -> list[Delta]:
    """Deltas as they may be told; as they are where there is no guard.

    Args:
      reply: the check of this completion.
      deltas: some more of it.
      ends: whether no more will come.
    """
    if reply is None:
        return list(deltas)
    told = []
    for delta in deltas:
        part = (delta.layer or chain_of_empathy.BETWEEN) if delta.reasoning else guard.ANSWER
        told += reply.feed(part, delta.text)
    if ends:
        told += reply.close()
    return [
        Delta(part != guard.ANSWER, part if part in chain_of_empathy.LAYERS else None, text)
        for part, text in told
    ]


def row(row: dict, region: str) -> dict:
    """A row of generations.jsonl with what the guard says of it, and without what it holds back.

    Adds `guard`: `code`, `grade`, `about`, `message` and `held_back`. Where something is held back
    `completion` is null, and the layers and the answer are as they may be told.
    """
    decision = guard.examine([{"role": "user", "content": row["question"]}], region)
    reply = guard.Reply(decision.language, region)
    reader = chain_of_empathy.Reader()
    for element, text in (*reader.feed(row["completion"]), *reader.close()):
        reply.feed(element, text)
    reply.close()
    found = decision._asdict() | {"held_back": reply.held_back}
    del found["language"]
    if reply.held_back:
        kept = {name: reply.told.get(name) for name in (*chain_of_empathy.LAYERS, guard.ANSWER)}
        row = {**row, "completion": None, **{n: t and t.strip() for n, t in kept.items()}}
    return {**row, "guard": found}
