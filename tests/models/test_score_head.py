"""The grade of an answer against hand-computed numbers."""

import jax
import jax.numpy as jnp
import numpy as np

from empathy_jax.models import score_head
from empathy_jax.models.pooling import normalise


def test_a_fresh_head_gives_every_answer_the_same_grade():
    params = score_head.init_params(5)
    assert params["kernel"].shape == (2, 5) and params["kernel"].dtype == jnp.float32
    vectors = normalise(jax.random.normal(jax.random.key(0), (2, 3, 5)))
    np.testing.assert_array_equal(score_head.grade(params, *vectors), np.zeros(3))


def test_grade_by_hand():
    params = {"kernel": jnp.array([[1.0, -2.0], [10.0, 100.0]])}
    questions, answers = jnp.array([[1.0, 0.0], [0.6, 0.8]]), jnp.array([[0.0, 1.0], [0.8, 0.6]])
    # √2 · a·w₁ with a·w₁ = -2 and -0.4; 2 · (q ∘ a)·w₂ with 0 and 0.48 · 110.
    expected = [-2 * np.sqrt(2), -0.4 * np.sqrt(2) + 105.6]
    np.testing.assert_allclose(score_head.grade(params, questions, answers), expected, rtol=1e-6)


def test_the_second_row_can_be_the_cosine():
    """With w₁ = 0 and w₂ all 1/D the grade is the cosine, so the head can do what that does."""
    questions, answers = normalise(jax.random.normal(jax.random.key(1), (2, 4, 6)))
    params = {"kernel": jnp.stack([jnp.zeros(6), jnp.ones(6) / 6])}
    cosines = jnp.sum(questions * answers, axis=1)
    np.testing.assert_allclose(
        score_head.grade(params, questions, answers), cosines, rtol=1e-5, atol=1e-6
    )


def test_grades_are_float32_of_half_precision_weights():
    params = {"kernel": jnp.ones((2, 3), jnp.bfloat16)}
    vectors = jnp.full((1, 3), 0.5)
    grades = score_head.grade(params, vectors, vectors)
    assert grades.dtype == jnp.float32
    np.testing.assert_allclose(grades, [1.5 * 3**0.5 + 2.25], rtol=1e-6)
