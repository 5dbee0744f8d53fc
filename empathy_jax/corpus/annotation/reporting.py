"""What an annotation cost and what it is worth, from its files alone."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from empathy_jax import chain_of_empathy, files
from empathy_jax.corpus.annotation import judging, prompts
from empathy_jax.endpoint import journal

if TYPE_CHECKING:
    from empathy_jax.corpus.annotate import Settings

_QUANTILES = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


def report(
    folder: Path, questions: Collection[str], settings: "Settings", stopped: str | None
) -> dict:
    """The cost and quality report of a folder.

    Args:
      folder: holds the journal and both outputs.
      questions: ids of those that were to be annotated; the journal may know others, whose requests
        are in the cost alone.
      settings: of the run.
      stopped: why it ended early; None when it did not.

    Returns:
      A JSON value: `questions` by outcome, `validity` after the first reply and after the repair,
      `rejects` by reason, `reject_details` (the broken rule or the layer), `requests` by how they
      ended, `tokens`, `money`, `latency_seconds` of replies, `characters` by layer, `echo` (share
      of the answer's 4-grams found in the question) and `stopped`.
    """
    events = list(files.read_jsonl(folder / journal.NAME))
    chains = list(files.read_jsonl(folder / "chains.jsonl"))
    rejects = list(files.read_jsonl(folder / "rejected.jsonl"))
    answered = [event for event in events if event["event"] == "answered"]
    names = (*chain_of_empathy.LAYERS, "answer")
    return {
        "teacher": settings.terms.endpoint.model,
        "language": settings.language,
        "prompt": prompts.fingerprint(settings.language),
        "questions": {
            "all": len(questions),
            "chains": len(chains),
            "rejected": len(rejects),
            "left": len(questions) - len(chains) - len(rejects),
        },
        "validity": _validity(
            [event for event in answered if event["id"] in questions],
            {chain["id"] for chain in chains},
        ),
        "rejects": _counts(reject["reason"] for reject in rejects),
        "reject_details": _counts(
            f"{reject['reason']}: {reject['detail']}"
            for reject in rejects
            if reject["detail"] and reject["reason"] != "model_error"
        ),
        "requests": _requests(events),
        "tokens": _tokens(events) | {"limit": settings.terms.max_tokens},
        "money": _money(events) | {"limit": settings.terms.max_money},
        "latency_seconds": quantiles([event["seconds"] for event in answered]),
        "characters": {name: quantiles([len(c[name]) for c in chains]) for name in names},
        "echo": quantiles([judging.echo(c["question"], c["answer"]) for c in chains]),
        "stopped": stopped,
    }


def quantiles(values: list[float]) -> dict[str, float] | None:
    """Minimum, 10 %, median, 90 %, 99 % and maximum of values; None without any."""
    if not values:
        return None
    found = np.quantile(np.asarray(values, np.float64), list(_QUANTILES.values()))
    return dict(zip(_QUANTILES, np.round(found, 3).tolist(), strict=True))


def summary_lines(report: dict) -> list[str]:
    """The report in a few lines for people."""
    questions, validity = report["questions"], report["validity"]
    tokens, money = report["tokens"], report["money"]
    lines = [
        f"{questions['chains']} chains, {questions['rejected']} rejected, {questions['left']} left"
        f" of {questions['all']} questions",
        f"valid at first {_share(validity['first'])}, after the repair {_share(validity['final'])}",
        f"tokens {tokens['prompt']:,} + {tokens['completion']:,} of {tokens['limit']:,};"
        f" money {money['spent']:.4f} of {money['limit']:g}",
    ]
    if tokens["possible"]:
        lines.append(
            f"requests whose end was not seen may have cost up to {tokens['possible']:,} tokens and"
            f" {money['possible']:.4f} more, which the budget counts"
        )
    if report["rejects"]:
        reasons = (f"{name} {count}" for name, count in report["rejects"].items())
        lines.append(f"rejected: {', '.join(reasons)}")
    return lines


def _validity(answered: list[dict], valid: set[str]) -> dict:
    """Shares of the questions with a reply: a chain at first, and in the end."""
    turns: dict[str, int] = {}
    for event in answered:
        turns[event["id"]] = max(event["turn"], turns.get(event["id"], 0))
    first = sum(id_ in valid for id_, turn in turns.items() if turn == 1)
    repaired = sum(id_ in valid for id_, turn in turns.items() if turn > 1)
    total = len(turns)
    return {
        "with_reply": total,
        "valid_first": first,
        "repairs": sum(turn > 1 for turn in turns.values()),
        "valid_repaired": repaired,
        "first": round(first / total, 4) if total else None,
        "final": round((first + repaired) / total, 4) if total else None,
    }


def _requests(events: list[dict]) -> dict:
    ends = [event for event in events if event["event"] != "asked"]
    return {
        "sent": sum(event["event"] == "asked" for event in events),
        "answered": sum(event["event"] == "answered" for event in ends),
        "without_usage": sum(event.get("estimated", False) for event in ends),
        "failed": _counts(event["kind"] for event in ends if event["event"] == "failed"),
    }


def _tokens(events: list[dict]) -> dict:
    past = journal.replay(events)
    parts = {
        name: sum(event.get(f"{name}_tokens") or 0 for event in events)
        for name in ("prompt", "completion")
    }
    return parts | {"spent": past.spent.tokens, "possible": past.possible.tokens}


def _money(events: list[dict]) -> dict:
    past = journal.replay(events)
    return {"spent": round(past.spent.money, 6), "possible": round(past.possible.money, 6)}


def _counts(values) -> dict[str, int]:
    return dict(sorted(Counter(values).items(), key=lambda item: (-item[1], item[0])))


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
