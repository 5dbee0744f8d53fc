import json

import numpy as np
import pytest

from empathy_jax import checkpoint, files, main
from tests.training import tiny_runs


@pytest.fixture(scope="module")
def grpo(tiny_run, tmp_path_factory):
    """WORKDIR/rl of five steps, one update each."""
    root = tmp_path_factory.mktemp("grpo")
    for phase in ("sft", "reward_model"):
        (root / phase).symlink_to(tiny_run.root / phase)
    values = {
        "steps": 5,
        "rl.rollout_examples": 32,
        "rl.rows_per_pass": 8,  # one on each device: rows of one completion are padded alike at all steps
        "optimizer.warmup_steps": 0,
        "optimizer.learning_rate": 1e-3,
    }
    main.run(tiny_runs.make_config("rl", {**tiny_run.inputs, **values}), root)
    return root / "rl"


def test_rollouts_hold_every_term(grpo):
    rows = list(files.read_jsonl(grpo / "rollouts.jsonl"))
    assert [row["step"] for row in rows] == [step for step in range(1, 6) for _ in range(32)]
    for row in rows:
        terms = row["terms"]
        measures = {"similarity", "echo_overlap", "template_overlap", "answer_characters"}
        paid = {"format", "answer", "echo", "template", "brevity"}
        assert terms.keys() == paid | measures
        expected = terms["format"] + terms["answer"] - 0.5 * (terms["echo"] + terms["template"])
        expected -= terms["brevity"]
        assert row["reward"] == pytest.approx(expected, abs=1e-5)
        assert row.keys() >= {"id", "question", "completion", "rule", "advantage", "tokens"}
        assert (row["rule"] is None) == (terms["format"] == 1)
        assert terms["format"] == 1 or not any(terms[name] for name in paid)
    assert any(row["terms"]["format"] for row in rows)
    # Advantages are taken within a group of four, so they sum to nothing in each.
    groups = np.reshape([row["advantage"] for row in rows], (-1, 4))
    np.testing.assert_allclose(groups.sum(axis=1), 0, atol=1e-4)
    assert len({row["id"] for row in rows[:4]}) == 1


def test_the_reference_stays_where_the_policy_began(grpo):
    rows = {row["step"]: row for row in tiny_runs.metrics(grpo) if "kl" in row}
    assert sorted(rows) == [1, 2, 3, 4, 5]
    # At the first step policy and reference are one; afterwards only the policy has moved.
    assert rows[1]["kl"] == pytest.approx(0, abs=1e-6)
    assert rows[2]["kl"] > 1e-5 and rows[3]["kl"] > rows[2]["kl"] / 10


def test_on_policy_the_sampler_agrees_and_nothing_is_clipped(grpo):
    rows = [row for row in tiny_runs.metrics(grpo) if "kl" in row]
    assert all(row["sampler_gap"] < 1e-4 and row["mismatch_weight"] == 1 for row in rows)
    assert all(row["clipped_low"] == row["clipped_high"] == 0 for row in rows)
    assert all(0 <= row["no_signal_reward"] <= 1 and row["entropy"] > 0 for row in rows)


def test_nothing_is_compiled_after_the_third_step(grpo):
    lines = (grpo / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = {row["step"]: row["compilations"] for row in map(json.loads, lines) if "loss" in row}
    assert found[1] > 0 and found[4] == found[5] == 0


def test_every_tensor_changed(tiny_run, grpo):
    before, after = tiny_runs.arrays(tiny_run.root / "sft", 40), tiny_runs.arrays(grpo, 5)
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


def test_every_choice_at_once_with_adapters(tiny_run, next_root):
    values = {
        "steps": 2,
        "rl.minibatches": 2,
        "rl.passes": 2,
        "rl.rows_per_pass": 8,
        "rl.advantage": "gdpo",
        "rl.ratio": "sequence",
        "rl.clip_high": 0.3,
        "rl.clip_ceiling": 4.0,
        "rl.aggregation": "token_mean",
        "rl.kl_estimator": "k1",
        "rl.kl_placement": "reward",
        "rl.reference_every": 1,
        "rl.mismatch": "truncated",
        "rl.max_refills": 1,
        "rl.overlong_buffer": 16,
        "rl.overlong_filter": True,
        "rl.entropy_target": 9.0,
        "model.lora_rank": 2,
        "optimizer.warmup_steps": 0,
        "rl.rollout_examples": 32,
    }
    main.run(tiny_runs.make_config("rl", {**tiny_run.inputs, **values}), next_root)
    first, second = (row for row in tiny_runs.metrics(next_root / "rl") if "loss" in row)
    assert all(np.isfinite(value) for row in (first, second) for value in row.values())
    # Later minibatches are off-policy: the policy has moved from its reference.
    assert first["kl"] > 0 and first["sampler_gap"] < 1e-4
    # Policy and reference were one when the batch was sampled, and again after the first step.
    assert first["reward_kl"] == second["reward_kl"] == 0
    rows = list(files.read_jsonl(next_root / "rl" / "rollouts.jsonl"))
    assert all(row["terms"].keys() >= {"kl", "overlong"} for row in rows)
    base = tiny_runs.arrays(tiny_run.root / "sft", 40)
    after = tiny_runs.arrays(next_root / "rl", 2)
    for name, leaf in base.items():
        np.testing.assert_array_equal(after[name], leaf)
    adapters = {name: leaf for name, leaf in after.items() if "['lora']" in name}
    assert all(np.any(leaf) for leaf in adapters.values())
    # The reference is a copy of the adapters alone.
    reference = tiny_runs.arrays(next_root / "rl", 2, "reference")
    assert reference.keys() == adapters.keys()
    for name, leaf in reference.items():
        np.testing.assert_array_equal(adapters[name], leaf)
    # Two steps with an entropy below its target; the bonus begins after the first.
    carried = tiny_runs.arrays(next_root / "rl", 2, "carried")
    assert carried["['entropy_coefficient']"] == pytest.approx(0.01)


def test_a_run_that_left_its_reference_ends_early(tiny_run, next_root, capsys):
    values = {
        "steps": 6,
        "rl.max_kl": 1e-6,
        "rl.kl_weight": 0.0,
        "rl.stop_window": 2,
        "optimizer.warmup_steps": 0,
        "checkpoint.every": 100,
    }
    config = tiny_runs.make_config("rl", {**tiny_run.inputs, **values})
    main.run(config, next_root)
    folder = next_root / "rl"
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["steps"] == 2 and "config.rl.max_kl 1e-06" in summary["stopped"]
    assert f"[rl] stopped at step 2 of 6: {summary['stopped']}" in capsys.readouterr().out
    assert checkpoint.steps(folder / "checkpoints") == [2]
    assert [row["step"] for row in files.read_jsonl(folder / "held_out.jsonl")] == [0, 2]
    # Killed before its summary was written, it does not train on.
    (folder / "summary.json").unlink()
    before = (folder / "metrics.jsonl").read_bytes()
    main.run(config, next_root)
    again = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert again["stopped"] == summary["stopped"] and again["figures"] == summary["figures"]
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_without_a_trained_model_the_phase_says_what_to_run(tiny_run, tmp_path):
    config = tiny_runs.make_config("rl", tiny_run.inputs)
    with pytest.raises(ValueError, match=r"config\.model\.init is empty.*run the phase sft first"):
        main.run(config, tmp_path)
    (tmp_path / "sft").symlink_to(tiny_run.root / "sft")
    with pytest.raises(
        ValueError, match=r"config\.reward_model\.init is empty.*reward_model first"
    ):
        main.run(config, tmp_path)
