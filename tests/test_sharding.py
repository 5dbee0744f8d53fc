import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from configs import common
from empathy_jax import pytree, sharding
from empathy_jax.models import decoder


def _layout(data=2, fsdp=2, tensor=2, sequence=1, rules=None):
    config = common.get_config("tiny").mesh
    config.update({"data": data, "fsdp": fsdp, "sequence": sequence, "tensor": tensor})
    layout = sharding.make_layout(config)
    return layout if rules is None else sharding.Layout(layout.mesh, rules)


def test_what_is_left_goes_to_the_axis_that_asks_for_it():
    assert tuple(_layout(-1, 2, 2).mesh.shape.values()) == (2, 2, 1, 2)
    assert tuple(_layout(1, -1, 1, sequence=2).mesh.shape.values()) == (1, 4, 2, 1)


@pytest.mark.parametrize("sizes", [(3, 1, 1), (-1, -1, 1), (2, 2, 1), (-1, 3, 1), (0, 8, 1)])
def test_sizes_that_do_not_fit_are_refused_with_the_fields(sizes):
    with pytest.raises(ValueError, match=r"config\.mesh\.data=.* do not fit 8 devices"):
        _layout(*sizes)


def test_rules_by_hand():
    layout = _layout()
    spec = sharding.partition_spec
    # The embedding is cut on V only, over both axes; D is replicated although "embed" has a rule:
    # both mesh axes are used up.
    assert spec(("vocab", "embed"), (512, 128), layout) == P(("tensor", "fsdp"), None)
    assert spec(("embed", "heads", None), (128, 4, 16), layout) == P(("fsdp",), ("tensor",), None)
    # Three heads over two devices: replicated. A name without a rule: replicated.
    assert spec(("embed", "heads"), (128, 3), layout) == P(("fsdp",), None)
    assert spec(("layers", None), (4, 4), layout) == P(None, None)
    # 2 rows can be cut by the first axis of the pair and not by both.
    assert spec(("vocab",), (2,), layout) == P(("tensor",))


def test_first_rule_decides_and_a_mesh_axis_serves_once():
    rules = (("heads", "tensor"), ("heads", "fsdp"), ("mlp", "tensor"))
    layout = _layout(rules=rules)
    assert sharding.partition_spec(("heads",), (8,), layout) == P(("tensor",))
    assert sharding.partition_spec(("heads", "mlp"), (8, 8), layout) == P(("tensor",), None)


def test_parameters_moments_and_batches_lie_where_they_should(tiny_decoder):
    layout = _layout()
    shapes = jax.eval_shape(lambda: decoder.init_params(jax.random.key(0), tiny_decoder))
    table = decoder.param_table(tiny_decoder)
    places = sharding.param_shardings(shapes, table, layout)
    flat = pytree.flatten_paths(places)
    embedding = next(spec.path for spec in table if "vocab" in spec.axes)
    assert flat[embedding].spec == P(("tensor", "fsdp"), None)
    for path, leaf in pytree.flatten_paths(shapes).items():
        flat[path].shard_shape(leaf.shape)  # raises when it does not divide

    transform = optax.adamw(1e-3)
    moments = sharding.optimizer_shardings(transform, shapes, places, layout.mesh)
    adam = moments[0]
    assert adam.mu == places and adam.nu == places
    assert adam.count.spec == P()

    batch = jax.device_put(np.zeros((8, 3)), sharding.batch_sharding(layout.mesh))
    assert batch.sharding.shard_shape(batch.shape) == (2, 3)


def test_activations_by_hand():
    def axes(*names_and_sizes):
        names, sizes = zip(*names_and_sizes, strict=True)
        return sharding.activation_axes(names, sizes)

    with jax.set_mesh(_layout(1, 2, 2, sequence=2).mesh):
        # Rows over fsdp, so that it is used up and the vocabulary has tensor alone.
        assert axes(("batch", 4), ("length", 8), ("vocab", 64)) == [
            ("fsdp",),
            ("sequence",),
            ("tensor",),
        ]
        assert axes(("vocab", 64), (None, 16)) == [("tensor", "fsdp"), ()]
        assert axes(("batch", 3), ("residual", 8), (None, 16)) == [
            (),
            ("sequence", "tensor"),
            (),
        ]
        x = jax.jit(lambda x: sharding.constrain(x, "batch", "length", "heads"))(
            jnp.ones((4, 8, 6))
        )
        assert x.sharding.shard_shape(x.shape) == (2, 4, 3)
    assert sharding.constrain(x, "batch", None, None) is x


@pytest.mark.parametrize(("length", "fits"), [(64, True), (66, False)])
def test_rows_that_the_sequence_axis_does_not_divide_are_refused(length, fits):
    mesh = _layout(1, 1, 2, sequence=4).mesh
    if fits:
        sharding.check_length(length, mesh, "config.sft.row_tokens")
        return
    with pytest.raises(
        ValueError, match=r"row_tokens is 66; it must be a multiple of 8, .*sequence"
    ):
        sharding.check_length(length, mesh, "config.sft.row_tokens")


def test_leaves_outside_the_table_are_replicated():
    layout = _layout()
    places = sharding.param_shardings({"q": {"a": jnp.zeros((4, 4))}}, (), layout)
    assert places["q"]["a"].spec == P()
