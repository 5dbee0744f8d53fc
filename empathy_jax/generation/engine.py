"""Completions of prompts: each prefilled once, its samples decoded together, rows refilled as they end.

A batch of rows decodes in compiled segments of some tokens. Between two of them the host takes out
the rows that are done and puts the next samples in their places (`schedule.py` says which), so that
one long completion does not hold the batch. Three more things keep a token cheap:

- The completions' cache has few sizes. It grows when most rows have outgrown it; while samples still
  wait, a single row that outgrows it is parked instead, and decoded with its like at the end.
- When no sample waits any longer and few rows are left, they go on in a batch of a quarter of the size.
- Prompts go in the order of their lengths, so that little of a prompt's columns is padding.

What a row samples depends on the key, its row id and its prompt alone, not on what shares its batch.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from empathy_jax.generation import cache as caches
from empathy_jax.generation import decode_loop, schedule
from empathy_jax.generation import weights as weights_lib
from empathy_jax.generation.cache import DecodeCache, PromptCache
from empathy_jax.generation.decode_loop import ANY_TOKEN, NO_TOKEN, SEGMENT
from empathy_jax.generation.sampling import SamplingConfig
from empathy_jax.generation.schedule import FREE, Flight
from empathy_jax.models import decoder
from empathy_jax.types import Array, Key, Params

__all__ = ["Completions", "SamplingConfig", "generate"]

PREFILL = 16  # prompts that are prefilled at a time, at most


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


class _Job(NamedTuple):
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


class _Batch(NamedTuple):
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


def generate(
    params: Params,
    config: decoder.DecoderConfig,
    prompts: Sequence[Sequence[int]],
    *,
    key: Key[Array, ""],
    sampling: SamplingConfig,
    eos_ids: tuple[int, ...],
    pad_id: int,
    samples_per_prompt: int = 1,
    rows: int = 64,
    stop: Sequence[Sequence[int]] = (),
    limits: Sequence[int] | np.ndarray | None = None,
    lora: Params | None = None,
    row_ids: Sequence[int] | None = None,
    refill: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Completions:
    """Samples completions of each prompt.

    A row's random numbers depend on `key`, its row id and the index of its token alone, so that the
    same rows come out however they are batched and padded (up to rounding in the logits).

    Args:
      params: decoder parameters.
      config: the decoder's configuration; its compute dtype is also the cache's.
      prompts: token ids of each prompt, at least one token each.
      key: root of the random streams.
      sampling: length, temperature and filters.
      eos_ids: tokens that end a completion; none if empty.
      pad_id: fills `Completions.tokens` after the end.
      samples_per_prompt: completions of each prompt.
      rows: completions decoded side by side, at most.
      stop: sequences of token ids that end a completion as an end token does. A tag may tokenize in
        several ways: give each.
      limits: most tokens of the completions of each prompt, or of each completion;
        `sampling.max_new_tokens` if not given.
      lora: adapters, applied beside the kernels.
      row_ids: one number per completion, [len(prompts) * samples_per_prompt], that names its random
        stream; 0, 1, 2, ... if not given.
      refill: false decodes each batch to the end of its longest before the next begins.
      progress: called as completions end with (completions made, completions in all).

    Raises:
      ValueError: an empty prompt, one that leaves no room for its completion, or arguments that do
        not fit together.
    """
    total = len(prompts) * samples_per_prompt
    limits = _check(prompts, config, sampling, samples_per_prompt, rows, stop, limits)
    row_ids = np.arange(total) if row_ids is None else np.asarray(row_ids)
    if len(row_ids) != total:
        raise ValueError(f"{len(row_ids)} row_ids were given for {total} completions")
    out = _empty(total, sampling.max_new_tokens, pad_id)
    if not total:
        return out
    order = np.argsort([len(prompt) for prompt in prompts], kind="stable")
    # Sample j of the job is sample place[j] of the caller.
    place = (order[:, None] * samples_per_prompt + np.arange(samples_per_prompt)).ravel()
    adapters = None if lora is None else lora["layers"]
    job = _Job(
        params,
        lora,
        weights_lib.prepare(params["layers"], adapters, config, weights_lib.is_whole(params)),
        config,
        # The length is no part of what is compiled.
        dataclasses.replace(sampling, max_new_tokens=1),
        key,
        [prompts[i] for i in order],
        np.array([len(prompts[i]) for i in order], np.int32),
        np.array([prompts[i][-1] for i in order], np.int32),
        samples_per_prompt,
        limits[place],
        row_ids[place].astype(np.int32),
        jax.device_put(_stop_table([*((token,) for token in eos_ids), *stop])),
        schedule.column_sizes(int(limits.max())),
        refill,
    )
    made = _empty(total, sampling.max_new_tokens, pad_id)
    _run(job, made, schedule.choose_shape(len(prompts), samples_per_prompt, rows), progress)
    for name in ("tokens", "log_probs", "lengths", "finished"):
        getattr(out, name)[place] = getattr(made, name)
    return out


def _check(
    prompts: Sequence[Sequence[int]],
    config: decoder.DecoderConfig,
    sampling: SamplingConfig,
    samples_per_prompt: int,
    rows: int,
    stop: Sequence[Sequence[int]],
    limits: Sequence[int] | np.ndarray | None,
) -> np.ndarray:
    """Refuses what cannot be done; returns the limit of each completion."""
    if samples_per_prompt < 1 or rows < 1:
        raise ValueError(
            f"samples_per_prompt is {samples_per_prompt} and rows is {rows}; both must be at least 1"
        )
    for index, sequence in enumerate(stop):
        if not len(sequence) or min(sequence) < 0:
            raise ValueError(
                f"stop sequence {index} is {list(sequence)}; it must be one or more token ids"
            )
    longest, total = sampling.max_new_tokens, len(prompts) * samples_per_prompt
    limits = np.full(total, longest) if limits is None else np.asarray(limits, np.int64)
    if len(limits) not in (len(prompts), total):
        raise ValueError(
            f"{len(limits)} limits were given for {len(prompts)} prompts of {samples_per_prompt} "
            "completions"
        )
    for index, limit in enumerate(limits):
        if not 1 <= limit <= longest:
            raise ValueError(
                f"limit {index} is {limit}; allowed are 1 to sampling.max_new_tokens ({longest})"
            )
    limits = np.repeat(limits, total // max(len(limits), 1))
    limits = limits.reshape(len(prompts), samples_per_prompt)
    for index, (prompt, limit) in enumerate(zip(prompts, limits.max(axis=1), strict=True)):
        room = config.max_positions - int(limit)
        if not 1 <= len(prompt) <= room:
            raise ValueError(
                f"prompt {index} has {len(prompt)} tokens; allowed are 1 to {room} "
                f"(max_positions {config.max_positions} less the {limit} new tokens it may have)"
            )
    return limits.ravel()


def _empty(rows: int, max_new: int, pad_id: int) -> Completions:
    return Completions(
        tokens=np.full((rows, max_new), pad_id, np.int32),
        log_probs=np.zeros((rows, max_new), np.float32),
        lengths=np.zeros(rows, np.int32),
        finished=np.zeros(rows, bool),
    )


def _stop_table(sequences: list[Sequence[int]]) -> np.ndarray:
    """The sequences right-aligned in one table, [M, W]."""
    longest = max(map(len, sequences), default=1)
    table = np.full((max(len(sequences), 1), longest), ANY_TOKEN, np.int32)
    for row, sequence in zip(table, sequences, strict=False):
        row[longest - len(sequence) :] = sequence
    if not sequences:
        table[:] = NO_TOKEN
    return table


def _run(
    job: _Job,
    out: Completions,
    shape: schedule.Shape,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Fills `out` with the completions of all samples."""
    flight = schedule.start(shape, len(job.prompts), job.samples)
    batch = _Batch(flight, None, 0, 0, None, {}, last_stage=False)
    ended, total = 0, len(out.lengths)
    while ended < total:
        if job.refill:
            batch = _compact(_park(job, batch, out))
        batch = _refill(job, batch, out)
        batch, done = _segment(job, batch, out)
        ended += done
        if done and progress is not None:
            progress(ended, total)


def _park(job: _Job, batch: _Batch, out: Completions) -> _Batch:
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
        where = _scalars(lane, slot, row, batch.column)
        parked[int(flight.sample_of[row])] = caches.take_row(
            batch.cache, *where, slots=flight.shape.slots
        )
    return batch._replace(flight=schedule.release(flight, large), parked=parked)


def _compact(batch: _Batch) -> _Batch:
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


def _refill(job: _Job, batch: _Batch, out: Completions) -> _Batch:
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
        cache = caches.resize(batch.cache, *_scalars(batch.column), columns=columns)
        batch = batch._replace(cache=cache, column=0)
    if batch.last_stage:
        return _put_back(batch, placements)
    while placements:
        batch, placements = _place(job, batch, placements, columns)
    return batch


def _put_back(batch: _Batch, placements: list[schedule.Placement]) -> _Batch:
    """Puts parked samples into their rows."""
    parked, cache = dict(batch.parked), batch.cache
    for unit, row, _ in placements:
        one = parked.pop(int(batch.flight.units[unit, 0]))
        cache = caches.put_row(cache, one, *_scalars(row, batch.column))
    return batch._replace(cache=cache, parked=parked)


def _place(
    job: _Job, batch: _Batch, placements: list[schedule.Placement], columns: int
) -> tuple[_Batch, list[schedule.Placement]]:
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
        cache, batch.prefilled, jax.device_put(moves), *_scalars(len(ready)), slots=shape.slots
    )
    return batch._replace(cache=cache), placements[len(ready) :]


def _prefill(job: _Job, shape: schedule.Shape, first: int) -> PromptCache:
    """Prefills prompts from `first` on, as many as there may be slots for."""
    size = min(PREFILL, shape.lanes * shape.slots, len(job.prompts))
    left = len(job.prompts) - first
    if left < size:
        size = min(size, 1 << (left - 1).bit_length())
    chosen = job.prompts[first : first + size]
    columns = schedule.bucket_length(max(map(len, chosen)) - 1)
    tokens = np.zeros((size, columns), np.int32)
    for row, prompt in zip(tokens, chosen, strict=False):
        row[: len(prompt) - 1] = prompt[:-1]
    return decode_loop.prefill(job.params, job.lora, job.config, jax.device_put(tokens))


def _segment(job: _Job, batch: _Batch, out: Completions) -> tuple[_Batch, int]:
    """Decodes a segment into `out`; returns how many samples it ended."""
    flight = batch.flight
    rows, samples = schedule.running(flight)
    # A row that may outgrow the columns has room for so many tokens.
    open_ended = samples[job.limits[samples] > batch.columns]
    room = batch.columns - out.lengths[open_ended]
    steps = int(min(SEGMENT, room.min(initial=SEGMENT)))
    controls = decode_loop.Controls(*_scalars(batch.column, steps, _enough(job, flight, len(rows))))
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


def _enough(job: _Job, flight: Flight, running: int) -> int:
    """How many rows must end for a segment to return before its time."""
    size = flight.shape.rows
    if not job.refill:
        return running
    if schedule.waiting(flight):
        return max(1, size // 16)
    smaller = schedule.smaller_batch(size, 1 if size // 4 < schedule.MIN_ROWS else size // 4)
    return max(1, running - smaller) if smaller < size else running


def _rows(job: _Job, flight: Flight, out: Completions) -> decode_loop.Rows:
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


def _scalars(*values: int | np.integer) -> list[Array]:
    """Integers on the device."""
    return jax.device_put([np.int32(value) for value in values])
