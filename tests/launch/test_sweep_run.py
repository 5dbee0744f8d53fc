"""A sweep of two real runs, killed in the middle."""

import csv
import subprocess
import sys
import time

import psutil
import pytest

from tests.conftest import ROOT
from tests.training import tiny_runs

STEPS = 12


@pytest.mark.slow
def test_a_killed_sweep_of_real_runs_ends_with_the_table(tmp_path):
    workdir = tmp_path / "sweep"
    values = {
        **tiny_runs.VALUES,
        **tiny_runs.write_inputs(tmp_path),
        "steps": STEPS,
        "checkpoint.every": 2,
    }
    del values["optimizer.learning_rate"]
    command = [
        *(sys.executable, "-m", "launch.sweep", "--config=configs/sft.py:tiny"),
        *(f"--config.{name}={value}" for name, value in values.items()),
        *(f"--workdir={workdir}", "--metric=sft/validation_loss"),
        "--grid=optimizer.learning_rate=1e-4,1e-2",
    ]
    environment = tiny_runs.environment()
    environment["XLA_FLAGS"] += " --xla_backend_optimization_level=0"  # compiles sooner
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    try:
        end = time.monotonic() + 240
        while not list(workdir.glob("*/sft/checkpoints/2.json")):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.005)
    finally:
        runs = psutil.Process(process.pid).children(recursive=True)
        for victim in (process, *runs):
            victim.kill()
        process.wait()
        psutil.wait_procs(runs)
    (first,) = workdir.glob("*/sft")
    assert not (first / "summary.json").exists()

    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with open(workdir / "results.csv", encoding="utf-8", newline="") as file:
        best, worst = csv.DictReader(file)
    assert best["optimizer.learning_rate"] == "1e-2"
    assert float(best["sft/validation_loss"]) < float(worst["sft/validation_loss"])
    assert first.parent.name == worst["point"]
    lines = tiny_runs.metrics(first)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    log = (first.parent / "run.log").read_text(encoding="utf-8")
    assert log.count("[sft] step 1/") == 1  # the second run went on from a checkpoint
