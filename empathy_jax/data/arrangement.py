"""Which questions share a batch: in-batch negatives are as hard as the company is alike.

Questions are put together in small companies of alike ones, and companies at random into batches, so
that a question meets a few hard negatives and many easy ones.
"""

from collections.abc import Sequence

import numpy as np


def by_similarity(
    similarity: np.ndarray,
    groups: Sequence[int],
    batch_size: int,
    company: int,
    seed: Sequence[int],
) -> list[list[int]]:
    """Batches of companies in which every member is alike to the first.

    Taken greedily: the first is drawn at random from those left over, the others are the most
    similar of the rest that belong to other questions.

    Args:
      similarity: [W, W], how easily item j is taken for an answer to item i.
      groups: [W], number of the question of each item.
      batch_size: B, divides W.
      company: items in a company; 1 gives batches at random.
      seed: of the draws.

    Returns:
      W / B lists of B indices; every item appears once.
    """
    count = len(groups)
    if count % batch_size:
        raise ValueError(f"{count} items do not make batches of {batch_size}")
    rng = np.random.default_rng(seed)
    numbers = np.asarray(groups)
    left = np.ones(count, bool)
    companies = []
    for first in rng.permutation(count):
        if not left[first]:
            continue
        left[first] = False
        members, asked = [int(first)], {int(numbers[first])}
        for item in np.argsort(-similarity[first], kind="stable"):
            if len(members) == company:
                break
            if left[item] and int(numbers[item]) not in asked:
                left[item] = False
                members.append(int(item))
                asked.add(int(numbers[item]))
        companies.append(members)
    order = [item for index in rng.permutation(len(companies)) for item in companies[index]]
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]


def by_topic(topics: Sequence[str | None]) -> np.ndarray:
    """Similarity [W, W] for `by_similarity`: 1 for items of the same topic, 0 for others.

    Raises:
      ValueError: when no item has a topic.
    """
    if not any(topics):
        raise ValueError(
            "config.reward_model.in_batch is 'same_topic', but no question has a topic; run the phase "
            "corpus with config.corpus.topic_encoder, or choose random or mined"
        )
    known = np.asarray([topic is not None for topic in topics])
    names = np.asarray([topic or "" for topic in topics])
    return ((names[:, None] == names) & known[:, None] & known).astype(np.float32)
