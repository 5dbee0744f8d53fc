import importlib.util

import pytest

from empathy_jax import chips


def test_a_slice_by_its_name():
    tpu = chips.parse("v5p:4x4x4")
    assert (tpu.chip.name, tpu.sides, tpu.chips, tpu.devices) == ("v5p", (4, 4, 4), 64, 64)
    assert tpu.is_tpu
    two = chips.parse("tpu7x:2x2x1")
    assert (two.chips, two.devices) == (4, 8)  # two devices a chip
    gpu = chips.parse("gpu:8xh200")
    assert (gpu.chip.name, gpu.chips, gpu.devices, gpu.is_tpu) == ("h200", 8, 8, False)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "v5p",
        "v5p:4x4",
        "v5e:4x4x4",
        "v5e:0x4",
        "v9:2x2",
        "gpu:8xv5e",
        "gpu:0xh200",
        "h200:8",
        "gpu:h200",
    ],
)
def test_what_is_no_slice_is_refused_with_what_is(name):
    with pytest.raises(ValueError, match=r"--plan is .*v5e, v5p, v6e, tpu7x.*gpu:8xh200"):
        chips.parse(name)


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"libtpu: pip install 'jax\[tpu\]'"):
        chips.compile_devices(chips.parse("v5e:2x2"))


def test_seconds_of_collectives_by_hand():
    ring = [(x, 0) for x in range(16)]
    v5e = chips.parse("v5e:16x16")
    # One of two axes, its ends linked: half of 200 GB/s; 15/16 of the bytes leave a chip.
    seconds = chips.collective_seconds(v5e, "all-gather", 16e9, 16, ring)
    assert seconds == pytest.approx(15e9 / 100e9)
    assert chips.collective_seconds(v5e, "all-reduce", 16e9, 16, ring) == 2 * seconds
    assert chips.collective_seconds(v5e, "collective-permute", 16e9, 2, ring[:2]) == 0.16
    # Four of a side of 4 on a v5e are a line: each of its links goes one way only.
    line = [(x, 0) for x in range(4)]
    small = chips.parse("v5e:4x4")
    assert chips.collective_seconds(small, "all-gather", 4e9, 4, line) == pytest.approx(3e9 / 50e9)
    # A group on all axes of a v5p cube has all links.
    cube = [(x, y, z) for x in range(4) for y in range(4) for z in range(4)]
    v5p = chips.parse("v5p:4x4x4")
    expected = pytest.approx(63e9 / 600e9)
    assert chips.collective_seconds(v5p, "reduce-scatter", 64e9, 64, cube) == expected
    assert chips.collective_seconds(v5p, "reduce-scatter", 64e9, 64) == expected
    # A switch gives each GPU its whole link; a group of one sends nothing.
    gpus = chips.parse("gpu:8xh200")
    assert chips.collective_seconds(gpus, "all-gather", 8e9, 8) == pytest.approx(7e9 / 450e9)
    assert chips.collective_seconds(gpus, "all-gather", 8e9, 1) == 0.0
    # The two devices of a chip share its links; between themselves they have a link as wide as all.
    seven = chips.parse("tpu7x:4x4x4")
    assert chips.collective_seconds(seven, "all-gather", 2e9, 2, [(0, 0, 0)] * 2) == pytest.approx(
        1e9 / 300e9
    )
