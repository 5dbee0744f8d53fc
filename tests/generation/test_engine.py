"""The engine against whole forward passes, torch transformers, and itself in other batches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from empathy_jax import losses
from empathy_jax.generation import decode_step as decoding
from empathy_jax.generation import engine, schedule
from empathy_jax.generation.engine import SamplingConfig
from empathy_jax.models import decoder
from empathy_jax.models.attention import causal_mask

RNG = np.random.default_rng(0)
KEY = jax.random.key(7)
SAMPLING = SamplingConfig(12, temperature=0.8, top_k=40)
PROMPTS = [[int(t) for t in RNG.integers(3, 64, n)] for n in (5, 1, 9, 3, 7)]


@pytest.fixture(scope="module")
def params(tiny_decoder):
    """Ten times the usual scale, so that attention matters and no two logits are near."""
    fresh = decoder.init_params(jax.random.key(0), tiny_decoder)
    return jax.tree.map(lambda leaf: leaf * 10 if leaf.ndim > 2 else leaf, fresh)


def complete(params, config, prompts=PROMPTS, sampling=SAMPLING, **changes):
    arguments = {"key": KEY, "eos_ids": (), "pad_id": 0}
    return engine.generate(params, config, prompts, sampling=sampling, **(arguments | changes))


@pytest.fixture(scope="module")
def whole(params, tiny_decoder):
    """Three samples of each prompt, all in one batch."""
    return complete(params, tiny_decoder, samples_per_prompt=3)


@pytest.fixture(scope="module")
def greedy(params, tiny_decoder):
    """70 tokens of each prompt: the cache grows once on the way."""
    assert schedule.column_sizes(70) == [64, 80]
    return complete(params, tiny_decoder, sampling=SamplingConfig(70, temperature=0.0))


@functools.partial(jax.jit, static_argnames="config")
def all_logits(params, lora, config, tokens):
    """Logits after every token, by one forward pass over whole sequences."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    mask = causal_mask(jnp.ones_like(tokens))
    hidden, _ = decoder.hidden_states(params, config, tokens, positions, mask, lora=lora)
    return decoder.logits(params, config, hidden)


def rescored(params, config, prompts, completions, temperature, lora=None):
    """Log-probs of each completion's tokens and the logits they were drawn from."""
    length = completions.shape[1]
    tokens = np.zeros((len(prompts), max(map(len, prompts)) + length), np.int32)
    for row, prompt, completion in zip(tokens, prompts, completions, strict=True):
        row[: len(prompt) + length] = [*prompt, *completion]
    logits = np.asarray(all_logits(params, lora, config, tokens)) / temperature
    starts = [len(prompt) - 1 for prompt in prompts]
    logits = np.stack([row[i : i + length] for row, i in zip(logits, starts, strict=True)])
    return losses.token_log_probs(jnp.asarray(logits), jnp.asarray(completions)), logits


def test_greedy_tokens_and_log_probs_are_those_of_the_whole_forward_pass(
    params, tiny_decoder, greedy
):
    expected, logits = rescored(params, tiny_decoder, PROMPTS, greedy.tokens, 1.0)
    np.testing.assert_array_equal(greedy.tokens, np.argmax(logits, -1))
    np.testing.assert_allclose(greedy.log_probs, expected, atol=2e-4)
    assert len({tuple(row) for row in greedy.tokens}) == len(PROMPTS)


def test_sampled_log_probs_are_what_the_trainer_computes(params, tiny_decoder, whole):
    prompts = [prompt for prompt in PROMPTS for _ in range(3)]
    expected, _ = rescored(params, tiny_decoder, prompts, whole.tokens, 0.8)
    np.testing.assert_allclose(whole.log_probs, expected, atol=2e-4)


def test_decode_step_knows_biases_untied_heads_and_adapters(tiny_decoder):
    config = dataclasses.replace(
        tiny_decoder, qkv_bias=True, out_bias=True, mlp_bias=True, qk_norm=False,
        tie_embeddings=False, lora_rank=2,
    )  # fmt: skip
    fresh = jax.eval_shape(
        lambda key: (decoder.init_params(key, config), decoder.init_lora(key, config)), KEY
    )
    noise = np.random.default_rng(1)
    params, lora = jax.tree.map(
        lambda leaf: jnp.asarray(0.2 * noise.normal(size=leaf.shape), leaf.dtype), fresh
    )
    out = complete(params, config, lora=lora)
    expected, _ = rescored(params, config, PROMPTS, out.tokens, 0.8, lora)
    np.testing.assert_allclose(out.log_probs, expected, atol=2e-4)
    without, _ = rescored(params, config, PROMPTS, out.tokens, 0.8)
    assert np.max(np.abs(without - out.log_probs)) > 0.1


def torch_qwen3(params, config):
    """The same decoder in torch, its weights placed by the parameter table."""
    qwen = transformers.Qwen3Config(
        vocab_size=config.vocab_size, hidden_size=config.width, head_dim=config.head_dim,
        intermediate_size=config.mlp_width, num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads, num_key_value_heads=config.num_kv_heads,
        tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        rms_norm_eps=config.rms_norm_eps, max_position_embeddings=config.max_positions,
    )  # fmt: skip
    model = transformers.Qwen3ForCausalLM(qwen).eval()
    weights = model.state_dict()
    for spec in decoder.param_table(config):
        leaf = params
        for name in spec.path.split("/"):
            leaf = leaf[name]
        for layer, name in enumerate(spec.hf_names()):
            x = torch.tensor(np.array(leaf[layer] if spec.stacked else leaf))
            if spec.transform == "linear":
                x = x.reshape(np.prod(spec.input_shape), -1).T
            weights[name].copy_(x)
    return model


def test_greedy_is_that_of_torch_transformers(params, tiny_decoder, greedy):
    model = torch_qwen3(params, tiny_decoder)
    for prompt, tokens in zip(PROMPTS, greedy.tokens, strict=True):
        expected = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False,
            max_new_tokens=70, min_new_tokens=70, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        np.testing.assert_array_equal(tokens, expected[0, len(prompt) :])


def test_samples_do_not_depend_on_batching(params, tiny_decoder, whole):
    seen = []
    split = complete(
        params,
        tiny_decoder,
        samples_per_prompt=3,
        rows=6,
        progress=lambda *counts: seen.append(counts),
    )
    np.testing.assert_array_equal(split.tokens, whole.tokens)
    np.testing.assert_allclose(split.log_probs, whole.log_probs, atol=1e-4)
    assert seen[-1] == (15, 15) and len(seen) > 1


def test_samples_do_not_depend_on_padding_or_on_the_other_rows(params, tiny_decoder, whole):
    long_prompt = PROMPTS[0] * 14  # 70 tokens: the bucket of both becomes 96
    padded = complete(params, tiny_decoder, [long_prompt, PROMPTS[2]], row_ids=[90, 7])
    np.testing.assert_array_equal(padded.tokens[1], whole.tokens[7])


def test_samples_share_a_prompt_and_draw_on_streams_of_their_own(params, tiny_decoder, whole):
    repeated = complete(params, tiny_decoder, [PROMPTS[0]] * 3 + [PROMPTS[1]] * 3)
    np.testing.assert_array_equal(repeated.tokens, whole.tokens[:6])
    assert len({tuple(row) for row in whole.tokens}) == 15
    other = complete(params, tiny_decoder, samples_per_prompt=3, key=jax.random.key(8))
    assert not np.any(np.all(other.tokens == whole.tokens, axis=-1))


def test_rows_end_at_an_end_token_and_are_padded_after_it(params, tiny_decoder, whole):
    eos_ids = tuple(range(5, 64, 8))
    out = complete(params, tiny_decoder, samples_per_prompt=3, eos_ids=eos_ids, pad_id=63)
    for row, free in enumerate(whole.tokens):
        ends = np.flatnonzero(np.isin(free, eos_ids))
        length = ends[0] + 1 if ends.size else 12
        assert out.lengths[row] == length and out.finished[row] == bool(ends.size)
        np.testing.assert_array_equal(out.tokens[row, :length], free[:length])
        assert np.all(out.tokens[row, length:] == 63) and np.all(out.log_probs[row, length:] == 0)
    assert 0 < out.finished.sum() < 15


def test_a_second_call_does_not_trace_again(params, tiny_decoder, monkeypatch):
    config = dataclasses.replace(tiny_decoder, rope_theta=12345.0)  # its own compilations
    traces = []

    def counted(*args, **kwargs):
        traces.append(1)
        return step(*args, **kwargs)

    step = decoding.decode_step
    monkeypatch.setattr(decoding, "decode_step", counted)
    complete(params, config, rows=2)
    first = len(traces)
    assert first > 0
    # Nor does it move anything to the device unasked.
    with jax.transfer_guard_host_to_device("disallow"):
        complete(params, config, PROMPTS[::-1], rows=2)
    assert len(traces) == first


def test_sharded_parameters_give_the_same_tokens(params, tiny_decoder, whole):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(params, jax.NamedSharding(mesh, jax.P()))
    table = jax.device_put(params["embed"]["embedding"], jax.NamedSharding(mesh, jax.P("data")))
    sharded = {**sharded, "embed": {"embedding": table}}
    actual = complete(sharded, tiny_decoder, samples_per_prompt=3)
    np.testing.assert_array_equal(actual.tokens, whole.tokens)


def test_no_prompts_give_no_completions(params, tiny_decoder):
    out = complete(params, tiny_decoder, [])
    assert out.tokens.shape == (0, 12) and out.finished.shape == (0,)


@pytest.mark.parametrize("length", [0, 117])
def test_prompts_that_do_not_fit_are_refused(params, tiny_decoder, length):
    message = f"prompt 1 has {length} tokens; allowed are 1 to 116"
    with pytest.raises(ValueError, match=message):
        complete(params, tiny_decoder, [[5], [5] * length])


def test_row_ids_must_match_the_rows(params, tiny_decoder):
    with pytest.raises(ValueError, match="3 row_ids were given for 10 completions"):
        complete(params, tiny_decoder, samples_per_prompt=2, row_ids=[1, 2, 3])
