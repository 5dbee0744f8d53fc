import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from empathy_jax import checkpoint, files
from empathy_jax.checkpoint import Checkpointer, CheckpointError
from tests.conftest import ROOT


def _state(value: float) -> dict:
    params = {"q": {"kernel": jnp.full((8, 4), value)}, "scale": jnp.arange(3.0) * value}
    return {"model": params, "optimizer": optax.adam(1e-3).init(params)}


def _abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints 1, 2, 3 of which the newest two are kept."""
    folder = tmp_path_factory.mktemp("saved")
    with Checkpointer(folder, keep=2) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, _state(step))
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


@pytest.fixture
def warnings(monkeypatch):
    """The lines given to logging.warning."""
    lines = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: lines.append(text % args))
    return lines


def _large_file(folder, step):
    """The file of a checkpoint that holds arrays."""
    found = [f for f in (folder / str(step)).rglob("*") if f.is_file() and "/d/" in str(f)]
    return max(found, key=lambda file: file.stat().st_size)


def _flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _truncate(file):
    file.write_bytes(file.read_bytes()[:-1])


DAMAGES = {"flipped": _flip, "truncated": _truncate, "missing": lambda file: file.unlink()}


def test_round_trip_and_the_newest_are_kept(folder):
    assert checkpoint.steps(folder) == [2, 3]
    assert sorted(p.name for p in folder.iterdir()) == ["2", "2.json", "3", "3.json"]
    assert checkpoint.newest_sound_step(folder) == 3
    state = checkpoint.restore(folder, 3, _abstract(_state(0)))
    jax.tree.map(np.testing.assert_array_equal, state, _state(3))
    assert jax.tree.structure(state) == jax.tree.structure(_state(3))


def test_no_checkpoint_is_no_error(tmp_path):
    assert checkpoint.newest_sound_step(tmp_path / "absent") is None
    assert checkpoint.steps(tmp_path / "absent") == []


def test_a_part_alone_and_onto_another_mesh(folder):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    places = {
        "q": {"kernel": NamedSharding(mesh, P("x"))},
        "scale": NamedSharding(mesh, P()),
    }
    wanted = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), _state(0)["model"], places
    )
    model = checkpoint.restore(folder, 3, {"model": wanted})["model"]
    assert model["q"]["kernel"].sharding == places["q"]["kernel"]
    np.testing.assert_array_equal(model["q"]["kernel"], np.full((8, 4), 3))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(folder, warnings, damage):
    file = _large_file(folder, 3)
    DAMAGES[damage](file)
    assert checkpoint.newest_sound_step(folder) == 2
    assert len(warnings) == 1
    assert f"checkpoint 3 in {folder}" in warnings[0] and file.name in warnings[0]


def test_a_broken_list_of_digests_is_damage(folder, warnings):
    (folder / "3.json").write_text("{", encoding="utf-8")
    assert checkpoint.newest_sound_step(folder) == 2
    assert "list of digests cannot be read" in warnings[0]


def test_a_lost_folder_is_damage(folder, warnings):
    shutil.rmtree(folder / "3")
    assert checkpoint.newest_sound_step(folder) == 2
    assert "checkpoint 3" in warnings[0]


def test_all_damaged_lists_each(folder):
    _flip(_large_file(folder, 2))
    _large_file(folder, 3).unlink()
    with pytest.raises(CheckpointError) as error:
        checkpoint.newest_sound_step(folder)
    text = str(error.value)
    assert "every checkpoint is damaged" in text and "delete the folder" in text
    assert f"checkpoint 2 in {folder}" in text and f"checkpoint 3 in {folder}" in text


def test_a_damaged_checkpoint_is_written_again(folder, warnings):
    _flip(_large_file(folder, 3))
    with Checkpointer(folder) as checkpointer:
        checkpointer.save(3, _state(33))
    assert checkpoint.newest_sound_step(folder) == 3
    kernel = checkpoint.restore(folder, 3, _abstract(_state(0)))["model"]["q"]["kernel"]
    np.testing.assert_array_equal(kernel, np.full((8, 4), 33))


def test_a_folder_without_digests_is_not_believed_and_does_not_count(folder):
    # Killed between the folder and its digests: 9 is the newest folder, and unfinished.
    shutil.copytree(folder / "3", folder / "9")
    assert checkpoint.newest_sound_step(folder) == 3
    with Checkpointer(folder, keep=1) as checkpointer:
        checkpointer.save(4, _state(4))
    assert checkpoint.newest_sound_step(folder) == 4
    assert sorted(p.name for p in folder.iterdir()) == ["4", "4.json"]


def test_saving_a_sound_step_again_leaves_it_alone(folder):
    before = (folder / "3.json").read_bytes()
    with Checkpointer(folder) as checkpointer:
        checkpointer.save(3, _state(33))
    assert (folder / "3.json").read_bytes() == before
    assert checkpoint.newest_sound_step(folder) == 3


def test_another_architecture_is_reported_whole(folder):
    wanted = _state(0)
    wanted["model"] = {
        "q": {"kernel": jnp.zeros((8, 5)), "bias": jnp.zeros(5)},
        "embedding": jnp.zeros((2, 2)),
    }
    wanted["lora"] = {"a": jnp.zeros(1)}
    with pytest.raises(CheckpointError) as error:
        checkpoint.restore(folder, 3, _abstract(wanted))
    lines = [line.strip() for line in str(error.value).splitlines()]
    assert "is of another architecture" in lines[0] and "config.model" in lines[0]
    assert "missing: model/q/bias" in lines
    assert "missing: model/embedding" in lines
    assert "unexpected: model/scale" in lines
    assert "mis-shaped: model/q/kernel is (8, 4), wanted (8, 5)" in lines
    assert any(line.startswith("missing: lora (the checkpoint has model, optim") for line in lines)


def test_a_disk_without_room_is_refused_before_anything_is_written(folder, monkeypatch):
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage._replace(free=1 << 19))
    with (
        pytest.raises(OSError, match=r"no space for .* MiB in .*checkpoints"),
        Checkpointer(folder) as checkpointer,
    ):
        checkpointer.save(4, _state(4))
    assert checkpoint.newest_sound_step(folder) == 3 and not (folder / "4").exists()


def test_a_save_that_fails_leaves_nothing_to_believe(folder, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_json", refuse)
    with (
        pytest.raises(OSError, match=r"checkpoint 4 in .* was not written.*No space"),
        Checkpointer(folder) as checkpointer,
    ):
        checkpointer.save(4, _state(4))
    assert checkpoint.steps(folder) == [2, 3] and not (folder / "4").exists()


_REFUSED = """
import resource, sys
from pathlib import Path
import jax
from empathy_jax.checkpoint import Checkpointer
limit = int(sys.argv[2])
state = {"model": jax.random.normal(jax.random.key(0), (1 << 16,))}
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    with Checkpointer(Path(sys.argv[1])) as checkpointer:
        checkpointer.save(4, state)
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("limit", [100, 100_000])
def test_a_write_that_the_disk_refuses_leaves_one_message_and_no_file(folder, limit):
    """In a process that may write no more than `limit` bytes to a file."""
    done = subprocess.run(
        [sys.executable, "-c", _REFUSED, str(folder), str(limit)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"checkpoint 4 in {folder} was not written: ")
    assert "too large" in line and line.endswith("; free some space or choose another --workdir")
    assert "raised an exception" not in done.stderr
    assert sorted(p.name for p in folder.iterdir()) == ["2", "2.json", "3", "3.json"]


def test_digests_cover_every_file(folder):
    listed = json.loads((folder / "3.json").read_text(encoding="utf-8"))
    there = {str(p.relative_to(folder / "3")) for p in (folder / "3").rglob("*") if p.is_file()}
    assert set(listed) == there
