"""Echo of the question and template overlap of many answers at once, as the reward sees them.

`rl.rewards` defines both for a batch of completions; here the same shares are taken from n-gram
counts, which is what thousands of texts allow. Tests hold the two together.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from empathy_jax.evaluation.metrics import diversity, overlap
from empathy_jax.evaluation.metrics.overlap import Floats
from empathy_jax.evaluation.metrics.tokens import Ints, Tokens, from_strings
from empathy_jax.rl import rewards


class Copying:
    """n-grams of questions and answers, without regard to space, case and width.

    Attributes:
      texts: as given.
    """

    def __init__(self, texts: Sequence[str], language: str):
        self.texts = texts
        self._template = rewards.TEMPLATE_NGRAM[language]
        self._cut = from_strings([rewards.comparable(text) for text in texts])
        numbers: dict[int, Ints] = {}
        self._counts = {
            n: _counts(self._cut, n, numbers) for n in (rewards.ECHO_NGRAM, self._template)
        }

    def echo(self, questions: Ints, answers: Ints) -> Floats:
        """`rewards.echo_overlap` of each answer with its question, [N].

        Args:
          questions, answers: indices of texts.
        """
        counts = self._counts[rewards.ECHO_NGRAM]
        known = counts.astype(bool).astype(np.int32)
        shared = np.zeros(len(answers))
        for start in range(0, len(answers), overlap.BLOCK):
            block = slice(start, start + overlap.BLOCK)
            common = counts[answers[block]].multiply(known[questions[block]])
            shared[block] = np.asarray(common.sum(axis=1)).ravel()
        lengths = self._cut.lengths[answers]
        found = shared / np.maximum(lengths - rewards.ECHO_NGRAM + 1, 1)
        # A shorter answer is compared as a whole.
        for index in np.flatnonzero(lengths < rewards.ECHO_NGRAM):
            question, answer = self.texts[questions[index]], self.texts[answers[index]]
            found[index] = rewards.echo_overlap(question, answer)
        return found

    def template(self, answers: Ints) -> Floats:
        """`rewards.template_overlap` of answers to as many different questions, [N].

        An answer shorter than an n-gram shares nothing, where the reward compares it as a whole.

        Args:
          answers: indices of texts.
        """
        counts = self._counts[self._template][answers]
        asked = np.asarray(counts.astype(bool).sum(axis=0)).ravel()
        shared = counts @ sparse.csr_matrix((asked > 1).astype(np.int32)[:, None])
        sizes = np.maximum(self._cut.lengths[answers] - self._template + 1, 1)
        return np.asarray(shared.todense(), np.float64).ravel() / sizes


def _counts(tokens: Tokens, n: int, numbers: dict[int, Ints]) -> sparse.csr_matrix:
    """n-grams of each text, int32 [N, different n-grams]."""
    grams, owners = diversity.ngrams(tokens, n, numbers)
    shape = (len(tokens.starts) - 1, int(grams.max(initial=-1)) + 1)
    return sparse.csr_matrix((np.ones(len(grams), np.int32), (owners, grams)), shape=shape)
