"""What a person may get wrong, through the real command line: one clear line, nothing left behind."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from empathy_jax import checkpoint, files
from empathy_jax.data import tokenizer as tokenizers
from tests.conftest import ROOT
from tests.training import run_folders, tiny_runs

pytestmark = pytest.mark.slow

# What a refused run may leave: how it was asked for, and which records could not be read.
LEFT = {
    "config.json",
    "inputs.json",
    "environment.json",
    "resources.json",
    "records.json",
    "rejected.jsonl",
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with data, a tokenizer, and broken variants of them."""
    folder = tmp_path_factory.mktemp("given")
    inputs = tiny_runs.write_inputs(folder)
    (folder / "empty.jsonl").write_text("", encoding="utf-8")
    lines = (folder / "chains.jsonl").read_text(encoding="utf-8").splitlines()
    broken = [line[:-5] if i % 3 == 0 else line for i, line in enumerate(lines)]
    (folder / "broken.jsonl").write_text("\n".join(broken) + "\n", encoding="utf-8")
    words = ["".join(chr(0x4E00 + (i * 7 + j) % 900) for j in range(3)) for i in range(900)]
    tokenizers.save(tokenizers.train(words * 3, 1200), folder / "large_tokenizer")
    config = run_folders.tiny_config("rl")
    policy = run_folders.make_policy_run(folder, config, ["some text"])
    run_folders.make_reward_run(folder, config, policy.tokenizer)
    config.phase = "export"
    from empathy_jax.training import export

    export.run(config, folder)
    other = shutil.copytree(folder / "export" / "hf", folder / "contradicting")
    described = json.loads((other / "config.json").read_text(encoding="utf-8"))
    described["intermediate_size"] = 50
    (other / "config.json").write_text(json.dumps(described), encoding="utf-8")
    described = json.loads((folder / "sft" / "model.json").read_text(encoding="utf-8"))
    (folder / "other_shape").mkdir()
    (folder / "other_shape" / "checkpoints").symlink_to(folder / "sft" / "checkpoints")
    described["config"]["width"] = 64
    (folder / "other_shape" / "model.json").write_text(json.dumps(described), encoding="utf-8")
    tokenizers.save(policy.tokenizer, folder / "other_shape" / "tokenizer")
    return folder, inputs


def _run(given, workdir, phase="sft", size="tiny", stray=(), **values):
    folder, inputs = given
    changes = {
        name.replace("__", "."): str(value).replace("GIVEN", str(folder))
        for name, value in values.items()
    }
    command = tiny_runs.command(phase, workdir, {**inputs, **changes}, size)
    return tiny_runs.run_cli([*command, *stray], ROOT)


def _left(workdir):
    return {p.name for p in workdir.rglob("*") if p.is_file()} if workdir.exists() else set()


def _assert_refused(done, workdir, *words):
    """Not 0, one line that begins with `error:`, every word in it, nothing half-written."""
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr, (word, done.stderr)
    assert _left(workdir) <= LEFT


# Refused while flags are read, before jax is imported.
FLAGS = {
    "misspelled field": (
        {"optimizer__learning_rat": 1},
        ["learning_rat", 'Did you mean "learning_rate"'],
    ),
    "value of another type": ({"steps": "many"}, ["steps", "many"]),
    "unknown size": ({"size": "tinny"}, ["tinny", "tiny, small, qwen3_0p6b"]),
    "unknown config": ({"phase": "sfft"}, ["sfft.py"]),
    "unknown phase": (
        {"phase": "sft", "_phase": "sfft"},
        ["config.phase", "'sfft'", "sft, reward_model, rl"],
    ),
    "several phases as a list of words": (
        {"stray": ["--config.phases=sft,rl"]},
        ["config.phases has 'sft,rl'", "--config.phases=\"('sft','rl')\""],
    ),
    "stray argument": ({"stray": ["stray"]}, ["stray"]),
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags(given, tmp_path, name):
    values, words = FLAGS[name]
    values = dict(values)
    if "_phase" in values:
        values["stray"] = [f"--config.phase={values.pop('_phase')}"]
    _assert_refused(_run(given, tmp_path / "run", **values), tmp_path / "run", *words)


def test_no_workdir_and_no_config(given, tmp_path):
    done = _run(given, "")
    _assert_refused(done, tmp_path / "run", "--workdir is empty")
    done = tiny_runs.run_cli([sys.executable, "-m", "empathy_jax.main", "--workdir=x"], ROOT)
    assert done.returncode == 1 and "--config" in done.stderr and "Traceback" not in done.stderr


# Refused when what the fields name is looked at.
VALUES = {
    "missing file": (
        {"data__chains": "absent.jsonl"},
        ["'absent.jsonl'", "config.data.chains", "sample"],
    ),
    "empty file": ({"data__chains": "GIVEN/empty.jsonl"}, ["empty.jsonl", "config.data.chains"]),
    "too many broken lines": (
        {"data__chains": "GIVEN/broken.jsonl"},
        ["16 of 48 records", "config.data.max_rejected", "broken.jsonl:1 (not JSON"],
    ),
    "question longer than allowed": (
        {"data__max_prompt_tokens": 20},
        ["40 of 40 records", "tokens, allowed are 20", "max_prompt_tokens", "data.overlong=reject"],
    ),
    "the workdir of a run as a model": (
        {"model__init": "GIVEN", "model__tokenizer": ""},
        ["config.model.init", "a --workdir", "/sft"],
    ),
    "a remat policy that is none": (
        {"model__remat": "some"},
        ["error: config.model.remat is 'some'"],
    ),
    "longer than the model's positions": (
        {"model__max_positions": 60},
        ["60", "config.data.max_completion_tokens"],
    ),
    "tokenizer larger than the model": (
        {"model__tokenizer": "GIVEN/large_tokenizer"},
        ["largest token id", "512 rows", "config.model.tokenizer"],
    ),
    "zero steps": ({"phase": "rl", "steps": 0}, ["config.steps is 0", "1 or more"]),
    "a mesh that does not fit": ({"mesh__data": 3}, ["config.mesh.data=3", "1 devices"]),
    "another architecture in a run": (
        {"model__init": "GIVEN/other_shape", "model__tokenizer": ""},
        ["of another architecture", "mis-shaped: model/params/embed/embedding"],
    ),
    "tensors that contradict config.json": (
        {"model__init": "GIVEN/contradicting", "model__tokenizer": ""},
        ["do not fit its config.json", "mlp.up_proj.weight", "mis-shaped"],
    ),
    "a reward model as policy": (
        {"model__init": "GIVEN/reward_model", "model__tokenizer": ""},
        ["config.model.init", "an encoder", "a decoder"],
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_values(given, tmp_path, name):
    values, words = VALUES[name]
    _assert_refused(_run(given, tmp_path / "run", **values), tmp_path / "run", *words)


def test_the_real_qwen_tokenizer_does_not_fit_a_tiny_model(given, tmp_path, shared_dir):
    done = _run(given, tmp_path / "run", model__tokenizer=shared_dir / "models/qwen3_tokenizer")
    _assert_refused(done, tmp_path / "run", "largest token id", "config.model.tokenizer")


def test_a_different_run_in_the_folder(given, tmp_path):
    for phase in ("sft", "reward_model"):
        shutil.copytree(given[0] / phase, tmp_path / phase)
    files.append_jsonl(tmp_path / "sft" / "metrics.jsonl", [{"step": 0, "loss": 1.0}])
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    done = _run(given, tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert (
        "holds a different run" in done.stderr
        and "config.optimizer.learning_rate was" in done.stderr
    )
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("every", [1, 100])
def test_a_loss_that_is_no_number_stops_before_a_checkpoint(given, tmp_path, every):
    done = _run(
        given,
        tmp_path,
        optimizer__learning_rate=1e30,
        optimizer__warmup_steps=0,
        checkpoint__every=every,
        sft__samples=1,
        model__num_layers=1,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: step " in done.stderr and "config.optimizer.learning_rate" in done.stderr
    assert checkpoint.steps(tmp_path / "sft" / "checkpoints") == []
    assert not (tmp_path / "sft" / "summary.json").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small disk needs root and mount")
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("taken", [0.0, 1.75], ids=["checkpoint", "first lines"])
def test_a_full_disk_ends_in_one_line_and_no_half_file(given, small_disk, taken):
    (small_disk / "filler").write_bytes(bytes(int(taken * 2**20)))
    run = small_disk / "run"
    done = _run(given, run, steps=12, checkpoint__every=2, sft__samples=1, sft__sample_every=100)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr, done.stderr
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1
    assert "no space" in done.stderr.lower() and "--workdir" in done.stderr
    for path in run.rglob("*.jsonl"):
        data = path.read_bytes()
        assert not data or data.endswith(b"\n")
        for line in data.splitlines():
            json.loads(line)
    assert not list(run.rglob("*.partial"))
    # What is believed is whole.
    folder = run / "sft" / "checkpoints"
    if checkpoint.steps(folder):
        assert checkpoint.newest_sound_step(folder) == checkpoint.steps(folder)[-1]
