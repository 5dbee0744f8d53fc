"""Updates of the phases on meshes of choice, as their `run` compiles them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import common as configs
from empathy_jax import optimizer, sharding
from empathy_jax.models import decoder, encoder
from empathy_jax.training import common
from empathy_jax.training.common import Model

DECODER = decoder.DecoderConfig(
    vocab_size=64,
    width=16,
    mlp_width=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=128,
)
ENCODER = encoder.EncoderConfig(
    vocab_size=64, width=16, mlp_width=32, num_layers=2, num_heads=2, max_positions=128
)


def layout(data: int, fsdp: int, tensor: int, sequence: int = 1) -> sharding.Layout:
    """The config's rules over the first devices."""
    config = configs.get_config("tiny").mesh
    config.update({"data": data, "fsdp": fsdp, "sequence": sequence, "tensor": tensor})
    mesh = sharding.make_mesh(config, jax.devices()[: data * fsdp * sequence * tensor])
    return sharding.Layout(mesh, tuple(tuple(rule) for rule in config.rules))


def prepare(config: Any, place: sharding.Layout, more: dict | None = None) -> tuple:
    """(optimizer, state, frozen, shardings) of fresh weights and `more` collections."""
    # A large eps: Adam divides by the gradient's size, which would blow up rounding errors.
    section = configs.get_config("tiny").optimizer
    section.update({"learning_rate": 1e-2, "warmup_steps": 0, "schedule": "constant", "eps": 1e-3})
    transform = optimizer.make_optimizer(section, 10)
    params = common.fresh_params(jax.random.key(0), config, place)
    model = Model(config, {"params": params, **(more or {})}, None)
    return transform, *common.make_state(model, transform, 0, place)


def run(
    update_fn: Any,
    config: Any,
    place: sharding.Layout,
    batches: list,
    more: dict | None = None,
    **options: Any,
):
    """The trained collections and the metrics after an update per batch, and the jitted update."""
    with jax.set_mesh(place.mesh):
        transform, state, frozen, shardings = prepare(config, place, more)
        update = jax.jit(
            functools.partial(update_fn, config=config, optimizer=transform, **options),
            donate_argnums=0,
            out_shardings=(shardings, sharding.replicated(place.mesh)),
        )
        for batch in batches:
            state, metrics = update(state, frozen, common.put_batch(batch, place.mesh))
    return jax.device_get(state.trainable), jax.device_get(metrics), update


def assert_same(one: Any, other: Any, atol: float) -> None:
    """Two trees agree, leaf by leaf."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), one, other)


def moved(start: Any, end: Any) -> list[str]:
    """Paths of the leaves that differ."""
    pairs = jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), start, end)
    )
    return [jax.tree_util.keystr(path) for path, changed in pairs if changed]


def packed_batch(seed: int, rows: int = 8, length: int = 16) -> dict[str, np.ndarray]:
    """Random rows of two examples and some padding each, as `sft` packs them."""
    random = np.random.default_rng(seed)
    batch = {
        name: random.integers(0, 64, (rows, length)).astype(np.int32)
        for name in ("tokens", "targets")
    }
    cut = length // 2
    segments = np.r_[np.full(cut, 1), np.full(length - cut - 2, 2), 0, 0].astype(np.int32)
    positions = np.r_[np.arange(cut), np.arange(length - cut)].astype(np.int32)
    counted = random.random((rows, length)) < 0.6
    return batch | {
        "segment_ids": np.tile(segments, (rows, 1)),
        "positions": np.tile(positions, (rows, 1)),
        "loss_mask": counted & (segments > 0),
    }


def fresh(config: Any, place: sharding.Layout) -> dict:
    """The collection of fresh weights on the host."""
    return {"params": jax.device_get(common.fresh_params(jax.random.key(0), config, place))}


def as_jax(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """A host batch on one device."""
    return jax.tree.map(jnp.asarray, batch)
