"""Every preset learns a task whose best policy is known, and nothing where there is nothing to learn.

The policy writes four tokens after a prompt; the reward is the share of them that is the wanted token.
The parts are those of `rl.run`, on a decoder of one layer.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import rl as presets
from empathy_jax import optimizer
from empathy_jax.generation import engine
from empathy_jax.models import decoder
from empathy_jax.training import carried as carried_lib
from empathy_jax.training import common, policy_update, reward_terms, rl_settings, rollout
from empathy_jax.training.common import Model
from tests.training import tiny_runs, update_steps

DECODER = decoder.DecoderConfig(
    vocab_size=16,
    width=16,
    mlp_width=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_positions=16,
)
WANTED, END, LENGTH, STEPS = 7, 1, 4, 20
PROMPTS = [[3, 4, 5], [6, 7], [8, 9, 10], [11, 12]]
NAMES = tuple(presets.PRESETS)


def _config(preset):
    config = tiny_runs.make_config("rl", {})
    config.update_from_flattened_dict(
        {
            "batch_size": len(PROMPTS),
            "data.max_prompt_tokens": 4,
            "data.max_completion_tokens": LENGTH,
            **{f"rl.{name}": value for name, value in presets.PRESETS[preset].items()},
            "rl.group_size": 8,
            "rl.rows_per_pass": 32,
            "rl.overlong_buffer": LENGTH // 4 if preset == "dapo" else 0,
        }
    )
    return config


_log_probs = jax.jit(
    functools.partial(policy_update.rows_log_probs, config=DECODER, temperature=1.0, rows=32)
)


def _generate(key, params):
    return engine.generate(
        params,
        DECODER,
        PROMPTS,
        key=key,
        sampling=engine.SamplingConfig(max_new_tokens=LENGTH),
        eos_ids=(END,),
        pad_id=0,
        samples_per_prompt=8,
    )


def wanted_share(key, done):
    """Share of the wanted token among the four places."""
    return (done.tokens == WANTED).mean(axis=1)


def random_reward(key, done):
    """A number that the completion has no part in."""
    return np.asarray(jax.random.uniform(key, (len(done.tokens),)))


@dataclasses.dataclass(frozen=True)
class Learnt:
    """By step: share of the wanted token and mean advantage; at the end the KL to the start."""

    share: np.ndarray
    advantages: np.ndarray
    kl: float


@functools.cache
def learn(preset, reward_of):
    config = _config(preset)
    settings = rl_settings.make_settings(config)
    place = update_steps.layout(1, 1, 1)
    section = tiny_runs.make_config("rl", {}).optimizer
    section.update({"learning_rate": 3e-2, "warmup_steps": 0, "eps": 1e-3, "weight_decay": 0.0})
    transform = optimizer.make_optimizer(section, 10_000)
    params = common.fresh_params(jax.random.key(0), DECODER, place)
    first = jax.tree.map(jnp.copy, params)
    state, frozen, _ = common.make_state(
        Model(DECODER, {"params": params}, None), transform, 0, place
    )
    update = jax.jit(
        functools.partial(
            policy_update.update_fn, config=DECODER, settings=settings, optimizer=transform
        )
    )
    carried, seen = carried_lib.begin(), []
    with jax.set_mesh(place.mesh):
        for step in range(1, STEPS + 1):
            key = jax.random.fold_in(jax.random.key(1), step)
            done = _generate(key, state.trainable["params"])
            reward = reward_of(key, done).astype(np.float32)
            terms = {"format": reward} | {
                name: np.zeros(len(reward), np.float32)
                for name in ("answer", "echo", "template", "brevity", "overlong")
            }
            made = rollout.Rollout(np.arange(len(PROMPTS)), PROMPTS, done, [], terms)
            batch = rollout.pack(made, settings.completions_per_row, 0)
            placed = common.put_batch(batch, place.mesh)
            batch["ref_log_probs"] = np.asarray(_log_probs({"params": first}, placed))
            batch["old_log_probs"] = np.asarray(_log_probs(state.trainable, placed))
            terms |= policy_update.kl_term(batch, settings)
            advantages, baseline = reward_terms.advantages(terms, config, carried["baseline"])
            batch["advantages"] = advantages.ravel()[batch["completion_ids"]][..., None]
            order = policy_update.minibatch_rows(0, step, len(batch["tokens"]), settings)
            weight = carried_lib.entropy_weight(carried, settings)
            state, metrics = policy_update.learn(
                update, state, frozen, batch, weight, order, place.mesh
            )
            metrics["reward"] = float(reward.mean())
            carried = carried_lib.after(carried, baseline, metrics, settings)
            share = float(wanted_share(key, done).mean())
            seen.append((share, float(advantages.mean())))
    return Learnt(*np.array(seen).T, metrics["kl"])


@pytest.mark.parametrize("size", ["tiny", "small", "qwen3_8b"])
@pytest.mark.parametrize("preset", ["", *NAMES])
def test_a_preset_is_its_fields_at_every_size(size, preset):
    config = presets.get_config(f"{size},{preset}" if preset else size)
    plain = presets.get_config(size)
    changed = {name for name, value in config.rl.items() if value != plain.rl[name]}
    assert changed <= {*presets.PRESETS.get(preset, {}), "overlong_buffer"}
    assert all(config.rl[name] == value for name, value in presets.PRESETS.get(preset, {}).items())
    assert bool(config.rl.overlong_buffer) == (preset == "dapo")
    rl_settings.make_settings(config)


def test_an_unknown_preset_lists_the_presets():
    with pytest.raises(
        ValueError, match=r"preset 'ppo' after the size is not one of grpo, dr_grpo"
    ):
        presets.get_config("tiny,ppo")


@pytest.mark.parametrize("preset", NAMES)
def test_every_preset_finds_the_best_policy(preset):
    learnt = learn(preset, wanted_share)
    assert learnt.share[0] < 0.2
    assert learnt.share[-3:].mean() > 0.8


@pytest.mark.parametrize("preset", ["grpo", "reinforce"])
def test_a_random_reward_teaches_nothing(preset):
    learnt = learn(preset, random_reward)
    error = learnt.advantages.std() / np.sqrt(len(learnt.advantages))
    assert abs(learnt.advantages.mean()) < 3 * error + 1e-6
    assert learnt.share[-3:].mean() < 0.25
    assert learnt.kl < learn(preset, wanted_share).kl / 5
