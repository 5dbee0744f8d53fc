import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax import losses
from empathy_jax.generation.engine import Completions
from empathy_jax.models import decoder
from empathy_jax.models.attention import causal_mask
from empathy_jax.rl.stop_conditions import Limits
from empathy_jax.training import common, policy_update, rl_settings, rollout
from empathy_jax.training.rl_settings import Settings
from tests.training import tiny_runs, update_steps

SETTINGS = Settings(
    ratio="token",
    surrogate="clip",
    clip_low=0.2,
    clip_high=0.2,
    clip_ceiling=None,
    aggregation="sequence_mean",
    kl_estimator="k3",
    kl_placement="loss",
    kl_weight=0.1,
    mismatch="none",
    mismatch_level="token",
    mismatch_ceiling=2.0,
    entropy_target=0.0,
    overlong_filter=False,
    reference_every=0,
    minibatches=1,
    passes=1,
    rows_per_pass=8,
    completions_per_row=1,
    temperature=0.8,
    max_completion_tokens=16,
    limits=Limits(0.0, 0.0, 0.0, 1),
)
LEAVING_OUT = dataclasses.replace(SETTINGS, overlong_filter=True)


def _batch(seed: int, per_row: int = 1, **more) -> dict[str, np.ndarray]:
    """Random rows of 8 completions of 4 questions as `rollout.pack` makes them, with log-probs."""
    random = np.random.default_rng(seed)
    lengths = random.integers(2, 11, 8)
    filled = np.arange(12) < lengths[:, None]
    made = Completions(
        np.where(filled, random.integers(0, 64, (8, 12)), 0).astype(np.int32),
        np.where(filled, -random.random((8, 12)) - 3.5, 0).astype(np.float32),
        lengths,
        lengths < 9,
    )
    prompts = [random.integers(0, 64, n).tolist() for n in (4, 3, 6, 5)]
    batch = rollout.pack(rollout.Rollout(np.arange(4), prompts, made, [], {}), per_row, 0)
    ids = batch["completion_ids"]
    ref = np.zeros((8, batch["places"].shape[-1]), np.float32)
    ref[:, :12] = np.where(filled, -random.random((8, 12)) - 3.5, 0)
    advantages = random.normal(size=8).astype(np.float32)
    return {
        **batch,
        "advantages": advantages[ids][..., None],
        "ref_log_probs": ref[ids],
        **more,
    }


def _run(place, batches, config=update_steps.DECODER, settings=SETTINGS, weight=0.0):
    return update_steps.run(
        policy_update.update_fn, config, place, batches, settings=settings, entropy_weight=weight
    )


def _close(one, other, atol):
    update_steps.assert_same(one[0], other[0], atol)
    update_steps.assert_same(one[1], other[1], 10 * atol)


# --- the update, on its own ---


@functools.cache
def _whole():
    """Two updates on one device, all rows at once, with completions left out."""
    batches = [_batch(0), _batch(1)]
    assert all(0 < batch["cut_off"].sum() < 8 for batch in batches)
    return _run(update_steps.layout(1, 1, 1), batches, settings=LEAVING_OUT)


# The second cuts tokens over a sequence axis.
@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 2, 2, 2)])
def test_one_device_equals_eight(mesh):
    eight = _run(update_steps.layout(*mesh), [_batch(0), _batch(1)], settings=LEAVING_OUT)
    _close(_whole(), eight, 1e-5)
    assert eight[2]._cache_size() == 1
    start = update_steps.fresh(update_steps.DECODER, update_steps.layout(1, 1, 1))
    assert len(update_steps.moved(start, eight[0])) == len(jax.tree.leaves(start))


def test_rows_in_passes_equal_the_whole_batch():
    """The parts count different numbers of completions."""
    settings = dataclasses.replace(LEAVING_OUT, rows_per_pass=1)
    parts = _run(update_steps.layout(1, 1, 1), [_batch(0), _batch(1)], settings=settings)
    _close(_whole(), parts, 2e-6)


def test_a_shared_prompt_changes_nothing():
    batches = [_batch(0, per_row=2), _batch(1, per_row=2)]
    assert batches[0]["places"].shape[:2] == (4, 2)
    shared = _run(update_steps.layout(1, 1, 1), batches, settings=LEAVING_OUT)
    _close(_whole(), shared, 1e-5)


# --- the loss, as a function of log-probabilities ---


@pytest.fixture
def given_log_probs(monkeypatch):
    """`loss_fn` reads log-probabilities and entropies from the trainable tree: no model runs."""

    def log_probs_fn(variables, batch, config, temperature, entropy_gradient):
        return tuple(variables[name].reshape(8, -1) for name in ("log_probs", "entropy"))

    monkeypatch.setattr(policy_update, "log_probs_fn", log_probs_fn)


def _off_policy(seed):
    """A batch with old log-probs, the policy's own, and what numpy works on: all [N, C]."""
    random, batch = np.random.default_rng(seed), _batch(seed)
    shape = batch["places"].shape
    log_probs = (-random.random(shape) - 3.5).astype(np.float32)
    shifts = np.linspace(-0.6, 0.6, 8)[:, None, None] + np.linspace(-0.3, 0.3, shape[-1])
    batch["old_log_probs"] = (log_probs + shifts).astype(np.float32)
    trainable = {"log_probs": log_probs, "entropy": random.random(shape).astype(np.float32)}
    names = ("completion_mask", "advantages", "ref_log_probs", "old_log_probs", "sampler_log_probs")
    flat = {name: batch[name].reshape(8, -1) for name in names}
    return batch, trainable, {name: leaf.reshape(8, -1) for name, leaf in trainable.items()} | flat


def _loss(trainable, batch, weight=0.0, **changes):
    settings = dataclasses.replace(SETTINGS, **changes)
    trainable, batch = update_steps.as_jax(trainable), update_steps.as_jax(batch)
    return policy_update.loss_fn(trainable, batch, {}, weight, None, settings)


def test_loss_by_numpy(given_log_probs):
    batch, trainable, flat = _off_policy(2)
    total, sums = _loss(trainable, batch)
    mask, advantages = flat["completion_mask"], flat["advantages"]
    ratio = np.exp(flat["log_probs"] - flat["old_log_probs"])
    surrogate = -np.minimum(ratio * advantages, np.clip(ratio, 0.8, 1.2) * advantages)
    difference = flat["ref_log_probs"] - flat["log_probs"]
    kl = np.exp(difference) - 1 - difference
    per_row = ((surrogate + 0.1 * kl) * mask).sum(axis=1) / mask.sum(axis=1)
    assert float(total) == pytest.approx(per_row.sum(), rel=1e-4)
    assert float(sums["count"]) == 8 and float(sums["tokens"]) == mask.sum()
    assert float(sums["kl"]) == pytest.approx((kl * mask).sum(), rel=1e-4)
    assert float(sums["entropy"]) == pytest.approx((flat["entropy"] * mask).sum(), rel=1e-4)
    gap = np.abs(flat["old_log_probs"] - flat["sampler_log_probs"])
    assert float(sums["sampler_gap"]) == pytest.approx((gap * mask).sum(), rel=1e-4)
    low, high = (ratio < 0.8) & (advantages < 0), (ratio > 1.2) & (advantages > 0)
    assert float(sums["clipped_low"]) == (low & mask).sum() > 0
    assert float(sums["clipped_high"]) == (high & mask).sum() > 0


def test_every_choice_by_numpy(given_log_probs):
    batch, trainable, flat = _off_policy(2)
    mask, advantages, log_probs = (
        flat[name] for name in ("completion_mask", "advantages", "log_probs")
    )
    log_ratio = log_probs - flat["old_log_probs"]
    ratio = np.exp(log_ratio)
    sequence = np.exp((log_ratio * mask).sum(1, keepdims=True) / mask.sum(1, keepdims=True))
    log_off = np.where(mask, flat["old_log_probs"] - flat["sampler_log_probs"], 0)
    off, off_all = np.exp(log_off), np.exp(log_off.sum(1, keepdims=True))
    inside = (off_all >= 1 / 3) & (off_all <= 3)
    assert 0 < inside.sum() < 8 and (off > 1.2).any()

    def clip(ratio, ceiling=np.inf):
        bounded = np.minimum(ratio, ceiling) * advantages
        return -np.minimum(bounded, np.clip(ratio, 0.8, 1.2) * advantages)

    token, difference = clip(ratio), log_probs - flat["ref_log_probs"]
    cases = [
        ({"ratio": "sequence"}, clip(sequence)),
        ({"ratio": "none"}, -advantages),
        ({"surrogate": "cispo"}, -np.minimum(ratio, 1.2) * advantages * log_probs),
        ({"clip_ceiling": 1.3}, clip(ratio, 1.3)),
        ({"mismatch": "truncated", "mismatch_ceiling": 1.2}, np.minimum(off, 1.2) * token),
        (
            {"mismatch": "masked", "mismatch_level": "sequence", "mismatch_ceiling": 3.0},
            np.where(inside, off_all, 0) * token,
        ),
        ({"entropy_target": 1.0}, token - 0.05 * flat["entropy"]),
        ({"kl_weight": 0.3, "kl_estimator": "k2"}, token + 0.15 * difference**2),
        ({"kl_weight": 0.3, "kl_placement": "reward"}, token),
    ]
    for changes, values in cases:
        changes = {"kl_weight": 0.0, "aggregation": "token_mean", **changes}
        total, sums = _loss(trainable, batch, 0.05, **changes)
        assert float(total) == pytest.approx((values * mask).sum(), rel=2e-4), changes
        assert float(sums["count"]) == mask.sum()
    no_reference = {name: leaf for name, leaf in batch.items() if name != "ref_log_probs"}
    total, sums = _loss(trainable, no_reference, kl_weight=0.0, aggregation="constant_length")
    assert float(total) == pytest.approx((token * mask).sum() / 16, rel=1e-4) and "kl" not in sums


def test_what_was_cut_off_is_left_out(given_log_probs):
    batch, trainable, flat = _off_policy(3)
    _, sums = _loss(trainable, batch, overlong_filter=True)
    cut_off = batch["cut_off"].ravel()
    assert float(sums["count"]) == 8 - cut_off.sum() < 8
    grads = jax.grad(lambda t: _loss(t, batch, overlong_filter=True)[0])(
        update_steps.as_jax(trainable)
    )
    moves = np.asarray(grads["log_probs"]).reshape(8, -1)
    assert not np.any(moves[cut_off]) and np.any(moves[~cut_off])
    assert not np.any(moves[~flat["completion_mask"]])


@pytest.mark.parametrize("changes", [{}, {"ratio": "none"}, {"surrogate": "cispo"}])
def test_on_policy_gradient_is_the_policy_gradient(given_log_probs, changes):
    """Without old log-probs: of each token -A, whichever the ratio, and with CISPO too."""
    batch, trainable, flat = _off_policy(3)
    del batch["old_log_probs"]
    changes = {"kl_weight": 0.0, "aggregation": "token_mean", **changes}
    grads = jax.grad(lambda t: _loss(t, batch, **changes)[0])(update_steps.as_jax(trainable))
    expected = np.where(flat["completion_mask"], -flat["advantages"], 0)
    np.testing.assert_allclose(grads["log_probs"].reshape(8, -1), expected, rtol=1e-6)


# --- log-probabilities ---


@pytest.fixture(scope="module")
def params():
    return decoder.init_params(jax.random.key(0), update_steps.DECODER)


@functools.partial(jax.jit, static_argnames=("config", "temperature"))
def _unpacked(params, batch, places, config, temperature):
    """Log-probs and entropies of completions in padded rows of their own, from plain logits."""
    positions = jnp.tile(jnp.arange(batch["tokens"].shape[1]), (len(places), 1))
    mask = causal_mask(batch["segment_ids"])
    hidden, _ = decoder.hidden_states(params, config, batch["tokens"], positions, mask)
    logits = decoder.logits(params, config, hidden) / temperature
    targets = jnp.roll(batch["tokens"], -1, axis=1)
    values = losses.token_log_probs(logits, targets), losses.token_entropy(logits)
    return tuple(jnp.take_along_axis(x, places, axis=1) for x in values)


@pytest.mark.parametrize("per_row", [1, 2])
def test_log_probs_are_those_of_completions_in_rows_of_their_own(params, per_row):
    batch = _batch(6, per_row)
    rows, members, length = batch["places"].shape
    whole = {name: np.zeros((8, 32), np.int32) for name in ("tokens", "segment_ids")}
    places = np.zeros((8, length), np.int32)
    for index, (row, member) in enumerate(np.ndindex(rows, members)):
        prompt = batch["tokens"][row][: batch["prompt_mask"][row].sum()]
        own = batch["places"][row, member][batch["completion_mask"][row, member]]
        last = batch["targets"][row, own[-1:]]
        tokens = np.concatenate([prompt, batch["tokens"][row, own], last])
        whole["tokens"][index, : len(tokens)] = tokens
        whole["segment_ids"][index, : len(tokens)] = 1
        places[index] = np.minimum(len(prompt) + np.arange(length), 31)
    expected = _unpacked(params, update_steps.as_jax(whole), places, update_steps.DECODER, 0.8)
    found = policy_update.log_probs_fn(
        {"params": params}, update_steps.as_jax(batch), update_steps.DECODER, 0.8
    )
    mask = batch["completion_mask"].reshape(8, length)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, np.where(mask, other, 0), atol=1e-5)


def test_log_probs_in_passes_equal_all_at_once(params):
    batch = update_steps.as_jax(_batch(4))
    variables, config = {"params": params}, update_steps.DECODER
    whole = policy_update.log_probs_fn(variables, batch, config, 0.8)[0]
    for rows in (2, 8):
        parts = policy_update.rows_log_probs(variables, batch, config, 0.8, rows)
        assert parts.shape == batch["places"].shape
        np.testing.assert_allclose(parts.reshape(whole.shape), whole, atol=1e-5)


def test_kl_of_whole_completions():
    batch = _batch(5)
    # A question's longest completion comes first.
    assert batch["completion_ids"].ravel().tolist() != list(range(8))
    batch["old_log_probs"] = batch["ref_log_probs"] + 0.25
    in_reward = dataclasses.replace(SETTINGS, kl_placement="reward", kl_estimator="k1")
    found = policy_update.kl_term(batch, in_reward)["kl"]
    lengths = batch["completion_mask"].sum(axis=-1).ravel()
    np.testing.assert_allclose(found[batch["completion_ids"].ravel()], 0.25 * lengths, rtol=1e-4)
    assert policy_update.kl_term(batch, SETTINGS) == {}
    assert policy_update.kl_term(batch, dataclasses.replace(in_reward, kl_weight=0.0)) == {}


def test_adapters_start_at_the_reference_and_leave_it(params):
    config = dataclasses.replace(update_steps.DECODER, lora_rank=2)
    adapters = decoder.init_lora(jax.random.key(1), config)
    batch = update_steps.as_jax(_batch(5))
    base, _ = policy_update.log_probs_fn({"params": params}, batch, config, 0.8)
    variables = {"params": params, "lora": adapters}
    with_adapters, _ = policy_update.log_probs_fn(variables, batch, config, 0.8)
    np.testing.assert_allclose(base, with_adapters, atol=2e-6)
    trained, metrics, _ = _run(update_steps.layout(1, 1, 1), [_batch(0), _batch(1)], config)
    assert trained.keys() == {"lora"} and np.isfinite(metrics["loss"])
    assert all(np.any(leaf) for leaf in jax.tree.leaves(trained))


# --- several updates a batch ---


def test_minibatches_take_every_row_once_a_pass_in_an_order_of_the_seed():
    settings = dataclasses.replace(SETTINGS, minibatches=4, passes=3)
    order = policy_update.minibatch_rows(0, 5, 16, settings)
    assert len(order) == 12 and all(len(rows) == 4 for rows in order)
    passes = np.reshape(order, (3, 16))
    assert all(sorted(rows) == list(range(16)) for rows in passes)
    assert len({tuple(rows) for rows in passes}) == 3
    again = policy_update.minibatch_rows(0, 5, 16, settings)
    np.testing.assert_array_equal(order, again)
    for seed, step in ((1, 5), (0, 6)):
        other = policy_update.minibatch_rows(seed, step, 16, settings)
        assert not np.array_equal(order, other)
    whole = policy_update.minibatch_rows(0, 5, 16, dataclasses.replace(SETTINGS, passes=2))
    np.testing.assert_array_equal(whole, [np.arange(16)] * 2)


def test_learning_goes_through_the_minibatches_in_turn():
    place = update_steps.layout(1, 1, 1)
    batch = {"tokens": np.arange(6)}

    def update(state, frozen, part, weight):
        values = np.asarray(part["tokens"]).tolist()
        return [*state, (values, weight)], {"loss": jnp.asarray(float(sum(values)))}

    with jax.set_mesh(place.mesh):
        order = [np.array([4, 1]), np.array([0, 5])]
        state, metrics = policy_update.learn(update, [], {}, batch, 0.5, order, place.mesh)
    assert state == [([4, 1], 0.5), ([0, 5], 0.5)] and metrics == {"loss": 5.0}


# --- settings ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({f"rl.{name}": "x"}, rf"config\.rl\.{name} is 'x'; allowed: {choices[0]}")
            for name, choices in rl_settings.CHOICES.items()
        ),
        *(
            ({f"rl.{name}": type(low)(low - 1)}, rf"config\.rl\.{name} is {low - 1}; it must be")
            for name, (low, _) in rl_settings.RANGES.items()
        ),
        ({"rl.clip_low": 1.5}, r"config\.rl\.clip_low is 1\.5; it must be from 0\.0 to 1\.0"),
        ({"rl.baseline_decay": 1.0}, r"config\.rl\.baseline_decay is 1\.0"),
        ({"rl.kl_estimator": "k1"}, r"config\.rl\.kl_estimator is 'k1' in the loss.*k2, k3"),
        ({"rl.group_size": 1}, r"config\.rl\.group_size is 1; config\.rl\.advantage 'dr_grpo'"),
        ({"rl.minibatches": 3}, r"= 32 completions cannot be cut into config\.rl\.minibatches 3"),
        ({"rl.rows_per_pass": 5}, r"config\.rl\.rows_per_pass 5"),
        ({"sampling.temperature": 0.0}, r"config\.sampling\.temperature is 0.0"),
        ({"rl.overlong_buffer": 49}, r"overlong_buffer is 49.*max_completion_tokens, 48"),
        ({"rl.clip_ceiling": 1.1}, r"clip_ceiling is 1\.1; it must be above 1 \+ .* = 1\.2"),
        ({"rl.clip_ceiling": 4.0, "rl.ratio": "none"}, r"clip_ceiling is 4\.0, which .* 'none'"),
        ({"rl.surrogate": "cispo", "rl.ratio": "none"}, r"surrogate is 'cispo'.*ratio is 'none'"),
        ({"rl.reference_every": 5, "rl.kl_weight": 0.0}, r"reference_every is 5, but nothing"),
        ({"rl.max_refills": 2, "rl.advantage": "reinforce"}, r"max_refills is 2.*'reinforce'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        rl_settings.make_settings(tiny_runs.make_config("rl", changes))


def test_settings_come_from_the_config():
    changes = {"rl.clip_high": 0.3, "sampling.temperature": 0.7, "rl.kl_weight": 0.5}
    settings = rl_settings.make_settings(tiny_runs.make_config("rl", changes))
    assert settings.clip_high == 0.3 and settings.temperature == 0.7 and settings.kl_weight == 0.5
    assert settings.max_completion_tokens == 48 and settings.clip_ceiling is None
    # 16 completions at a time, the four of a question in one row.
    assert settings.completions_per_row == 4 and settings.rows_per_pass == 4
    spread = rl_settings.make_settings(tiny_runs.make_config("rl", changes), devices=8)
    assert spread.completions_per_row == 2 and spread.rows_per_pass == 8
    with pytest.raises(ValueError, match=r"rows_per_pass 4 takes 4 completions .* over 8 devices"):
        rl_settings.make_settings(tiny_runs.make_config("rl", {"rl.rows_per_pass": 4}), devices=8)


@pytest.mark.parametrize(
    ("changes", "reference", "old"),
    [
        ({}, True, False),
        ({"kl_weight": 0.0}, False, False),
        ({"kl_weight": 0.0, "max_kl": 1.0}, True, False),
        ({"kl_placement": "reward", "kl_estimator": "k1"}, True, True),
        ({"kl_placement": "reward", "kl_weight": 0.0}, False, False),
        ({"minibatches": 2}, True, True),
        ({"passes": 2}, True, True),
    ],
)
def test_only_log_probs_that_are_read_are_computed(changes, reference, old):
    values = {f"rl.{name}": value for name, value in changes.items()}
    settings = rl_settings.make_settings(tiny_runs.make_config("rl", values))
    assert (settings.needs_reference, settings.needs_old) == (reference, old)


def test_a_fresh_state_is_laid_out_for_the_update():
    place = update_steps.layout(2, 2, 2)
    _, state, _, shardings = update_steps.prepare(update_steps.DECODER, place)
    same = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, shardings)
    assert isinstance(state, common.TrainState) and all(jax.tree.leaves(same))
