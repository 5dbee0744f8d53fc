"""Pairs of texts that metrics are held against their references on: random ones, and real ones."""

import json
import lzma
from itertools import islice
from pathlib import Path

import numpy as np

ALPHABET = "我很难过也想你了的，。！？…“”（）A bC9\n　é𠀀"


def random_pairs(count: int, longest: int, seed: int = 0) -> list[tuple[str, str]]:
    """Chinese, Latin letters, marks, white space; about one text in twenty is empty or nearly so.

    Some references share a part with their candidate, so that long n-grams match too.
    """
    rng = np.random.default_rng(seed)

    def text() -> str:
        short = rng.random() < 0.05
        return "".join(rng.choice(list(ALPHABET), rng.integers(0, 4 if short else longest)))

    made = []
    for number in range(count):
        candidate, reference = text(), text()
        if number % 3 == 0 and len(candidate) > 8:
            start = int(rng.integers(len(candidate) // 2))
            reference += candidate[start : start + int(rng.integers(2, longest // 2))]
        made.append((candidate, reference))
    return made


def real_pairs(shared: Path, count: int = 100) -> list[tuple[str, str]]:
    """What counsellors say in one dialogue of SmileChat and in the next."""
    (path,) = (shared / "data" / "smilechat_all").glob("*.xz")
    with lzma.open(path, "rt", encoding="utf-8") as file:
        dialogues = [json.loads(line)["messages"] for line in islice(file, 2 * count)]
    texts = [
        "\n".join(turn["content"] for turn in messages if turn["role"] == "counselor")[:250]
        for messages in dialogues
    ]
    return list(zip(texts[::2], texts[1::2], strict=True))
