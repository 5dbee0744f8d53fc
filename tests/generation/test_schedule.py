"""The bookkeeping of refilled batches: whatever the lengths, every sample decodes once, where it may."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from empathy_jax.generation import schedule

CALLS = {
    "questions": strategies.integers(1, 9),
    "samples": strategies.integers(1, 20),
    "rows": strategies.integers(1, 40),
    "seed": strategies.integers(0, 2**20),
}


def prompts_of(flight):
    """The unit whose prompt each running row reads."""
    rows, _ = schedule.running(flight)
    return flight.unit_of[rows // flight.shape.per_lane, flight.slot_of[rows]]


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(**CALLS)
def test_every_sample_decodes_once_beside_its_prompt(questions, samples, rows, seed):
    shape = schedule.choose_shape(questions, samples, rows)
    assert 1 <= shape.rows <= rows
    noise = np.random.default_rng(seed)
    left = noise.integers(1, 6, questions * samples)
    flight, seen, placed = schedule.start(shape, questions, samples), [], {}
    for _ in range(1000):
        before = flight.sample_of
        flight, placements = schedule.refill(flight)
        now, decoding = schedule.running(flight)
        kept = before != schedule.FREE
        np.testing.assert_array_equal(flight.sample_of[kept], before[kept])
        assert len(set(decoding)) == len(decoding)
        # A prompt never goes where a row still reads another.
        for unit, lane, slot in placements:
            assert unit == len(placed)
            placed[unit] = lane, slot
        units = prompts_of(flight)
        for row, sample, unit in zip(now, decoding, units, strict=True):
            first, end = flight.units[unit]
            assert first <= sample < end and first // samples == (end - 1) // samples
            assert placed[unit] == (row // shape.per_lane, flight.slot_of[row])
        if not len(now):
            break
        assert len(now) == shape.rows or not schedule.waiting(flight) or shape.slots == 2
        left[decoding] -= 1
        done = now[left[decoding] == 0]
        seen += flight.sample_of[done].tolist()
        flight = schedule.release(flight, done)
    assert sorted(seen) == list(range(questions * samples)) and schedule.waiting(flight) == 0
    assert sorted(placed) == list(range(len(flight.units)))


def test_one_long_sample_does_not_hold_its_lane():
    """Its lane's other row works off two further questions in the second slot."""
    shape = schedule.Shape(lanes=1, slots=2, per_lane=2)
    flight, placements = schedule.refill(schedule.start(shape, questions=3, samples=2))
    assert placements == [(0, 0, 0)] and flight.sample_of.tolist() == [0, 1]
    ended = []
    while schedule.waiting(flight):
        ended.append(int(flight.sample_of[1]))
        flight, placements = schedule.refill(schedule.release(flight, np.array([1])))
        assert flight.sample_of[0] == 0
    assert ended == [1, 2, 3, 4] and flight.sample_of.tolist() == [0, 5]
    assert flight.slot_of.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("call", "shape"),
    [
        ((8, 8, 64), (8, 1, 8)),  # all at once
        ((9, 8, 64), (8, 2, 8)),
        ((40, 2, 64), (64, 1, 1)),  # a prompt of its own costs no more than a second slot
        ((100, 1, 64), (64, 1, 1)),
        ((1, 64, 16), (2, 2, 8)),
        ((5, 3, 2), (2, 1, 1)),
        ((4, 6, 13), (2, 2, 6)),
    ],
)
def test_shapes_by_hand(call, shape):
    assert schedule.choose_shape(*call) == schedule.Shape(*shape)


def test_a_batch_of_singles_goes_on_with_its_rows_and_its_queue():
    flight = schedule.singles(3, np.array([7, 9]), np.array([4, 2]))
    flight, placements = schedule.refill(flight)
    assert flight.sample_of.tolist() == [7, 9, 4] and placements == [(0, 2, 0)]
    assert schedule.unstarted(flight).tolist() == [2]
    flight, placements = schedule.refill(schedule.release(flight, np.array([0])))
    assert flight.sample_of.tolist() == [2, 9, 4] and placements == [(1, 0, 0)]


def test_smaller_batches_are_quarters():
    assert [schedule.smaller_batch(64, left) for left in (64, 17, 16, 5, 4, 1)] == [
        64, 64, 16, 16, 4, 4,
    ]  # fmt: skip
    assert schedule.smaller_batch(15, 1) == 15 and schedule.smaller_batch(16, 4) == 4


def test_buckets_and_columns_by_hand():
    lengths = (1, 64, 65, 97, 129, 450, 1025)
    assert [schedule.bucket_length(n) for n in lengths] == [64, 64, 96, 128, 192, 512, 1536]
    assert schedule.column_sizes(12) == [16] and schedule.column_sizes(64) == [64]
    assert schedule.column_sizes(1) == [16] and schedule.column_sizes(500) == [64, 128, 256, 512]
    assert schedule.column_sizes(512) == [128, 256, 512]
    assert schedule.column_sizes(1536) == [256, 512, 1024, 1536]
    assert schedule.column_sizes(3000) == [256, 512, 1024, 2048, 3008]
    assert schedule.column_sizes(500, smallest=256) == [256, 512]


def test_columns_grow_when_a_row_needs_them_and_shrink_when_half_would_do():
    sizes, limits = [64, 128, 256], np.array([256, 256])

    def fit(columns, *counts):
        return schedule.fit_columns(sizes, columns, np.array(counts), limits, ahead=32)

    assert fit(0, 0, 0) == 64
    assert fit(64, 3, 56) == 64 and fit(64, 3, 57) == 128
    assert fit(128, 3, 40) == 128 and fit(128, 3, 32) == 64
    assert fit(256, 255, 200) == 256
    # A row that ends before it has outgrown them does not ask for more.
    assert schedule.fit_columns(sizes, 64, np.array([60]), np.array([64]), ahead=32) == 64
    assert schedule.outgrown(64, np.array([56, 57, 60]), np.array([256, 256, 64])).tolist() == [
        False, True, False,
    ]  # fmt: skip


def test_a_segment_is_no_longer_than_the_row_with_the_least_room():
    counts, limits = np.array([60, 10, 58]), np.array([64, 200, 65])
    assert schedule.steps_with_room(64, counts, limits, 32) == 6  # the first row ends in time
    assert schedule.steps_with_room(64, counts[:2], limits[:2], 32) == 32
    assert schedule.steps_with_room(128, counts, limits, 8) == 8
