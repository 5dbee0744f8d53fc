"""One row per parameter: path, Hugging Face tensor name, transform and logical axes.

Import, export, sharding, adapters, weight-decay and freeze masks all read these rows. An
architecture lists its `Row`s once; `resolve` gives them shapes for one configuration.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Row:
    """A parameter of an architecture, whatever its sizes.

    Attributes:
        path: place in the parameter tree, "layers/attention/q/kernel".
        hf_name: tensor name without the checkpoint's prefix; "{layer}" where each layer has one.
        transform: "copy" keeps the tensor; "flatten" joins all axes on the way out (biases of
            split heads); "linear" is torch's `[out, in]` matrix, transposed and split into our
            input and output axes.
        axes: logical axis names of the parameter, "layers" first when it is stacked.
        num_inputs: how many axes after "layers" a "linear" contracts.
        when: name of the configuration's switch that this parameter depends on, if any.
        outside_prefix: the tensor's name does not take the checkpoint's prefix (the output head).
    """

    path: str
    hf_name: str
    transform: str
    axes: tuple[str, ...]
    num_inputs: int = 1
    when: str | None = None
    outside_prefix: bool = False


@dataclass(frozen=True)
class ParamSpec:
    """A parameter of one configuration; `Row` explains the fields that the two share.

    Attributes:
        shape: shape of the parameter, layers axis included.
        hf_shape: shape of one tensor in the checkpoint.
    """

    path: str
    hf_name: str
    transform: str
    axes: tuple[str, ...]
    num_inputs: int
    shape: tuple[int, ...]
    hf_shape: tuple[int, ...]

    @property
    def stacked(self) -> bool:
        """Whether the first axis counts layers."""
        return self.axes[0] == "layers"

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """Shape without the layers axis."""
        return self.shape[1:] if self.stacked else self.shape

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The contracted axes of a "linear"."""
        return self.layer_shape[: self.num_inputs]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The produced axes of a "linear"."""
        return self.layer_shape[self.num_inputs :]

    def hf_names(self) -> tuple[str, ...]:
        """The tensor names of this parameter in a checkpoint, in layer order."""
        if not self.stacked:
            return (self.hf_name,)
        return tuple(self.hf_name.format(layer=layer) for layer in range(self.shape[0]))

    def from_hf(self, tensor: np.ndarray) -> np.ndarray:
        """One layer of the parameter from its checkpoint tensor."""
        matrix = tensor.T if self.transform == "linear" else tensor
        return matrix.reshape(self.layer_shape)

    def to_hf(self, layer: np.ndarray) -> np.ndarray:
        """The checkpoint tensor from one layer of the parameter; inverse of `from_hf`."""
        if self.transform == "linear":
            matrix = layer.reshape(math.prod(self.input_shape), math.prod(self.output_shape))
            return np.ascontiguousarray(matrix.T)
        return np.ascontiguousarray(layer.reshape(self.hf_shape))


def resolve(
    rows: Iterable[Row], config: Any, sizes: Mapping[str, int], prefix: str
) -> tuple[ParamSpec, ...]:
    """The rows that `config` switches on, with shapes.

    Args:
        rows: the architecture's table.
        config: has a truthy attribute for each `Row.when` that is on.
        sizes: length of each logical axis.
        prefix: what the checkpoint puts before tensor names ("model.", "bert." or nothing).
    """
    specs = []
    for row in rows:
        if row.when is not None and not getattr(config, row.when):
            continue
        shape = tuple(sizes[axis] for axis in row.axes)
        layer_shape = shape[1:] if row.axes[0] == "layers" else shape
        specs.append(
            ParamSpec(
                path=row.path,
                hf_name=row.hf_name if row.outside_prefix else prefix + row.hf_name,
                transform=row.transform,
                axes=row.axes,
                num_inputs=row.num_inputs,
                shape=shape,
                hf_shape=_hf_shape(row, layer_shape),
            )
        )
    return tuple(specs)


def _hf_shape(row: Row, layer_shape: tuple[int, ...]) -> tuple[int, ...]:
    if row.transform == "linear":
        inputs, outputs = layer_shape[: row.num_inputs], layer_shape[row.num_inputs :]
        return (math.prod(outputs), math.prod(inputs))
    return (math.prod(layer_shape),) if row.transform == "flatten" else layer_shape
