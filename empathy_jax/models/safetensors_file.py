"""A safetensors file written tensor by tensor, so that one is in memory at a time.

The format (https://huggingface.co/docs/safetensors): eight bytes with the length of a JSON header, the
header, the tensors one after the other. The library's own writers want all tensors at once.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from empathy_jax import hosts

NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
_ALIGNMENT = 8  # of the tensors' beginning


class Tensor(NamedTuple):
    """What the header says of a tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Of its values."""
        return int(np.prod(self.shape, dtype=np.int64)) * jnp.dtype(self.dtype).itemsize


def write(
    file: Path,
    tensors: Mapping[str, Tensor],
    fetch: Callable[[str], np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Write a file; of several processes the lead does, and all fetch.

    Args:
      file: to make.
      tensors: what it holds.
      fetch: a tensor by name, called once for each, in the same order on all processes.
      metadata: strings that go with them.

    Raises:
      ValueError: when a tensor is not what `tensors` says.
    """
    # The order of the library's files: wide types first, so that each tensor is aligned.
    names = sorted(tensors, key=lambda name: (-jnp.dtype(tensors[name].dtype).itemsize, name))
    if not hosts.is_lead():
        for name in names:
            fetch(name)
        return
    with open(file, "wb") as out:
        out.write(_header(names, tensors, metadata))
        for name in names:
            value = np.ascontiguousarray(fetch(name))
            if Tensor(str(value.dtype), value.shape) != tensors[name]:
                raise ValueError(f"{name} is {value.dtype}{value.shape}, not {tensors[name]}")
            out.write(value.reshape(-1).view(np.uint8).data)


def _header(names: list[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    begin = 0
    for name in names:
        end = begin + tensors[name].num_bytes
        dtype, shape = tensors[name]
        entries[name] = {
            "dtype": NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
