"""Sweeps with a run that costs nothing: it writes a loss that depends on what it was told."""

import csv
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import backends, sweep
from tests.conftest import ROOT

# ml_collections reads config files so.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

# The loss is (seed - 3)² / steps; seed 5 fails; where the file `wait` is, it waits.
RUN = r"""
import json, sys, time
from pathlib import Path
told = dict(word.removeprefix("--config.").partition("=")[::2] for word in sys.argv[1:])
workdir = Path(told["--workdir"])
with open(workdir.parent / "ran.jsonl", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\n")
while (workdir.parent / "wait").exists():
    time.sleep(0.02)
seed, steps = int(told["seed"]), int(told.get("steps", 1))
if seed == 5:
    print("error: five is\nnot allowed", file=sys.stderr)
    print("error: five is bad", file=sys.stderr)
    print("afterwards", file=sys.stderr)
    sys.exit(7)
folder = workdir / "sft"
folder.mkdir(parents=True)
loss = None if seed == 6 else (seed - 3) ** 2 / steps
lines = [{"step": 0, "loss": 99}, {"step": 1, "loss": loss}]
(folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
summary = {"seconds": 2.0, "figures": [{"name": "size", "after": seed}]}
(folder / "summary.json").write_text(json.dumps(summary))
"""
CONFIG = ("sweep", "--config=configs/sft.py:tiny", "--metric=sft/loss")


@pytest.fixture
def run_program(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "run.py"
    path.write_text(RUN, encoding="utf-8")
    monkeypatch.setattr(backends, "RUN", (sys.executable, "-IS", str(path)))
    return path


def _sweep(workdir: Path, *arguments: str) -> None:
    sweep.main([*CONFIG, f"--workdir={workdir}", *arguments])


def _ran(workdir: Path) -> list[dict]:
    lines = (workdir / "ran.jsonl").read_text("utf-8").splitlines()
    words = [json.loads(line) for line in lines]
    return [dict(word.removeprefix("--config.").split("=", 1) for word in line) for line in words]


def _results(workdir: Path) -> list[dict]:
    with open(workdir / "results.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_results_are_best_first_and_failures_have_their_reason(run_program, tmp_path, capsys):
    workdir = tmp_path / "sweep"
    _sweep(workdir, "--grid=seed=1,5,3,6,2", "--config.data.chains=a b;$(x)")
    rows = _results(workdir)
    assert [row["seed"] for row in rows] == ["3", "2", "1", "5", "6"]
    assert [row["sft/loss"] for row in rows] == ["0", "1", "4", "", ""]
    assert rows[3]["reason"] == "exit status 7: error: five is bad"
    assert rows[4]["reason"] == "sft/loss is not a finite number"
    assert rows[0]["reason"] == "" and rows[0]["seconds"] == "2.0"
    point = json.loads((workdir / rows[0]["point"] / "point.json").read_text("utf-8"))
    assert point["values"] == {"seed": "3"}
    assert all(run["data.chains"] == "a b;$(x)" for run in _ran(workdir))
    table = capsys.readouterr().out.split("\n\n")[-1].splitlines()
    assert table[0].split() == ["sft/loss", "seed", "seconds", "point", "reason"]
    assert table[1].split() == ["0", "3", "2.0", rows[0]["point"]]


def test_no_point_runs_twice_and_failed_ones_are_tried_again(run_program, tmp_path):
    workdir = tmp_path / "sweep"
    _sweep(workdir, "--grid=seed=1,5")
    _sweep(workdir, "--grid=seed=1,5,4")
    assert [run["seed"] for run in _ran(workdir)] == ["1", "5", "5", "4"]
    assert [row["seed"] for row in _results(workdir)] == ["4", "1", "5"]
    _sweep(workdir, "--grid=seed=1,4", "--maximise")
    assert len(_ran(workdir)) == 4
    assert [row["seed"] for row in _results(workdir)] == ["1", "4"]
    _sweep(workdir, "--grid=seed=1,4", "--metric=sft/size")
    assert [row["sft/size"] for row in _results(workdir)] == ["1", "4"]


def test_halving_gives_more_steps_to_the_best(run_program, tmp_path):
    workdir = tmp_path / "sweep"
    arguments = ("--grid=seed=1,2,3,4,5,8", "--halving=steps=1,4,16", "--keep=0.34")
    _sweep(workdir, *arguments)
    steps = [run["steps"] for run in _ran(workdir)]
    assert steps == ["1"] * 6 + ["4"] * 3 + ["16"] * 2
    assert {run["seed"] for run in _ran(workdir)[6:9]} == {"2", "3", "4"}
    rows = _results(workdir)
    assert [row["steps"] for row in rows] == ["16"] * 2 + ["4"] * 3 + ["1"] * 6
    assert rows[0]["seed"] == "3" and rows[-1]["seed"] == "5"
    _sweep(workdir, *arguments)
    assert len(_ran(workdir)) == 12  # only the failed point was tried again


def test_a_sweep_of_failures_ends_with_status_one(run_program, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        _sweep(tmp_path / "sweep", "--grid=seed=5")
    assert exit_.value.code == 1
    assert capsys.readouterr().err.startswith("error: no point has a result; results.csv in ")
    with pytest.raises(SystemExit):
        _sweep(tmp_path / "other", "--grid=seed=1", "--metric=sft/los")
    assert (
        _results(tmp_path / "other")[0]["reason"] == "no 'los' in sft; there are loss, size, step"
    )


def test_a_dry_run_prints_commands_and_writes_nothing(run_program, tmp_path, capsys):
    workdir = tmp_path / "sweep dry"
    _sweep(workdir, "--grid=seed=1,2,3", "--halving=steps=1,2", "--dry_run")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[3] == "# then the best 1 of them with steps=2, begun anew"
    assert not workdir.exists()
    workdir.mkdir()
    for line in lines[:3]:  # a shell reads the lines as they are meant
        folder = Path(shlex.split(line)[-1].removeprefix("--workdir="))
        assert folder.parent == workdir
        subprocess.run(["bash", "-c", line], check=True)
    assert len(_ran(workdir)) == 3


@pytest.mark.parametrize(
    "arguments, error",
    [
        (("--grid=optimizer.learning_rat=1",), "unknown config field 'learning_rat': Did you mean"),
        (("--grid=steps=many",), "flag --config.steps=many: invalid literal for int()"),
        (("--gird=seed=1",), "Unknown command line flag 'gird'. Did you mean: grid"),
        (("--grid=seed=1", "--metric=rl/loss"), "--metric is 'rl/loss'; it must be PHASE/NAME"),
        (("--grid=seed=1", "--backend=k8s"), "--backend is 'k8s', which is not one of local,"),
        (("--grid=seed=1", "--resources=--x"), "--resources is '--x'; --backend=local takes none"),
        (("--grid=seed=1", "--backend=tpu_vm"), "--workdir is '"),
        (("--grid=seed=1", "--workdir="), "--workdir is empty; name the folder"),
        (("--grid=seed=1", "--config.seed=2"), "config.seed is given twice"),
        (("--grid=seed=1", "seed=2"), "not a flag: seed=2 (flags begin with --)"),
        (("--grid=seed=1", "--config=configs/sft.py:huge"), "size 'huge' after the colon is not"),
        ((), "nothing to sweep; give --grid"),
    ],
)
def test_bad_arguments_are_one_line_before_anything_starts(
    run_program, tmp_path, capsys, arguments, error
):
    with pytest.raises(SystemExit) as exit_:
        _sweep(tmp_path / "sweep", *arguments)
    assert exit_.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: {error}") and err.count("\n") == 1
    assert not (tmp_path / "sweep").exists()


def _start(workdir: Path, run_program: Path, *arguments: str) -> subprocess.Popen:
    program = (
        "import sys; from launch import backends, sweep; "
        f"backends.RUN = (sys.executable, '-IS', {str(run_program)!r}); sweep.main(sys.argv)"
    )
    words = [*CONFIG[1:], f"--workdir={workdir}", *arguments]
    return subprocess.Popen(
        [sys.executable, "-c", program, *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_until(ready) -> None:
    end = time.monotonic() + 120
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.02)


def _is_free(lock: Path) -> bool:
    with open(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_a_killed_sweep_resumes_and_its_run_is_not_doubled(run_program, tmp_path, capsys):
    workdir = tmp_path / "sweep"
    workdir.mkdir()
    (workdir / "wait").touch()
    process = _start(workdir, run_program, "--grid=seed=1,2")
    _wait_until(lambda: (workdir / "ran.jsonl").exists())
    process.kill()
    process.communicate()
    with pytest.raises(SystemExit):  # the run of the killed sweep is still at work
        _sweep(workdir, "--grid=seed=1,2")
    assert "a sweep, or a run that outlived one, is at work in" in capsys.readouterr().err
    (workdir / "wait").unlink()
    (first,) = _ran(workdir)
    _wait_until(lambda: _is_free(workdir / ".lock"))
    assert (Path(first["--workdir"]) / "sft" / "summary.json").exists()
    _sweep(workdir, "--grid=seed=1,2")
    assert [run["seed"] for run in _ran(workdir)] == ["1", "2"]


def test_sigterm_is_handed_on_to_the_run(run_program, tmp_path):
    workdir = tmp_path / "sweep"
    workdir.mkdir()
    (workdir / "wait").touch()
    process = _start(workdir, run_program, "--grid=seed=1,2")
    _wait_until(lambda: (workdir / "ran.jsonl").exists())
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "the same command goes on from here" in out, err
    (workdir / "wait").unlink()
    _sweep(workdir, "--grid=seed=1,2")  # the run is gone: the lock is free
    assert [run["seed"] for run in _ran(workdir)] == ["1", "1", "2"]


SBATCH = r"""
import json, os, subprocess, sys
from pathlib import Path
folder = Path(os.environ["FAKE_SLURM"])
with open(folder / "sbatch.jsonl", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\n")
flags = dict(word[2:].partition("=")[::2] for word in sys.argv[1:] if word.startswith("--"))
if "quota" in flags:
    sys.exit("sbatch: error: QOSMaxSubmitJobPerUserLimit")
first, last = map(int, flags["array"].split("-"))
for task in range(first, last + 1):
    words = (Path(flags["points"]) / str(task)).read_bytes().decode().split("\0")[:-1]
    with open(flags["output"].replace("%a", str(task)), "wb") as log:
        subprocess.run([sys.executable, "-IS", folder / "run.py", *words], stdout=log, stderr=log)
(folder / "queue").write_text("12 12 12")
print("12;cluster")
"""
SQUEUE = r"""
import os, sys
from pathlib import Path
queue = Path(os.environ["FAKE_SLURM"]) / "queue"
jobs = queue.read_text().split() if queue.exists() else []
queue.write_text(" ".join(jobs[1:]))
assert sys.argv[3].startswith("--name=sweep-")
print(jobs[0] if jobs else "")
if jobs and ":" in jobs[0]:
    os.rename(*jobs[0].split(":"))
"""


@pytest.fixture
def slurm(run_program, tmp_path, monkeypatch):
    """A cluster whose jobs run at once and stay in the queue for a while."""
    (tmp_path / "bin").mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE)):
        path = tmp_path / "bin" / name
        path.write_text(f"#!{sys.executable} -IS\n{text}", encoding="utf-8")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path))
    monkeypatch.setattr(backends, "POLL_SECONDS", 0.01)
    return tmp_path


def test_a_cluster_gets_each_rung_as_one_array(slurm):
    workdir = slurm / "a sweep"
    workdir.mkdir()
    arguments = (
        "--backend=slurm",
        "--resources=--time=1:00 --comment='a b'",
        "--halving=steps=1,4",
    )
    _sweep(workdir, "--grid=seed=1,2,3,5", *arguments)
    first, second = map(json.loads, (slurm / "sbatch.jsonl").read_text("utf-8").splitlines())
    assert first[0] == "--parsable" and first[2] == "--array=0-3" and second[2] == "--array=0-1"
    assert first[1] == second[1] and first[4:7] == [
        "--time=1:00",
        "--comment=a b",
        "launch/slurm.sbatch",
    ]
    rows = _results(workdir)
    assert [row["seed"] for row in rows] == ["3", "2", "3", "2", "1", "5"]
    assert rows[-1]["reason"] == "not finished: error: five is bad"
    assert not (slurm / "queue").read_text()  # it waited until none of its jobs was in the queue


def test_a_sweep_whose_jobs_are_in_the_queue_waits_for_them(slurm):
    workdir = slurm / "sweep"
    workdir.mkdir()
    _sweep(workdir, "--grid=seed=1", "--backend=slurm")
    (slurm / "queue").write_text("12 12")
    _sweep(workdir, "--grid=seed=1,2", "--backend=slurm")
    assert [run["seed"] for run in _ran(workdir)] == ["1", "2"]
    # The last job of a sweep that was killed ends while the next sweep waits.
    summary = workdir / _results(workdir)[0]["point"] / "sft" / "summary.json"
    summary.rename(slurm / "ends")
    (slurm / "queue").write_text(f"{slurm / 'ends'}:{summary} 12")
    _sweep(workdir, "--grid=seed=1,2", "--backend=slurm")
    assert len(_ran(workdir)) == 2 and all(row["sft/loss"] for row in _results(workdir))
    assert not (slurm / "queue").read_text()


def test_what_a_cluster_refuses_is_one_line(slurm, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        _sweep(slurm / "sweep", "--grid=seed=1", "--backend=slurm", "--resources=--quota")
    err = capsys.readouterr().err
    assert err.startswith("error: sbatch ended with status 1: sbatch: error: QOSMaxSubmit")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit):
        _sweep(slurm / "sweep", "--grid=seed=1", "--backend=slurm")
    assert "error: squeue is not on PATH" in capsys.readouterr().err


def test_a_tpu_vm_runs_a_point_and_gives_back_what_it_wrote(monkeypatch, capsys):
    workdir = Path("runs/sweep-test")
    resources = "--resources=--name=a --zone=us-east5-a --type=v5p-8 --version=v2"
    _sweep(workdir, "--grid=seed=1", "--backend=tpu_vm", resources, "--dry_run")
    start, fetch = capsys.readouterr().out.splitlines()
    point = start.rpartition("/")[2]
    machine = "--name=a --zone=us-east5-a --type=v5p-8 --version=v2"
    assert start == (
        f"launch/tpu_vm.sh start {machine} -- --config=configs/sft.py:tiny --config.seed=1 "
        f"--workdir=runs/sweep-test/{point}"
    )
    assert fetch == f"launch/tpu_vm.sh fetch {machine} -- --workdir=runs/sweep-test/{point}"
