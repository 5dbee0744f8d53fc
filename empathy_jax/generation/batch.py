"""A batch in flight: parked, made smaller, refilled and decoded by a segment at a time.

Each function takes a `Batch` and returns the next; what is sampled goes into the `Completions` of the
job, from which the length of every sample so far is read as well.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from empathy_jax import sharding
from empathy_jax.generation import cache as caches
from empathy_jax.generation import decode_loop, schedule
from empathy_jax.generation import weights as weights_lib
from empathy_jax.generation.cache import DecodeCache, PromptCache
from empathy_jax.generation.decode_loop import NO_TOKEN, SEGMENT, scalars
from empathy_jax.generation.sampling import SamplingConfig
from empathy_jax.generation.schedule import FREE, Flight
from empathy_jax.models import decoder
from empathy_jax.types import Array, Key, Params

PREFILL = 16  # prompts that are prefilled at a time, at most, or one for each device with rows


@dataclasses.dataclass(frozen=True)
class Completions:
    """What was sampled, as numpy, in the order of the prompts and then of their samples.

    Attributes:
      tokens: Int[N, max_new_tokens]; the pad id after the end.
      log_probs: Float[N, max_new_tokens] under softmax(logits / temperature); 0 after the end.
      lengths: Int[N], tokens of each completion, its end token or stop sequence counted.
      finished: Bool[N], whether it ended by one of these; false where its limit cut it off.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    lengths: np.ndarray
    finished: np.ndarray


class Job(NamedTuple):
    """What stays as it is throughout a call. Prompts are sorted by length, samples follow them.

    Attributes:
      prompts: token ids of each.
      lengths, last_tokens: of each prompt.
      samples: completions of each prompt.
      limits, streams: of each sample.
      stops: table of stop sequences, on the device.
      sizes: that the completions' cache may have.
      refill: whether rows are refilled.
    """

    params: Params
    lora: Params | None
    layers: list[weights_lib.LayerWeights]
    config: decoder.DecoderConfig
    sampling: SamplingConfig
    key: Key[Array, ""]
    prompts: list[Sequence[int]]
    lengths: np.ndarray
    last_tokens: np.ndarray
    samples: int
    limits: np.ndarray
    streams: np.ndarray
    stops: Array
    sizes: list[int]
    refill: bool


class Batch(NamedTuple):
    """What changes from segment to segment.

    Attributes:
      flight: who is in which row.
      cache: None before the first prompt is placed.
      column: of the completions' cache, written next.
      first, prefilled: prompts `first`, `first` + 1, ... are prefilled and may be placed.
      parked: samples taken out, with their caches, in the order of their parking.
      last_stage: whether all samples were started, and the units of the flight are parked ones.
    """

    flight: Flight
    cache: DecodeCache | None
    column: int
    first: int
    prefilled: PromptCache | None
    parked: dict[int, DecodeCache]
    last_stage: bool

    @property
    def columns(self) -> int:
        """Of the completions' cache."""
        return 0 if self.cache is None else self.cache.columns


def start(job: Job, shape: schedule.Shape) -> Batch:
    """A batch of which nothing is decoded."""
    flight = schedule.start(shape, len(job.prompts), job.samples)
    return Batch(flight, None, 0, 0, None, {}, last_stage=False)


def park(job: Job, batch: Batch, out: Completions) -> Batch:
    """Takes rows out that have outgrown the columns, when they are few and new samples wait."""
    flight = batch.flight
    if batch.cache is None or batch.last_stage or not schedule.waiting(flight):
        return batch
    rows, samples = schedule.running(flight)
    outgrown = schedule.outgrown(batch.columns, out.lengths[samples], job.limits[samples])
    large = rows[outgrown]
    if 2 * len(large) > len(rows) or len(batch.parked) + len(large) > flight.shape.rows:
        return batch
    parked = dict(batch.parked)
    for row in large:
        lane, slot = row // flight.shape.per_lane, flight.slot_of[row]
        where = scalars(lane, slot, row, batch.column)
        parked[int(flight.sample_of[row])] = caches.take_row(
            batch.cache, *where, slots=flight.shape.slots
        )
    return batch._replace(flight=schedule.release(flight, large), parked=parked)


def compact(batch: Batch) -> Batch:
    """When no new sample waits: each row with a prompt of its own, in a batch as small as will do."""
    flight, waiting = batch.flight, schedule.waiting(batch.flight)
    if batch.cache is None or (waiting and not batch.last_stage):
        return batch
    queue = schedule.unstarted(flight) if batch.last_stage else np.array(list(batch.parked), int)
    rows, samples = schedule.running(flight)
    size = schedule.smaller_batch(flight.shape.rows, len(rows) + len(queue))
    if size == flight.shape.rows and (batch.last_stage or not len(queue)):
        return batch
    chosen = np.zeros(size, np.int32)
    chosen[: len(rows)] = rows
    where = (chosen // flight.shape.per_lane, flight.slot_of[chosen].astype(np.int32), chosen)
    cache = caches.spread(batch.cache, *jax.device_put(where), slots=flight.shape.slots)
    flight = schedule.singles(size, samples, queue)
    return batch._replace(flight=flight, cache=cache, last_stage=True)


def refill(job: Job, batch: Batch, out: Completions) -> Batch:
    """Puts the next samples into idle rows, with room for their tokens and all others'."""
    rows, _ = schedule.running(batch.flight)
    placements: list[schedule.Placement] = []
    if job.refill or not len(rows):
        flight, placements = schedule.refill(batch.flight)
        batch = batch._replace(flight=flight)
    _, samples = schedule.running(batch.flight)
    columns = schedule.fit_columns(
        job.sizes, batch.columns, out.lengths[samples], job.limits[samples], SEGMENT
    )
    if batch.cache is not None and columns != batch.columns:
        cache = caches.resize(batch.cache, *scalars(batch.column), columns=columns)
        batch = batch._replace(cache=cache, column=0)
    if batch.last_stage:
        return _put_back(batch, placements)
    while placements:
        batch, placements = _place(job, batch, placements, columns)
    return batch


def _put_back(batch: Batch, placements: list[schedule.Placement]) -> Batch:
    """Puts parked samples into their rows."""
    parked, cache = dict(batch.parked), batch.cache
    for unit, row, _ in placements:
        one = parked.pop(int(batch.flight.units[unit, 0]))
        cache = caches.put_row(cache, one, *scalars(row, batch.column))
    return batch._replace(cache=cache, parked=parked)


def _place(
    job: Job, batch: Batch, placements: list[schedule.Placement], columns: int
) -> tuple[Batch, list[schedule.Placement]]:
    """Places the prompts that are prefilled, prefilling more if none is; returns what is left."""
    flight = batch.flight
    shape = flight.shape
    wanted = [int(flight.units[p.unit, 0]) // job.samples for p in placements]
    held = 0 if batch.prefilled is None else batch.prefilled.k[0].shape[0]
    if wanted[0] >= batch.first + held:
        batch = batch._replace(first=wanted[0], prefilled=_prefill(job, shape, wanted[0]))
        held = batch.prefilled.k[0].shape[0]
    length = batch.prefilled.k[0].shape[2]
    cache = batch.cache
    if cache is None:
        cache = caches.empty(batch.prefilled, shape.lanes, shape.slots, shape.rows, columns)
    elif cache.prompt_k[0].shape[2] < length * shape.slots:
        cache = caches.widen_prompts(cache, slots=shape.slots, length=length)
    ready = [q for q in wanted if q < batch.first + held]
    moves = np.zeros((shape.lanes * shape.slots, 3), np.int32)
    for i, question in enumerate(ready):
        moves[i] = question - batch.first, placements[i].lane, placements[i].slot
    cache = caches.place(
        cache, batch.prefilled, jax.device_put(moves), *scalars(len(ready)), slots=shape.slots
    )
    return batch._replace(cache=cache), placements[len(ready) :]


def _prefill(job: Job, shape: schedule.Shape, first: int) -> PromptCache:
    """Prefills prompts from `first` on, as many as there may be slots for."""
    size = min(max(PREFILL, sharding.row_parts()), shape.lanes * shape.slots, len(job.prompts))
    left = len(job.prompts) - first
    if left < size:
        size = min(size, 1 << (left - 1).bit_length())
    chosen = job.prompts[first : first + size]
    columns = schedule.bucket_length(max(map(len, chosen)) - 1)
    tokens = np.zeros((size, columns), np.int32)
    for row, prompt in zip(tokens, chosen, strict=False):
        row[: len(prompt) - 1] = prompt[:-1]
    return decode_loop.prefill(job.params, job.lora, job.config, jax.device_put(tokens))


def segment(job: Job, batch: Batch, out: Completions) -> tuple[Batch, int]:
    """Decodes a segment into `out`; returns how many samples it ended."""
    flight = batch.flight
    rows, samples = schedule.running(flight)
    counts, limits = out.lengths[samples], job.limits[samples]
    steps = schedule.steps_with_room(batch.columns, counts, limits, SEGMENT)
    controls = decode_loop.Controls(*scalars(batch.column, steps, _enough(job, flight, len(rows))))
    static = decode_loop.Static(job.config, job.sampling, flight.shape.slots)
    cache, made = decode_loop.decode_segment(
        job.params,
        job.layers,
        static,
        batch.cache,
        jax.device_put(_rows(job, flight, out)),
        job.key,
        job.stops,
        controls,
    )
    made = jax.device_get(made)
    for row, sample in zip(rows, samples, strict=True):
        taken, begin = made.taken[row], out.lengths[sample]
        out.tokens[sample, begin : begin + taken] = made.tokens[row, :taken]
        out.log_probs[sample, begin : begin + taken] = made.log_probs[row, :taken]
    out.lengths[samples] += made.taken[rows]
    out.finished[samples] = made.stopped[rows]
    done = rows[made.done[rows]]
    column = (batch.column + int(made.steps)) % batch.columns
    flight = schedule.release(flight, done)
    return batch._replace(flight=flight, cache=cache, column=column), len(done)


def _enough(job: Job, flight: Flight, running: int) -> int:
    """How many rows must end for a segment to return before its time."""
    size = flight.shape.rows
    if not job.refill:
        return running
    if schedule.waiting(flight):
        return max(1, size // 16)
    quarter = schedule.smaller_batch(size, size // 4)
    return running - quarter if quarter < min(running, size) else running


def _rows(job: Job, flight: Flight, out: Completions) -> decode_loop.Rows:
    """What the compiled loop is told of each row."""
    idle = flight.sample_of == FREE
    sample = np.where(idle, 0, flight.sample_of)
    question, count = sample // job.samples, np.where(idle, 0, out.lengths[sample])
    width = job.stops.shape[1]
    latest = count[:, None] - width + np.arange(width)
    tail = np.where(latest < 0, NO_TOKEN, out.tokens[sample[:, None], np.maximum(latest, 0)])
    token = np.where(count == 0, job.last_tokens[question], tail[:, -1])
    numbers = decode_loop.Rows(
        token=token,
        prompt_length=job.lengths[question] - 1,
        slot=flight.slot_of,
        count=count,
        limit=job.limits[sample],
        stream=job.streams[sample],
        idle=idle,
        tail=tail,
    )
    return numbers._replace(
        **{
            name: value.astype(np.int32)
            for name, value in numbers._asdict().items()
            if name != "idle"
        }
    )
