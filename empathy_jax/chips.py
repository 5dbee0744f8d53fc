"""Chips and slices of them: what a plan holds a program against, and devices to compile for.

A slice is written `v5p:4x4x4` (a TPU and its chips along each side) or `gpu:8xh200`. Figures are the
makers' peaks for one chip, dense bfloat16; `network` is what leaves a chip over all its links together,
half of what the makers quote for both directions.

TPUs: https://cloud.google.com/tpu/docs/v5e, /v5p, /v6e and /tpu7x. GPUs (SXM): the data sheets
https://www.nvidia.com/en-us/data-center/h100/ and /h200/. `hbm_bytes` is what a program may use: of a TPU
the compiler's own limit, as its error names it for a program that is too large; of a GPU the size on the
data sheet less `GPU_CONTEXT`.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence

import jax

GIB = 2**30
GPU_CONTEXT = GIB  # CUDA's own memory on each GPU


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peaks of one chip.

    Attributes:
      hbm_bytes: memory that programs may use.
      hbm_bandwidth: bytes a second.
      flops: of dense bfloat16 products, a second.
      network: bytes a second out of a chip, all links together.
      torus: axes of the network; 0 for a switch.
      wraps_at: chips along a side from which, in multiples, its two ends are linked.
      devices: that JAX sees of a chip; they share its figures evenly.
    """

    name: str
    hbm_bytes: int
    hbm_bandwidth: float
    flops: float
    network: float
    torus: int
    wraps_at: int = 0
    devices: int = 1


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", int(15.75 * GIB), 819e9, 197e12, 200e9, torus=2, wraps_at=16),
        Chip("v5p", int(95.74 * GIB), 2765e9, 459e12, 600e9, torus=3, wraps_at=4),
        Chip("v6e", int(31.25 * GIB), 1638e9, 918e12, 400e9, torus=2, wraps_at=16),
        Chip("tpu7x", int(189.5 * GIB), 7380e9, 2307e12, 600e9, torus=3, wraps_at=4, devices=2),
        Chip("h100", int(80e9) - GPU_CONTEXT, 3350e9, 989e12, 450e9, torus=0),
        Chip("h200", int(141e9) - GPU_CONTEXT, 4800e9, 989e12, 450e9, torus=0),
    )
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips that run one program.

    Attributes:
      name: as it was written.
      chip: of which it is made.
      sides: chips along each axis of the network; the number of chips where there is a switch.
    """

    name: str
    chip: Chip
    sides: tuple[int, ...]

    @property
    def chips(self) -> int:
        """How many there are."""
        return math.prod(self.sides)

    @property
    def devices(self) -> int:
        """That JAX sees."""
        return self.chips * self.chip.devices

    @property
    def is_tpu(self) -> bool:
        """Whether there is a compiler for it here."""
        return self.chip.torus > 0


def parse(name: str) -> Slice:
    """The slice that `--plan` names.

    Raises:
      ValueError: says how a slice is written.
    """
    tpu = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
    gpu = re.fullmatch(r"gpu:(\d+)x(\w+)", name)
    if gpu and (chip := CHIPS.get(gpu[2])) and not chip.torus and int(gpu[1]):
        return Slice(name, chip, (int(gpu[1]),))
    if tpu and (chip := CHIPS.get(tpu[1])):
        sides = tuple(int(side) for side in tpu[2].split("x"))
        if len(sides) == chip.torus and min(sides):
            return Slice(name, chip, sides)
    tpus = ", ".join(chip.name for chip in CHIPS.values() if chip.torus)
    gpus = ", ".join(chip.name for chip in CHIPS.values() if not chip.torus)
    raise ValueError(
        f"--plan is {name!r}; allowed are a TPU ({tpus}) with its chips along each side, such as "
        f"v5e:16x16 or v5p:4x4x4, and GPUs ({gpus}) with their number, such as gpu:8xh200"
    )


def compile_devices(target: Slice) -> Sequence[jax.Device]:
    """Devices that programs can be compiled for here, without having any.

    Raises:
      ValueError: without the TPU compiler, or for sides that no TPU has.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"--plan={target.name} compiles for a TPU, which needs none but its compiler, libtpu: "
            "pip install 'jax[tpu]'"
        )
    # No TPU is asked for: the first keeps libtpu from looking for the machine's metadata.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_LOG_DIR", "disabled")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")  # other plans may run
    from jax.experimental import topologies

    # A host has 2 x 2 chips, except where there is one chip alone.
    bounds = {"chips_per_host_bounds": (1, 1, 1)} if target.chips == 1 else {}
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=target.name, **bounds
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--plan={target.name} is no slice that libtpu knows: {reason}") from error
    return described.devices


def collective_seconds(
    target: Slice,
    kind: str,
    size: float,
    group: int,
    places: Sequence[Sequence[int]] | None = None,
) -> float:
    """Least time of a collective: the bytes that leave a device, over the links that it can use.

    Of `size` bytes an all-gather, reduce-scatter or all-to-all moves the share of the other devices, an
    all-reduce twice that, a permutation all. In a torus the links along the axes that a group spans
    serve it, both ways where the ends of a side are linked (https://jax-ml.github.io/scaling-book/sharding/).

    Args:
      target: the slice.
      kind: of `hlo.COLLECTIVES`.
      size: bytes of the operand or the result on a device, the larger.
      group: devices that take part.
      places: coordinates of their chips; without them the group is taken to span all axes.
    """
    if group < 2:
        return 0.0
    share = 1.0 if kind == "collective-permute" else (group - 1) / group
    moved = size * share * (2 if kind == "all-reduce" else 1)
    return moved / _bandwidth(target, places)


def _bandwidth(target: Slice, places: Sequence[Sequence[int]] | None) -> float:
    """Bytes a second that a device can send to its group."""
    chip = target.chip
    own = chip.network / chip.devices
    if not chip.torus:
        return own
    axes = range(chip.torus)
    if places is None:
        spanned = [axis for axis in axes if target.sides[axis] > 1]
    else:
        spanned = [axis for axis in axes if len({place[axis] for place in places}) > 1]
    # Devices of one chip: their link is about as wide as all of the chip's links together.
    links = sum(1.0 if _wraps(target, axis) else 0.5 for axis in spanned) or chip.torus
    return own * links / chip.torus


def _wraps(target: Slice, axis: int) -> bool:
    return target.sides[axis] % target.chip.wraps_at == 0
