"""Contrastive losses against sentence-transformers, torch and hand-computed numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer import losses as oracle

from empathy_jax import contrastive, sharding
from empathy_jax.data import tokenizer as tokenizers
from empathy_jax.models.pooling import normalise
from tests.training import update_steps

RNG = np.random.default_rng(0)
EAST, NORTH, WEST = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]]), jnp.array([[-1.0, 0.0]])


def unit(shape):
    x = RNG.normal(size=shape).astype(np.float32)
    return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


def to_torch(x):
    return torch.tensor(np.array(x))


# --- against sentence-transformers ---


class Given(torch.nn.Module):
    """A model whose embedding of a text is given with it, under a name."""

    def __init__(self, name: str):
        super().__init__()
        self.name, self.max_seq_length = name, 8
        self.tokenizer = tokenizers.train(["一些话"], 300)

    def forward(self, features):
        return {"sentence_embedding": features[self.name]}

    def get_embedding_dimension(self):
        return 16

    def __getitem__(self, index):
        return self  # the one module there is


def columns(count, rows=8):
    """Embeddings that are no unit vectors: those of each column of a batch."""
    return [RNG.normal(size=(rows, 16)).astype(np.float32) * 3 for _ in range(count)]


def theirs(loss, batch, **others):
    """Loss and its gradients at the embeddings, in torch and float64."""
    embeddings = [torch.tensor(column, dtype=torch.float64, requires_grad=True) for column in batch]
    features = [{"embedding": leaf} for leaf in embeddings]
    for name, values in others.items():
        for feature, column in zip(features, values, strict=True):
            feature[name] = torch.tensor(column, dtype=torch.float64)
    value = loss(features, None)
    value.backward()
    return value.item(), [leaf.grad.numpy() for leaf in embeddings]


def ours(loss, batch):
    def mean(*batch):
        return jnp.mean(loss(*map(normalise, batch)))

    return jax.value_and_grad(mean, argnums=tuple(range(len(batch))))(*map(jnp.asarray, batch))


def assert_equal(actual, expected):
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6, atol=1e-6)
    for one, other in zip(actual[1], expected[1], strict=True):
        assert np.abs(other).max() > 1e-3
        np.testing.assert_allclose(one, other, atol=1e-6)


def ranking(questions, *answers, banned=None):
    """InfoNCE at scale 20 with the answers of all columns, the first of them the good ones."""
    answers = jnp.concatenate(answers)
    shape = (len(questions), len(answers))
    allowed = jnp.ones(shape, bool) if banned is None else ~banned
    return contrastive.info_nce(questions, answers, jnp.arange(shape[0]), 1 / 20, allowed)


def test_triplet_equals_sentence_transformers():
    batch = columns(3)
    loss = oracle.TripletLoss(
        Given("embedding"), oracle.TripletDistanceMetric.COSINE, triplet_margin=0.3
    )
    triplet = functools.partial(contrastive.triplet_cosine, margin=0.3)
    assert_equal(ours(triplet, batch), theirs(loss, batch))


@pytest.mark.parametrize("negatives", [0, 1, 2])
def test_info_nce_equals_sentence_transformers(negatives):
    batch = columns(2 + negatives)
    loss = oracle.MultipleNegativesRankingLoss(Given("embedding"), scale=20.0)
    assert_equal(ours(ranking, batch), theirs(loss, batch))


@pytest.mark.parametrize("negatives", [0, 1])
def test_info_nce_in_chunks_equals_the_cached_loss_of_sentence_transformers(negatives):
    batch = columns(2 + negatives)
    loss = oracle.CachedMultipleNegativesRankingLoss(
        Given("embedding"), scale=20.0, mini_batch_size=2
    )

    def chunked(*batch):
        embeddings = contrastive.map_in_chunks(normalise, jnp.concatenate(batch), 2)
        return ranking(*jnp.split(embeddings, len(batch)))

    assert_equal(ours(chunked, batch), theirs(loss, batch))


@pytest.mark.parametrize("negatives", [0, 1])
def test_matryoshka_equals_sentence_transformers(negatives):
    batch = columns(2 + negatives)
    model, dims = Given("embedding"), (2, 5, 16)
    loss = oracle.MatryoshkaLoss(
        model, oracle.MultipleNegativesRankingLoss(model, scale=20.0), dims, [1 / 3] * 3
    )

    def nested(questions, *answers):
        return contrastive.matryoshka(ranking, questions, jnp.concatenate(answers), dims)

    assert_equal(ours(nested, batch), theirs(loss, batch))


@pytest.mark.parametrize("strategy", ["absolute", "relative"])
@pytest.mark.parametrize("margin", [0.1, -0.1])
def test_false_negatives_equal_those_of_a_guide_in_sentence_transformers(strategy, margin):
    batch, guide = columns(3), columns(3)
    loss = oracle.GISTEmbedLoss(
        Given("embedding"),
        Given("guide"),
        temperature=1 / 20,
        margin_strategy=strategy,
        margin=margin,
        contrast_anchors=False,
        contrast_positives=False,
    )
    questions, *answers = map(normalise, map(jnp.asarray, guide))
    scores = questions @ jnp.concatenate(answers).T
    margins = {"absolute": (margin, None), "relative": (None, margin)}[strategy]
    banned = contrastive.false_negatives(scores, jnp.diag(scores), None, *margins)
    assert 0 < int(jnp.sum(banned)) < banned.size
    filtered = functools.partial(ranking, banned=banned)
    assert_equal(ours(filtered, batch), theirs(loss, batch, guide=guide))


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


def test_triplet_cosine_any_is_the_mean_over_what_is_allowed():
    questions, answers = unit((5, 8)), unit((9, 8))
    allowed = np.array(RNG.random((5, 9)) < 0.5)
    allowed[0], allowed[1, :] = False, [True] + [False] * 8
    actual = contrastive.triplet_cosine_any(questions, answers, jnp.asarray(allowed), 0.3)
    each = [
        contrastive.triplet_cosine(questions, answers[:5], jnp.tile(answer, (5, 1)), 0.3)
        for answer in answers
    ]
    expected = np.ma.array(np.stack(each, axis=1), mask=~allowed).mean(axis=1).filled(0)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert expected[0] == 0 and expected.sum() > 0
    # d(east, north) = 1 and d(east, west) = 2, its own answer at 1: (0.3 + 0) / 2.
    seen = jnp.array([[False, True, True]])
    answers = jnp.concatenate([NORTH, -NORTH, WEST])
    np.testing.assert_allclose(contrastive.triplet_cosine_any(EAST, answers, seen, 0.3), [0.15])


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
        contrastive.matryoshka(ranking, unit((2, 8)), unit((2, 8)), dims)


# --- chunks ---


def network(weights, tokens):
    """Rows of tokens through a few layers, to a unit vector each, [C, D]."""
    hidden = weights["table"][tokens]
    for layer in weights["layers"]:
        hidden = jnp.tanh(hidden @ layer)
    return normalise(jnp.mean(hidden, axis=1))


def network_inputs(rows):
    table, layers = RNG.normal(size=(50, 32)), RNG.normal(size=(5, 32, 32)) / 6
    weights = {"table": table, "layers": list(layers)}
    weights = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), weights)
    return weights, jnp.asarray(RNG.integers(0, 50, (rows, 32)))


def chunked_loss(weights, tokens, chunk):
    """InfoNCE of the first half of the rows, the questions, with the second."""
    embeddings = contrastive.map_in_chunks(functools.partial(network, weights), tokens, chunk)
    questions, answers = jnp.split(embeddings, 2)
    size = len(questions)
    allowed = jnp.ones((size, size), bool)
    return jnp.mean(contrastive.info_nce(questions, answers, jnp.arange(size), 1.0, allowed))


@pytest.mark.parametrize("chunk", [1, 4, 8, 16])
def test_chunks_give_the_value_and_gradient_of_the_whole(chunk):
    weights, tokens = network_inputs(16)
    embed = functools.partial(network, weights)
    embedded = contrastive.map_in_chunks(embed, tokens, chunk)
    np.testing.assert_allclose(embedded, embed(tokens), atol=1e-6)
    value, gradient = jax.value_and_grad(chunked_loss)(weights, tokens, chunk)
    whole, whole_gradient = jax.value_and_grad(chunked_loss)(weights, tokens, 16)
    np.testing.assert_allclose(value, whole, rtol=1e-6)
    update_steps.assert_same(gradient, whole_gradient, 1e-6)


def test_chunks_on_a_mesh():
    weights, tokens = network_inputs(32)
    run = jax.jit(jax.value_and_grad(chunked_loss), static_argnums=2)
    value, gradient = run(weights, tokens, 8)
    mesh = update_steps.layout(4, 2, 1).mesh
    cut = jax.device_put(tokens, sharding.batch_sharding(mesh))
    whole = jax.device_put(weights, sharding.replicated(mesh))
    with jax.set_mesh(mesh):
        eight_value, eight_gradient = run(whole, cut, 8)
        embedded = jax.jit(
            lambda weights, tokens: contrastive.map_in_chunks(
                functools.partial(network, weights), tokens, 8
            )
        ).lower(whole, cut)
    np.testing.assert_allclose(eight_value, value, rtol=1e-6)
    update_steps.assert_same(eight_gradient, gradient, 1e-6)
    program = embedded.compile()
    assert program.output_shardings.is_equivalent_to(sharding.batch_sharding(mesh), 2)
    moves = ("all-gather", "all-to-all", "all-reduce", "collective-permute")
    assert [name for name in moves if name in program.as_text()] == []


def temporary_bytes(rows, chunk):
    """Memory of loss and gradient, apart from inputs and outputs."""
    shapes = jax.eval_shape(lambda: network_inputs(rows))
    gradient = jax.jit(jax.value_and_grad(functools.partial(chunked_loss, chunk=chunk)))
    return gradient.lower(*shapes).compile().memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_the_batch():
    small, large, whole = (temporary_bytes(*sizes) for sizes in ((8, 4), (64, 4), (64, 64)))
    assert large < 1.2 * small
    assert whole > 5 * large


def test_a_single_chunk_is_embedded_once():
    weights, tokens = network_inputs(8)
    embed = functools.partial(network, weights)
    direct = str(jax.make_jaxpr(embed)(tokens))
    assert str(jax.make_jaxpr(lambda t: contrastive.map_in_chunks(embed, t, 8))(tokens)) == direct


def test_rows_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"6 rows cannot be taken 4 at a time.*divisor of 6"):
        contrastive.map_in_chunks(lambda x: x, jnp.zeros((6, 2)), 4)
