"""Many processes, one run: who is there, what all of them know, and how all of them end.

Every process runs the same program on the same values; arrays lie over the devices of all. What a file
decides, the lead (process 0) reads and tells the others, so that no two can differ; only the lead
writes. Where there is one process, everything here is what it would be without this file.

Words go through the key-value store of `jax.distributed`, not through the devices: a process may wait
hours for the lead in it, and is ended when the lead is.
"""

import atexit
import contextlib
import contextvars
import itertools
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed  # for the key-value store, and numbers that need no device
from jax._src.cloud_tpu_init import running_in_cloud_tpu_vm
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from empathy_jax import files

HEARTBEAT_SECONDS = 60  # without a sign of life of a process, after which all others end
_FOREVER_MS = 7 * 24 * 3600 * 1000  # such waits are ended by the heartbeats, not by a clock
_FAILURE = "empathy_jax/failure"
_POLL_SECONDS = 1.0  # between two looks for a failure
_SILENCES = 5  # looks that the lead leaves without an answer, after which it is taken for gone
_turns = itertools.count()  # of talks: the same on all processes, which talk in the same order
_is_alone = contextvars.ContextVar("_is_alone", default=False)  # in what the lead does for all
_ending = threading.Lock()  # taken by whoever prints the last line of this process


def initialize(
    coordinator_address: str = "", num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the other processes of the run, if there are any; before anything asks for a device.

    They are named by the three arguments, which go together; else by SLURM (a step of several tasks)
    or by the metadata of a TPU VM. Otherwise this process is the only one.

    Args:
      coordinator_address: HOST:PORT, where the lead listens.
      num_processes: of the run.
      process_id: of this one, from 0.

    Raises:
      ValueError: for arguments that do not go together, or when the others did not come.
    """
    given = (coordinator_address or None, num_processes, process_id)
    if any(value is not None for value in given):
        _check(*given)
        arguments = dict(
            zip(("coordinator_address", "num_processes", "process_id"), given, strict=True),
            cluster_detection_method="deactivate",
        )
    elif _is_slurm_step() or (running_in_cloud_tpu_vm and jax.config.jax_platforms != "cpu"):
        arguments = {}
    else:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM away from `watch_sigterm` and, outside of it, from everyone.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
        jax.devices()  # all processes must ask for them within 2 minutes: now
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"the processes of this run did not find one another: {' '.join(str(error).split())}; "
            "start as many as --num_processes says, each with its own --process_id and the same "
            "--coordinator_address"
        ) from error
    is_over = threading.Event()
    watch = threading.Thread(target=_end_with_the_others, args=(is_over,), daemon=True)
    watch.start()
    atexit.register(lambda: (is_over.set(), watch.join()))
    if not is_lead():
        files.leave_to_another_process()
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _check(address: str | None, count: int | None, index: int | None) -> None:
    if address is None or count is None or index is None:
        raise ValueError(
            f"--coordinator_address is {address!r}, --num_processes {count} and --process_id {index}; "
            "give all three or none"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(
            f"--coordinator_address is {address!r}; it must be HOST:PORT of process 0, such as "
            "10.0.0.2:8476"
        )
    if not 0 <= index < count:
        raise ValueError(
            f"--process_id is {index} and --num_processes {count}; ids go from 0 to "
            "--num_processes - 1"
        )


def _is_slurm_step() -> bool:
    """Whether `srun` has started several tasks, of which this is one."""
    return "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1


# --- who is there ---


def count() -> int:
    """Processes of the run; 1 in what the lead does for all."""
    return 1 if _is_alone.get() else distributed.global_state.num_processes


def index() -> int:
    """Number of this process."""
    return distributed.global_state.process_id


def is_lead() -> bool:
    """Whether this is the process that writes."""
    return index() == 0


def connect(mesh: Mesh) -> None:
    """Makes the connections of every group of devices that the axes of a mesh may form, on CPUs.

    There a group must meet within 30 s of its first collective, and compilations take longer apart. Once
    connected, one may wait for another as long as it takes.
    """
    if count() == 1 or mesh.devices.flat[0].platform != "cpu":
        return
    axes = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    by_process = Mesh(np.array(jax.devices()).reshape(count(), -1), ("process", "device"))
    groups = [(by_process, ("process",))]
    groups += [
        (mesh, some) for n in range(len(axes)) for some in itertools.combinations(axes, n + 1)
    ]
    for where, some in groups:
        size = math.prod(where.shape[axis] for axis in some)
        spread, whole = (
            NamedSharding(where, spec) for spec in (PartitionSpec(some), PartitionSpec())
        )
        ones = jax.make_array_from_callback((size,), spread, lambda _: np.ones(1, np.float32))
        jax.block_until_ready(jax.jit(lambda x: x, out_shardings=whole)(ones))


# --- what all know ---


def from_lead(make: Callable[[], Any]) -> Any:
    """What `make()` of the lead returns, a JSON value, on all processes; the others do not call it."""
    if count() == 1:
        return make()
    client, key = distributed.global_state.client, f"empathy_jax/{next(_turns)}"
    if is_lead():
        client.key_value_set(key, files.dumps(_made_alone(make)))
    told = json.loads(client.blocking_key_value_get(key, _FOREVER_MS))
    if "exit" in told:
        raise SystemExit(told["exit"])
    return told["made"]


def _made_alone(make: Callable[[], Any]) -> dict[str, Any]:
    """What came of it, with the lead on its own; errors end the run, a wish to end is passed on."""
    before = _is_alone.set(True)
    try:
        return {"made": make()}
    except SystemExit as exit_:
        return {"exit": exit_.code}
    finally:
        _is_alone.reset(before)


def from_all(value: Any) -> list[Any]:
    """The JSON value of each process, on all processes."""
    if count() == 1:
        return [value]
    client, key = distributed.global_state.client, f"empathy_jax/{next(_turns)}"
    client.key_value_set(f"{key}/{index()}", files.dumps(value))
    _meet()
    told = {name.rpartition("/")[2]: text for name, text in client.key_value_dir_get(f"{key}/")}
    return [json.loads(told[str(process)]) for process in range(count())]


def _meet() -> None:
    """Waits until all processes have come here."""
    distributed.global_state.client.wait_at_barrier(f"empathy_jax/{next(_turns)}", _FOREVER_MS)


class Agreement:
    """Whether something has come to pass on any process, asked once a step with one answer for all.

    The answer is that of the step before where there are several processes: so no one waits for the
    devices. It is a collective: all must ask equally often.
    """

    def __init__(self) -> None:
        self._pending: jax.Array | None = None
        if count() > 1:
            mesh = Mesh(np.array(jax.devices()), ("device",), axis_types=(AxisType.Auto,))
            self._sharding = NamedSharding(mesh, PartitionSpec("device"))
            self._any = jax.jit(jax.numpy.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def agreed(self, here: bool) -> bool:
        """Whether it is so, given that it is so `here`."""
        if count() == 1:
            return here
        before = self._pending
        shape = self._sharding.mesh.devices.shape
        flags = jax.make_array_from_callback(
            shape, self._sharding, lambda _: np.array([here], np.int32)
        )
        with jax.set_mesh(self._sharding.mesh):
            self._pending = self._any(flags)
        return before is not None and bool(jax.device_get(before))


# --- arrays ---


def put(tree: Any, shardings: Any) -> Any:
    """Arrays that are equal on all processes, laid out; each device takes its own part.

    Args:
      tree: of numpy arrays, or arrays of one process's devices.
      shardings: a sharding for each leaf or for each subtree.
    """
    if count() == 1:
        return jax.device_put(tree, shardings)

    def place(leaf: Any, sharding: Sharding) -> jax.Array:
        is_global = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
        if is_global or sharding.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda part: leaf[part])

    return jax.tree.map(
        lambda sharding, subtree: jax.tree.map(lambda leaf: place(leaf, sharding), subtree),
        shardings,
        tree,
    )


def own_rows(rows: int, sharding: Sharding) -> np.ndarray:
    """Which of the rows of a batch lie on devices of this process, ascending."""
    parts = sharding.addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[part] for part in parts]))


def put_own_rows(batch: dict[str, np.ndarray], rows: int, sharding: Sharding) -> dict:
    """A batch of `rows` rows of which each process has read its `own_rows`."""
    own = own_rows(rows, sharding)

    def place(leaf: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...]) -> np.ndarray:
            first, last, _ = index[0].indices(rows)
            begin = int(np.searchsorted(own, first))
            return leaf[begin : begin + last - first]

        return jax.make_array_from_callback((rows, *leaf.shape[1:]), sharding, part)

    return {name: place(leaf) for name, leaf in batch.items()}


def share(total: int, process: int | None = None) -> slice:
    """The part of `total` things that a process takes, this one if none is named: equal to within one."""
    process = index() if process is None else process
    return slice(process * total // count(), (process + 1) * total // count())


def gather_shares(part: np.ndarray, total: int) -> np.ndarray:
    """All of `total` rows on every process, from the `share` of each."""
    if count() == 1:
        return part
    sizes = [len(range(total)[share(total, process)]) for process in range(count())]
    padded = np.zeros((max(sizes), *part.shape[1:]), part.dtype)
    padded[: len(part)] = part
    _meet()  # for work that took them unequally long; devices should not wait so
    everyone = multihost_utils.process_allgather(padded)
    return np.concatenate([one[:size] for one, size in zip(everyone, sizes, strict=True)])


# --- how all end ---


def fail(reason: str) -> None:
    """Ends every process of the run, each with a line that says why, and status 1; one process returns.

    The other way out, through the end of the program, is a barrier that waits for those that hang.
    """
    if distributed.global_state.num_processes == 1:
        return
    if _ending.acquire(blocking=False):
        print(f"error: {reason}", file=sys.stderr, flush=True)
        message = f"process {distributed.global_state.process_id} has failed: {reason}"
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the lead is gone
            distributed.global_state.client.key_value_set(_FAILURE, message, allow_overwrite=True)
        _exit()
    threading.Event().wait()  # another thread is about to end the process


def _end_with_the_others(is_over: threading.Event) -> None:
    """Looks now and then whether a process has failed or the lead is gone, and ends this one then."""
    client, silent = distributed.global_state.client, 0
    while not is_over.wait(_POLL_SECONDS):
        try:
            reason = client.key_value_try_get(_FAILURE)
        except jax.errors.JaxRuntimeError as error:
            silent = 0 if "NOT_FOUND" in str(error) else silent + 1
            if silent < _SILENCES:
                continue
            reason = "process 0 does not answer any more; its own output may say why"
        if _ending.acquire(blocking=False):
            print(f"error: {reason}", file=sys.stderr, flush=True)
            _exit()


def _exit() -> NoReturn:
    """Ends this process; the store ends with the lead's, so the others read it first."""
    time.sleep(2 * _POLL_SECONDS if distributed.global_state.process_id == 0 else 0)
    os._exit(1)
