"""Scorers: a text's vector is its own, whatever shares its row, its pass or its device."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax import sharding
from empathy_jax.data import pairs
from empathy_jax.models import score_head
from empathy_jax.models.pooling import Embedding
from empathy_jax.training import common
from empathy_jax.training import scorer as scorers
from empathy_jax.training.scorer import Scorer, embed_rows, load_scorer
from tests.training import tiny_runs, update_steps

# --- packed rows ---

TEXTS = [np.random.default_rng(n).integers(1, 64, 1 + n % 11).tolist() for n in range(24)]


@pytest.fixture(scope="module")
def weights():
    """Random weights by architecture, tokens large enough that texts differ."""
    made = {}
    for name, config in (("encoder", update_steps.ENCODER), ("decoder", update_steps.DECODER)):
        params = common.module_of(config).init_params(jax.random.key(0), config)
        params = jax.tree.map(lambda x: x * 10 if x.ndim > 1 else x, params)
        made[name] = config, {"params": params}
    return made


@functools.partial(jax.jit, static_argnames=("config", "pooling"))
def _embed(variables, rows, config, pooling):
    return embed_rows(variables, config, pooling, rows)


def _vectors(weights, pooling, texts, row_length):
    config, variables = weights
    rows, slots = pairs.pack_texts(texts, row_length, pad_id=0)
    found = np.asarray(_embed(variables, update_steps.as_jax(rows), config, pooling))
    return found.reshape(-1, found.shape[-1])[slots]


@pytest.mark.parametrize(
    ("name", "pooling"),
    [("encoder", "mean"), ("encoder", "cls"), ("decoder", "last"), ("decoder", "mean")],
)
def test_packed_equals_alone(weights, name, pooling):
    packed = _vectors(weights[name], pooling, TEXTS, 32)
    np.testing.assert_allclose(np.linalg.norm(packed, axis=1), 1, rtol=1e-6)
    # Every text in a row of its own, and, by its first few, in one without any padding.
    alone = np.concatenate([_vectors(weights[name], pooling, [text], 32) for text in TEXTS])
    np.testing.assert_allclose(packed, alone, atol=1e-5)
    for number in (3, 10):
        bare = _vectors(weights[name], pooling, [TEXTS[number]], len(TEXTS[number]))
        np.testing.assert_allclose(packed[number], bare[0], atol=1e-5)
    # They are different vectors, so that this says something.
    cosines = packed @ packed.T - np.eye(len(TEXTS))
    assert cosines.max() < 0.999


def test_a_text_takes_no_gradient_from_its_neighbours(weights):
    """The vector of one packed text has a gradient to the embeddings of its own tokens only."""
    for name, pooling in (("encoder", "mean"), ("decoder", "last")):
        config, variables = weights[name]
        rows, slots = pairs.pack_texts([[1, 2, 3], [4, 5], [6, 7, 8, 9]], 12, pad_id=0)
        path = "tokens" if name == "encoder" else "embedding"

        def vector(params, config=config, pooling=pooling, rows=rows, slot=slots[1]):
            found = embed_rows({"params": params}, config, pooling, update_steps.as_jax(rows))
            return jnp.sum(found.reshape(-1, found.shape[-1])[slot] ** 3)

        gradient = jax.jit(jax.grad(vector))(variables["params"])["embed"][path]
        used = np.nonzero(np.abs(gradient).max(axis=1))[0]
        assert used.tolist() == [4, 5], name


# --- the scorer of a trained run ---


@pytest.fixture(scope="module")
def scorer(tiny_run) -> Scorer:
    config = tiny_runs.make_config("rl", tiny_run.inputs)
    return load_scorer(config, tiny_run.root, sharding.make_layout(config.mesh))


@pytest.fixture(scope="module")
def trained(tiny_run) -> common.Model:
    """The same model."""
    config = tiny_runs.make_config("rl", tiny_run.inputs)
    layout = update_steps.layout(1, 1, 1)
    init = str(tiny_run.root / "reward_model")
    return common.load_model(init, config.reward_model, "config.reward_model.init", None, layout)


def test_a_score_does_not_depend_on_its_batch(scorer):
    records = tiny_runs.question_records()
    questions = [record["question"] for record in records]
    answers = [record["answers"][0]["text"] for record in records]
    together = scorer.similarity(questions, answers)
    assert together.shape == (len(records),) and np.all(np.abs(together) <= 1 + 1e-6)
    alone = [
        scorer.similarity([q], [a])[0] for q, a in zip(questions[:3], answers[:3], strict=True)
    ]
    np.testing.assert_allclose(alone, together[:3], atol=1e-5)
    order = np.random.default_rng(0).permutation(len(records))
    shuffled = scorer.similarity(
        [questions[i] for i in order] + ["长" * 100], [answers[i] for i in order] + ["短"]
    )
    np.testing.assert_allclose(shuffled[:-1], together[order], atol=1e-5)
    # Its own answer is nearer than another feeling's: the scorer is the trained one.
    others = scorer.similarity(questions, answers[1:] + answers[:1])
    assert together.mean() > others.mean()
    assert np.isfinite(scorer.similarity([""], [""])).all()


def test_one_device_equals_eight_over_several_passes(scorer, trained):
    """More texts than a pass holds, of which some are equal and some fill a row."""
    texts = [f"我很{feeling}" * (1 + 7 * n) for n in range(12) for feeling in tiny_runs.FEELINGS]
    texts += texts[:5]
    one = Scorer(trained.variables, trained, {}, update_steps.layout(1, 1, 1))
    found = scorer.embed_answers(texts)
    assert found.shape == (101, 32) and found.dtype == np.float32
    np.testing.assert_allclose(found, one.embed_answers(texts), atol=1e-5)
    np.testing.assert_array_equal(found[-5:], found[:5])
    np.testing.assert_allclose(found[:3], scorer.embed_answers(texts[:3]), atol=1e-5)


def test_passes_have_one_shape_and_equal_texts_are_embedded_once(trained, monkeypatch):
    shapes, counts = [], []

    def embed(variables, config, pooling, rows):
        shapes.append(rows["tokens"].shape)
        return embed_rows(variables, config, pooling, rows)

    def pack_texts(ids, *rest):
        counts.append(len(ids))
        return original(ids, *rest)

    original = pairs.pack_texts
    monkeypatch.setattr(scorers, "embed_rows", embed)
    monkeypatch.setattr(pairs, "pack_texts", pack_texts)
    one = Scorer(trained.variables, trained, {}, update_steps.layout(1, 1, 1))
    one.embed_answers(["很累"] * 9 + ["很怕"])
    one.embed_answers([f"{n}" for n in range(600)])
    assert counts == [2, 600]
    # It is traced, and so compiled, once.
    assert shapes == [(scorers.ROWS_PER_PASS, 128)]


def test_questions_and_answers_have_their_own_prompts(scorer, trained):
    prompt = trained.embedding.query_prompt
    assert prompt and not trained.embedding.document_prompt
    texts = [record["question"] for record in tiny_runs.question_records()[:4]]
    as_questions = scorer.embed_questions(texts)
    np.testing.assert_allclose(
        as_questions, scorer.embed_answers([prompt + text for text in texts]), atol=1e-6
    )
    # So an echo is not the question itself.
    assert np.all(scorer.similarity(texts, texts) < 0.999)
    np.testing.assert_allclose(
        scorer.similarity(texts, texts),
        np.sum(as_questions * scorer.embed_answers(texts), axis=1),
        rtol=1e-5,
    )
    embedding = Embedding("mean", 128, document_prompt="答：")
    other = dataclasses.replace(trained, embedding=embedding)
    other = Scorer(other.variables, other, {}, update_steps.layout(1, 1, 1))
    np.testing.assert_allclose(
        other.embed_answers(texts), scorer.embed_answers(["答：" + t for t in texts]), atol=1e-5
    )
    np.testing.assert_allclose(other.embed_questions(texts), scorer.embed_answers(texts), atol=1e-5)


def test_texts_are_cut_with_their_prompt(trained):
    length = len(trained.tokenizer("很怕很累")["input_ids"])
    embedding = dataclasses.replace(trained.embedding, max_tokens=length, query_prompt="很怕很")
    model = dataclasses.replace(trained, embedding=embedding)
    short = Scorer(model.variables, model, {}, update_steps.layout(1, 1, 1))
    one, other, apart = short.embed_questions(["累的一天", "累的第二天", "怕的一天"])
    np.testing.assert_allclose(one, other, atol=1e-6)
    assert np.abs(one - apart).max() > 1e-3


def test_quality_is_the_heads_grade(scorer, trained):
    kernel = jax.random.normal(jax.random.key(0), (2, 32))
    model = dataclasses.replace(
        trained,
        variables={**trained.variables, "head": {"kernel": kernel}},
        embedding=dataclasses.replace(trained.embedding, has_head=True),
    )
    graded = Scorer(model.variables, model, {}, update_steps.layout(1, 1, 1))
    assert graded.has_head and not scorer.has_head
    questions, answers = ["我很累", "我很怕"], ["我在", "会过去"]
    vectors = scorer.embed_questions(questions), scorer.embed_answers(answers)
    expected = score_head.grade({"kernel": kernel}, *map(jnp.asarray, vectors))
    found = graded.quality(questions, answers)
    assert found.shape == (2,) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_other_weights_leave_the_scorer_as_it_was(scorer, trained):
    one = Scorer(trained.variables, trained, {"threshold": 0.5}, update_steps.layout(1, 1, 1))
    before = one.embed_answers(["很累"])
    halved = one.with_variables(jax.tree.map(lambda leaf: leaf * 0.5, trained.variables))
    assert np.abs(halved.embed_answers(["很累"]) - before).max() > 1e-3
    assert halved.calibration == {"threshold": 0.5}
    np.testing.assert_array_equal(one.embed_answers(["很累"]), before)


# --- loading ---


def test_a_scorer_reads_as_it_was_calibrated(tiny_run, tmp_path, scorer):
    shutil.copytree(tiny_run.root / "reward_model", tmp_path / "reward_model")
    values = {
        "reward_model.max_tokens": 7,
        "reward_model.pooling": "cls",
        "reward_model.query_prompt": "另：",
    }
    config = tiny_runs.make_config("rl", {**tiny_run.inputs, **values})
    layout = sharding.make_layout(config.mesh)
    texts = ["我很累，" * 20, "怕"]
    found = load_scorer(config, tmp_path, layout)
    np.testing.assert_array_equal(found.embed_questions(texts), scorer.embed_questions(texts))
    assert found.calibration == scorer.calibration
    path = tmp_path / "reward_model" / "model.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    described["embedding"]["max_tokens"] = 999
    path.write_text(json.dumps(described), encoding="utf-8")
    with pytest.raises(ValueError, match=r"max_tokens of .*/reward_model is 999.*128 positions"):
        load_scorer(config, tmp_path, layout)


def test_a_workdir_is_pointed_to_the_reward_model_in_it(tiny_run):
    config = tiny_runs.make_config("rl", {**tiny_run.inputs})
    config.reward_model.init = str(tiny_run.root)
    with pytest.raises(ValueError, match=r"config\.reward_model\.init is .*/reward_model$"):
        load_scorer(config, tiny_run.root, sharding.make_layout(config.mesh))


def test_a_scorer_needs_a_calibrated_run(tiny_run, tmp_path):
    config = tiny_runs.make_config("rl", tiny_run.inputs)
    layout = sharding.make_layout(config.mesh)
    with pytest.raises(
        ValueError, match=r"config\.reward_model\.init is empty.*reward_model first"
    ):
        load_scorer(config, tmp_path, layout)
    config.reward_model.init = str(tmp_path)
    with pytest.raises(ValueError, match=r"no calibration\.json.*config\.reward_model\.init"):
        load_scorer(config, tmp_path, layout)
