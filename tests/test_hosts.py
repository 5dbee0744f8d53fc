import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from empathy_jax import files, hosts, replicas, sharding
from empathy_jax.sharding import Layout


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("a:1", 2, None), ["--process_id None", "all three or none"]),
        (("", 2, 1), ["--coordinator_address is None", "all three or none"]),
        (("10.0.0.2", 2, 1), ["'10.0.0.2'", "HOST:PORT"]),
        (("a:1", 2, 2), ["--process_id is 2", "--num_processes 2"]),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(given, words):
    with pytest.raises(ValueError) as error:
        hosts.initialize(*given)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("variables", "several"),
    [
        ({}, False),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "4"}, False),  # in the batch script: no step
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, True),
    ],
)
def test_a_step_of_several_slurm_tasks_joins_them(variables, several, monkeypatch):
    for name in ("SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    called = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: called.append(options))
    monkeypatch.setattr(hosts.threading.Thread, "start", lambda self: None)
    monkeypatch.setattr(hosts.atexit, "register", lambda function: None)
    monkeypatch.setattr(hosts, "running_in_cloud_tpu_vm", False)
    hosts.initialize()
    assert called == ([{"heartbeat_timeout_seconds": hosts.HEARTBEAT_SECONDS}] if several else [])


def test_one_process_is_the_lead_and_asks_nobody():
    assert (hosts.count(), hosts.index(), hosts.is_lead()) == (1, 0, True)
    assert hosts.from_lead(lambda: (1, "a")) == (1, "a")
    assert hosts.from_all({"a": 1}) == [{"a": 1}]
    agreement = hosts.Agreement()
    assert [agreement.agreed(here) for here in (False, True, False)] == [False, True, False]
    rows = np.arange(3)
    np.testing.assert_array_equal(hosts.gather_shares(rows, 3), rows)
    hosts.fail("nobody to end")


@pytest.mark.parametrize("total", [0, 1, 7, 8])
def test_shares_are_all_there_is_and_equal_to_within_one(total, monkeypatch):
    monkeypatch.setattr(hosts, "count", lambda: 4)
    parts = [range(total)[hosts.share(total, process)] for process in range(4)]
    assert [index for part in parts for index in part] == list(range(total))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_rows_of_a_batch_go_where_they_were_read():
    """Devices in another order than their numbers, and some that hold the same rows."""
    devices = np.array(jax.devices())[::-1].reshape(4, 2)
    mesh = Mesh(devices, ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    place = NamedSharding(mesh, PartitionSpec("data"))
    own = hosts.own_rows(8, place)
    np.testing.assert_array_equal(own, np.arange(8))
    batch = {"x": np.arange(24.0, dtype=np.float32).reshape(8, 3)}
    made = hosts.put_own_rows(batch, 8, place)["x"]
    assert made.sharding == place
    np.testing.assert_array_equal(made, batch["x"])


def test_a_process_that_does_not_write_leaves_files_as_they_are(tmp_path, monkeypatch):
    files.write_jsonl(tmp_path / "a.jsonl", [{"a": 1}])
    before = (tmp_path / "a.jsonl").read_bytes()
    monkeypatch.setattr(files, "_is_writing", True)
    files.leave_to_another_process()
    files.append_jsonl(tmp_path / "a.jsonl", [{"a": 2}])
    files.write_jsonl(tmp_path / "a.jsonl", [])
    files.keep_jsonl(tmp_path / "a.jsonl", lambda row: False)
    files.write_json(tmp_path / "b.json", 1)
    assert (tmp_path / "a.jsonl").read_bytes() == before
    assert not (tmp_path / "b.json").exists()


def test_the_copy_of_one_process_is_the_model(tiny_decoder):
    """With one process its own devices are all: the layout stays, and so does every buffer."""
    from empathy_jax.models import decoder

    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    layout = Layout(mesh, (("vocab", ("tensor", "fsdp")), ("mlp", "tensor"), ("embed", "fsdp")))
    table = decoder.param_table(tiny_decoder)
    params = decoder.init_params(jax.random.key(0), tiny_decoder)
    params = jax.device_put(params, sharding.param_shardings(params, table, layout))
    copied, own = replicas.own_copy({"params": params}, table, layout)
    assert own.devices.tolist() == mesh.devices.tolist()
    kernels = [tree["layers"]["mlp"]["gate"]["kernel"] for tree in (params, copied["params"])]
    pointers = [[s.data.unsafe_buffer_pointer() for s in k.addressable_shards] for k in kernels]
    assert pointers[0] == pointers[1]
