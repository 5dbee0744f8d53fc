import dataclasses
import json

import jax
import numpy as np
import pytest

from empathy_jax import files
from empathy_jax.generation import engine
from empathy_jax.models import decoder
from empathy_jax.training import policy_update, reward_terms, rollout
from tests.training import update_steps
from tests.training.judged_rows import make_config, make_rollout

ALIKE, APART = ["好", "好"], ["好", "差"]
NO_TEMPLATE = {"template_weight": 0.0}  # the same two answers to every question


def _refill(first, rounds, max_refills):
    """The refilled rollout, and which rounds were asked for."""
    asked = []

    def fresh(number):
        asked.append(number)
        return rounds[number - 1]

    return rollout.refill(first, fresh, max_refills, make_config(**NO_TEMPLATE)), asked


def test_groups_without_signal_are_replaced_by_fresh_ones():
    config = make_config(**NO_TEMPLATE)
    first = make_rollout([*APART, *ALIKE, None, None], config, questions=[0, 1, 2])
    # Of the fresh ones, 3 has no signal, and 0 is in the batch already.
    other = make_rollout([*ALIKE, *APART, *APART], config, questions=[3, 0, 4])
    again = make_rollout([*APART, *ALIKE, *APART], config, questions=[5, 6, 7])
    made, asked = _refill(first, [other, again, None], 5)
    assert asked == [1, 2] and made.refills == 2
    assert made.questions.tolist() == [0, 4, 5]
    assert made.prompts == [[20, 30], [24, 30], [25, 30]]
    assert [row["answer"] for row in made.rows] == APART * 3
    assert [row["question"] for row in made.rows[2:5]] == ["第4个问题"] * 2 + ["第5个问题"]
    assert made.done.tokens[:, 0].tolist() == [0, 1, 4, 5, 0, 1]
    assert made.done.lengths.tolist() == [1, 2, 2, 3, 1, 2]
    np.testing.assert_allclose(made.done.log_probs[:, 0], [0, -0.1, -0.4, -0.5, 0, -0.1])
    np.testing.assert_allclose(made.terms["similarity"], [0.75, 0.25] * 3)
    assert reward_terms.has_signal(made.terms, config).all()


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_refills_are_bounded(bound):
    config = make_config(**NO_TEMPLATE)
    first = make_rollout([*ALIKE, *APART], config, questions=[0, 1])
    nothing = make_rollout(ALIKE * 2, config, questions=[2, 3])
    made, asked = _refill(first, [nothing] * 3, bound)
    assert asked == list(range(1, bound + 1)) and made.refills == bound
    assert made.questions.tolist() == [0, 1]


def test_a_batch_with_signal_everywhere_asks_for_none():
    made, asked = _refill(make_rollout(APART * 2, make_config(**NO_TEMPLATE)), [], 3)
    assert asked == [] and made.refills == 0


def test_the_batch_knows_which_completions_were_cut_off():
    made = make_rollout([*APART, *ALIKE], make_config(**NO_TEMPLATE))
    for per_row in (1, 2):
        batch = rollout.pack(made, per_row, pad_id=9)
        assert batch["completion_ids"].shape == (4 // per_row, per_row)
        assert batch["cut_off"].tolist() == (batch["completion_ids"] % 2 == 1).tolist()
        counts = batch["completion_mask"].sum(axis=-1)
        assert counts.tolist() == made.done.lengths[batch["completion_ids"]].tolist()


def test_lines_hold_every_term():
    config = make_config(**NO_TEMPLATE)
    made = make_rollout(["好", "差", None, None], config)
    reward = reward_terms.combine(made.terms, config)
    advantages, _ = reward_terms.advantages(made.terms, config)
    lines = rollout.lines(7, made, reward, advantages.ravel())
    assert [line["step"] for line in lines] == [7] * 4
    assert lines[0]["terms"] == {
        "format": 1, "answer": 0.75, "echo": 0, "template": 0, "similarity": 0.75,
        "echo_overlap": 0, "template_overlap": 0, "answer_characters": 1,
    }  # fmt: skip
    assert lines[0]["reward"] == 1.75 and lines[2]["reward"] == 0
    assert lines[2]["rule"] == "missing_think" and lines[2]["advantage"] == 0
    assert json.loads(files.dumps(lines[0])) == lines[0]
    assert [line["advantage"] for line in lines] == pytest.approx([0.25, -0.25, 0, 0])


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_the_samplers_log_probs_are_the_trainers(lora_rank):
    config = dataclasses.replace(update_steps.DECODER, lora_rank=lora_rank)
    # Wider than at initialisation, so that the distribution is far from even.
    params = jax.tree.map(lambda x: 3 * x, decoder.init_params(jax.random.key(0), config))
    variables = {"params": params}
    if lora_rank:
        adapters = decoder.init_lora(jax.random.key(1), config)
        variables["lora"] = jax.tree.map(lambda x: x + 0.1, adapters)
    prompts = [[3, 4, 5], [6, 7, 8, 9, 10, 11, 12]]
    done = engine.generate(
        params,
        config,
        prompts,
        key=jax.random.key(2),
        sampling=engine.SamplingConfig(max_new_tokens=20, temperature=0.7),
        eos_ids=(1, 2, 13),
        pad_id=0,
        samples_per_prompt=4,
        lora=variables.get("lora"),
    )
    assert len(set(done.lengths.tolist())) > 1
    made = rollout.Rollout(np.arange(2), prompts, done, [], {})
    log_probs_fn = jax.jit(policy_update.log_probs_fn, static_argnames=("config", "temperature"))
    for per_row in (1, 4):
        batch = rollout.pack(made, per_row, 0)
        log_probs, entropy = log_probs_fn(
            variables, update_steps.as_jax(batch), config=config, temperature=0.7
        )
        mask = batch["completion_mask"]
        assert mask.sum() == done.lengths.sum()
        gap = np.abs(log_probs.reshape(mask.shape) - batch["sampler_log_probs"])[mask]
        assert gap.max() < 1e-4
        assert np.all(np.asarray(entropy) >= 0)
    # At another temperature they are not the same, so the comparison says something.
    cold, _ = policy_update.log_probs_fn(variables, update_steps.as_jax(batch), config, 1.0)
    assert np.abs(cold.reshape(mask.shape) - batch["sampler_log_probs"])[mask].max() > 0.05
