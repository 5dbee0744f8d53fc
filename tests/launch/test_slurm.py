"""`launch/slurm.sbatch` as SLURM would run it, with an srun, scontrol and scancel that take notes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import ROOT

SCRIPT = "launch/slurm.sbatch"
RUN = ("--config=configs/sft.py:tiny", "--workdir=/shared/a b", "--config.data.chains=$(touch x);'")
TOOL = """#!{python} -IS
import json, os, signal, sys, time
from pathlib import Path
folder = Path(os.environ["FAKE_SLURM"])
name = Path(sys.argv[0]).name
with open(folder / (name + ".jsonl"), "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if name == "srun":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    (folder / "pid").write_text(str(os.getpid()))
    while os.environ.get("FAKE_WAIT"):
        time.sleep(0.02)
    sys.exit(int(os.environ.get("FAKE_STATUS", "0")))
if name == "scancel":
    os.kill(int((folder / "pid").read_text()), signal.SIGTERM)
"""


@pytest.fixture
def job(tmp_path):
    """The environment of a job of 2 nodes with 4 GPUs and 4 tasks each."""
    for name in ("srun", "scontrol", "scancel"):
        (tmp_path / name).write_text(TOOL.format(python=sys.executable), encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "FAKE_SLURM": str(tmp_path),
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
        "SLURM_NTASKS_PER_NODE": "4",
        "SLURM_CPUS_PER_TASK": "12",
    }


def _noted(job: dict, name: str) -> list[list[str]]:
    path = os.path.join(job["FAKE_SLURM"], f"{name}.jsonl")
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _run(job: dict, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", SCRIPT, *arguments], cwd=ROOT, env=job, capture_output=True, text=True, check=False
    )


def test_one_process_a_gpu_each_with_the_whole_command(job):
    done = _run(job, *RUN)
    assert done.returncode == 0, done.stderr
    assert _noted(job, "srun") == [
        [
            *("--nodes=2", "--ntasks=8", "--ntasks-per-node=4", "--cpus-per-task=12"),
            *("--kill-on-bad-exit=1", sys.executable, "-u", "-m", "empathy_jax.main", *RUN),
        ]
    ]
    assert not _noted(job, "scontrol")
    assert _run({**job, "FAKE_STATUS": "5"}, *RUN).returncode == 5


def test_jax_reads_the_processes_of_such_a_step():
    """What SLURM sets in a task of the step above is what jax.distributed.initialize looks for."""
    from jax._src.clusters.slurm_cluster import SlurmCluster

    task = {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_NODELIST": "gpu[07-08]",
        "SLURM_NTASKS": "8",
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in task.items():
            patch.setenv(name, value)
        assert SlurmCluster.is_env_present()
        assert SlurmCluster.get_process_count() == 8 and SlurmCluster.get_process_id() == 5
        assert SlurmCluster.get_local_process_id() == 1  # and so the one GPU that it takes


def test_before_the_time_limit_it_saves_and_is_queued_again(job):
    process = subprocess.Popen(["bash", SCRIPT, *RUN], cwd=ROOT, env={**job, "FAKE_WAIT": "yes"})
    end = time.monotonic() + 60
    while not os.path.exists(os.path.join(job["FAKE_SLURM"], "pid")):
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 0
    assert _noted(job, "scancel") == [["--signal=TERM", "77"]]
    assert _noted(job, "scontrol") == [["requeue", "77"]]
    assert "#SBATCH --signal=B:USR1@" in (ROOT / SCRIPT).read_text(encoding="utf-8")


def test_a_task_of_an_array_reads_its_own_arguments(job, tmp_path):
    points = tmp_path / "my points"
    points.mkdir()
    for index in range(2):
        words = [*RUN, f"--config.seed={index}", "two\nlines"]
        (points / str(index)).write_bytes(b"".join(word.encode() + b"\0" for word in words))
    done = _run({**job, "SLURM_ARRAY_TASK_ID": "1"}, f"--points={points}")
    assert done.returncode == 0, done.stderr
    assert _noted(job, "srun")[0][-5:] == [*RUN, "--config.seed=1", "two\nlines"]


@pytest.mark.parametrize(
    "change, arguments, error",
    [
        ({}, (), "no arguments for empathy_jax.main; give --config="),
        ({"SLURM_JOB_ID": ""}, RUN, "this is no SLURM job; submit it: sbatch"),
        ({"SLURM_NTASKS_PER_NODE": "1"}, RUN, "1 processes and 4 GPUs a node; they must be equal"),
        ({"SLURM_GPUS_ON_NODE": ""}, RUN, "4 processes and 0 GPUs a node"),
        ({"PYTHON": "no such python"}, RUN, "there is no Python at 'no such python'; make .venv"),
        ({}, ("--points=p",), "--points is 'p' and this is no task of an array"),
        ({"SLURM_ARRAY_TASK_ID": "3"}, ("--points=p",), "there is no file 'p/3'; --points must be"),
    ],
)
def test_what_cannot_run_is_one_line(job, change, arguments, error):
    done = _run({**job, **change}, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {error}") and done.stderr.count("\n") == 1
    assert not _noted(job, "srun")


def test_outside_the_repository_one_line_says_so(job, tmp_path):
    done = subprocess.run(
        ["bash", ROOT / SCRIPT, *RUN],
        cwd=tmp_path,
        env=job,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "is not the repository; submit from its root" in done.stderr


def test_a_dry_run_prints_the_command(job):
    done = _run(job, "--dry_run", *RUN)
    assert done.returncode == 0 and not _noted(job, "srun"), done.stderr
    subprocess.run(["bash", "-c", done.stdout], env=job, check=True)
    assert _noted(job, "srun")[0][-3:] == list(RUN)
