"""Which text is compared with which references: a system's answers, their floor and their ceiling.

- `model`: each answer with all references of its question.
- `floor`: what people answered to another question, with the same references. A fluent human text
  that has nothing to do with the question gets as much.
- `ceiling`: each reference with the other references of its question (leave-one-out).
- `beside`: the answers to questions that have a ceiling, with one reference left out in turn. The
  best of three references is lower than the best of four: what stands beside the ceiling must have
  as many.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from empathy_jax.evaluation.metrics.tokens import Ints

SETS = ("model", "floor", "ceiling", "beside")


@dataclasses.dataclass(frozen=True)
class Candidates:
    """N texts given as answers.

    Attributes:
      texts: as they are read.
      owners: int [N], the question that each is given to.
      references: for each the texts it is compared with, possibly none.
    """

    texts: list[str]
    owners: Ints
    references: list[list[str]]

    @classmethod
    def of(cls, rows: Sequence[tuple[str, int, list[str]]]) -> "Candidates":
        """From (text, owner, references) each."""
        texts, owners, references = (
            (list(column) for column in zip(*rows, strict=True))
            if rows
            else (
                [],
                [],
                [],
            )
        )
        return cls(texts, np.array(owners, np.int64), references)


def candidate_sets(
    references: Sequence[Sequence[str]], answers: Sequence[str], owners: Sequence[int], seed: int
) -> dict[str, Candidates]:
    """The four sets of the module.

    Args:
      references: of each question what people answered, possibly nothing.
      answers: of a system.
      owners: the question of each answer.
      seed: decides which question's references another one is given as its floor.
    """
    known = [list(own) for own in references]
    model = [(text, int(owner), known[owner]) for text, owner in zip(answers, owners, strict=True)]
    others = {
        owner: [
            known[owner][:place] + known[owner][place + 1 :] for place in range(len(known[owner]))
        ]
        for owner in range(len(known))
        if len(known[owner]) > 1
    }
    ceiling = [
        (text, owner, rest)
        for owner in others
        for text, rest in zip(known[owner], others[owner], strict=True)
    ]
    beside = [
        (text, owner, rest) for text, owner, _ in model if owner in others for rest in others[owner]
    ]
    floor = [(text, owner, known[owner]) for owner, text in floor_texts(known, seed)]
    rows = {"model": model, "floor": floor, "ceiling": ceiling, "beside": beside}
    return {name: Candidates.of(rows[name]) for name in SETS}


def floor_texts(references: Sequence[Sequence[str]], seed: int) -> list[tuple[int, str]]:
    """For each question with references, the references of another one, as if they answered it.

    Nothing where fewer than two questions have references.
    """
    known = [index for index, texts in enumerate(references) if texts]
    if len(known) < 2:
        return []
    return [
        (index, text)
        for index, other in zip(known, derangement(len(known), seed), strict=True)
        for text in references[known[other]]
    ]


def derangement(size: int, seed: int) -> Ints:
    """A permutation that leaves nothing in place: one random cycle through all, int [size].

    Raises:
      ValueError: for fewer than two things, which cannot change places.
    """
    if size < 2:
        raise ValueError(f"a derangement needs 2 things or more, received {size}")
    order = np.random.default_rng(seed).permutation(size)
    result = np.empty(size, np.int64)
    result[order] = np.roll(order, 1)
    return result


class Pairs:
    """The texts of several sets, each once, and the pairs of them that are compared, each once.

    Attributes:
      texts: the different texts.
      pairs: int [P, 2], candidate and reference, as indices of `texts`.
    """

    def __init__(self, sets: Mapping[str, Candidates]):
        known: dict[str, int] = {}
        self._own = {name: _numbers(own.texts, known) for name, own in sets.items()}
        self._references = {
            name: [_numbers(texts, known) for texts in own.references] for name, own in sets.items()
        }
        self.texts = list(known)
        every = [
            np.column_stack([np.full(len(some), index), some, np.full(len(some), owner)])
            for name, own in sets.items()
            for index, some, owner in zip(
                self._own[name], self._references[name], own.owners, strict=True
            )
        ]
        joined = np.concatenate([np.zeros((0, 3), np.int64), *every])
        keys = joined[:, 0] * len(known) + joined[:, 1]
        _, first, places = np.unique(keys, return_index=True, return_inverse=True)
        # Pairs of one question stand together: whoever holds vectors of texts has to hold few.
        order = np.lexsort((first, joined[first, 2]))
        rank = np.empty(len(first), np.int64)
        rank[order] = np.arange(len(first))
        self.pairs = joined[first[order], :2]
        counts = {name: [len(some) for some in own] for name, own in self._references.items()}
        edges = np.cumsum([sum(count) for count in counts.values()])[:-1]
        parts = np.split(rank[places.ravel()], edges)
        self._places = dict(zip(counts, parts, strict=True))
        self._counts = {name: np.array(count, np.int64) for name, count in counts.items()}

    def own(self, name: str) -> Ints:
        """The texts of a set as indices."""
        return self._own[name]

    def with_references(self, name: str) -> tuple[Ints, list[Ints]]:
        """Which candidates of a set have references, and these as indices of texts."""
        some = np.flatnonzero(self._counts[name])
        return some, [self._references[name][index] for index in some]

    def best_and_mean(self, name: str, scores: np.ndarray) -> dict[str, np.ndarray]:
        """`max` and `mean` over the references of each candidate of a set, [N]; NaN without any.

        Args:
          name: of the set.
          scores: of `pairs`, [P].
        """
        counts, own = self._counts[name], scores[self._places[name]]
        best, mean = np.full(len(counts), np.nan), np.full(len(counts), np.nan)
        some = counts > 0
        if some.any():
            starts = (np.cumsum(counts) - counts)[some]
            best[some] = np.maximum.reduceat(own, starts)
            mean[some] = np.add.reduceat(own, starts) / counts[some]
        return {"max": best, "mean": mean}


def _numbers(texts: Sequence[str], known: dict[str, int]) -> Ints:
    return np.array([known.setdefault(text, len(known)) for text in texts], np.int64)
