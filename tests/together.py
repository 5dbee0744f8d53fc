"""What two processes do together, as a program; each writes what it found to `<folder>/<id>.json`.

python -m tests.together FOLDER PORT PROCESSES ID
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from empathy_jax import checkpoint, hosts, replicas, sharding
from empathy_jax.checkpoint import Checkpointer
from empathy_jax.models import decoder, hf
from empathy_jax.models.decoder import DecoderConfig

DECODER = DecoderConfig(
    vocab_size=64,
    width=16,
    mlp_width=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_positions=128,
)
RULES = (("vocab", "fsdp"), ("embed", "fsdp"), ("mlp", "tensor"))
AXES = sharding.AXES


def make_layout(shape: tuple[int, ...]) -> sharding.Layout:
    """Sizes of the first axes of the mesh; the others are 1."""
    shape = (*shape, *(1,) * (len(AXES) - len(shape)))
    mesh = jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    hosts.connect(mesh)
    return sharding.Layout(mesh, RULES)


def whole(tree) -> dict:
    """Arrays as they are on the host, wherever they lie."""
    return jax.tree.map(
        lambda leaf: np.asarray(jax.device_put(leaf, sharding.replicated(leaf.sharding.mesh))), tree
    )


def talk() -> dict:
    """Words, flags and rows."""
    agreement, me = hosts.Agreement(), hosts.index()
    return {
        "lead": hosts.is_lead(),
        "told": hosts.from_lead(lambda: [me, hosts.count(), hosts.from_all("alone")]),
        "all": hosts.from_all({"id": me}),
        "agreed": [agreement.agreed(me == 1 and step == 2) for step in range(5)],
        "gathered": hosts.gather_shares(np.arange(10).reshape(5, 2)[hosts.share(5)], 5).tolist(),
    }


def read_rows(mesh) -> dict:
    """A batch of which each process reads its own rows."""
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    own = hosts.own_rows(8, rows)
    batch = hosts.put_own_rows({"x": (own[:, None] * np.ones(3)).astype(np.float32)}, 8, rows)
    return {"own": own.tolist(), "rows": whole(batch)["x"][:, 0].tolist()}


def copy(layout, path: Path) -> dict:
    """Weights that lie over all processes, on this one's devices; and the directory written anew."""
    table = decoder.param_table(DECODER)
    shapes = jax.eval_shape(lambda: decoder.init_params(jax.random.key(0), DECODER))
    places = sharding.param_shardings(shapes, table, layout)
    params = hf.load_params(path / "hf", DECODER, "float32", places)
    copied, mesh = replicas.own_copy({"params": params}, table, layout)
    same = jax.tree.map(
        lambda one, two: bool(np.array_equal(one, two)), whole(params), whole(copied["params"])
    )
    hf.save_model(path / "written", DECODER, params, max_shard_bytes=8192)
    embedding = copied["params"]["embed"]["embedding"]
    return {
        "same": all(jax.tree.leaves(same)),
        "whole_here": params["embed"]["embedding"].is_fully_addressable,
        "copy_here": embedding.is_fully_addressable,
        "copy_parts": len({str(shard.index) for shard in embedding.addressable_shards}),
        "own_devices": list(mesh.devices.flat) == jax.local_devices(),
    }


def save(layout, path: Path) -> dict:
    """Two checkpoints of which the newer is damaged."""
    values = {"w": np.arange(32.0, dtype=np.float32).reshape(8, 4), "n": np.float32(3)}
    places = {
        "w": NamedSharding(layout.mesh, PartitionSpec("fsdp")),
        "n": sharding.replicated(layout.mesh),
    }
    state = hosts.put(values, places)
    with Checkpointer(path) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, {"model": jax.tree.map(lambda leaf, s=step: leaf * s, state)})
    kept = hosts.from_lead(lambda: checkpoint.steps(path))
    if hosts.is_lead():
        file = next(f for f in sorted((path / "3").rglob("*")) if f.is_file() and "/d/" in str(f))
        file.write_bytes(file.read_bytes()[:-1])
    hosts.from_all(None)  # the file is damaged from here on
    newest = checkpoint.newest_sound_step(path)
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    restored = checkpoint.restore(path, newest, {"model": wanted})["model"]
    same = jnp.array_equal(restored["w"], state["w"] * newest)
    return {"kept": kept, "newest": newest, "restored": bool(same)}


def main() -> None:
    folder = Path(sys.argv[1])
    hosts.initialize()
    layout, me = make_layout((1, 4)), hosts.index()
    with jax.set_mesh(layout.mesh):
        found = talk() | read_rows(layout.mesh) | copy(layout, folder)
        found |= save(layout, folder / "checkpoints")
    (folder / f"{me}.json").write_text(json.dumps(found), encoding="utf-8")
    print("only the lead's words are seen")
    if me == 1:
        hosts.fail("a reason\nof two lines")
    hosts.from_all("this never comes")


if __name__ == "__main__":
    main()
