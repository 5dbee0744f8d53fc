"""Runs that are killed, told to stop, or find their checkpoints damaged: real processes."""

import json
import shutil
import signal

import numpy as np
import pytest

from empathy_jax import checkpoint, files
from tests.conftest import ROOT
from tests.training import tiny_runs

pytestmark = pytest.mark.slow

SFT = {
    "steps": 30,
    "checkpoint.every": 5,
    "log.validate_every": 10,
    "sft.sample_every": 10,
    "sft.samples": 2,
    "model.num_layers": 1,
}
# Batches are chosen before steps 1, 6 and 11; the checkpoints are those of steps 8 and 12.
REWARD_MODEL = {
    "steps": 12,
    "checkpoint.every": 4,
    "log.validate_every": 6,
    "reward_model.mine_every": 5,
    "reward_model.company": 2,
}
# With everything that is carried from step to step.
RL = {
    "rl.advantage": "reinforce",
    # Chains of 24 tokens are never valid: the reward is what is charged for the KL.
    "rl.kl_placement": "reward",
    "rl.kl_estimator": "k1",
    "rl.entropy_target": 9.0,
    "rl.reference_every": 3,
    "rl.minibatches": 2,
    "rl.min_validity": 0.01,
    "rl.stop_window": 4,
    "steps": 6,
    "batch_size": 2,
    "rl.group_size": 2,
    "rl.rows_per_pass": 4,
    "checkpoint.every": 2,
    "data.max_completion_tokens": 24,
    "model.num_layers": 1,
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return tiny_runs.write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def sft(inputs, tmp_path_factory):
    """(WORKDIR, values) of an undisturbed run of sft."""
    root = tmp_path_factory.mktemp("undisturbed")
    values = {**inputs, **SFT}
    done = tiny_runs.run_cli(tiny_runs.command("sft", root, values), ROOT)
    assert done.returncode == 0, done.stderr
    return root, values


def _has_checkpoint(folder, step):
    """Whether a checkpoint of at least `step` is written to its end."""
    return lambda: any(found >= step for found in checkpoint.steps(folder / "checkpoints"))


def _go_on(phase, root, values):
    done = tiny_runs.run_cli(tiny_runs.command(phase, root, values), ROOT)
    assert done.returncode == 0, done.stderr
    return done


def _assert_same_run(one, other, step, parts=("model", "optimizer")):
    """Weights, moments and every file for readers agree, bit for bit."""
    for name in parts:
        arrays, others = tiny_runs.arrays(one, step, name), tiny_runs.arrays(other, step, name)
        assert arrays.keys() == others.keys()
        for path, leaf in arrays.items():
            np.testing.assert_array_equal(others[path], leaf, err_msg=path)
    assert tiny_runs.metrics(other) == tiny_runs.metrics(one)
    for name in ("samples.jsonl", "rollouts.jsonl", "held_out.jsonl"):
        assert (one / name).exists() == (other / name).exists()
        if (one / name).exists():
            assert (one / name).read_bytes() == (other / name).read_bytes()
    figures = [json.loads((f / "summary.json").read_text())["figures"] for f in (one, other)]
    assert figures[0] == figures[1]


def _assert_each_step_once(folder, steps):
    trained = [row["step"] for row in tiny_runs.metrics(folder) if "loss" in row]
    assert trained == list(range(1, steps + 1))


def test_a_killed_sft_repeats_the_undisturbed_run(sft, tmp_path):
    root, values = sft
    killed = tiny_runs.stop_when(
        tiny_runs.command("sft", tmp_path, values),
        ROOT,
        _has_checkpoint(tmp_path / "sft", 10),
        signal.SIGKILL,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "sft" / "summary.json").exists()
    _go_on("sft", tmp_path, values)
    _assert_same_run(root / "sft", tmp_path / "sft", 30)
    _assert_each_step_once(tmp_path / "sft", 30)


def test_sigterm_saves_says_how_to_go_on_and_exits_well(sft, tmp_path):
    root, values = sft
    log = tmp_path / "sft" / "metrics.jsonl"
    stopped = tiny_runs.stop_when(
        tiny_runs.command("sft", tmp_path, values),
        ROOT,
        lambda: log.exists() and len(log.read_bytes().splitlines()) >= 8,
        signal.SIGTERM,
    )
    assert stopped.returncode == 0, stopped.stderr
    last = stopped.stdout.splitlines()[-1]
    assert "SIGTERM at step" in last and "the same command goes on" in last
    step = int(last.split("at step ")[1].split(":")[0])
    assert checkpoint.newest_sound_step(tmp_path / "sft" / "checkpoints") == step < 30
    _go_on("sft", tmp_path, values)
    _assert_same_run(root / "sft", tmp_path / "sft", 30)


def test_killed_between_the_last_checkpoint_and_the_summary(sft, tmp_path):
    root, values = sft
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    (tmp_path / "sft" / "summary.json").unlink()
    _go_on("sft", tmp_path, values)
    _assert_same_run(root / "sft", tmp_path / "sft", 30)


def _flip(folder, step):
    file = max((folder / str(step)).rglob("d/*"), key=lambda f: f.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_damaged_checkpoint_is_passed_over_and_replaced(sft, tmp_path):
    root, values = sft
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    (tmp_path / "sft" / "summary.json").unlink()
    checkpoints = tmp_path / "sft" / "checkpoints"
    _flip(checkpoints, 30)
    done = _go_on("sft", tmp_path, values)
    assert "passed over checkpoint 30" in done.stderr
    assert "Traceback" not in done.stderr
    _assert_same_run(root / "sft", tmp_path / "sft", 30)
    assert checkpoint.newest_sound_step(checkpoints) == 30


def test_when_all_are_damaged_the_error_lists_them(sft, tmp_path):
    root, values = sft
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    (tmp_path / "sft" / "summary.json").unlink()
    checkpoints = tmp_path / "sft" / "checkpoints"
    for step in checkpoint.steps(checkpoints):
        _flip(checkpoints, step)
    done = tiny_runs.run_cli(tiny_runs.command("sft", tmp_path, values), ROOT)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.count("error:") == 1
    assert "checkpoint 25 in" in done.stderr and "checkpoint 30 in" in done.stderr
    assert "was changed after it was written" in done.stderr


# --- reward_model ---


@pytest.fixture(scope="module")
def reward_model(inputs, tmp_path_factory):
    """(WORKDIR, values) of an undisturbed run of reward_model."""
    root = tmp_path_factory.mktemp("undisturbed_reward_model")
    values = {**inputs, **REWARD_MODEL}
    _go_on("reward_model", root, values)
    return root, values


def test_mined_batches_outlive_the_model_that_chose_them(reward_model, tmp_path):
    """Killed after step 8: steps 9 and 10 are of the batches that the model of step 5 chose."""
    root, values = reward_model
    one, other = root / "reward_model", tmp_path / "reward_model"
    shutil.copytree(one, other)
    (other / "summary.json").unlink()
    shutil.rmtree(other / "checkpoints" / "12")
    (other / "batches" / "11.json").unlink()
    assert checkpoint.newest_sound_step(other / "checkpoints") == 8
    done = _go_on("reward_model", tmp_path, values)
    assert "goes on after step 8 of 12" in done.stdout
    _assert_same_run(one, other, 12)
    _assert_each_step_once(other, 12)
    for name in ("calibration.json", *(f"batches/{first}.json" for first in (1, 6, 11))):
        assert (other / name).read_bytes() == (one / name).read_bytes(), name


# --- rl ---


@pytest.fixture(scope="module")
def rl(sft, reward_model, inputs, tmp_path_factory):
    """(WORKDIR, values) of an undisturbed run of rl after sft and reward_model."""
    root = tmp_path_factory.mktemp("undisturbed_rl")
    (root / "sft").symlink_to(sft[0] / "sft")
    (root / "reward_model").symlink_to(reward_model[0] / "reward_model")
    values = {**inputs, **RL}
    _go_on("rl", root, values)
    return root, values


def test_a_killed_rl_repeats_the_undisturbed_run(rl, tmp_path):
    root, values = rl
    for phase in ("sft", "reward_model"):
        (tmp_path / phase).symlink_to((root / phase).resolve())
    killed = tiny_runs.stop_when(
        tiny_runs.command("rl", tmp_path, values),
        ROOT,
        _has_checkpoint(tmp_path / "rl", 2),
        signal.SIGKILL,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "rl" / "summary.json").exists()
    _go_on("rl", tmp_path, values)
    parts = ("model", "optimizer", "carried", "reference")
    _assert_same_run(root / "rl", tmp_path / "rl", 6, parts)
    _assert_each_step_once(tmp_path / "rl", 6)
    rows = list(files.read_jsonl(tmp_path / "rl" / "rollouts.jsonl"))
    assert [row["step"] for row in rows] == [s for s in range(1, 7) for _ in range(2)]
