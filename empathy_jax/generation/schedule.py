"""Which sample sits in which row of the batch, and how many columns the batch needs.

The batch is lanes x rows. A lane holds the prompts of one or two questions in its slots; each of its
rows decodes a sample of one of them. Samples of a question come in units of as many as a lane has
rows. A row that is done takes the next sample of its lane's units, and a slot whose unit is done
takes the next unit, so that rows of a lane never wait for the longest of them:

```
            row 0          row 1          slot 0            slot 1
lane 0      sample 3 of a  sample 0 of b  prompt a          prompt b
lane 1      sample 1 of c  sample 2 of c  prompt c          free
```

Everything here is numpy and values: functions take a `Flight` and return the next one.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

ROWS_PER_LANE = 8  # samples that share a prompt's cache where there are so many
FREE = -1
SMALLEST_BUCKET = 64
MIN_ROWS = 4  # of a batch that is made smaller
MARGIN = 8  # a row that has room for fewer tokens has outgrown its columns


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of the batch: lanes, prompts that a lane holds, and rows of a lane."""

    lanes: int
    slots: int
    per_lane: int

    @property
    def rows(self) -> int:
        """Rows of all lanes."""
        return self.lanes * self.per_lane


class Flight(NamedTuple):
    """Who is where.

    Attributes:
      shape: sizes of the batch.
      units: [U, 2], first and past-last sample of each unit.
      opened: units that were given a slot; they are opened in order.
      started: [U], past-last started sample of each unit.
      unit_of: [lanes, slots], the unit in each slot; FREE before the first.
      sample_of: [rows], the sample in each row; FREE where it idles.
      slot_of: [rows], the slot of its lane that the row's prompt is in.
    """

    shape: Shape
    units: np.ndarray
    opened: int
    started: np.ndarray
    unit_of: np.ndarray
    sample_of: np.ndarray
    slot_of: np.ndarray


class Placement(NamedTuple):
    """A unit whose prompt goes to a slot of a lane."""

    unit: int
    lane: int
    slot: int


def choose_shape(questions: int, samples: int, rows: int) -> Shape:
    """The sizes of a batch of at most `rows` rows for `samples` samples of each of `questions`.

    When all fit at once a question has a lane of its own. Otherwise lanes hold two prompts, unless
    samples are so few that a prompt of its own for each row costs no more.
    """
    if questions * samples <= rows:
        return Shape(questions, 1, samples)
    per_lane = min(samples, ROWS_PER_LANE, rows)
    if per_lane <= 2:
        return Shape(rows, 1, 1)
    return Shape(rows // per_lane, 2, per_lane)


def start(shape: Shape, questions: int, samples: int) -> Flight:
    """All rows idle, with the samples of every question waiting."""
    firsts = np.arange(0, samples, shape.per_lane)
    ends = np.minimum(firsts + shape.per_lane, samples)
    one = np.stack([firsts, ends], axis=1)
    units = (np.arange(questions)[:, None, None] * samples + one).reshape(-1, 2)
    return _flight(shape, units, np.full(shape.rows, FREE))


def singles(rows: int, running: np.ndarray, queue: np.ndarray) -> Flight:
    """Each row with a prompt of its own: samples `running` in rows already, `queue` waiting.

    Args:
      rows: of the batch; at least those running.
      running: samples, in the order of their rows.
      queue: samples that wait, in order.
    """
    sample_of = np.full(rows, FREE)
    sample_of[: len(running)] = running
    queue = np.asarray(queue, np.int64)
    return _flight(Shape(rows, 1, 1), np.stack([queue, queue + 1], axis=1), sample_of)


def _flight(shape: Shape, units: np.ndarray, sample_of: np.ndarray) -> Flight:
    unit_of = np.full((shape.lanes, shape.slots), FREE)
    slot_of = np.zeros(shape.rows, np.int64)
    return Flight(shape, units, 0, units[:, 0].copy(), unit_of, sample_of, slot_of)


def running(flight: Flight) -> tuple[np.ndarray, np.ndarray]:
    """Rows that decode a sample, and the samples."""
    rows = np.flatnonzero(flight.sample_of != FREE)
    return rows, flight.sample_of[rows]


def unstarted(flight: Flight) -> np.ndarray:
    """First unstarted sample of each unit that has any."""
    return flight.started[flight.started < flight.units[:, 1]]


def waiting(flight: Flight) -> int:
    """Samples that were not started."""
    return int(np.sum(flight.units[:, 1] - flight.started))


def release(flight: Flight, rows: np.ndarray) -> Flight:
    """The flight with these rows idle."""
    sample_of = flight.sample_of.copy()
    sample_of[rows] = FREE
    return flight._replace(sample_of=sample_of)


def refill(flight: Flight) -> tuple[Flight, list[Placement]]:
    """Idle rows take the next samples of their lane, opening units where it has none left.

    Returns:
      The flight, and the prompts to be placed before the new rows decode.
    """
    per_lane, ends = flight.shape.per_lane, flight.units[:, 1].tolist()
    started, unit_of = flight.started.tolist(), flight.unit_of.tolist()
    sample_of, slot_of = flight.sample_of.tolist(), flight.slot_of.tolist()
    opened, placements = flight.opened, []

    def slot_with_work(lane: int) -> int | None:
        """The slot of the lane's oldest unit that has a sample to start."""
        units = [u for u in unit_of[lane] if u != FREE and started[u] < ends[u]]
        return unit_of[lane].index(min(units)) if units else None

    def free_slot(lane: int) -> int | None:
        rows = range(lane * per_lane, (lane + 1) * per_lane)
        used = {slot_of[row] for row in rows if sample_of[row] != FREE}
        return min(set(range(flight.shape.slots)) - used, default=None)

    for row in np.flatnonzero(flight.sample_of == FREE).tolist():
        lane = row // per_lane
        slot = slot_with_work(lane)
        if slot is None:
            slot = free_slot(lane)
            if slot is None or opened == len(ends):
                continue
            placements.append(Placement(opened, lane, slot))
            unit_of[lane][slot] = opened
            opened += 1
        unit = unit_of[lane][slot]
        sample_of[row], slot_of[row] = started[unit], slot
        started[unit] += 1
    flight = flight._replace(
        opened=opened,
        started=np.array(started, np.int64),
        unit_of=np.array(unit_of),
        sample_of=np.array(sample_of),
        slot_of=np.array(slot_of),
    )
    return flight, placements


def smaller_batch(rows: int, left: int) -> int:
    """Rows of a batch for `left` samples: `rows` divided by 4 as often as they fit, few shapes."""
    while rows // 4 >= max(left, MIN_ROWS):
        rows //= 4
    return rows


def bucket_length(length: int) -> int:
    """The smallest of 64, 96, 128, 192, 256, ... that holds `length`: few shapes to compile."""
    bucket = SMALLEST_BUCKET
    while bucket < length:
        bucket = bucket * 3 // 2 if bucket & (bucket - 1) == 0 else bucket * 4 // 3
    return bucket


def column_sizes(longest: int, smallest: int | None = None) -> list[int]:
    """Sizes that a cache may have: `smallest`, twice that, ... and one for the longest.

    Each is a program to compile, and the first columns are soon behind a batch: where `smallest` is
    not given it is the largest power of two within a quarter of the longest, from 64 to 256.
    """
    quarter = 1 << (max(longest // 4, 1).bit_length() - 1)
    sizes, size = [], smallest or min(max(quarter, SMALLEST_BUCKET), 4 * SMALLEST_BUCKET)
    while size < longest:
        sizes.append(size)
        size *= 2
    return [*sizes, -(-longest // 16) * 16]


def outgrown(columns: int, counts: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Which rows, with `counts` tokens, soon have no room: Bool[N]."""
    return np.minimum(counts + MARGIN, limits) > columns


def steps_with_room(columns: int, counts: np.ndarray, limits: np.ndarray, steps: int) -> int:
    """`steps`, or as many as rows with `counts` tokens that may outgrow the columns have room for."""
    room = columns - counts[limits > columns]
    return int(min(steps, room.min(initial=steps)))


def fit_columns(
    sizes: list[int], columns: int, counts: np.ndarray, limits: np.ndarray, ahead: int
) -> int:
    """The size that holds rows with `counts` tokens: larger when one has outgrown `columns`, smaller
    when half would hold `ahead` more tokens of each."""
    if not len(counts):
        return columns
    needed = int(np.max(np.minimum(counts + MARGIN, limits)))
    if needed > columns:
        return next(size for size in sizes if size >= needed)
    roomy = int(np.max(np.minimum(counts + ahead, limits)))
    snug = next(size for size in sizes if size >= roomy)
    return snug if 2 * snug <= columns else columns
