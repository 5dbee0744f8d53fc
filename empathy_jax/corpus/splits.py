"""Train, validation and test by a hash of the content.

The side of a record depends on its text and the fractions alone: it stays when other records are
added or removed.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

SPLITS = ("train", "validation", "test")


def split_of(text: str, validation_fraction: float, test_fraction: float) -> str:
    """The split of a text: "train", "validation" or "test".

    With h in [0, 1) the hash of `split_key(text)`: test where h < test_fraction, validation where
    h < test_fraction + validation_fraction, train elsewhere.

    Raises:
      ValueError: for fractions below 0, or that leave nothing to train on.
    """
    total = validation_fraction + test_fraction
    if not (validation_fraction >= 0 and test_fraction >= 0 and total < 1):
        raise ValueError(
            f"validation_fraction {validation_fraction} and test_fraction {test_fraction} must be"
            " 0 or more and sum to less than 1; change config.data.validation_fraction or"
            " config.data.test_fraction."
        )
    digest = hashlib.sha256(split_key(text).encode("utf-8")).digest()
    # 52 bits are exact in a float; 64 could round up to 1.
    share = (int.from_bytes(digest[:8], "big") >> 12) / 2**52
    if share < test_fraction:
        return "test"
    return "validation" if share < total else "train"


def split_key(text: str) -> str:
    """The text with width, letter case, white space, punctuation and symbols taken away.

    Copies of a text that differ in these alone get one key and so fall on one side. A text of
    nothing but punctuation is its own key.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    # Unicode categories: L letters, M marks, N numbers.
    key = "".join(c for c in folded if unicodedata.category(c)[0] in "LMN")
    return key or text


def split(
    records: Iterable[Mapping[str, Any]], validation_fraction: float, test_fraction: float
) -> dict[str, list[Mapping[str, Any]]]:
    """The records by split of their question, in their order.

    Raises:
      ValueError: when train or validation would be empty.
    """
    sides: dict[str, list[Mapping[str, Any]]] = {name: [] for name in SPLITS}
    for record in records:
        sides[split_of(record["question"], validation_fraction, test_fraction)].append(record)
    empty = [name for name in ("train", "validation") if not sides[name]]
    if empty:
        counts = {name: len(side) for name, side in sides.items()}
        raise ValueError(
            f"No record falls into {' and '.join(empty)}: the {sum(counts.values())} records split"
            f" into {counts}. Add records (config.data.questions, config.data.chains) or change"
            f" config.data.validation_fraction ({validation_fraction}) and"
            f" config.data.test_fraction ({test_fraction})."
        )
    return sides
