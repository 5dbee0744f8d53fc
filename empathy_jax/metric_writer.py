"""What a person sees of a run: metrics as JSONL and TensorBoard events, a progress bar or plain lines."""

import math
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

from empathy_jax import files, hosts, resources
from empathy_jax.compilations import CompilationCounter

_EVENTS_SECONDS = 30  # between two flushes of an event file


class _Events:
    """A TensorBoard event file, written in the thread that calls.

    `SummaryWriter` writes in a thread of its own: a full disk ends that thread, and the caller then
    waits for ever for room in its queue.

    Args:
      folder: where the file goes.
      purge_step: TensorBoard hides what earlier files hold from this step on.
    """

    def __init__(self, folder: Path, purge_step: int):
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.record_writer import RecordWriter

        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._path, self._flushed = folder / name, time.monotonic()
        with self._explained():
            folder.mkdir(parents=True, exist_ok=True)
            self._file = RecordWriter(str(self._path))
            self._add(file_version="brain.Event:2")
            self._add(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """One event per scalar; on disk at a later write, when half a minute has gone, or at the end."""
        from tensorboardX.summary import scalar

        with self._explained():
            for name, value in scalars.items():
                self._add(step=step, summary=scalar(name, value))
            if time.monotonic() - self._flushed > _EVENTS_SECONDS:
                self._file.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        """Write what is left."""
        with self._explained():
            self._file.close()

    def _add(self, **fields: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._file.write(Event(wall_time=time.time(), **fields).SerializeToString())

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise files.explain(error, self._path) from error


class MetricWriter:
    """Writes scalars of one phase to `metrics.jsonl` and to TensorBoard event files.

    Holds open files; use as a context manager. With `resume_step`, what an interrupted run had
    written after that step is dropped, so that a resumed run's files equal an undisturbed run's.
    Processes other than the lead write nothing.
    """

    def __init__(self, folder: Path, resume_step: int = 0):
        self._path = folder / "metrics.jsonl"
        files.keep_jsonl(self._path, lambda record: 0 < resume_step >= record["step"])
        self._events = _Events(folder / "events", resume_step + 1) if hosts.is_lead() else None

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Append one line and one event per scalar; non-finite values are written as null."""
        scalars = {name: float(value) for name, value in scalars.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        files.append_jsonl(self._path, [{"step": step, **finite}])
        if self._events is not None:
            self._events.write(step, scalars)

    def close(self) -> None:
        """Flush and close the event file."""
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Progress:
    """A progress bar with ETA on a terminal; elsewhere a plain line with ETA every `every` steps.

    The clock starts at the first update: what comes before it is loading and compilation, which
    say nothing about the rate of what is left.
    """

    def __init__(self, name: str, steps: int, every: int = 10):
        self._name, self._steps, self._every = name, steps, every
        self._first: tuple[int, float] | None = None
        self._bar = None

    def update(self, step: int, scalars: Mapping[str, float]) -> None:
        """Show that `step` steps are done, with the first few figures of the last one."""
        text = " ".join(f"{name}={value:.4g}" for name, value in list(scalars.items())[:4])
        is_first = self._first is None
        if is_first:
            self._begin(step)
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        elif is_first or step % self._every == 0 or step == self._steps:
            eta = self._time_left(step)
            print(f"[{self._name}] step {step}/{self._steps} eta {eta} {text}", flush=True)

    def _begin(self, step: int) -> None:
        self._first = step, time.monotonic()
        if hosts.is_lead() and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self._steps, initial=step, desc=self._name, unit="step", dynamic_ncols=True
            )

    def _time_left(self, step: int) -> str:
        first, began = self._first
        if step == first:
            return "?"
        seconds = (time.monotonic() - began) / (step - first) * (self._steps - step)
        return f"{seconds:.0f}s"

    def say(self, text: str) -> None:
        """Print lines without tearing the bar."""
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Leave the terminal clean."""
        if self._bar is not None:
            self._bar.close()


class Recorder:
    """Metrics of a training loop, read one step late so that the device never waits for the host.

    `push` is given the metrics of the step just dispatched, still on the device, and writes those of
    the step before. A loss or gradient norm that is not a number stops the run at once, before a
    checkpoint can hold what it spoilt (`flush` precedes every save).

    `seconds` of a step is the time from one push to the next. A step before which something else was
    done (compilation, validation, samples, a checkpoint) has none. `measuring_seconds` of what is
    given to `write` is the time since the call before, with the wait for the step under way.
    `compilations` of a step counts the programs compiled from one push to the next, whatever for.
    """

    def __init__(self, folder: Path, name: str, start: int, steps: int, every: int):
        self._folder = folder
        self._writer = MetricWriter(folder, start)
        self._progress = Progress(name, steps, every)
        self._every, self._steps = every, steps
        self._pending: tuple[int, Mapping[str, Any], dict[str, float]] | None = None
        self._compilations = CompilationCounter()
        self._last_call = time.monotonic()
        self._is_undisturbed = False
        if start == 0:
            self.say(f"[{name}] measures before training; {steps} steps follow")
        else:
            self.say(f"[{name}] goes on after step {start} of {steps}")

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write scalars that are already on the host; see `flush` for what is refused."""
        _refuse_non_finite(step, scalars)
        self._writer.write(step, {**scalars, "measuring_seconds": self._elapsed()})
        self._is_undisturbed = False

    def say(self, text: str) -> None:
        """Print lines without tearing the bar."""
        self._progress.say(text)
        self._elapsed()
        self._is_undisturbed = False

    def push(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Note the metrics of `step`, not read yet; write those of the step before."""
        self._write_pending()
        seconds = self._elapsed()
        costs = {"compilations": self._compilations.take()}
        costs |= {"seconds": seconds} if self._is_undisturbed else {}
        self._pending = (step, metrics, costs)
        self._is_undisturbed = True

    def flush(self) -> None:
        """Write what is noted, and how long the phase has run.

        Raises:
          ValueError: when the loss, the gradient or the new weights are not finite; names step and
            metric.
        """
        self._write_pending()
        resources.note(self._folder)
        self._is_undisturbed = False

    def _elapsed(self) -> float:
        """Seconds since the call before."""
        before, self._last_call = self._last_call, time.monotonic()
        return self._last_call - before

    def _write_pending(self) -> None:
        if self._pending is None:
            return
        step, metrics, costs = self._pending
        self._pending = None
        fetched = jax.device_get(dict(metrics))
        scalars = {name: float(fetched[name]) for name in sorted(fetched, key=_place)}
        _refuse_non_finite(step, scalars)
        if step % self._every == 0 or step == self._steps:
            self._writer.write(step, {**scalars, **costs})
        self._progress.update(step, scalars)

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *exception: object) -> None:
        self._compilations.close()
        self._progress.close()
        self._writer.close()
        resources.note(self._folder)


def _place(name: str) -> tuple[int, str]:
    """What a reader looks for first comes first."""
    first = ("reward", "loss", "reward_format", "recall", "kl", "grad_norm")
    return (first.index(name) if name in first else len(first), name)


def _refuse_non_finite(step: int, scalars: Mapping[str, float]) -> None:
    for name in ("loss", "grad_norm", "param_norm", "validation_loss"):
        if not math.isfinite(scalars.get(name, 0.0)):
            raise ValueError(
                f"step {step}: {name} is {scalars[name]}; no checkpoint holds this step. "
                "Lower config.optimizer.learning_rate or config.optimizer.clip_norm"
            )
