import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax.models import encoder
from empathy_jax.training import common, reward_model
from empathy_jax.training.reward_model import Scorer, Settings
from tests.training import run_folders, tiny_runs, update_steps

SETTINGS = Settings(
    pooling="mean", temperature=0.1, margin=0.2, triplet_weight=1.0, info_nce_weight=1.0
)


def _batch(seed: int, size: int = 8, length: int = 12) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    batch = {"group": np.arange(size, dtype=np.int32)}
    for name in ("question", "answer"):
        lengths = random.integers(3, length, size)
        batch[f"{name}_tokens"] = random.integers(1, 64, (size, length)).astype(np.int32)
        batch[f"{name}_mask"] = np.arange(length) < lengths[:, None]
    return batch


# --- the update, on its own ---


def test_one_device_equals_eight():
    batches = [_batch(seed) for seed in (0, 1)]
    one, one_metrics, _ = update_steps.run(
        reward_model.update_fn,
        update_steps.ENCODER,
        update_steps.layout(1, 1, 1),
        batches,
        settings=SETTINGS,
    )
    eight, eight_metrics, _ = update_steps.run(
        reward_model.update_fn,
        update_steps.ENCODER,
        update_steps.layout(2, 2, 2),
        batches,
        settings=SETTINGS,
    )
    update_steps.assert_same(one, eight, 1e-5)
    update_steps.assert_same(one_metrics, eight_metrics, 1e-4)
    start = update_steps.fresh(update_steps.ENCODER, update_steps.layout(1, 1, 1))
    assert len(update_steps.moved(start, one)) == len(jax.tree.leaves(start))


@pytest.fixture(scope="module")
def params():
    return encoder.init_params(jax.random.key(0), update_steps.ENCODER)


def _loss(params, batch, **changes):
    settings = {**SETTINGS.__dict__, **changes}
    loss, parts = reward_model.loss_fn(
        params, {}, update_steps.as_jax(batch), update_steps.ENCODER, Settings(**settings)
    )
    return float(loss), {name: float(value) for name, value in parts.items()}


def _cosines(params, batch):
    batch = update_steps.as_jax(batch)
    questions, answers = (
        np.asarray(
            reward_model.embed(
                {"params": params},
                update_steps.ENCODER,
                "mean",
                batch[f"{name}_tokens"],
                batch[f"{name}_mask"],
            )
        )
        for name in ("question", "answer")
    )
    return questions @ answers.T


def test_loss_by_numpy(params):
    batch = _batch(3, size=4)
    batch["group"][:] = [0, 1, 0, 2]
    cosines = _cosines(params, batch)
    allowed = np.array([[1, 1, 0, 1], [1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]], bool)
    weights = np.where(allowed, np.exp(cosines / 0.1), 0)
    contrast = -np.log(np.diag(weights) / weights.sum(axis=1))
    others = np.where(allowed & ~np.eye(4, dtype=bool), cosines, -np.inf)
    triplet = np.maximum(others.max(axis=1) - np.diag(cosines) + 0.2, 0)
    loss, parts = _loss(params, batch, triplet_weight=0.5, info_nce_weight=2.0)
    assert parts["info_nce"] == pytest.approx(contrast.mean(), rel=1e-4)
    assert parts["triplet"] == pytest.approx(triplet.mean(), rel=1e-4)
    assert loss == pytest.approx(2 * contrast.mean() + 0.5 * triplet.mean(), rel=1e-4)
    right = (np.where(allowed, cosines, -np.inf).argmax(axis=1) == np.arange(4)).mean()
    assert parts["recall"] == pytest.approx(right)


def test_another_answer_to_the_same_question_is_no_negative(params):
    batch = _batch(5, size=4)
    batch["group"][:] = [7, 7, 1, 2]
    _, one = _loss(params, batch)
    # As its own question it would be one, and the loss larger.
    apart = {**batch, "group": np.arange(4, dtype=np.int32)}
    _, other = _loss(params, apart)
    assert other["info_nce"] > one["info_nce"]


def test_a_batch_of_one_question_teaches_nothing(params):
    batch = _batch(6, size=4)
    batch["group"][:] = 3
    loss, parts = _loss(params, batch)
    assert parts["info_nce"] == pytest.approx(0, abs=1e-6)
    assert parts["triplet"] == 0 and loss == pytest.approx(0, abs=1e-6)


def test_padding_and_neighbours_make_no_difference(params):
    batch = update_steps.as_jax(_batch(1))
    tokens, mask = batch["question_tokens"], batch["question_mask"]
    arguments = ({"params": params}, update_steps.ENCODER, "mean")
    together = reward_model.embed(*arguments, tokens, mask)
    wider = jnp.pad(tokens, ((0, 0), (0, 9)), constant_values=5), jnp.pad(mask, ((0, 0), (0, 9)))
    np.testing.assert_allclose(reward_model.embed(*arguments, *wider), together, atol=1e-6)
    alone = reward_model.embed(*arguments, tokens[3:4], mask[3:4])
    np.testing.assert_allclose(alone, together[3:4], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-6)


def test_a_decoder_is_a_reward_model_too():
    config = update_steps.DECODER
    params = common.module_of(config).init_params(jax.random.key(0), config)
    batch = update_steps.as_jax(_batch(1))
    tokens, mask = batch["question_tokens"], batch["question_mask"]
    vectors = reward_model.embed({"params": params}, config, "last", tokens, mask)
    noise = jnp.where(mask, tokens, 1)
    again = reward_model.embed({"params": params}, config, "last", noise, mask)
    np.testing.assert_allclose(vectors, again, atol=1e-6)
    assert vectors.shape == (8, 16)


def test_a_pooling_that_does_not_fit_the_model_is_refused(tmp_path):
    config = run_folders.tiny_config("reward_model")
    run_folders.make_policy_run(tmp_path, config, ["一些话"])
    layout = common.sharding.make_layout(config.mesh)
    config.reward_model.pooling = "last"
    with pytest.raises(ValueError, match=r"config\.reward_model\.pooling is 'last'.*an encoder"):
        reward_model._load(config, layout, [{"question": "问", "answers": []}])
    config.reward_model.update({"init": str(tmp_path / "sft"), "pooling": "cls"})
    with pytest.raises(ValueError, match=r"config\.reward_model\.pooling is 'cls'.*a decoder"):
        reward_model._load(config, layout, [])
    config.reward_model.remat = "some"
    with pytest.raises(ValueError, match=r"^config\.reward_model\.remat is 'some'"):
        reward_model._load(config, layout, [])


def test_a_workdir_is_pointed_to_the_reward_model_in_it(tiny_run):
    config = tiny_runs.make_config("rl", {**tiny_run.inputs})
    config.reward_model.init = str(tiny_run.root)
    layout = common.sharding.make_layout(config.mesh)
    with pytest.raises(ValueError, match=r"config\.reward_model\.init is .*/reward_model$"):
        reward_model.load_scorer(config, tiny_run.root, layout)


# --- a whole run ---


def test_the_run_learns_and_is_calibrated(tiny_run):
    folder = tiny_run.root / "reward_model"
    rows = tiny_runs.metrics(folder)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 24 and np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    accuracy = [row["pairwise_accuracy"] for row in rows if "pairwise_accuracy" in row]
    assert len(accuracy) == 3 and accuracy[-1] > accuracy[0]
    found = json.loads((folder / "calibration.json").read_text(encoding="utf-8"))
    assert found["pairwise_accuracy"] == accuracy[-1]
    assert len(found["quantiles"]) == 101 and found["quantiles"] == sorted(found["quantiles"])
    assert -1 <= found["threshold"] <= 1 and found["genuine_mean"] > found["other_mean"]
    figure = tiny_run.summaries["reward_model"]["figures"][0]
    assert figure["before"] == accuracy[0] and figure["after"] == accuracy[-1]


def test_every_tensor_changed(tiny_run):
    before, after = (tiny_runs.arrays(tiny_run.root / "reward_model", step) for step in (21, 24))
    # Positions beyond the longest text and the unused segment embedding have no gradient, but
    # every tensor as a whole moves.
    assert [name for name in after if np.array_equal(before[name], after[name])] == []


@pytest.fixture(scope="module")
def scorer(tiny_run) -> Scorer:
    config = tiny_runs.make_config("rl", tiny_run.inputs)
    layout = common.sharding.make_layout(config.mesh)
    return reward_model.load_scorer(config, tiny_run.root, layout)


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


def test_a_scorer_reads_as_it_was_calibrated(tiny_run, tmp_path, monkeypatch):
    shutil.copytree(tiny_run.root / "reward_model", tmp_path / "reward_model")
    config = tiny_runs.make_config("rl", {**tiny_run.inputs, "reward_model.max_tokens": 7})
    layout = common.sharding.make_layout(config.mesh)
    lengths = []

    def text_ids(tokenizer, text, max_tokens):
        lengths.append(max_tokens)
        return original(tokenizer, text, max_tokens)

    original = reward_model.tokenizers.text_ids
    monkeypatch.setattr(reward_model.tokenizers, "text_ids", text_ids)
    reward_model.load_scorer(config, tmp_path, layout).embed(["累"])
    assert lengths == [128]
    path = tmp_path / "reward_model" / "calibration.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found.pop("max_tokens") == 128
    path.write_text(json.dumps({**found, "max_tokens": 999}), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"max_tokens of .*calibration\.json is 999.*128 positions"
    ):
        reward_model.load_scorer(config, tmp_path, layout)
    path.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(ValueError, match=r"has no max_tokens; add the config\.reward_model\.max"):
        reward_model.load_scorer(config, tmp_path, layout)


def test_training_reads_no_more_than_the_imported_model_can(tiny_run, tmp_path):
    values = {
        "reward_model.init": str(tiny_run.root / "reward_model"),
        "reward_model.max_tokens": 999,
    }
    config = tiny_runs.make_config("reward_model", {**tiny_run.inputs, **values})
    with pytest.raises(ValueError, match=r"config\.reward_model\.max_tokens is 999.*128 positions"):
        reward_model.run(config, tmp_path)


def test_a_scorer_needs_a_calibrated_run(tiny_run, tmp_path):
    config = tiny_runs.make_config("rl", tiny_run.inputs)
    layout = common.sharding.make_layout(config.mesh)
    with pytest.raises(
        ValueError, match=r"config\.reward_model\.init is empty.*reward_model first"
    ):
        reward_model.load_scorer(config, tmp_path, layout)
    config.reward_model.init = str(tmp_path)
    with pytest.raises(ValueError, match=r"no calibration\.json.*config\.reward_model\.init"):
        reward_model.load_scorer(config, tmp_path, layout)
