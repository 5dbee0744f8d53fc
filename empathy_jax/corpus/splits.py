"""Train, validation and test by a hash of the content.

The side of a question depends on its text and the fractions alone, so it stays when others are
added or removed. Near duplicates may hash to different sides; no rule can then keep every question
and never move one: let x and y be near duplicates that alone stand on different sides. When both
are there, one has to move or to go. Here it goes, and the held-out side wins (`assign_splits`):

- no question ever stands on two sides, in whatever corpora it appears;
- of a group of near duplicates, all that stay are on one side;
- when data is added, a test question stays; a validation question can go only because its group
  gained a test question; a training question, because its group gained a held-out one (a new text
  may bridge two old groups); what is gone does not come back.

Every topic has the same expected share on each side. Its exact share varies as the hash does, by
√(n f (1 - f)) questions for a fraction f of n: quotas that hold exactly would have to move old
questions as the topic grows.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SPLITS = ("train", "validation", "test")

ACROSS_SPLITS = "near_duplicate_across_splits"  # the reason why `assign_splits` leaves one out

# What holds of every corpus, and what holds besides where near duplicates were looked for.
HASHED = "The side of a question is a hash of its text: it never moves to another side when data is added."
GUARANTEE = HASHED + (
    " Near-duplicate questions never stand on two sides: where their hashes disagree, those"
    " on the held-out side (test before validation before train) stay and the others are left out."
    " So adding data never takes a question out of test, and takes one out of train or validation"
    " only when its group of near duplicates gains a question that is held out more strictly."
)


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


def assign_splits(
    records: Sequence[Mapping[str, Any]],
    groups: Sequence[int],
    validation_fraction: float,
    test_fraction: float,
) -> list[str | None]:
    """The split of each question, or None where it is left out (`ACROSS_SPLITS`).

    A question's side is `split_of` its text. A group keeps its members on the side that is held out
    most strictly (test, validation, train); its members on other sides are left out.

    Args:
      records: question records.
      groups: for each record the label of its group of near duplicates.
      validation_fraction, test_fraction: as in `split_of`.

    Raises:
      ValueError: for fractions below 0, or that leave nothing to train on.
    """
    sides = [split_of(record["question"], validation_fraction, test_fraction) for record in records]
    rank = {name: place for place, name in enumerate(SPLITS)}
    strictest: dict[int, str] = {}
    for group, side in zip(groups, sides, strict=True):
        strictest[group] = max(strictest.get(group, side), side, key=rank.__getitem__)
    return [
        side if side == strictest[group] else None
        for group, side in zip(groups, sides, strict=True)
    ]


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
