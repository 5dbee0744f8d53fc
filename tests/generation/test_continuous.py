"""Completions that join and leave a batch in flight, against those of one call of the engine."""

import dataclasses

import jax
import numpy as np
import pytest

from empathy_jax.compilations import CompilationCounter
from empathy_jax.generation import continuous, engine, schedule
from empathy_jax.generation.continuous import ContinuousBatch, Sample
from empathy_jax.generation.engine import SamplingConfig
from empathy_jax.models import decoder

KEY = jax.random.key(3)
LONGEST, LONGEST_PROMPT = 30, 31
RNG = np.random.default_rng(1)
PROMPTS = [[int(t) for t in RNG.integers(3, 64, n)] for n in (4, 31, 1, 20, 7, 3, 30, 5)]
LIMITS = [30, 2, 7, 21, 5, 30, 1, 12]
EOS = (11, 40)
SAMPLING = SamplingConfig(LONGEST, temperature=0.9, top_p=0.95, min_p=0.01)


@pytest.fixture(scope="module", autouse=True)
def small_sizes():
    """Prompts and completions in 16 or 32 columns each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "SMALLEST_BUCKET", 16)
        patch.setattr(continuous, "SMALLEST", 16)
        yield


@pytest.fixture(scope="module")
def config(tiny_decoder):
    return dataclasses.replace(tiny_decoder, max_positions=256)


@pytest.fixture(scope="module")
def params(config):
    fresh = decoder.init_params(jax.random.key(0), config)
    return jax.tree.map(lambda leaf: leaf * 10 if leaf.ndim > 2 else leaf, fresh)


@pytest.fixture(scope="module")
def batch(params, config):
    made = ContinuousBatch(
        params, config, key=KEY, sampling=SAMPLING, eos_ids=EOS, rows=3,
        max_prompt_tokens=LONGEST_PROMPT, max_new_tokens=LONGEST,
    )  # fmt: skip
    made.warm_up()
    return made


def expect(params, config, prompts, samples):
    """The engine's completions, one sample of each prompt: (tokens, whether an end token ended it)."""
    out = []
    for prompt, sample in zip(prompts, samples, strict=True):
        done = engine.generate(
            params, config, [prompt], key=KEY, eos_ids=EOS, pad_id=0, row_ids=[sample.stream],
            limits=[sample.limit], sampling=dataclasses.replace(
                SAMPLING, temperature=sample.temperature, top_p=sample.top_p
            ),
        )  # fmt: skip
        out.append((done.tokens[0, : done.lengths[0]].tolist(), bool(done.finished[0])))
    return out


def run(batch, prompts, samples, steps=5):
    """All samples through the batch, each started as soon as a row is free."""
    waiting = list(range(len(prompts)))[::-1]
    owner, tokens, stopped = {}, [[] for _ in prompts], [None] * len(prompts)
    while waiting or owner:
        while waiting and batch.free:
            index = waiting.pop()
            owner[batch.start(batch.prefill(prompts[index]), samples[index])] = index
        for made in batch.decode(steps, enough=1):
            tokens[owner[made.row]] += made.tokens
            if made.done:
                stopped[owner.pop(made.row)] = made.stopped
    return list(zip(tokens, stopped, strict=True))


SAMPLES = [Sample(70 + i, limit, 0.9, 0.95) for i, limit in enumerate(LIMITS)]


@pytest.fixture(scope="module")
def expected(params, config):
    return expect(params, config, PROMPTS, SAMPLES)


def test_rows_that_come_and_go_give_what_the_engine_gives(batch, expected):
    assert run(batch, PROMPTS, SAMPLES) == expected
    assert {stopped for _, stopped in expected} == {True, False}
    assert batch.free == 3


def test_what_shares_the_batch_changes_nothing(batch, expected):
    backwards = run(batch, PROMPTS[::-1], SAMPLES[::-1], steps=11)
    assert backwards[::-1] == expected
    assert run(batch, PROMPTS[3:4], SAMPLES[3:4], steps=32) == expected[3:4]


def test_each_row_has_its_own_temperature_and_top_p(batch, params, config):
    asked = [(0.0, 1.0), (2.0, 0.3), (0.4, 1.0), (0.0, 0.2), (2.0, 0.3), (0.9, 0.95)]
    samples = [Sample(5 + i, 20, *values) for i, values in enumerate(asked)]
    made = run(batch, PROMPTS[:6], samples)
    assert made == expect(params, config, PROMPTS[:6], samples)
    assert len({tuple(tokens) for tokens, _ in made}) == 6


def test_nothing_that_is_asked_for_compiles_or_moves_data_unasked(batch):
    counter = CompilationCounter()
    try:
        samples = [s._replace(temperature=0.3, limit=1 + i * 4) for i, s in enumerate(SAMPLES)]
        with jax.transfer_guard_host_to_device("disallow"):
            run(batch, PROMPTS[::-1], samples, steps=7)
        assert counter.take() == 0
    finally:
        counter.close()


def test_samples_of_one_prompt_share_its_prefill(batch, params, config):
    prompt = batch.prefill(PROMPTS[0])
    samples = [Sample(i, 6, 0.9, 0.95) for i in range(3)]
    rows = [batch.start(prompt, sample) for sample in samples]
    made = {one.row: one.tokens for one in batch.decode(6, enough=3)}
    expected = expect(params, config, [PROMPTS[0]] * 3, samples)
    assert [made[row][:6] for row in rows] == [tokens for tokens, _ in expected]
    for row in rows:
        batch.stop(row)


def test_a_stopped_row_is_free_and_leaves_nothing_behind(batch, expected):
    rows = [batch.start(batch.prefill(PROMPTS[1]), SAMPLES[0]) for _ in range(3)]
    batch.decode(4, enough=3)
    assert batch.free == 0
    for row in rows:
        batch.stop(row)
    assert batch.free == 3 and batch.decode(4, enough=1) == []
    assert run(batch, PROMPTS[:2], SAMPLES[:2]) == expected[:2]


@pytest.mark.parametrize("length", [0, 32])
def test_prompts_that_do_not_fit_are_refused(batch, length):
    with pytest.raises(ValueError, match=f"has {length} tokens; allowed are 1 to 31"):
        batch.prefill([5] * length)


def test_a_batch_beyond_the_models_positions_is_refused(params, config):
    with pytest.raises(ValueError, match="200 tokens and completions of 57 exceed the model's 256"):
        ContinuousBatch(
            params, config, key=KEY, sampling=SAMPLING, eos_ids=EOS, rows=1,
            max_prompt_tokens=200, max_new_tokens=57,
        )  # fmt: skip
