"""Where the points of a sweep run: here, on a TPU VM, or as an array of a SLURM cluster.

Here and on a TPU VM one point runs at a time. A cluster gets all points of a rung as one array job and
schedules them itself.
"""

import dataclasses
import hashlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from launch.points import Point

BACKENDS = ("local", "tpu_vm", "queued_resource", "slurm")
HERE = Path(os.path.relpath(Path(__file__).parent))
RUN = (sys.executable, "-u", "-m", "empathy_jax.main")
LOG = "run.log"
POLL_SECONDS = 30.0  # between looks at the queue of a cluster
REASON_CHARACTERS = 300


@dataclasses.dataclass(frozen=True)
class Backend:
    """One of BACKENDS, and the flags that its own tool is given."""

    name: str
    resources: tuple[str, ...]

    @classmethod
    def parse(cls, name: str, resources: str, workdir: Path) -> "Backend":
        """`--backend` and `--resources`; a TPU VM wants the sweep's folder under runs/."""
        if name not in BACKENDS:
            raise ValueError(f"--backend is {name!r}, which is not one of {', '.join(BACKENDS)}")
        if name == "local" and resources:
            raise ValueError(f"--resources is {resources!r}; --backend=local takes none")
        if name in ("tpu_vm", "queued_resource") and workdir.parts[:1] != ("runs",):
            raise ValueError(f"--workdir is {str(workdir)!r}; on TPU VMs it must be runs/NAME")
        return cls(name, tuple(shlex.split(resources)))

    def commands(self, points: Sequence[Point], workdir: Path) -> list[list[str]]:
        """Everything that `run` would start."""
        if not points:
            return []
        if self.name == "slurm":
            return [self._sbatch(_points_folder(workdir), workdir, len(points))]
        return [command for point in points for command in self._point_commands(point, workdir)]

    def run(self, points: Sequence[Point], workdir: Path, lock: IO) -> Iterator[tuple[Point, str]]:
        """Run the points; yields each with "" or the reason why it did not finish."""
        if self.name == "slurm":
            yield from self._run_array(points, workdir)
            return
        for index, point in enumerate(points, 1):
            values = " ".join(f"{field}={text}" for field, text in point.values.items())
            print(f"[{index}/{len(points)}] {point.name} {values}", flush=True)
            log = point.folder(workdir) / LOG
            status = 0
            for command in self._point_commands(point, workdir):
                status = status or _call(command, log, lock)
            reason = ""
            if not point.is_finished(workdir):
                reason = f"exit status {status}: {_last_line(log)}"
                print(f"[{index}/{len(points)}] {point.name} failed, {reason}", flush=True)
            yield point, reason

    def _point_commands(self, point: Point, workdir: Path) -> list[list[str]]:
        arguments = point.arguments(workdir)
        if self.name == "local":
            return [[*RUN, *arguments]]
        script = str(HERE / f"{self.name}.sh")
        folder = f"--workdir={point.folder(workdir)}"
        return [
            [script, "start", *self.resources, "--", *arguments],
            [script, "fetch", *self.resources, "--", folder],
        ]

    def _sbatch(self, folder: Path, workdir: Path, count: int) -> list[str]:
        return [
            "sbatch",
            "--parsable",
            f"--job-name={_job_name(workdir)}",
            f"--array=0-{count - 1}",
            f"--output={str(folder).replace('%', '%%')}/%a.log",
            *self.resources,
            str(HERE / "slurm.sbatch"),
            f"--points={folder}",
        ]

    def _run_array(self, points: Sequence[Point], workdir: Path) -> Iterator[tuple[Point, str]]:
        _wait_for_jobs(workdir)  # of this sweep, when it was stopped before their end
        points = [point for point in points if not point.is_finished(workdir)]
        if not points:
            return
        folder = _points_folder(workdir)
        folder.mkdir(parents=True)
        for index, point in enumerate(points):
            words = (word.encode("utf-8") + b"\0" for word in point.arguments(workdir))
            (folder / str(index)).write_bytes(b"".join(words))
        print(f"SLURM job {_output(self._sbatch(folder, workdir, len(points)))}", flush=True)
        _wait_for_jobs(workdir)
        for index, point in enumerate(points):
            done = point.is_finished(workdir)
            yield point, "" if done else f"not finished: {_last_line(folder / f'{index}.log')}"


def _points_folder(workdir: Path) -> Path:
    """A new folder for the arguments and the logs of one array."""
    root = workdir.absolute() / "slurm"
    return root / str(len(list(root.glob("*"))))


def _job_name(workdir: Path) -> str:
    """By its name a sweep that is run again finds the jobs it has in the queue."""
    return "sweep-" + hashlib.sha256(str(workdir.absolute()).encode("utf-8")).hexdigest()[:12]


def _wait_for_jobs(workdir: Path) -> None:
    while _output(["squeue", "--noheader", "--me", f"--name={_job_name(workdir)}", "--format=%A"]):
        time.sleep(POLL_SECONDS)


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ValueError(f"{command[0]} is not on PATH; --backend=slurm needs it") from None
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise ValueError(
            f"{command[0]} ended with status {done.returncode}: {said}. Jobs that are in the queue go "
            "on; the same command waits for them"
        )
    return done.stdout.strip()


def _call(command: list[str], log: Path, lock: IO) -> int:
    """Run a command to its end, its output in `log`; an interruption is handed on as SIGTERM."""
    with open(log, "ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(lock.fileno(),),
            start_new_session=True,
        )
        try:
            return child.wait()
        except BaseException:
            os.killpg(child.pid, signal.SIGTERM)
            child.wait()
            raise


def _last_line(log: Path) -> str:
    """The last error of a log, else its last line."""
    if not log.exists():
        return "no output"
    lines = [line for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["no output"])[-1].strip()[:REASON_CHARACTERS]
