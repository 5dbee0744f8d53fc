"""The thread that owns the device: requests wait in line, take rows of the batch, and leave it.

Other threads hand requests in and get tokens through a callback. Between two slices of decoding the
thread lets in what waits, first come first served, and takes out what has ended, was given up by its
client, or has outlived its deadline. Work of other models (`call`) runs between slices too.
"""

import dataclasses
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from empathy_jax.generation.continuous import ContinuousBatch, Prompt, Sample
from empathy_jax.serving import journal
from empathy_jax.serving.metrics import Metrics

# Tokens of a row between two chances to come and go, and to be told.
SLICE = 8
# Tokens of prompts after which no further one is prefilled before the next slice: those who are being
# answered wait for them.
PREFILL_TOKENS = 512
# What a request took on average counts so much less with each later one.
_DECAY = 0.9


class Tokens(NamedTuple):
    """Some more tokens of a sample, and at its end the reason: "stop" or "length"."""

    sample: int
    tokens: list[int]
    reason: str | None


class Failed(NamedTuple):
    """Nothing more will come of a request: "deadline", "closed" or "broken"."""

    reason: str


Deliver = Callable[[Sequence[Tokens | Failed]], None]


class Full(Exception):
    """The line is full; it may have moved in `retry_after` seconds."""

    def __init__(self, retry_after: int):
        super().__init__(f"the line is full; try again in {retry_after} s")
        self.retry_after = retry_after


class Over(Exception):
    """A call that will not be run, as `Failed` says of a request."""


@dataclasses.dataclass(eq=False)
class Job:
    """A request for samples of one prompt.

    Attributes:
      prompt: its token ids.
      samples: what is asked for.
      deadline: on the clock of `time.monotonic`.
      deliver: is called in the worker's thread with what has happened; must not block.
      submitted, begun, told: when it came, got its first row, and was told of tokens last.
      prefilled: while it is first in line.
      started: samples that were given a row.
      rows: row to sample, of those that decode.
    """

    prompt: Sequence[int]
    samples: Sequence[Sample]
    deadline: float
    deliver: Deliver
    submitted: float = 0.0
    begun: float = 0.0
    told: float = 0.0
    prefilled: Prompt | None = None
    started: int = 0
    rows: dict[int, int] = dataclasses.field(default_factory=dict)


class Worker:
    """Holds the thread, the batch, and those who wait for it."""

    def __init__(self, batch: ContinuousBatch, max_queue: int, metrics: Metrics):
        """Starts the thread.

        Args:
          batch: warmed up; no one else may use it from now on.
          max_queue: samples and calls that may wait.
          metrics: what is counted.
        """
        self._batch, self._max_queue, self._metrics = batch, max_queue, metrics
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._line: deque[Job] = deque()
        self._calls: deque[tuple[Future, Callable[[], Any]]] = deque()
        self._owners: dict[int, Job] = {}
        self._lock = threading.Lock()
        self._waiting = 0
        self._mean_seconds = 1.0
        self._closing = False
        self.failure: Exception | None = None
        metrics.watch(lambda: len(self._owners), lambda: self._waiting)
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    @property
    def rows(self) -> int:
        """Samples decoded side by side, at most."""
        return self._batch.rows

    @property
    def running(self) -> int:
        """Samples that are being decoded."""
        return len(self._owners)

    @property
    def waiting(self) -> int:
        """Samples and calls in line."""
        return self._waiting

    # --- for other threads ---

    def reserve(self, count: int) -> None:
        """Takes places in line, for samples that will be submitted or released.

        Raises:
          Full: when as many wait as may.
        """
        with self._lock:
            if self._waiting >= self._max_queue:
                turns = self._waiting / self._batch.rows + 1
                raise Full(min(max(math.ceil(turns * self._mean_seconds), 1), 60))
            self._waiting += count

    def release(self, count: int) -> None:
        """Gives places in line back."""
        with self._lock:
            self._waiting -= count

    def submit(self, job: Job) -> None:
        """Puts a request in line, on the places that were reserved for its samples."""
        job.submitted = time.monotonic()
        self._commands.put(lambda: self._line.append(job))

    def call(self, function: Callable[[], Any]) -> Future:
        """Runs a function in the thread that owns the device.

        Returns:
          A future of its result; `Over` when the worker has ended.

        Raises:
          Full: when as many wait as may.
        """
        future: Future = Future()
        self.reserve(1)
        self._commands.put(lambda: self._calls.append((future, function)))
        return future

    def cancel(self, job: Job, sample: int | None = None) -> None:
        """Gives up a sample that has begun, or all of a request; what it would say is not wanted."""
        self._commands.put(lambda: self._drop(job, sample))

    def close(self) -> None:
        """Ends the thread; requests that are not done get `Failed`."""

        def end() -> None:
            self._closing = True

        self._commands.put(end)
        self._thread.join()

    # --- the thread ---

    def _run(self) -> None:
        reason = "closed"
        try:
            while self._take_commands():
                self._expire()
                self._admit()
                self._call_one()
                self._decode()
        except Exception as error:
            self.failure, reason = error, "broken"
            self._metrics.failed(error)
            journal.note_error(error)
        # Whoever comes from now on is told at once.
        while True:
            for job in {*self._line, *self._owners.values()}:
                self._fail(job, reason)
            while self._calls:
                self.release(1)
                future, _ = self._calls.popleft()
                if future.set_running_or_notify_cancel():
                    future.set_exception(Over(reason))
            if self._closing:
                return
            self._commands.get()()

    def _take_commands(self) -> bool:
        """Does what other threads have asked for; waits for it where there is nothing else to do."""
        idle = not (self._owners or self._line or self._calls)
        while True:
            try:
                command = self._commands.get(block=idle)
            except queue.Empty:
                return not self._closing
            command()
            idle = False

    def _expire(self) -> None:
        now = time.monotonic()
        for job in {*self._line, *self._owners.values()}:
            if job.deadline <= now:
                self._fail(job, "deadline")

    def _admit(self) -> None:
        """Gives free rows to those who are first in line."""
        prefilled = 0
        while self._line and self._batch.free:
            job = self._line[0]
            if job.prefilled is None:
                if prefilled >= PREFILL_TOKENS:
                    return
                job.prefilled = self._batch.prefill(job.prompt)
                self._metrics.prompt_tokens.inc(len(job.prompt))
                prefilled += len(job.prompt)
            row = self._batch.start(job.prefilled, job.samples[job.started])
            job.rows[row], self._owners[row] = job.started, job
            if not job.started:
                job.begun = time.monotonic()
                self._metrics.queue_seconds.observe(job.begun - job.submitted)
            self.release(1)
            job.started += 1
            if job.started == len(job.samples):
                self._line.popleft()
                job.prefilled = None

    def _call_one(self) -> None:
        if not self._calls:
            return
        self.release(1)
        future, function = self._calls.popleft()
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function())
        except Exception as error:
            future.set_exception(error)

    def _decode(self) -> None:
        """Decodes a slice, tells each request what it got, and frees the rows that are done."""
        # Where others wait, a sixteenth of the rows is worth an early return.
        enough = max(1, self.rows // 16) if self._line else max(len(self._owners), 1)
        made = self._batch.decode(SLICE, enough)
        now = time.monotonic()
        events: dict[Job, list[Tokens]] = {}
        for row, tokens, stopped, done in made:
            job = self._owners[row]
            reason = ("stop" if stopped else "length") if done else None
            events.setdefault(job, []).append(Tokens(job.rows[row], tokens, reason))
            self._metrics.completion_tokens.inc(len(tokens))
            if done:
                del self._owners[row], job.rows[row]
        for job, happened in events.items():
            if job.told:
                self._metrics.slice_seconds.observe(now - job.told)
            else:
                self._metrics.first_token_seconds.observe(now - job.submitted)
            job.told = now
            if not job.rows and job.started == len(job.samples):
                seconds = now - job.begun
                self._mean_seconds = _DECAY * self._mean_seconds + (1 - _DECAY) * seconds
            _tell(job, happened)

    def _fail(self, job: Job, reason: str) -> None:
        self._drop(job, None)
        _tell(job, [Failed(reason)])

    def _drop(self, job: Job, sample: int | None) -> None:
        """Takes a sample that has begun out of the batch, or all of a request, out of the line too."""
        for row, number in list(job.rows.items()):
            if sample in (None, number):
                self._batch.stop(row)
                del self._owners[row], job.rows[row]
        if sample is None and job in self._line:
            self._line.remove(job)
            self.release(len(job.samples) - job.started)


def _tell(job: Job, happened: Sequence[Tokens | Failed]) -> None:
    try:
        job.deliver(happened)
    except RuntimeError:
        return  # its event loop is closed: no one listens any longer
