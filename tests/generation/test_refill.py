"""Refilled batches give what any other batching gives; stop sequences and limits end what they should."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax.generation import cache as caches
from empathy_jax.generation import decode_loop, engine, schedule
from empathy_jax.generation import weights as weights_lib
from empathy_jax.generation.engine import SamplingConfig
from empathy_jax.models import decoder
from tests.generation.test_engine import rescored

KEY = jax.random.key(3)
LONGEST, SAMPLES = 60, 4
RNG = np.random.default_rng(1)
PROMPTS = [[int(t) for t in RNG.integers(3, 64, n)] for n in (4, 9, 1, 6, 7, 3, 70, 5, 8)]
LIMITS = [60, 2, 7, 33, 5, 60, 3, 12, 25]
EOS = (11, 40)


@pytest.fixture(scope="module")
def config(tiny_decoder):
    return dataclasses.replace(tiny_decoder, max_positions=256)


@pytest.fixture(scope="module")
def params(config):
    fresh = decoder.init_params(jax.random.key(0), config)
    return jax.tree.map(lambda leaf: leaf * 10 if leaf.ndim > 2 else leaf, fresh)


@pytest.fixture(scope="module", autouse=True)
def small_columns():
    """Columns of 16, 32 and 64, so that rows outgrow them within few tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule, "SMALLEST_BUCKET", 16)
        yield


def complete(params, config, prompts=PROMPTS, **changes):
    arguments = {
        "key": KEY, "sampling": SamplingConfig(LONGEST, temperature=0.9, top_p=0.95, min_p=0.01),
        "eos_ids": EOS, "pad_id": 0, "samples_per_prompt": SAMPLES, "limits": LIMITS,
    }  # fmt: skip
    return engine.generate(params, config, prompts, **(arguments | changes))


@pytest.fixture(scope="module")
def whole(params, config):
    """All samples in one batch."""
    return complete(params, config)


def assert_same(actual, expected):
    np.testing.assert_array_equal(actual.tokens, expected.tokens)
    np.testing.assert_array_equal(actual.lengths, expected.lengths)
    np.testing.assert_array_equal(actual.finished, expected.finished)
    np.testing.assert_allclose(actual.log_probs, expected.log_probs, atol=2e-4)


@pytest.fixture
def calls(monkeypatch):
    """How often rows were parked, put back, and moved to a batch of their own."""
    counts = dict.fromkeys(("take_row", "put_row", "spread", "resize", "widen_prompts"), 0)

    def counted(name, function):
        def call(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        return call

    for name in counts:
        monkeypatch.setattr(caches, name, counted(name, getattr(caches, name)))
    return counts


def test_lengths_are_ragged(whole):
    limits = np.repeat(LIMITS, SAMPLES)
    assert np.all(whole.lengths <= limits)
    np.testing.assert_array_equal(
        whole.finished, np.isin(whole.tokens[range(36), whole.lengths - 1], EOS)
    )
    assert np.all(whole.finished | (whole.lengths == limits))
    assert len(set(whole.lengths)) > 10 and 0 < whole.finished.sum() < 36


def test_refilled_batches_give_the_same(params, config, whole, calls):
    """Two lanes of two prompts and four rows: long rows are parked, and end in batches of their own."""
    assert_same(complete(params, config, rows=8), whole)
    assert min(calls.values()) > 0, calls


def test_batches_without_refilling_give_the_same(params, config, whole, calls):
    assert_same(complete(params, config, rows=8, refill=False), whole)
    assert calls["take_row"] == calls["spread"] == 0


def test_one_at_a_time_gives_the_same(params, config, whole):
    for question in (0, 4, 6):
        own = slice(question * SAMPLES, (question + 1) * SAMPLES)
        alone = complete(
            params, config, [PROMPTS[question]], rows=1, limits=[LIMITS[question]],
            row_ids=range(own.start, own.stop),
        )  # fmt: skip
        expected = {
            field.name: getattr(whole, field.name)[own] for field in dataclasses.fields(whole)
        }
        assert_same(alone, engine.Completions(**expected))


def test_rows_with_prompts_of_their_own_give_the_same(params, config, whole):
    """One sample of each prompt, in five rows."""
    alone = complete(
        params, config, samples_per_prompt=1, rows=5, row_ids=range(0, 36, SAMPLES)
    )  # fmt: skip
    np.testing.assert_array_equal(alone.tokens, whole.tokens[::SAMPLES])


def test_ragged_log_probs_are_what_the_trainer_computes(params, config, whole):
    prompts = [prompt for prompt in PROMPTS for _ in range(SAMPLES)]
    expected, _ = rescored(params, config, prompts, whole.tokens, 0.9)
    counts = np.arange(LONGEST) < whole.lengths[:, None]
    np.testing.assert_allclose(whole.log_probs[counts], np.asarray(expected)[counts], atol=2e-4)


def test_greedy_rows_are_refilled_alike(params, config):
    greedy = SamplingConfig(LONGEST, temperature=0.0)
    all_at_once = complete(params, config, sampling=greedy, samples_per_prompt=1)
    refilled = complete(params, config, sampling=greedy, samples_per_prompt=1, rows=2)
    assert_same(refilled, all_at_once)


def test_eight_devices_give_the_same(params, config, whole):
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    specs = {"embedding": jax.P("tensor"), "out": jax.P(None, "tensor")}

    def place(path, leaf):
        names = [entry.key for entry in path]
        spec = jax.P(None, None, "tensor") if names[-2] in ("gate", "up") else jax.P()
        spec = next((spec for name, spec in specs.items() if name in names), spec)
        return jax.device_put(leaf, jax.NamedSharding(mesh, spec))

    sharded = jax.tree_util.tree_map_with_path(place, params)
    with jax.set_mesh(mesh):
        assert_same(complete(sharded, config, rows=8), whole)


def first_end(tokens, sequences):
    """Length of the shortest beginning that ends in one of the sequences; None without."""
    for length in range(1, len(tokens) + 1):
        if any(length >= len(s) and list(tokens[length - len(s) : length]) == s for s in sequences):
            return length
    return None


def test_stop_sequences_end_a_completion_with_their_last_token(params, config):
    free = complete(params, config, eos_ids=(), limits=None)
    rows = free.tokens
    # One that stands across the border of two segments, one within, one that is a single token.
    border = decode_loop.SEGMENT
    stop = [rows[0, border - 2 : border + 1].tolist(), rows[5, 8:10].tolist(), [int(rows[9, 4])]]
    for batch in ({}, {"rows": 8}):
        done = complete(params, config, eos_ids=(), limits=None, stop=stop, **batch)
        ends = [first_end(row, stop) for row in rows]
        assert len({end for end in ends if end}) > 3
        for index, end in enumerate(ends):
            length = LONGEST if end is None else end
            assert (done.lengths[index], done.finished[index]) == (length, end is not None)
            np.testing.assert_array_equal(done.tokens[index, :length], rows[index, :length])
            assert not done.tokens[index, length:].any()


def test_a_stop_sequence_does_not_begin_in_the_prompt(params, config):
    free = complete(params, config, eos_ids=(), limits=None, samples_per_prompt=1)
    across = [[prompt[-1], int(row[0])] for prompt, row in zip(PROMPTS, free.tokens, strict=True)]
    across += [[0, 0, int(row[0])] for row in free.tokens]  # nor in what fills rows after their end
    ends = [first_end(row, across) for row in free.tokens]
    done = complete(params, config, eos_ids=(), limits=None, samples_per_prompt=1, stop=across)
    assert done.lengths.tolist() == [LONGEST if end is None else end for end in ends]
    assert max(done.lengths) > 1


def test_limits_cut_each_prompts_completions(params, config, whole):
    done = complete(params, config, eos_ids=())
    assert done.lengths.tolist() == np.repeat(LIMITS, SAMPLES).tolist() and not done.finished.any()
    each = np.random.default_rng(4).integers(1, LONGEST, 36)
    assert complete(params, config, eos_ids=(), limits=each).lengths.tolist() == each.tolist()


COMPILED = (
    decode_loop.decode_segment, decode_loop.prefill, weights_lib.prepare, caches.empty,
    caches._place, caches._resize, caches.spread, caches.take_row, caches.put_row, caches._widen,
)  # fmt: skip


def test_other_prompts_and_lengths_compile_nothing_new(params, config):
    complete(params, config, rows=8)
    before = [function._cache_size() for function in COMPILED]
    noise = np.random.default_rng(5)
    prompts = [noise.integers(3, 64, max(1, len(p) - 1)).tolist() for p in PROMPTS]
    key = jax.random.key(9)
    with jax.transfer_guard_host_to_device("disallow"):
        complete(params, config, prompts, rows=8, key=key)
    assert [function._cache_size() for function in COMPILED] == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "rows is 0; both must be at least 1"),
        ({"samples_per_prompt": 0}, "samples_per_prompt is 0"),
        ({"limits": [3]}, "1 limits were given for 9 prompts of 4 completions"),
        ({"limits": [*LIMITS[:-1], 61]}, r"limit 8 is 61; allowed are 1 to .* \(60\)"),
        ({"limits": [0, *LIMITS[1:]]}, "limit 0 is 0"),
        ({"stop": [[3], []]}, r"stop sequence 1 is \[\]; it must be one or more token ids"),
        ({"stop": [[3, -1]]}, r"stop sequence 0 is \[3, -1\]"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(params, config, changes, message):
    with pytest.raises(ValueError, match=message):
        complete(params, config, **changes)


def test_fused_kernels_are_the_parts_side_by_side(config):
    config = dataclasses.replace(config, qkv_bias=True, lora_rank=2)
    noise = np.random.default_rng(2)
    shapes = jax.eval_shape(
        lambda key: (decoder.init_params(key, config), decoder.init_lora(key, config)), KEY
    )
    params, lora = jax.tree.map(
        lambda leaf: jnp.asarray(noise.normal(size=leaf.shape), leaf.dtype), shapes
    )
    del lora["layers"]["attention"]["k"]  # a part without an adapter
    x = jnp.asarray(noise.normal(size=(3, config.width)), jnp.float32)
    both = [
        weights_lib.prepare(params["layers"], lora["layers"], config, fuse)[1]
        for fuse in (True, False)
    ]
    assert [len(layer.qkv) for layer in both] == [1, 3]
    heads = [n * config.head_dim for n in (config.num_heads, *(config.num_kv_heads,) * 2)]
    for name, widths in (("qkv", heads), ("gate_up", [config.mlp_width] * 2)):
        fused, parts = (weights_lib.apply(getattr(layer, name), x, widths) for layer in both)
        assert [part.shape[1] for part in parts] == widths
        for one, other in zip(fused, parts, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
