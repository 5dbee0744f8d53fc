"""What a judge's reply says: strict JSON, or the fault that it has."""

import dataclasses
import json
from typing import Any

from empathy_jax.endpoint.client import Reply
from empathy_jax.evaluation.judge.prompts import LABELS, REASON
from empathy_jax.evaluation.ranking import DIMENSIONS

# Places on the page in groups of equals, the best group first.
Order = list[list[int]]

FAULTS = {
    "not_json": "not one JSON object and nothing else",
    "keys": "not exactly the keys that were specified, each once",
    "values": "a value that is not allowed",
    "cut_off": "too long: it broke off before its end",
    "refusal": "a refusal",
}


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Of one comparison.

    Attributes:
      reason: what the judge said of it.
      orders: dimension to the places on the page, the best first.
    """

    reason: str
    orders: dict[str, Order]


def parse(reply: Reply, mode: str, answers: int) -> Verdict | str:
    """The verdict, or the key of `FAULTS` that stands against it.

    Args:
      mode: one of `MODES`.
      answers: how many were shown.
    """
    if reply.refusal or reply.finish_reason == "content_filter":
        return "refusal"
    if reply.finish_reason == "length":
        return "cut_off"
    try:
        value = json.loads(reply.text, object_pairs_hook=_distinct)
    except _DoubleKey:
        return "keys"
    except (ValueError, RecursionError):
        return "not_json"
    if not isinstance(value, dict):
        return "not_json"
    if set(value) != {REASON, *DIMENSIONS}:
        return "keys"
    orders = {name: _order(value[name], mode, answers) for name in DIMENSIONS}
    if not isinstance(value[REASON], str) or None in orders.values():
        return "values"
    return Verdict(value[REASON], orders)


class _DoubleKey(ValueError):
    """A key stands twice in an object, so that it says two things."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _DoubleKey
    return found


def _order(value: Any, mode: str, answers: int) -> Order | None:
    labels = list(LABELS[:answers])
    if mode == "pairwise":
        return {"A": [[0], [1]], "B": [[1], [0]], "tie": [[0, 1]]}.get(_text(value))
    if not isinstance(value, list) or sorted(map(_text, value)) != labels:
        return None
    return [[labels.index(label)] for label in value]


def _text(value: Any) -> str:
    """The value where it is a text, else one that nothing equals."""
    return value if isinstance(value, str) else ""
