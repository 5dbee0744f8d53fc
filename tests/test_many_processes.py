"""Runs of two processes on this machine, joined by `jax.distributed`."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import numpy as np
import pytest

from empathy_jax import checkpoint, main
from empathy_jax.models import decoder, hf
from empathy_jax.pytree import flatten_paths
from tests import together
from tests.conftest import ROOT
from tests.training import tiny_runs

pytestmark = pytest.mark.slow


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int
    out: str
    err: str


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def is_free(port: int) -> bool:
    """Whether nobody listens on a port of this machine."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) != 0


def slurm_step(tasks: int) -> list[dict[str, str]]:
    """The variables of each task of a step on this machine, as `srun` sets them."""
    # JAX takes the port 61440 + job modulo 4096.
    job = next(job for job in range(os.getpid() % 4096, 4096) if is_free(61440 + job))
    common = {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost"}
    common |= {"SLURM_NTASKS": str(tasks), "SLURM_STEP_NUM_NODES": "1"}
    return [
        {**common, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)} for task in range(tasks)
    ]


def run_together(
    commands: list[list[str]],
    variables: list[dict[str, str]] | None = None,
    ready: Callable[[], bool] | None = None,
    number: int = 0,
) -> list[Ended]:
    """Runs processes to their end; once `ready()`, the last of them gets a signal."""
    environment = {**tiny_runs.environment(devices=2), "PYTHONPATH": str(ROOT)}
    environment["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment, **own},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command, own in zip(commands, variables or [{}] * len(commands), strict=True)
    ]
    try:
        if ready is not None:
            while not ready() and processes[-1].poll() is None:
                time.sleep(0.01)
            processes[-1].send_signal(number)
        outputs = [process.communicate(timeout=900) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [Ended(p.returncode, *o) for p, o in zip(processes, outputs, strict=True)]


# --- two processes that meet ---


@pytest.fixture(scope="module")
def met(tmp_path_factory):
    """(folder, what each process found, how each ended) of `tests.together`."""
    folder = tmp_path_factory.mktemp("together")
    params = decoder.init_params(jax.random.key(0), together.DECODER)
    hf.save_model(folder / "hf", together.DECODER, params)
    command = [sys.executable, "-m", "tests.together", str(folder)]
    ended = run_together([command] * 2, slurm_step(2))
    files = [folder / f"{me}.json" for me in range(2)]
    assert all(file.exists() for file in files), [one.err for one in ended]
    return folder, [json.loads(file.read_text()) for file in files], ended


def test_all_know_what_the_lead_knows_and_what_the_others_say(met):
    _, found, _ = met
    assert [one["lead"] for one in found] == [True, False]
    for one in found:
        assert one["told"] == [0, 1, ["alone"]]
        assert one["all"] == [{"id": 0}, {"id": 1}]
        assert one["gathered"] == np.arange(10).reshape(5, 2).tolist()
        # Asked at step 2 of one process: all agree at step 3.
        assert one["agreed"] == [False, False, False, True, False]


def test_each_process_reads_its_own_rows(met):
    _, found, _ = met
    assert [one["own"] for one in found] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert all(one["rows"] == list(range(8)) for one in found)


def test_weights_over_all_processes_are_copied_to_each_ones_devices(met):
    _, found, _ = met
    for one in found:
        assert not one["whole_here"]
        assert one["copy_here"] and one["own_devices"] and one["same"]
        assert one["copy_parts"] == 2  # cut over the process's two devices


def test_weights_over_all_processes_are_exported(met):
    folder, _, _ = met
    assert len(list((folder / "written").glob("*.safetensors"))) > 1
    made = flatten_paths(decoder.init_params(jax.random.key(0), together.DECODER))
    written = flatten_paths(hf.load_params(folder / "written", together.DECODER))
    assert written.keys() == made.keys()
    for name, leaf in made.items():
        np.testing.assert_array_equal(written[name], leaf, err_msg=name)


def test_a_damaged_checkpoint_is_passed_over_by_all_processes(met):
    _, found, _ = met
    for one in found:
        assert one["kept"] == [2, 3]
        assert (one["newest"], one["restored"]) == (2, True)


def test_a_checkpoint_of_two_processes_is_read_by_one_on_another_mesh(met):
    folder, _, _ = met
    layout = together.make_layout((2, 2, 2))
    place = jax.sharding.NamedSharding(layout.mesh, jax.sharding.PartitionSpec("tensor", "data"))
    wanted = {
        "w": jax.ShapeDtypeStruct((8, 4), np.float32, sharding=place),
        "n": jax.ShapeDtypeStruct(
            (),
            np.float32,
            sharding=jax.sharding.NamedSharding(layout.mesh, jax.sharding.PartitionSpec()),
        ),
    }
    made = checkpoint.restore(folder / "checkpoints", 2, {"model": wanted})["model"]
    assert made["w"].sharding == place
    np.testing.assert_array_equal(made["w"], 2 * np.arange(32.0).reshape(8, 4))
    assert float(made["n"]) == 6


def test_when_one_fails_all_end_with_its_reason_and_only_the_lead_prints(met):
    _, _, ended = met
    assert [one.status for one in ended] == [1, 1]
    assert "error: process 1 has failed: a reason" in ended[0].err
    assert "error: a reason" in ended[1].err
    assert "only the lead's words" in ended[0].out
    assert "only the lead's words" not in ended[1].out


# --- a run ---

SFT = {
    "steps": 10,
    "batch_size": 8,
    "checkpoint.every": 10,
    "log.validate_every": 5,
    "sft.samples": 1,  # the share of one process; the other compiles no generation
    "sft.sample_every": 0,
    # What configs/sft.py changes of the shared values, and `make_config` does not.
    "sft.shuffled_every": 2,
    "sft.tag_weight": 1.0,
    "optimizer.weight_decay": 0.01,
    "model.num_layers": 1,
    "data.max_completion_tokens": 32,
}


def _commands(workdir, values: dict) -> list[list[str]]:
    """Of the two processes of a run whose weights are cut over both."""
    command = tiny_runs.command("sft", workdir, {**values, "mesh.fsdp": 4})
    joined = [f"--coordinator_address=127.0.0.1:{free_port()}", "--num_processes=2"]
    return [[*command, *joined, f"--process_id={me}"] for me in range(2)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """WORKDIRs of one run by one process, and of one that two began and one ended."""
    root = tmp_path_factory.mktemp("runs")
    values = {**tiny_runs.write_inputs(root), **SFT}
    main.run(tiny_runs.make_config("sft", values), str(root / "one"))
    log = root / "two" / "sft" / "metrics.jsonl"
    two = run_together(
        _commands(root / "two", values),
        ready=lambda: log.exists() and '"step": 1,' in log.read_text(),
        number=signal.SIGTERM,
    )
    assert [process.status for process in two] == [0, 0], [process.err for process in two]
    stopped = log.read_text()
    main.run(tiny_runs.make_config("sft", values), str(root / "two"))
    return root / "one" / "sft", root / "two" / "sft", two, stopped


def test_sigterm_to_one_of_two_processes_saves_and_ends_both(runs):
    _, _, two, stopped = runs
    assert "saved; the same command goes on from here" in two[0].out
    assert two[1].out.replace("[Gloo]", "").count("sft") == 0
    assert '"step": 10,' not in stopped


def test_two_processes_train_as_one_and_one_goes_on(runs):
    one, two, _, _ = runs
    for line, other in zip(tiny_runs.metrics(one), tiny_runs.metrics(two), strict=True):
        assert line.keys() == other.keys()
        for name, value in line.items():
            assert other[name] == pytest.approx(value, rel=1e-5, abs=1e-5), (line["step"], name)
    assert (one / "samples.jsonl").read_bytes() == (two / "samples.jsonl").read_bytes()
    weights = tiny_runs.arrays(two, 10)
    for path, leaf in tiny_runs.arrays(one, 10).items():
        np.testing.assert_allclose(weights[path], leaf, atol=1e-4, err_msg=path)
