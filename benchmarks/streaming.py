"""Host memory that import and export of a Hugging Face directory take beside the model itself.

    python benchmarks/streaming.py --megabytes=400

makes a decoder of about this size in float32, reads it laid out over 8 CPU devices, writes it again, and
prints one JSON line: the model's bytes, its largest tensor and largest part on a device, and how far the
process's own memory (RssAnon: without pages of files, which the kernel may drop) rose at most above the
loaded model, in each of the two. Linux only.
"""

import argparse
import json
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import common as configs
from empathy_jax import sharding
from empathy_jax.models import decoder, hf
from empathy_jax.models.parameters import ParamSpec
from empathy_jax.pytree import tree_bytes, unflatten_paths
from empathy_jax.training import common

MIB = 2**20


def own_memory() -> int:
    """Bytes of this process that no file holds."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def with_peak(work: Callable[[], Any]) -> tuple[Any, int]:
    """What `work` returns, and the largest memory seen meanwhile."""
    over, seen = threading.Event(), [own_memory()]

    def watch() -> None:
        while not over.wait(0.002):
            seen.append(own_memory())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        return work(), max(seen)
    finally:
        over.set()
        thread.join()


def make_config(megabytes: int) -> decoder.DecoderConfig:
    """A decoder of width 1,024 with as many layers as fill the size."""
    shape = {"vocab_size": 32_768, "width": 1024, "mlp_width": 3072, "num_heads": 8}
    shape |= {"num_kv_heads": 2, "head_dim": 128, "max_positions": 1024}
    one = decoder.DecoderConfig(num_layers=1, **shape)
    sizes = [4 * np.prod(spec.shape) for spec in decoder.param_table(one) if spec.stacked]
    others = [4 * np.prod(spec.shape) for spec in decoder.param_table(one) if not spec.stacked]
    layers = (megabytes * MIB - sum(others)) // sum(sizes)
    return decoder.DecoderConfig(num_layers=max(int(layers), 1), **shape)


def random_params(config: decoder.DecoderConfig) -> dict:
    """Numpy parameters that cost no compilation."""
    rng = np.random.default_rng(0)

    def make(spec: ParamSpec) -> np.ndarray:
        return rng.standard_normal(spec.shape, np.float32)

    return unflatten_paths({spec.path: make(spec) for spec in decoder.param_table(config)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=400, help="of the model, about")
    arguments = parser.parse_args()
    config = make_config(arguments.megabytes)
    table = decoder.param_table(config)
    mesh = ConfigDict({**configs.get_config().mesh, "data": 1, "fsdp": 8})
    layout = sharding.make_layout(mesh)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source", Path(folder) / "target"
        hf.save_model(source, config, random_params(config))
        shardings = common.hf_shardings(config, layout)
        before = own_memory()
        params, peak = with_peak(lambda: hf.load_params(source, config, "float32", shardings))
        jax.block_until_ready(params)
        size = tree_bytes(params)
        loaded = own_memory()
        _, export_peak = with_peak(lambda: hf.save_model(target, config, params))
    parts = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(params)]
    found = {
        "model": size,
        "largest_tensor": max(int(4 * np.prod(spec.hf_shape)) for spec in table),
        "largest_part": max(parts),
        "import_over_the_model": peak - before - size,
        "export_over_the_model": export_peak - loaded,
    }
    print(
        json.dumps({name: round(value / MIB, 1) for name, value in found.items()} | {"unit": "MiB"})
    )


if __name__ == "__main__":
    main()
