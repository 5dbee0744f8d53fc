"""Runs that are killed, told to stop, robbed of disk or of checkpoints: each must end as if left alone.

    PYTHONPATH=. python benchmarks/faults.py --times=25
    PYTHONPATH=. python benchmarks/faults.py --times=5 --only=kill,full_disk --phases=rl --processes=2

trains a very small model by `sft` and by `rl`, in one process and in two on this machine. A run of each
is left alone. All others are disturbed, at a moment drawn from the processor time of the one left alone
(which other load does not stretch), and then the same command goes on to the end:

    kill       SIGKILL to all processes.
    kill_one   SIGKILL to one of two. The other must end by itself, with an error.
    sigterm    SIGTERM to one process. All must save and say how to go on, with status 0; outside of the
               steps it may end at once.
    truncated, missing, flipped
               A file of the newest checkpoint, drawn as well as its length or the bit. The run must say
               that it passes over this checkpoint.
    full_disk  The disk has no room left, or next to none, once a save has begun. The run must end with
               one error that names the folder, and goes on when there is room again.

Then it must hold what the undisturbed one holds, bit for bit: weights, moments and all else of the last
checkpoint, metrics but for clocks, samples, rollouts; and no half-written file. Prints a JSON line for
each fault and a table; status 1 unless each has ended so. `--folder` keeps the runs left alone, so that
parts can follow one another. Linux; full_disk mounts a small tmpfs: as root, or behind
`unshare --user --map-root-user --mount`.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

from benchmarks import many_processes
from empathy_jax import checkpoint, files, hosts

PHASES = ("sft", "rl")
STEPS, EVERY = 24, 3
VALUES = {
    **many_processes.VALUES,
    "steps": STEPS,
    "checkpoint.every": EVERY,
    "batch_size": 2,
    "log.validate_every": 12,
    # Each process holds a half of every array, and writes it.
    "mesh.data": 1,
    "mesh.fsdp": -1,
    "rl.rows_per_pass": 8,
    "rl.minibatches": 2,
    "rl.reference_every": 5,
}
# Until a process sees that another is gone; a loaded machine takes its time to end.
MOST_SECONDS_ALONE = hosts.HEARTBEAT_SECONDS + 240
MOST_SECONDS = 1800  # of any run
WRONG = "WRONG"  # what came of a fault that has not ended as it must
DISK_BYTES = 64 << 20
# What differs between two runs of the same: clocks, places, and what else is read apart.
APART = ("environment.json", "resources.json", "metrics.jsonl", "summary.json")


class WrongEnd(Exception):
    """A run has not ended as it must; says how it did."""


class TooLate(Exception):
    """A run has ended before it could be disturbed."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of a phase, not necessarily begun.

    Attributes:
      phase: sft or rl.
      count: of processes.
      workdir: its own.
      fields: further values of the config.
      compiled: folder of compiled programs, shared by all runs.
    """

    phase: str
    count: int
    workdir: Path
    fields: dict[str, Any]
    compiled: Path

    @property
    def folder(self) -> Path:
        return self.workdir / self.phase

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def log(self, process: int = 0) -> str:
        """What a process has said since it was last started."""
        return self._log(process).read_text(encoding="utf-8", errors="replace")

    def _log(self, process: int) -> Path:
        return self.workdir.with_name(f"{self.workdir.name}.{process}.log")

    @contextlib.contextmanager
    def started(self) -> Iterator[list[subprocess.Popen]]:
        """Its processes; those that have not ended by the end of the block are killed."""
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
        processes = []
        try:
            for me in range(self.count):
                joined = [f"--coordinator_address=127.0.0.1:{port}", f"--process_id={me}"]
                joined += [f"--num_processes={self.count}"]
                command = [*self._command(), *(joined if self.count > 1 else ())]
                with open(self._log(me), "wb") as log:
                    processes.append(
                        subprocess.Popen(
                            command,
                            cwd=many_processes.ROOT,
                            env=self._environment(),
                            stdout=log,
                            stderr=log,
                        )
                    )
            yield processes
        finally:
            for process in processes:
                process.kill()
                process.wait()

    def _command(self) -> list[str]:
        return [
            sys.executable, "-m", "empathy_jax.main", f"--config=configs/{self.phase}.py:tiny",
            f"--workdir={self.workdir}",
            *(f"--config.{name}={value}" for name, value in self.fields.items()),
        ]  # fmt: skip

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0",
            "JAX_COMPILATION_CACHE_DIR": str(self.compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }


# --- runs and moments ---


def ended(processes: list[subprocess.Popen], seconds: float = MOST_SECONDS) -> list[int]:
    """The status of each process, which must all end within so many seconds."""
    end = time.monotonic() + seconds
    try:
        return [process.wait(max(0.0, end - time.monotonic())) for process in processes]
    except subprocess.TimeoutExpired:
        hung = [me for me, process in enumerate(processes) if process.poll() is None]
        raise WrongEnd(f"processes {hung} still ran after {seconds:.0f} s") from None


def run_to_end(run: Run) -> float:
    """Runs without disturbance; returns the processor time of the first process, in seconds."""
    with run.started() as processes:
        used = 0.0
        while processes[0].poll() is None:
            used = max(used, cpu_seconds(processes[0]))
            time.sleep(0.01)
        statuses = ended(processes)
    if any(statuses):
        logs = "\n".join(run.log(me)[-2000:] for me in range(run.count))
        raise WrongEnd(f"ended with {statuses}: {logs}")
    if "Traceback" in run.log():
        raise WrongEnd(f"a traceback: {run.log()[-2000:]}")
    return used


def cpu_seconds(process: subprocess.Popen) -> float:
    """Processor time that a process has used so far; 0 once it is gone."""
    try:
        text = Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return 0.0
    user, system = text.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def wait_until(processes: list[subprocess.Popen], reached: Callable[[], bool]) -> None:
    """Returns as soon as something is so.

    Raises:
      TooLate: when a process has ended before.
    """
    while not reached():
        if any(process.poll() is not None for process in processes):
            raise TooLate
        time.sleep(0.001)


def wait_for_moment(trial: "Trial", processes: list[subprocess.Popen], have_met: bool) -> None:
    """Waits until a moment drawn from the whole run, or from what follows the processes' meeting.

    A process that is gone before they meet is waited for, for five minutes.
    """
    first = 0.0
    if have_met:
        wait_until(processes, (trial.run.folder / "config.json").exists)
        first = cpu_seconds(processes[0])
    moment = trial.draw.uniform(first, max(first, trial.seconds))
    wait_until(processes, lambda: cpu_seconds(processes[0]) >= moment)


def last_step(run: Run) -> int | None:
    """The last step of which metrics are written; None before any are."""
    path = run.folder / "metrics.jsonl"
    rows = list(files.read_jsonl(path)) if path.exists() else []
    return rows[-1]["step"] if rows else None


def place(run: Run) -> str:
    """How far a run that was stopped had come."""
    names = {path.name for path in run.checkpoints.glob("*")}
    if any("tmp" in name or (name.isdigit() and f"{name}.json" not in names) for name in names):
        return "in a save"
    step = last_step(run)
    return "at the start" if step is None else "at the end" if step == STEPS else "in training"


# --- what a run holds ---


def contents(run: Run) -> dict[str, Any]:
    """All that a finished run holds, by name, but for what clocks and places say."""
    found: dict[str, Any] = {}
    step = checkpoint.newest_sound_step(run.checkpoints)
    found["last checkpoint"] = step
    stored = ocp.checkpointables_metadata(run.checkpoints / str(step)).metadata
    here = SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        stored,
        is_leaf=lambda leaf: hasattr(leaf, "shape"),
    )
    restored = checkpoint.restore(run.checkpoints, step, wanted)
    for path, leaf in jax.tree_util.tree_leaves_with_path(restored):
        found[f"array {jax.tree_util.keystr(path)}"] = np.asarray(leaf).tobytes()
    for row in files.read_jsonl(run.folder / "metrics.jsonl"):
        kept = {k: v for k, v in row.items() if not k.endswith(("seconds", "compilations"))}
        found.setdefault(f"metrics of step {row['step']}", []).append(kept)
    summary = json.loads((run.folder / "summary.json").read_text(encoding="utf-8"))
    found["summary"] = {
        k: v for k, v in summary.items() if k not in ("seconds", "peak_memory_bytes")
    }
    for path in run.folder.iterdir():
        if path.is_file() and path.name not in APART:
            found[path.name] = path.read_bytes()
    return found


def check_same(run: Run, undisturbed: dict[str, Any]) -> None:
    """Raises WrongEnd with the names of what differs, or of files that were left half-written."""
    found = contents(run)
    names = sorted(found.keys() | undisturbed.keys())
    differing = [name for name in names if found.get(name) != undisturbed.get(name)]
    if differing:
        raise WrongEnd(f"{len(differing)} things differ, such as {', '.join(differing[:5])}")
    left = [
        str(path) for path in run.folder.rglob("*") if "tmp" in path.name or "partial" in path.name
    ]
    if left:
        raise WrongEnd(f"left behind: {', '.join(left)}")


# --- the faults ---


@dataclasses.dataclass(frozen=True)
class Trial:
    """What a fault is done to.

    Attributes:
      run: not begun.
      undisturbed: the run left alone.
      seconds: of processor time that its first process took.
      draw: of moments, files and bits.
    """

    run: Run
    undisturbed: Run
    seconds: float
    draw: random.Random


def kill(trial: Trial) -> str:
    with trial.run.started() as processes:
        wait_for_moment(trial, processes, have_met=False)
        for process in processes:
            process.kill()
        statuses = ended(processes)
    if set(statuses) != {-signal.SIGKILL}:
        raise TooLate
    return place(trial.run)


def kill_one(trial: Trial) -> str:
    victim = trial.draw.randrange(trial.run.count)
    with trial.run.started() as processes:
        wait_for_moment(trial, processes, have_met=True)
        processes[victim].kill()
        began, where = time.monotonic(), place(trial.run)
        statuses = ended(processes, MOST_SECONDS_ALONE)
        seconds = time.monotonic() - began
    others = [me for me in range(trial.run.count) if me != victim]
    is_over = (trial.run.folder / "summary.json").exists()
    for me in others:
        if statuses[me] == 0 and not is_over:
            raise WrongEnd(f"process {me} ended with status 0 before the run was over")
        if statuses[me] and "error: " not in trial.run.log(me):
            raise WrongEnd(f"process {me} gave no reason: {trial.run.log(me)[-2000:]}")
    return (
        f"{'lead' if victim == 0 else 'other'} {where}, {'below' if seconds < 20 else 'above'} 20 s"
    )


def sigterm(trial: Trial) -> str:
    run = trial.run
    one = trial.draw.randrange(run.count)
    with run.started() as processes:
        wait_for_moment(trial, processes, have_met=run.count > 1)
        processes[one].send_signal(signal.SIGTERM)
        where = place(run)
        statuses = ended(processes, MOST_SECONDS_ALONE)
    if "the same command goes on from here" in run.log():
        if any(statuses):
            raise WrongEnd(f"saved, and ended with {statuses}")
        return "saved"
    step = last_step(run)
    if statuses[one] == 0 and (run.folder / "summary.json").exists():
        return "finished"
    if statuses[one] == -signal.SIGTERM and step in (None, 0, STEPS):
        return f"ended {where}"
    raise WrongEnd(f"ended {where} with {statuses} at step {step} and did not save")


def truncated(trial: Trial) -> str:
    def cut(path: Path) -> None:
        os.truncate(path, trial.draw.randrange(path.stat().st_size))

    return _damage(trial, cut)


def missing(trial: Trial) -> str:
    return _damage(trial, Path.unlink)


def flipped(trial: Trial) -> str:
    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[trial.draw.randrange(len(data))] ^= 1 << trial.draw.randrange(8)
        path.write_bytes(data)

    return _damage(trial, flip)


def _damage(trial: Trial, do: Callable[[Path], None]) -> str:
    """To a file of the newest checkpoint of a run that was killed before it was marked as over."""
    run = trial.run
    shutil.copytree(trial.undisturbed.folder, run.folder)
    (run.folder / "summary.json").unlink()
    candidates = [path for path in (run.checkpoints / str(STEPS)).rglob("*") if path.is_file()]
    chosen = trial.draw.choice(sorted(path for path in candidates if path.stat().st_size))
    do(chosen)
    run_to_end(run)
    if f"passed over checkpoint {STEPS} in {run.checkpoints}" not in run.log():
        raise WrongEnd(f"{chosen} was damaged, and nothing was said of it")
    return "passed over"


def full_disk(trial: Trial) -> str:
    run = trial.run
    step = trial.draw.randrange(EVERY, STEPS + 1, EVERY)
    left = trial.draw.choice([0, trial.draw.randrange(1 << 20)])
    ballast = run.workdir / "ballast"
    with run.started() as processes:
        wait_until(processes, lambda: any(run.checkpoints.glob(f"{step}.*tmp*")))
        usage = shutil.disk_usage(run.workdir)
        with open(ballast, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, usage.free - left))
        statuses = ended(processes, MOST_SECONDS_ALONE)
    ballast_bytes = ballast.stat().st_size
    ballast.unlink()
    if (run.folder / "summary.json").exists():
        raise TooLate
    log = run.log()
    errors = [line for line in log.splitlines() if line.startswith("error: ")]
    # Before it there may be tracebacks of orbax's threads, which outlive the save by a moment.
    if set(statuses) != {1} or len(errors) != 1 or not log.endswith(errors[0] + "\n"):
        raise WrongEnd(f"{ballast_bytes} bytes taken; ended with {statuses}: {log[-3000:]}")
    if str(run.folder) not in errors[0] or "free some space" not in errors[0]:
        raise WrongEnd(f"the error does not say what to do: {errors[0]}")
    checkpoint.newest_sound_step(run.checkpoints)  # an error when there are only damaged ones
    return "one error"


FAULTS = {
    "kill": kill,
    "kill_one": kill_one,
    "sigterm": sigterm,
    "truncated": truncated,
    "missing": missing,
    "flipped": flipped,
    "full_disk": full_disk,
}


@contextlib.contextmanager
def small_disk(workdir: Path) -> Iterator[None]:
    """Puts a file system of DISK_BYTES where a run will write."""
    workdir.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(workdir)]
    subprocess.run(["mount", *options], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(workdir)], check=True)


def try_once(fault: str, trial: Trial, wanted: dict[str, Any]) -> str:
    """Does one fault and goes on to the end; returns what came of it.

    Raises:
      WrongEnd: when it is not what must come of it.
    """
    workdir = trial.run.workdir
    while True:
        if workdir.exists():
            shutil.rmtree(workdir)
        with small_disk(workdir) if fault == "full_disk" else contextlib.nullcontext():
            try:
                came = FAULTS[fault](trial)
            except TooLate:
                continue
            run_to_end(trial.run)
            check_same(trial.run, wanted)
        shutil.rmtree(workdir)
        return came


# --- all of them ---


def make_models(folder: Path) -> dict[str, str]:
    """Records, and the models that `rl` starts from; the values of a config that name the records."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs = many_processes.write_inputs(folder)
    values = {**VALUES, **inputs, "steps": 4, "phases": "('sft','reward_model')"}
    if not (folder / "models" / "reward_model" / "summary.json").exists():
        run_to_end(Run("rl", 1, folder / "models", values, folder / "compiled"))
    return inputs


def make_run(name: str, phase: str, count: int, folder: Path, inputs: dict[str, str]) -> Run:
    """A run with all its values, in a WORKDIR of its own."""
    values = {**VALUES, **inputs, "phases": "()"}
    if phase == "rl":
        values["model.init"] = str(folder / "models" / "sft")
        values["reward_model.init"] = str(folder / "models" / "reward_model")
    return Run(phase, count, folder / f"{name}-{phase}-{count}", values, folder / "compiled")


def leave_alone(make: Callable[[str], Run]) -> tuple[Run, float]:
    """A run without disturbance, done twice; and the processor time of the second, in seconds."""
    undisturbed, again = make("undisturbed"), make("again")
    noted = again.workdir.with_suffix(".json")
    if not noted.exists():
        run_to_end(undisturbed)
        shutil.rmtree(again.workdir, ignore_errors=True)
        seconds = run_to_end(again)  # with everything compiled
        check_same(again, contents(undisturbed))
        files.write_json(noted, seconds)
    return undisturbed, json.loads(noted.read_text(encoding="utf-8"))


def disturb(
    fault: str, make: Callable[[str], Run], arguments: argparse.Namespace
) -> collections.Counter:
    """Does one fault as often as asked, a line each; how often it came out how."""
    undisturbed, seconds = leave_alone(make)
    wanted, ends = contents(undisturbed), collections.Counter()
    run = make("disturbed")
    for number in range(arguments.first, arguments.first + arguments.times):
        draw = random.Random(f"{fault} {run.phase} {run.count} {number} {arguments.seed}")
        line = {"fault": fault, "phase": run.phase, "processes": run.count, "number": number}
        began = time.monotonic()
        try:
            line["came"] = try_once(fault, Trial(run, undisturbed, seconds, draw), wanted)
        except (WrongEnd, checkpoint.CheckpointError) as error:
            line |= {"came": WRONG, "wrong": str(error)}
        ends[line["came"]] += 1
        print(json.dumps(line | {"seconds": round(time.monotonic() - began, 1)}), flush=True)
    return ends


def show(ends: dict[tuple[str, str, int], collections.Counter]) -> bool:
    """Prints the table; whether all have ended as they must."""
    done = right = 0
    for (fault, phase, count), came in ends.items():
        of = came.total()
        done, right = done + of, right + of - came[WRONG]
        how = ", ".join(f"{n} {what}" for what, n in sorted(came.items()))
        print(f"{fault:<10} {phase:<4} {count}  {of - came[WRONG]:>3} of {of:<3} {how}")
    print(f"{right} of {done} ended as they must")
    return right == done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=25, help="of each fault")
    parser.add_argument("--first", type=int, default=0, help="number of the first time")
    parser.add_argument("--only", default=",".join(FAULTS), help="faults, of those above")
    parser.add_argument("--phases", default=",".join(PHASES), help="sft, rl or both")
    parser.add_argument("--processes", default="1,2", help="numbers of processes")
    parser.add_argument("--seed", type=int, default=0, help="of the moments, files and bits")
    parser.add_argument("--folder", default="", help="where runs go; empty: a temporary one")
    arguments = parser.parse_args()
    faults = arguments.only.split(",")
    if unknown := set(faults) - FAULTS.keys():
        parser.error(f"--only names {', '.join(sorted(unknown))}; it takes {', '.join(FAULTS)}")
    ends = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or temporary).absolute()
        inputs = make_models(folder)
        for phase in arguments.phases.split(","):
            for count in map(int, arguments.processes.split(",")):
                make = functools.partial(
                    make_run, phase=phase, count=count, folder=folder, inputs=inputs
                )
                for fault in faults:
                    if fault != "kill_one" or count > 1:
                        ends[fault, phase, count] = disturb(fault, make, arguments)
    if not show(ends):
        sys.exit(1)


if __name__ == "__main__":
    main()
