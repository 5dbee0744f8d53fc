import subprocess
import sys

import numpy as np
import pytest

from empathy_jax.evaluation import text_metrics
from tests.conftest import ROOT


def _oracle_rouge_l(candidate: str, reference: str) -> float:
    """Longest common subsequence by the textbook table, then the F-measure."""
    a, b = "".join(candidate.split()), "".join(reference.split())
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            longer = max(table[i, j + 1], table[i + 1, j])
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else longer
    if not table[-1, -1]:
        return 0.0
    precision, recall = table[-1, -1] / len(a), table[-1, -1] / len(b)
    return 2 * precision * recall / (precision + recall)


def test_rouge_l_equals_the_textbook_on_random_chinese_text():
    rng = np.random.default_rng(0)
    texts = [
        "".join(rng.choice(list("我很难过，也想你。\n a"), rng.integers(0, 60))) for _ in range(40)
    ]
    candidates, references = texts[:20], texts[20:]
    expected = [_oracle_rouge_l(c, r) for c, r in zip(candidates, references, strict=True)]
    np.testing.assert_allclose(text_metrics.rouge_l(candidates, references), expected, atol=1e-6)


def test_rouge_l_by_hand():
    # LCS of 我很难过 and 你很难 is 很难: P = 2/4, R = 2/3, F = 4/7.
    scores = text_metrics.rouge_l(["我很难过", "", "x", "𠀀"], ["你很 难", "a", "", "𠀀"])
    np.testing.assert_allclose(scores, [4 / 7, 0, 0, 1], atol=1e-6)
    assert text_metrics.rouge_l([], []).shape == (0,)


def test_references_give_the_largest_and_the_mean_and_none_gives_nan():
    best, mean = text_metrics.rouge_l_of_references(
        ["我很难过", "没有参考", "好"], [["你很难", "我很难过"], [], ["坏"]]
    )
    np.testing.assert_allclose(best, [1, np.nan, 0], atol=1e-6)
    np.testing.assert_allclose(mean, [(1 + 4 / 7) / 2, np.nan, 0], atol=1e-6)


def test_units_are_ideographs_and_runs_of_other_letters():
    found = text_metrics.units("我OK了，Hello_world 2次！")
    assert found == ["我", "ok", "了", "hello_world", "2", "次"]


def test_distinct_by_hand():
    assert text_metrics.distinct(["a b a b"], 1) == pytest.approx(2 / 4)
    assert text_metrics.distinct(["a b a b"], 2) == pytest.approx(2 / 3)
    # Pairs do not reach over the end of a text: (a b), (a b), (b c).
    assert text_metrics.distinct(["a b", "a b c"], 2) == pytest.approx(2 / 3)
    assert np.isnan(text_metrics.distinct(["好"], 2))
    assert np.isnan(text_metrics.distinct([], 1))


@pytest.mark.parametrize("size", [2, 3, 10, 101])
def test_derangement_moves_everything_and_is_a_permutation(size):
    for seed in range(5):
        result = text_metrics.derangement(size, seed)
        assert sorted(result) == list(range(size))
        assert not np.any(result == np.arange(size))
    np.testing.assert_array_equal(result, text_metrics.derangement(size, 4))


def test_derangement_of_one_is_refused():
    with pytest.raises(ValueError, match="received 1"):
        text_metrics.derangement(1, 0)


def test_by_question_averages_samples_and_leaves_out_what_is_missing():
    values = [1.0, 3.0, np.nan, np.nan, 5.0]
    np.testing.assert_allclose(text_metrics.by_question(values, [0, 0, 0, 1, 4]), [2.0, 5.0])
    assert text_metrics.by_question([], []).shape == (0,)


def test_score_answers_has_every_measure_of_each_answer():
    found = text_metrics.score_answers(
        ["我很难过，怎么办", "怎么办"], ["我很难过，怎么办", "慢慢 来"], [["慢慢来"], ["慢慢来"]]
    )
    assert set(found) == {
        "characters", "rouge_l_max", "rouge_l_mean", "distinct_1", "distinct_2", "echo_overlap",
    }  # fmt: skip
    np.testing.assert_allclose(found["characters"], [8, 3])
    np.testing.assert_allclose(found["rouge_l_max"], [0, 1], atol=1e-6)
    np.testing.assert_allclose(found["echo_overlap"], [1, 0])
    np.testing.assert_allclose(found["distinct_1"], [1, 2 / 3])


_IN_A_PROCESS = """
import os, sys
from empathy_jax.evaluation import text_metrics
print(text_metrics.rouge_l(["abcd"], ["abxd"]), text_metrics.rouge_l(["a"], ["a"]))
import tensorflow as tf
print(tf.config.get_visible_devices("GPU"))
print("python", file=sys.stderr, flush=True)
os.write(2, b"native")
"""


def test_tensorflow_is_silent_and_standard_error_is_there_afterwards():
    done = subprocess.run(
        [sys.executable, "-c", _IN_A_PROCESS],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "[0.75] [1.]\n[]\n"
    assert done.stderr == "python\nnative"
