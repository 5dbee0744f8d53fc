"""The output head on a mesh: the vocabulary stays cut, in what is computed and in what is sent."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathy_jax import losses, sharding
from empathy_jax.models import decoder
from tests.training import update_steps

VOCAB = 96
CONFIG = decoder.DecoderConfig(
    vocab_size=VOCAB, width=16, mlp_width=32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8
)


def _inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (4, 24, 16))
    targets = jax.random.randint(keys[1], (4, 24), 0, VOCAB)
    loss_mask = jax.random.uniform(keys[2], (4, 24)) < 0.6
    weights = jax.random.normal(keys[3], (4, 24))
    return decoder.init_params(keys[0], CONFIG), hidden, targets, loss_mask, weights


def _gradient(params, hidden, targets, loss_mask, weights):
    """((log-probabilities, entropies), gradients) of a function of both."""

    def objective(params, hidden):
        found = losses.token_log_probs_from_hidden(
            params, CONFIG, hidden, targets, 5, 1.3, loss_mask
        )
        return jnp.sum(found[0] * weights) + jnp.sum(found[1] ** 2), found

    (_, found), gradients = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(
        params, hidden
    )
    return found, gradients


@pytest.mark.parametrize("mesh", [(2, 1, 2), (1, 2, 2, 2)])
def test_neither_table_nor_logits_are_gathered(mesh):
    place = update_steps.layout(*mesh)
    params, *rest = _inputs()
    expected = jax.jit(_gradient)(params, *rest)
    whole = sharding.replicated(place.mesh)
    with jax.set_mesh(place.mesh):
        shardings = sharding.param_shardings(params, decoder.param_table(CONFIG), place)
        out = ((whole, whole), (shardings, whole))
        arguments = (
            jax.device_put(params, shardings),
            *jax.device_put(rest, sharding.batch_sharding(place.mesh)),
        )
        compiled = jax.jit(_gradient, out_shardings=out).lower(*arguments).compile()
        found = compiled(*arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)
    shapes = re.findall(r"\b[a-z]+\d+\[([\d,]+)\]", compiled.as_text())
    sizes = {int(size) for shape in shapes for size in shape.split(",")}
    parts = int(np.prod([place.mesh.shape[name] for name in ("fsdp", "tensor")]))
    assert VOCAB not in sizes and VOCAB // parts in sizes
