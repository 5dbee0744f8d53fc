"""The reward model's loss by numpy, and its update on meshes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax.data import pairs
from empathy_jax.models import encoder, score_head
from empathy_jax.training import common, reward_model
from empathy_jax.training.reward_model import Settings
from empathy_jax.training.scorer import embed_rows
from tests.training import update_steps

SETTINGS = Settings(
    pooling="mean",
    temperature=0.1,
    margin=0.2,
    triplet_weight=0.5,
    triplet_negative="hardest",
    info_nce_weight=2.0,
    head_weight=0.0,
    matryoshka_dims=(),
    negative_ceiling=2.0,
    negative_margin=-3.0,
    rows_per_pass=0,
)
HEAD = dataclasses.replace(SETTINGS, head_weight=0.7)


def _batch(seed: int, size: int = 8, corrupted: int = 1, graded: int = 0, groups=None) -> dict:
    """Random texts of 3 to 12 tokens in rows of 16, as `pairs.PairStream` gives them."""
    random = np.random.default_rng(seed)
    count = size * (2 + corrupted) + 3 * graded
    texts = [random.integers(1, 64, random.integers(3, 13)) for _ in range(count)]
    rows, slots = pairs.pack_texts(texts, 16, pad_id=0, multiple=8)
    groups = np.arange(size) if groups is None else np.asarray(groups)
    none = np.full(size * corrupted, pairs.NO_QUESTION)
    batch = {
        **rows,
        "questions": slots[:size],
        "documents": slots[size : size * (2 + corrupted)],
        "groups": groups.astype(np.int32),
        "document_groups": np.concatenate([groups, none]).astype(np.int32),
    }
    return batch | ({"graded": slots[-3 * graded :].reshape(-1, 3)} if graded else {})


def _head(seed: int = 1) -> dict:
    kernel = 0.5 * jax.random.normal(jax.random.key(seed), (2, update_steps.ENCODER.width))
    return {"head": {"kernel": kernel}}


# --- the update, on its own ---


def _run(place, batches, settings=SETTINGS, config=update_steps.ENCODER, more=None):
    return update_steps.run(
        reward_model.update_fn, config, place, batches, more=more, settings=settings
    )


@pytest.fixture(scope="module")
def one_device():
    """Two updates with a head on one device: (trained collections, metrics)."""
    batches = [_batch(seed, graded=8) for seed in (1, 2)]  # of as many rows
    trained, metrics, _ = _run(update_steps.layout(1, 1, 1), batches, HEAD, more=_head())
    return batches, trained, metrics


# On the second mesh a pass holds fewer rows than there are devices; the third cuts tokens as well.
@pytest.mark.parametrize(
    ("mesh", "rows_per_pass"), [((2, 2, 2), 0), ((8, 1, 1), 4), ((1, 2, 2, 2), 0)]
)
def test_one_device_equals_eight(one_device, mesh, rows_per_pass):
    batches, one, one_metrics = one_device
    settings = dataclasses.replace(HEAD, rows_per_pass=rows_per_pass)
    place = update_steps.layout(*mesh)
    eight, eight_metrics, update = _run(place, batches, settings, more=_head())
    update_steps.assert_same(one, eight, 1e-5)
    update_steps.assert_same(one_metrics, eight_metrics, 1e-4)
    assert update._cache_size() == 1


def test_every_tensor_learns(one_device):
    _, trained, metrics = one_device
    start = update_steps.fresh(update_steps.ENCODER, update_steps.layout(1, 1, 1)) | _head()
    assert trained.keys() == {"params", "head"}
    assert len(update_steps.moved(start, trained)) == len(jax.tree.leaves(start))
    assert metrics["grad_norm"] > 0.1  # large enough for 1e-5 to mean something


def test_rows_in_passes_equal_the_whole_batch(one_device):
    batches, whole, whole_metrics = one_device
    settings = dataclasses.replace(HEAD, rows_per_pass=4)
    assert batches[0]["tokens"].shape[0] == 24
    parts, metrics, _ = _run(update_steps.layout(1, 1, 1), batches, settings, more=_head())
    update_steps.assert_same(whole, parts, 1e-5)
    update_steps.assert_same(whole_metrics, metrics, 1e-4)


def test_adapters_and_the_head_learn_and_the_base_is_not_returned():
    config = dataclasses.replace(update_steps.ENCODER, lora_rank=2)
    batches = [_batch(seed, graded=2) for seed in (0, 1)]
    place = update_steps.layout(1, 1, 1)
    head = {"head": jax.device_get(score_head.init_params(config.width))}
    trained, _, _ = _run(place, batches, HEAD, config, head)
    start = {"lora": encoder.init_lora(common.stream(0, "lora"), config), **head}
    assert jax.tree.structure(start) == jax.tree.structure(trained)
    # B is zero at first, so A learns from the second step on.
    assert len(update_steps.moved(start, trained)) == len(jax.tree.leaves(start))


# --- the loss, by numpy ---


@pytest.fixture(scope="module")
def params():
    fresh = encoder.init_params(jax.random.key(0), update_steps.ENCODER)
    # Beside positions and types, tokens large enough that cosines are not all near 1.
    fresh["embed"]["tokens"] *= 10
    return fresh


@functools.partial(jax.jit, static_argnames="settings")
def _loss_fn(trainable, batch, settings):
    return reward_model.loss_fn(trainable, {}, batch, update_steps.ENCODER, settings)


def _loss(params, batch, head=None, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    trainable = {"params": params, **(head or {})}
    loss, parts = _loss_fn(trainable, update_steps.as_jax(batch), settings)
    return float(loss), {name: float(value) for name, value in parts.items()}


def _vectors(params, batch):
    rows = {name: jnp.asarray(batch[name]) for name in ("tokens", "segment_ids", "positions")}
    found = embed_rows({"params": params}, update_steps.ENCODER, "mean", rows)
    return np.asarray(found, np.float64).reshape(-1, found.shape[-1])


def _expected(vectors, batch, settings):
    """Loss, parts and the share of doubtful documents, one question at a time."""
    questions, documents = vectors[batch["questions"]], vectors[batch["documents"]]
    dims = settings.matryoshka_dims or (vectors.shape[1],)
    parts = {"info_nce": [], "triplet": [], "recall": []}
    others_count = doubtful_count = 0
    for number, group in enumerate(batch["groups"]):
        whole = documents @ questions[number]
        others = [j for j, g in enumerate(batch["document_groups"]) if g != group]
        doubtful = {
            j
            for j in others
            if batch["document_groups"][j] >= 0
            and (
                whole[j] > settings.negative_ceiling
                or whole[j] > whole[number] - settings.negative_margin
            )
        }
        negatives = [j for j in others if j not in doubtful]
        others_count, doubtful_count = others_count + len(others), doubtful_count + len(doubtful)
        parts["recall"].append(all(whole[number] > whole[j] for j in others))
        info_nce, triplet = [], []
        for dim in dims:
            cut = documents[:, :dim] / np.linalg.norm(documents[:, :dim], axis=1, keepdims=True)
            scores = cut @ questions[number, :dim] / np.linalg.norm(questions[number, :dim])
            exponents = [scores[j] / settings.temperature for j in [number, *negatives]]
            info_nce.append(-exponents[0] + np.log(np.exp(exponents).sum()))
            gaps = [max(0, scores[j] - scores[number] + settings.margin) for j in negatives]
            reduce = max if settings.triplet_negative == "hardest" else np.mean
            triplet.append(reduce(gaps) if gaps else 0)
        parts["info_nce"].append(np.mean(info_nce))
        parts["triplet"].append(np.mean(triplet))
    parts = {name: float(np.mean(values)) for name, values in parts.items()}
    loss = settings.info_nce_weight * parts["info_nce"] + settings.triplet_weight * parts["triplet"]
    return loss, {**parts, "doubtful": doubtful_count / max(others_count, 1)}


CASES = {
    "plain": {},
    "triplet against any": {"triplet_negative": "any"},
    "ceiling": {"negative_ceiling": 0.3},
    "margin": {"negative_margin": -0.2},
    "ceiling and margin": {"negative_ceiling": 0.5, "negative_margin": -0.4},
    "margin above zero": {"negative_margin": 0.1, "triplet_negative": "any"},
    "nothing but corrupted answers left": {"negative_ceiling": -1.0},
    "matryoshka": {"matryoshka_dims": (4, 8, 16)},
    "matryoshka against any, doubtful left out": {
        "matryoshka_dims": (3, 16),
        "triplet_negative": "any",
        "negative_ceiling": 0.2,
    },
}


@pytest.mark.parametrize("name", CASES)
def test_loss_by_numpy(params, name):
    batch = _batch(3, size=5, corrupted=2, groups=[0, 1, 0, 2, 3])
    settings = dataclasses.replace(SETTINGS, **CASES[name])
    loss, parts = _expected(_vectors(params, batch), batch, settings)
    found, found_parts = _loss(params, batch, **CASES[name])
    assert found == pytest.approx(loss, rel=1e-4)
    assert found_parts == pytest.approx(parts, rel=1e-4, abs=1e-6)
    limited = any(field.startswith("negative") for field in CASES[name])
    assert (0 < parts["doubtful"] < 1) == limited


def test_a_corrupted_answer_is_never_doubtful(params):
    """Above the ceiling all the same, it is pushed away, and an equally good other answer is not."""
    batch = _batch(4, size=4)

    def gradient(ceiling):
        def loss(vectors):
            # The vectors of 4 questions, their answers and the corrupted ones, as they are.
            questions, documents = vectors[:4], vectors[4:]
            settings = dataclasses.replace(SETTINGS, negative_ceiling=ceiling)
            return _loss_of_vectors(questions, documents, batch, settings)

        vectors = np.random.default_rng(0).normal(size=(12, 8)) + 2
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.abs(jax.grad(loss)(jnp.asarray(vectors, jnp.float32))[4:]).max(axis=1)

    with_all, low_ceiling = gradient(2.0), gradient(-1.0)
    assert (with_all > 0).all() and (low_ceiling[4:] > 0).all()
    _, parts = _loss(params, batch, negative_ceiling=-1.0)
    assert parts["doubtful"] == pytest.approx(12 / 28)  # 4 · 3 other answers of 4 · 7 documents


def _loss_of_vectors(questions, documents, batch, settings):
    """The loss of given vectors: the model is replaced by them."""
    count = len(questions) + len(documents)
    given = {
        **batch,
        "questions": np.arange(len(questions)),
        "documents": np.arange(len(questions), count),
    }
    with pytest.MonkeyPatch.context() as patch:
        vectors = jnp.concatenate([questions, documents])[None]
        patch.setattr(reward_model, "embed_rows", lambda *_: vectors)
        return reward_model.loss_fn({}, {}, given, update_steps.ENCODER, settings)[0]


def test_another_answer_to_the_same_question_is_no_negative(params):
    _, one = _loss(params, _batch(5, size=4, groups=[7, 7, 1, 2]))
    # As its own question it would be one, and the loss larger.
    _, other = _loss(params, _batch(5, size=4))
    assert other["info_nce"] > one["info_nce"]


def test_a_batch_of_one_question_teaches_nothing(params):
    for negative in ("any", "hardest"):
        batch = _batch(6, size=4, corrupted=0, groups=[3] * 4)
        loss, parts = _loss(params, batch, triplet_negative=negative)
        assert parts["info_nce"] == pytest.approx(0, abs=1e-6)
        assert parts["triplet"] == 0 and loss == pytest.approx(0, abs=1e-6)
        assert parts["doubtful"] == 0 and parts["recall"] == 1


def test_the_head_by_numpy_and_its_gradient_reaches_the_encoder(params):
    batch, head = _batch(7, size=4, graded=5), _head()
    vectors = _vectors(params, batch)
    question, better, worse = (vectors[slots] for slots in batch["graded"].T)
    w_answer, w_fit = np.asarray(head["head"]["kernel"], np.float64)
    scale = np.sqrt(vectors.shape[1])
    gap = scale * (better - worse) @ w_answer + scale**2 * (question * (better - worse)) @ w_fit
    loss, parts = _loss(params, batch, head, head_weight=0.7)
    expected = np.log1p(np.exp(-gap)).mean()
    assert parts["bradley_terry"] == pytest.approx(expected, rel=1e-4)
    plain, _ = _loss(params, batch)
    assert loss - plain == pytest.approx(0.7 * expected, rel=1e-3)

    def alone(trainable):
        settings = dataclasses.replace(HEAD, info_nce_weight=0.0, triplet_weight=0.0)
        return _loss_fn(trainable, update_steps.as_jax(batch), settings)[0]

    gradient = jax.grad(alone)({"params": params, **head})
    assert np.abs(gradient["head"]["kernel"]).max(axis=1).min() > 1e-3
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient["params"]["layers"]):
        if "['k']['bias']" not in jax.tree_util.keystr(path):  # softmax does not see it
            assert np.abs(leaf).max() > 1e-6, path
