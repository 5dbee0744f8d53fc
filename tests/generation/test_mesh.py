"""Where generation lays things out on a mesh; that it makes the same there is in test_refill."""

import jax
import jax.numpy as jnp
import pytest

from empathy_jax.generation import cache as caches
from empathy_jax.generation import weights
from empathy_jax.models import decoder
from empathy_jax.training import common
from tests.training import update_steps


@pytest.fixture
def place():
    return update_steps.layout(1, 4, 2)


def _shard(array) -> tuple[int, ...]:
    return array.sharding.shard_shape(array.shape)


def test_a_device_holds_the_cache_of_its_own_rows_and_heads(place):
    prompt = jnp.zeros((4, 2, 16, 8), jnp.bfloat16)
    with jax.set_mesh(place.mesh):
        prompts = jax.device_put(
            caches.PromptCache((prompt,), (prompt,)), common.sharding.replicated(place.mesh)
        )
        cache = caches.empty(prompts, lanes=4, slots=2, rows=16, columns=32)
        # Three lanes cannot be cut in four: all devices hold them, cut by heads alone.
        odd = caches.empty(prompts, lanes=3, slots=2, rows=12, columns=32)
    assert _shard(cache.prompt_v[0]) == (1, 1, 32, 8)
    assert _shard(cache.v[0]) == (4, 1, 32, 8) and _shard(cache.k[0]) == (4, 1, 2, 8, 16)
    assert _shard(odd.prompt_v[0]) == (3, 1, 32, 8) and _shard(odd.v[0]) == (3, 1, 32, 8)


def test_decoding_reads_weights_that_are_whole_but_for_the_tensor_axis(place, tiny_decoder):
    params = common.fresh_params(jax.random.key(0), tiny_decoder, place)
    assert _shard(params["layers"]["mlp"]["up"]["kernel"]) == (2, 4, 16)
    with jax.set_mesh(place.mesh):
        (layer, _) = weights.prepare(params["layers"], None, tiny_decoder, weights.is_whole(params))
        ends = jax.jit(weights.gather_ends, static_argnums=1)(params, tiny_decoder)
    assert [_shard(part.kernel) for part in layer.qkv] == [(16, 16), (16, 8), (16, 8)]
    assert [_shard(part.kernel) for part in layer.gate_up] == [(16, 16), (16, 16)]
    assert (_shard(layer.out.kernel), _shard(layer.down.kernel)) == ((16, 16), (16, 16))
    table = decoder.output_embedding(ends, tiny_decoder)
    assert _shard(table) == (32, 16) and "layers" not in ends
