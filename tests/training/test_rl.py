import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax import files, losses, main
from empathy_jax.models import decoder
from empathy_jax.models.attention import causal_mask
from empathy_jax.training import common, rl, rollout_rows
from tests.training import tiny_runs, update_steps

SETTINGS = rl.Settings(
    clip_low=0.2,
    clip_high=0.2,
    kl_weight=0.1,
    kl_estimator="k3",
    aggregation="sequence_mean",
    rows_per_pass=8,
    temperature=0.8,
    max_completion_tokens=16,
)


def _batch(seed: int, per_row: int = 2, questions: int = 8, group_size: int = 2) -> dict:
    """Random rollouts in rows, with a reference's log-probs."""
    random = np.random.default_rng(seed)
    prompts = [random.integers(0, 64, random.integers(1, 9)).tolist() for _ in range(questions)]
    count = questions * group_size
    tokens = random.integers(0, 64, (count, 12)).astype(np.int32)
    rows = rollout_rows.pack_rollouts(
        prompts,
        tokens,
        -random.random((count, 12)),
        random.integers(1, 13, count),
        random.normal(size=count),
        per_row,
        0,
    )
    reference = (-random.random((count, 64)) - 3.5)[rows["completion_ids"]]
    reference = np.where(rows["completion_mask"], reference, 0)
    return rows | {"ref_log_probs": reference.astype(np.float32)}


def _run(place, batches, config=update_steps.DECODER, settings=SETTINGS):
    return update_steps.run(rl.update_fn, config, place, batches, settings=settings)


# --- the update, on its own ---


def test_one_device_equals_eight():
    batches = [_batch(0), _batch(1)]
    one, one_metrics, _ = _run(update_steps.layout(1, 1, 1), batches)
    eight, eight_metrics, update = _run(update_steps.layout(2, 2, 2), batches)
    update_steps.assert_same(one, eight, 1e-5)
    update_steps.assert_same(one_metrics, eight_metrics, 1e-4)
    assert update._cache_size() == 1
    start = update_steps.fresh(update_steps.DECODER, update_steps.layout(1, 1, 1))
    assert len(update_steps.moved(start, one)) == len(jax.tree.leaves(start))


def _alone(params, batch, config, temperature):
    """Log-probs and entropies of each completion in a padded row of its own, from plain logits."""
    rows, members, length = batch["places"].shape
    shape = (rows * members, batch["prompt_mask"].shape[1] + length)
    tokens, targets, segment_ids = np.zeros((3, *shape), np.int32)
    found = np.zeros((rows * members, length), np.int32)
    for index, (row, member) in enumerate(np.ndindex(rows, members)):
        prompt = batch["prompt_mask"][row].sum()
        own = batch["places"][row, member][batch["completion_mask"][row, member]]
        places = np.concatenate([np.arange(prompt), own])
        tokens[index, : len(places)] = batch["tokens"][row, places]
        targets[index, : len(places)] = batch["targets"][row, places]
        segment_ids[index, : len(places)] = 1
        found[index] = prompt + np.arange(length)
    positions = jnp.tile(jnp.arange(shape[1]), (shape[0], 1))
    mask = causal_mask(jnp.asarray(segment_ids))
    hidden, _ = decoder.hidden_states(params, config, jnp.asarray(tokens), positions, mask)
    logits = decoder.logits(params, config, hidden) / temperature
    values = losses.token_log_probs(logits, jnp.asarray(targets)), losses.token_entropy(logits)
    own = jnp.asarray(batch["completion_mask"].reshape(found.shape))
    return tuple(jnp.where(own, jnp.take_along_axis(x, found, axis=1), 0.0) for x in values)


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "constant_length"])
def test_shared_prompts_equal_a_prompt_for_each(params, aggregation, monkeypatch):
    settings = dataclasses.replace(SETTINGS, aggregation=aggregation)
    host = _batch(6, questions=2, group_size=4, per_row=4)
    batch = update_steps.as_jax(host)
    random = np.random.default_rng(0)
    shift = random.uniform(-0.4, 0.4, host["places"].shape) * host["completion_mask"]
    batch["old_log_probs"] = (
        rl.rows_log_probs({"params": params}, batch, update_steps.DECODER, 0.8, 2) + shift
    )

    def loss_and_gradient():
        loss = functools.partial(
            rl.loss_fn, batch=batch, frozen={}, config=update_steps.DECODER, settings=settings
        )
        return jax.jit(jax.value_and_grad(loss, has_aux=True))({"params": params})

    shared = loss_and_gradient()
    monkeypatch.setattr(
        rl, "log_probs_fn", lambda variables, _, *rest: _alone(variables["params"], host, *rest)
    )
    update_steps.assert_same(shared, loss_and_gradient(), 1e-5)


def test_one_row_per_completion_equals_one_per_question():
    """However a group is cut into rows, the update is the same."""
    place = update_steps.layout(1, 1, 1)
    made = [
        _run(place, [_batch(7, per_row, questions=2, group_size=4)])[0] for per_row in (4, 2, 1)
    ]
    update_steps.assert_same(made[0], made[1], 1e-5)
    update_steps.assert_same(made[0], made[2], 1e-5)


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "constant_length"])
def test_eight_passes_of_a_row_equal_the_whole_batch(aggregation):
    settings = dataclasses.replace(SETTINGS, aggregation=aggregation)
    place, batches = update_steps.layout(1, 1, 1), [_batch(0)]
    whole, whole_metrics, _ = _run(place, batches, settings=settings)
    parts, part_metrics, _ = _run(
        place, batches, settings=dataclasses.replace(settings, rows_per_pass=1)
    )
    update_steps.assert_same(whole, parts, 1e-6)
    update_steps.assert_same(whole_metrics, part_metrics, 1e-5)


@pytest.fixture(scope="module")
def params():
    return decoder.init_params(jax.random.key(0), update_steps.DECODER)


def test_loss_by_numpy(params):
    batch = _batch(2, questions=4)
    mask = batch["completion_mask"].reshape(8, -1)
    log_probs, entropy = (
        np.asarray(x, np.float64)
        for x in rl.log_probs_fn(
            {"params": params}, update_steps.as_jax(batch), update_steps.DECODER, 0.8
        )
    )
    shift = np.resize(np.linspace(-0.6, 0.6, 12), mask.shape)
    batch["old_log_probs"] = np.where(mask, log_probs + shift, 0).astype(np.float32)
    batch["old_log_probs"] = batch["old_log_probs"].reshape(batch["places"].shape)
    total, sums = rl.loss_fn(
        {"params": params}, update_steps.as_jax(batch), {}, update_steps.DECODER, SETTINGS
    )
    old, reference, sampled = (
        batch[name].reshape(mask.shape)
        for name in ("old_log_probs", "ref_log_probs", "sampler_log_probs")
    )
    advantages = batch["advantages"].reshape(8, 1)
    ratio = np.exp(log_probs - old)
    surrogate = -np.minimum(ratio * advantages, np.clip(ratio, 0.8, 1.2) * advantages)
    difference = reference - log_probs
    kl = np.exp(difference) - 1 - difference
    per_row = ((surrogate + 0.1 * kl) * mask).sum(axis=1) / mask.sum(axis=1)
    assert float(total) == pytest.approx(per_row.sum(), rel=1e-4)
    assert float(sums["count"]) == 8 and float(sums["tokens"]) == mask.sum()
    assert float(sums["kl"]) == pytest.approx((kl * mask).sum(), rel=1e-4)
    assert float(sums["entropy"]) == pytest.approx((entropy * mask).sum(), rel=1e-4)
    gap = np.abs(log_probs - sampled)
    assert float(sums["sampler_gap"]) == pytest.approx((gap * mask).sum(), rel=1e-4)
    low, high = (ratio < 0.8) & (advantages < 0), (ratio > 1.2) & (advantages > 0)
    assert float(sums["clip_fraction"]) == ((low | high) & mask).sum() > 0


def test_on_policy_gradient_is_the_policy_gradient(params):
    """Without old log-probs: ∇ of -A log π, and the value is -A."""
    batch = update_steps.as_jax(_batch(3))
    settings = dataclasses.replace(SETTINGS, kl_weight=0.0, aggregation="token_mean")

    def reinforce(params):
        log_probs, _ = rl.log_probs_fn({"params": params}, batch, update_steps.DECODER, 0.8)
        mask, advantages = (
            batch[name].reshape(len(log_probs), -1) for name in ("completion_mask", "advantages")
        )
        return -jnp.sum(jnp.where(mask, log_probs * advantages, 0))

    def loss(params):
        return rl.loss_fn({"params": params}, batch, {}, update_steps.DECODER, settings)[0]

    update_steps.assert_same(jax.grad(loss)(params), jax.grad(reinforce)(params), 1e-5)


def test_log_probs_in_passes_equal_all_at_once(params):
    batch = update_steps.as_jax(_batch(4))
    variables, config = {"params": params}, update_steps.DECODER
    whole, _ = rl.log_probs_fn(variables, batch, config, 0.8)
    for rows in (1, 2, 8):
        parts = rl.rows_log_probs(variables, batch, config, 0.8, rows)
        assert parts.shape == batch["places"].shape
        np.testing.assert_allclose(parts.reshape(whole.shape), whole, atol=1e-5)


def test_adapters_start_at_the_reference_and_leave_it(params):
    config = dataclasses.replace(update_steps.DECODER, lora_rank=2)
    adapters = decoder.init_lora(jax.random.key(1), config)
    batch = update_steps.as_jax(_batch(5))
    base, _ = rl.log_probs_fn({"params": params}, batch, config, 0.8)
    with_adapters, _ = rl.log_probs_fn({"params": params, "lora": adapters}, batch, config, 0.8)
    np.testing.assert_allclose(base, with_adapters, atol=2e-6)
    trained, metrics, _ = _run(update_steps.layout(2, 2, 2), [_batch(0), _batch(1)], config)
    assert trained.keys() == {"lora"} and np.isfinite(metrics["loss"])
    assert all(np.any(leaf) for leaf in jax.tree.leaves(trained))


# --- settings ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rl.kl_estimator": "k1"}, r"config\.rl\.kl_estimator is 'k1'.*allowed: k2, k3"),
        ({"rl.aggregation": "mean"}, r"config\.rl\.aggregation is 'mean'; allowed: sequence_mean"),
        ({"rl.advantage": "ppo"}, r"config\.rl\.advantage is 'ppo'; allowed: grpo"),
        ({"rl.answer_reward": "x"}, r"config\.rl\.answer_reward is 'x'; allowed: continuous"),
        ({"rl.group_size": 1}, r"config\.rl\.group_size is 1"),
        ({"rl.minibatches": 3}, r"= 32 completions cannot be cut into config\.rl\.minibatches 3"),
        ({"rl.rows_per_pass": 5}, r"config\.rl\.rows_per_pass 5"),
        ({"sampling.temperature": 0.0}, r"config\.sampling\.temperature is 0.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        rl.make_settings(tiny_runs.make_config("rl", changes))


def test_settings_come_from_the_config():
    changes = {"rl.clip_high": 0.3, "sampling.temperature": 0.7, "rl.kl_weight": 0.5}
    settings = rl.make_settings(tiny_runs.make_config("rl", changes))
    assert settings.clip_high == 0.3 and settings.temperature == 0.7 and settings.kl_weight == 0.5
    assert settings.max_completion_tokens == 48 and settings.rows_per_pass == 16


# --- whole runs ---


@pytest.fixture(scope="module")
def grpo(tiny_run, tmp_path_factory):
    """WORKDIR/rl of three steps, one update each."""
    root = tmp_path_factory.mktemp("grpo")
    for phase in ("sft", "reward_model"):
        (root / phase).symlink_to(tiny_run.root / phase)
    values = {
        "steps": 3,
        "rl.rollout_examples": 32,
        "optimizer.warmup_steps": 0,
        "optimizer.learning_rate": 1e-3,
    }
    main.run(tiny_runs.make_config("rl", {**tiny_run.inputs, **values}), root)
    return root / "rl"


def test_rollouts_hold_every_term(grpo):
    rows = list(files.read_jsonl(grpo / "rollouts.jsonl"))
    assert [row["step"] for row in rows] == [1] * 32 + [2] * 32 + [3] * 32
    for row in rows:
        terms = row["terms"]
        assert terms.keys() == {"format", "answer", "echo", "template", "similarity"}
        expected = terms["format"] + terms["answer"] - 0.5 * (terms["echo"] + terms["template"])
        assert row["reward"] == pytest.approx(expected, abs=1e-5)
        assert row.keys() >= {"id", "question", "completion", "rule", "advantage", "tokens"}
        assert (row["rule"] is None) == (terms["format"] == 1)
        assert terms["format"] == 1 or terms["answer"] == terms["echo"] == terms["template"] == 0
    assert any(row["terms"]["format"] for row in rows)
    # Advantages are taken within a group of four, so they sum to nothing in each.
    groups = np.reshape([row["advantage"] for row in rows], (-1, 4))
    np.testing.assert_allclose(groups.sum(axis=1), 0, atol=1e-4)
    assert len({row["id"] for row in rows[:4]}) == 1


def test_the_reference_stays_where_the_policy_began(grpo):
    rows = {row["step"]: row for row in tiny_runs.metrics(grpo) if "kl" in row}
    assert sorted(rows) == [1, 2, 3]
    # At the first step policy and reference are one; afterwards only the policy has moved.
    assert rows[1]["kl"] == pytest.approx(0, abs=1e-6)
    assert rows[2]["kl"] > 1e-5 and rows[3]["kl"] > rows[2]["kl"] / 10


def test_on_policy_the_sampler_agrees_and_nothing_is_clipped(grpo):
    rows = [row for row in tiny_runs.metrics(grpo) if "kl" in row]
    assert all(row["sampler_gap"] < 1e-4 and row["clip_fraction"] == 0 for row in rows)
    assert all(0 <= row["no_signal"] <= 1 and row["entropy"] > 0 for row in rows)


def test_every_tensor_changed(tiny_run, grpo):
    before, after = tiny_runs.arrays(tiny_run.root / "sft", 40), tiny_runs.arrays(grpo, 3)
    assert before.keys() == after.keys()
    assert [name for name in after if np.array_equal(before[name], after[name])] == []


def test_the_gain_is_measured_on_the_same_questions(grpo):
    summary = json.loads((grpo / "summary.json").read_text(encoding="utf-8"))
    before, after = files.read_jsonl(grpo / "held_out.jsonl")
    assert before["ids"] == after["ids"] and len(before["ids"]) == 2
    change = np.subtract(after["reward_per_question"], before["reward_per_question"])
    assert summary["gain"]["mean"] == pytest.approx(change.mean())
    figure = summary["figures"][0]
    assert figure["before"] == pytest.approx(np.mean(before["reward_per_question"]))
    assert figure["after"] == pytest.approx(np.mean(after["reward_per_question"]))


def test_minibatches_with_adapters(tiny_run, next_root):
    values = {
        "steps": 2,
        "rl.minibatches": 2,
        "rl.advantage": "gdpo",
        "rl.kl_estimator": "k2",
        "rl.rows_per_pass": 8,
        "model.lora_rank": 2,
        "optimizer.warmup_steps": 0,
    }
    main.run(tiny_runs.make_config("rl", {**tiny_run.inputs, **values}), next_root)
    rows = [row for row in tiny_runs.metrics(next_root / "rl") if "kl" in row]
    assert len(rows) == 2 and all(np.isfinite(row["loss"]) for row in rows)
    # The second minibatch is off-policy: the policy has moved from the one that sampled.
    assert rows[0]["kl"] > 0 and rows[0]["sampler_gap"] > 1e-5
    base = tiny_runs.arrays(tiny_run.root / "sft", 40)
    after = tiny_runs.arrays(next_root / "rl", 2)
    for name, leaf in base.items():
        np.testing.assert_array_equal(after[name], leaf)
    assert all(np.any(leaf) for name, leaf in after.items() if "['lora']" in name)


def test_without_a_trained_model_the_phase_says_what_to_run(tiny_run, tmp_path):
    config = tiny_runs.make_config("rl", tiny_run.inputs)
    with pytest.raises(ValueError, match=r"config\.model\.init is empty.*run the phase sft first"):
        main.run(config, tmp_path)
    (tmp_path / "sft").symlink_to(tiny_run.root / "sft")
    with pytest.raises(
        ValueError, match=r"config\.reward_model\.init is empty.*reward_model first"
    ):
        main.run(config, tmp_path)


def test_a_fresh_state_is_laid_out_for_the_update():
    place = update_steps.layout(2, 2, 2)
    _, state, _, shardings = update_steps.prepare(update_steps.DECODER, place)
    same = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, shardings)
    assert isinstance(state, common.TrainState) and all(jax.tree.leaves(same))
