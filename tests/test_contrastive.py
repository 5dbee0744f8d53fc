"""Contrastive losses against sentence-transformers, torch and hand-computed numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from empathy_jax import contrastive, sharding
from tests.training import update_steps

RNG = np.random.default_rng(0)
EAST, NORTH, WEST = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]]), jnp.array([[-1.0, 0.0]])


def unit(shape):
    x = RNG.normal(size=shape).astype(np.float32)
    return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


def to_torch(x):
    return torch.tensor(np.array(x))


# --- triplet and InfoNCE ---


def test_triplet_cosine_matches_torch_and_hand_numbers():
    question, positive, negative = unit((6, 8)), unit((6, 8)), unit((6, 8))
    loss = torch.nn.TripletMarginWithDistanceLoss(
        distance_function=lambda a, b: 1 - torch.cosine_similarity(a, b),
        margin=0.3,
        reduction="none",
    )
    expected = loss(*map(to_torch, (question, positive, negative)))
    actual = contrastive.triplet_cosine(question, positive, negative, 0.3)
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    np.testing.assert_allclose(contrastive.triplet_cosine(EAST, NORTH, WEST, 0.3), [0.0])
    np.testing.assert_allclose(contrastive.triplet_cosine(EAST, WEST, NORTH, 0.3), [1.3])


def test_info_nce_matches_torch_cross_entropy():
    questions, answers = unit((4, 8)), unit((6, 8))
    positives = jnp.array([0, 2, 3, 5])
    scores = to_torch(questions) @ to_torch(answers).T / 0.05
    expected = torch.nn.functional.cross_entropy(
        scores, to_torch(positives).long(), reduction="none"
    )
    actual = contrastive.info_nce(questions, answers, positives, 0.05, jnp.ones((4, 6), bool))
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_info_nce_leaves_false_negatives_out():
    questions, answers = unit((2, 8)), unit((3, 8))
    allowed = jnp.array([[True, False, True], [True, True, False]])
    # The second positive is not "allowed" as a negative: still counted.
    positives = jnp.array([0, 2])

    def loss(answers):
        return contrastive.info_nce(questions, answers, positives, 0.1, allowed)

    scores = np.exp(questions @ answers.T / 0.1)
    expected = [
        -np.log(scores[0, 0] / (scores[0, 0] + scores[0, 2])),
        -np.log(scores[1, 2] / scores[1].sum()),
    ]
    np.testing.assert_allclose(loss(answers), expected, rtol=1e-4)
    gradient = jax.grad(lambda a: loss(a)[0])(answers)
    assert np.all(np.isfinite(gradient)) and np.all(gradient[1] == 0)


def test_info_nce_on_a_mesh_is_over_the_whole_batch():
    questions, answers = unit((16, 8)), unit((32, 8))
    own = jnp.arange(16) * 2
    allowed = jnp.asarray(RNG.random((16, 32)) < 0.8)

    def loss(questions, answers, allowed):
        return jnp.mean(contrastive.info_nce(questions, answers, own, 0.05, allowed))

    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    value, gradients = run(questions, answers, allowed)
    mesh = update_steps.layout(4, 2, 1).mesh
    with jax.set_mesh(mesh):
        cut = jax.device_put((questions, answers, allowed), sharding.batch_sharding(mesh))
        assert cut[1].addressable_shards[7].data.shape == (4, 8)
        eight_value, eight_gradients = run(*cut)
    np.testing.assert_allclose(eight_value, value, rtol=1e-6)
    for eight, one in zip(eight_gradients, gradients, strict=True):
        np.testing.assert_allclose(eight, one, atol=1e-6)


# --- false and hard negatives ---


@pytest.mark.parametrize(
    ("ceiling", "margin", "relative_margin", "flagged"),
    [
        (0.85, None, None, [[0, 0, 0, 1], [0, 0, 0, 1]]),
        (None, 0.1, None, [[1, 0, 1, 1], [1, 1, 1, 1]]),
        (None, -0.15, None, [[0, 0, 0, 0], [0, 1, 1, 1]]),
        (None, None, 0.5, [[1, 1, 1, 1], [1, 1, 1, 1]]),
        (None, None, -0.5, [[0, 0, 0, 0], [0, 1, 1, 1]]),
        (0.85, -0.25, None, [[0, 0, 0, 1], [0, 1, 1, 1]]),
        (None, None, None, [[0, 0, 0, 0], [0, 0, 0, 0]]),
    ],
)
def test_false_negatives_by_hand(ceiling, margin, relative_margin, flagged):
    scores = jnp.array([[0.8, 0.6, 0.75, 0.9], [-0.2, 0.6, 0.75, 0.9]])
    positive_scores = jnp.array([0.8, -0.2])
    found = contrastive.false_negatives(scores, positive_scores, ceiling, margin, relative_margin)
    np.testing.assert_array_equal(found, np.array(flagged, bool))


def test_false_negatives_are_a_constant_for_the_gradient():
    questions, answers = unit((3, 8)), unit((5, 8))
    own = jnp.arange(3)

    def loss(answers, mask=None):
        scores = questions @ answers.T
        if mask is None:
            mask = contrastive.false_negatives(scores, jnp.diag(scores), 0.2, 0.1, 0.05)
        return jnp.sum(contrastive.info_nce(questions, answers, own, 0.05, ~mask))

    scores = questions @ answers.T
    mask = contrastive.false_negatives(scores, jnp.diag(scores), 0.2, 0.1, 0.05)
    assert 0 < int(jnp.sum(mask)) < mask.size
    np.testing.assert_array_equal(jax.grad(loss)(answers), jax.grad(loss)(answers, mask))


def test_the_hardest_negative_is_an_allowed_one():
    scores = jnp.array([[0.9, 0.3, 0.5], [0.1, 0.2, 0.3], [0.4, 0.4, -0.9]])
    allowed = jnp.array([[False, True, True], [False, False, False], [False, False, True]])
    index, found = contrastive.hardest_negative(scores, allowed)
    np.testing.assert_array_equal(index, [2, 0, 2])
    np.testing.assert_array_equal(found, [True, False, True])
    scores, allowed = RNG.normal(size=(20, 7)), RNG.random((20, 7)) < 0.3
    index, found = contrastive.hardest_negative(jnp.asarray(scores), jnp.asarray(allowed))
    best = np.ma.array(scores, mask=~allowed)
    np.testing.assert_array_equal(found, allowed.any(axis=1))
    np.testing.assert_array_equal(np.asarray(index)[found], best.argmax(axis=1)[found])


# --- Bradley-Terry ---


def test_bradley_terry_matches_torch_and_hand_numbers():
    np.testing.assert_allclose(
        contrastive.bradley_terry(jnp.array([1.0, 0.0]), jnp.array([1.0, np.log(3.0)])),
        [np.log(2), np.log(4)],
        rtol=1e-6,
    )
    better, worse = (RNG.normal(size=50).astype(np.float32) * 9 for _ in range(2))
    expected = -torch.nn.functional.logsigmoid(torch.tensor(better) - torch.tensor(worse))
    actual = contrastive.bradley_terry(jnp.asarray(better), jnp.asarray(worse))
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_bradley_terry_sees_differences_only_and_stays_finite():
    better, worse = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])
    shifted = contrastive.bradley_terry(better + 8.0, worse + 8.0)
    np.testing.assert_allclose(shifted, contrastive.bradley_terry(better, worse), rtol=1e-6)

    def loss(better):
        return contrastive.bradley_terry(better, jnp.zeros(2))

    far = jnp.array([-1e4, 1e4])
    np.testing.assert_allclose(loss(far), [1e4, 0.0])
    np.testing.assert_allclose(jax.grad(lambda b: jnp.sum(loss(b)))(far), [-1.0, 0.0])


# --- Matryoshka ---


def pairs_loss(questions, answers):
    size = len(questions)
    allowed = jnp.ones((size, len(answers)), bool)
    return contrastive.info_nce(questions, answers, jnp.arange(size), 0.05, allowed)


def test_matryoshka_by_hand():
    questions, documents = jnp.array([[3.0, 4.0]]), jnp.array([[-2.0, 0.0]])

    def cosine(questions, documents):
        return (questions @ documents.T)[:, 0]

    # One coordinate: cos = -1; both: -3/5.
    actual = contrastive.matryoshka(cosine, questions, documents, (1, 2))
    np.testing.assert_allclose(actual, [-0.8], rtol=1e-6)
    whole = contrastive.matryoshka(cosine, questions, documents, (2,))
    np.testing.assert_allclose(whole, [-0.6], rtol=1e-6)


@pytest.mark.parametrize("dims", [(), (0, 4), (4, 4), (8, 4), (4, 9)])
def test_matryoshka_dims_are_checked(dims):
    with pytest.raises(ValueError, match=r"config\.reward_model\.matryoshka_dims is .* 1 to 8"):
        contrastive.matryoshka(pairs_loss, unit((2, 8)), unit((2, 8)), dims)
