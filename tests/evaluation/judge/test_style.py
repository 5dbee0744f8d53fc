"""Style is counted as written, and compared without regard to which system comes first."""

import numpy as np
import pytest

from empathy_jax.evaluation.judge import style


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("", [0, 0, 0, 0, 0]),
        ("我听到了。", [5, 1, 0, 0, 0]),
        ("你 好\n\n再说说？", [6, 2, 0, 0, 1]),
        ("- 呼吸\n* 散步\n• 睡觉", [9, 3, 3, 0, 0]),
        ("1. 呼吸\n2、散步\n3）睡觉\n（四）吃饭\n五、喝水", [21, 5, 5, 0, 0]),
        ("2.5 倍和-1\n十分难过", [11, 2, 0, 0, 0]),
        ("# 题目\n**要紧**的是__你__", [16, 2, 0, 3, 0]),
        ("真的吗？？ 是吗? ", [8, 1, 0, 0, 2]),
    ],
)
def test_counts(text, counts):
    assert style.measure(text) == counts


def test_differences_are_relative_and_antisymmetric():
    found = style.differences([["好" * 30, "好" * 10], ["好？", "好？"]])
    assert found.shape == (2, 2, 2, len(style.FEATURES))
    assert found[0, 0, 1].tolist() == [0.5, 0, 0, 0, 0]
    np.testing.assert_array_equal(found, -found.swapaxes(1, 2))
    assert not found[1].any()


def test_differences_are_scaled_to_a_root_mean_square_of_one():
    rng = np.random.default_rng(0)
    answers = [["好" * int(n) for n in rng.integers(1, 90, 3)] for _ in range(50)]
    scaled, scale = style.standardise(style.differences(answers))
    i, j = np.triu_indices(3, 1)
    assert (scaled[:, i, j, 0] ** 2).mean() == pytest.approx(1)
    assert scale[2] == 1 and not scaled[..., 2].any()


def test_the_share_within_systems_tells_style_from_names():
    rng = np.random.default_rng(1)
    alike = [["好" * int(n) for n in rng.integers(1, 200, 3)] for _ in range(400)]
    assert style.within_systems(style.differences(alike))[0] == pytest.approx(1, abs=0.02)
    apart = [["好" * 10, "好" * 20, "好" * 40]] * 5
    # Relative differences are not quite sums of one number for each system.
    assert style.within_systems(style.differences(apart))[0] < 0.02
    # The same by least squares on the systems' indicators.
    values = style.differences(alike[:7])[..., 0]
    i, j = np.triu_indices(3, 1)
    rows = np.tile(np.eye(3)[i] - np.eye(3)[j], (7, 1))
    target = values[:, i, j].ravel()
    left = target - rows @ np.linalg.lstsq(rows, target)[0]
    expected = (left**2).sum() / (target**2).sum()
    assert style.within_systems(style.differences(alike[:7]))[0] == pytest.approx(expected)
    assert np.isnan(style.within_systems(style.differences(alike))[2])
