"""What a config needs on a slice of chips, before anyone rents it: memory, work, and time.

    python -m empathy_jax.main --config=configs/rl.py:qwen3_8b --plan=v5p:4x4x4

compiles every step of the phase for that TPU, with no TPU there, and reads the compiled programs
(`hlo`). For GPUs (`--plan=gpu:8xh200`), which cannot be compiled for without one, the same is counted
(`plan_counting`). No weight is made. docs/plan.md explains the table.
"""

import dataclasses
import re
import time
from collections.abc import Callable

import jax
from jax.sharding import AbstractMesh, AxisType
from ml_collections import ConfigDict

from empathy_jax import chips, counting, hlo, sharding
from empathy_jax.chips import GIB, Slice
from empathy_jax.sharding import Layout
from empathy_jax.training import plan_counting, plan_steps
from empathy_jax.training.plan_steps import Step

TIGHT = 0.9  # share of the memory above which a plan says so


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a step needs of one chip.

    Attributes:
      name, times: of the step.
      compiled: whether this was compiled, or counted.
      arguments, temporaries, output: bytes; results that take an argument's place are no output.
      held: bytes of what else lies there.
      flops, bytes: of one run.
      asked: FLOPs that the products of the step take when divided evenly.
      collectives: kind to (bytes, seconds) of one run.
      guessed, kernels: loops of guessed count, and kernels whose products `flops` lacks.
      compile_seconds: processor time of the compilation.
    """

    name: str
    times: int
    compiled: bool
    arguments: int
    temporaries: int
    output: int
    held: int
    flops: float
    bytes: float
    asked: float
    collectives: dict[str, tuple[float, float]]
    guessed: int = 0
    kernels: int = 0
    compile_seconds: float = 0.0

    @property
    def memory(self) -> int:
        """Bytes that a chip must have while the step runs."""
        return self.arguments + self.temporaries + self.output + self.held


@dataclasses.dataclass(frozen=True)
class Plan:
    """The steps of a phase on a slice.

    Attributes:
      target: the slice.
      mesh: axis to size.
      estimates: of each step.
      advice: what to change where it does not fit; each was counted.
    """

    target: Slice
    mesh: dict[str, int]
    estimates: list[Estimate]
    advice: list[str]

    @property
    def memory(self) -> int:
        """Bytes of a chip that the hungriest step takes."""
        return max(estimate.memory for estimate in self.estimates)

    @property
    def fits(self) -> bool:
        """Whether a chip has them."""
        return self.memory <= self.target.chip.hbm_bytes

    @property
    def seconds(self) -> float:
        """Least time of one update of the phase."""
        return sum(e.times * max(bounds(e, self.target).values()) for e in self.estimates)


def run(config: ConfigDict, name: str, say: Callable[[str], None] = print) -> Plan:
    """Plan `config.phase` on the slice that `name` names, and print the table.

    Raises:
      ValueError: for a slice that there is not, a mesh that does not fit it, a phase without steps,
        or without the TPU compiler.
    """
    target = chips.parse(name)
    made = make(config, target, say)
    say(table(config, made))
    return made


def make(config: ConfigDict, target: Slice, say: Callable[[str], None] = lambda _: None) -> Plan:
    """Compile, or count, every step."""
    devices = chips.compile_devices(target) if target.is_tpu else None
    layout = make_layout(config, target, devices)
    estimates = []
    for step in plan_steps.steps(config, layout):
        say(f"[plan] {step.name}: {'compiling' if devices else 'counting'} ...")
        with _in_use(layout):
            flops = counting.flops(step.program, *step.arguments, loops=step.loops)
            estimate = counted(step, layout, target, flops)
            estimates.append(_compiled(step, layout, target, estimate) if devices else estimate)
    plan = Plan(target, dict(layout.mesh.shape), estimates, [])
    return plan if plan.fits else dataclasses.replace(plan, advice=_advice(config, plan))


def make_layout(config: ConfigDict, target: Slice, devices: object = None) -> Layout:
    """`config.mesh` over a slice: over devices to compile for, or over as many that are not there."""
    rules = tuple(tuple(rule) for rule in config.mesh.rules)
    if devices is not None:
        return Layout(sharding.make_mesh(config.mesh, devices), rules)
    shape = sharding.mesh_shape(config.mesh, target.devices)
    axes = sharding.AXES
    return Layout(AbstractMesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes)), rules)


def _in_use(layout: Layout) -> object:
    """The mesh as `run` of a phase sets it."""
    if isinstance(layout.mesh, AbstractMesh):
        return jax.sharding.use_abstract_mesh(layout.mesh)
    return jax.set_mesh(layout.mesh)


# --- one step ---


def counted(step: Step, layout: Layout, target: Slice, flops: float) -> Estimate:
    """A step by counting; `flops` are those of all devices."""
    found = plan_counting.count(step, layout)
    per_chip = target.chip.devices
    work = flops / target.chips
    collectives = {}
    for (kind, axis), size in found.collectives.items():
        seconds = chips.collective_seconds(target, kind, size, layout.mesh.shape[axis])
        before = collectives.get(kind, (0.0, 0.0))
        collectives[kind] = (before[0] + size * per_chip, before[1] + seconds)
    memory = (found.arguments, found.temporaries, found.output, found.held)
    return Estimate(
        step.name,
        step.times,
        False,
        *(size * per_chip for size in memory),
        flops=work,
        bytes=found.bytes * per_chip,
        asked=work,
        collectives=collectives,
    )


def _compiled(step: Step, layout: Layout, target: Slice, by_hand: Estimate) -> Estimate:
    """A step by compiling it; as counted, but for its memory, where the compiler finds it too large."""
    began, per_chip = time.process_time(), target.chip.devices
    try:
        compiled = step.program.lower(*step.arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        temporaries = refused_temporaries(str(error), by_hand.arguments // per_chip)
        if temporaries is None:
            raise
        return dataclasses.replace(by_hand, temporaries=temporaries * per_chip)
    seconds = time.process_time() - began
    memory = compiled.memory_analysis()
    found = hlo.cost(compiled.as_text(), step.loops)
    return dataclasses.replace(
        by_hand,
        compiled=True,
        arguments=memory.argument_size_in_bytes * per_chip,
        temporaries=memory.temp_size_in_bytes * per_chip,
        output=(memory.output_size_in_bytes - memory.alias_size_in_bytes) * per_chip,
        flops=found.flops * per_chip,
        bytes=found.bytes * per_chip,
        collectives=_collectives(found, layout, target),
        guessed=found.guessed,
        kernels=found.kernels,
        compile_seconds=seconds,
    )


def refused_temporaries(message: str, arguments: int) -> int | None:
    """Bytes between arguments and results of a program that the compiler refuses for its size.

    Args:
      message: the compiler's; it names the temporaries, or all that is used.
      arguments: bytes of a device.

    Returns:
      None for another message.
    """
    found = re.search(r"(HLO temporaries \(|Used )([\d.]+)([KMGT])", message)
    if found is None:
        return None
    size = int(float(found[2]) * 1024 ** ("KMGT".index(found[3]) + 1))
    return max(size - arguments, 0) if found[1] == "Used " else size


def _collectives(cost: hlo.Cost, layout: Layout, target: Slice) -> dict[str, tuple[float, float]]:
    """Kind to (bytes, seconds) of all collectives of a compiled program on a chip."""
    devices = layout.mesh.devices.ravel()
    found: dict[str, tuple[float, float]] = {}
    for collective, count in cost.collectives.items():
        members = collective.group or range(len(devices))
        places = [tuple(devices[member].coords) for member in members]
        seconds = chips.collective_seconds(
            target, collective.kind, collective.bytes, len(places), places
        )
        size, before = found.get(collective.kind, (0.0, 0.0))
        size += count * collective.bytes * target.chip.devices
        found[collective.kind] = (size, before + count * seconds)
    return found


def bounds(estimate: Estimate, target: Slice) -> dict[str, float]:
    """Seconds that each resource takes for one run of a step; the largest rules, if all overlap."""
    work = max(estimate.flops, estimate.asked) if estimate.kernels else estimate.flops
    return {
        "compute": work / target.chip.flops,
        "memory": estimate.bytes / target.chip.hbm_bandwidth,
        "network": sum(seconds for _, seconds in estimate.collectives.values()),
    }


# --- what to change ---


def _advice(config: ConfigDict, plan: Plan) -> list[str]:
    """Changes of one field under which the hungriest step fits, by counting what they change."""
    excess = plan.memory - plan.target.chip.hbm_bytes
    now = _counted_memory(config, plan.target)
    fitting, rest = [], []
    for changes in _candidates(config, plan.mesh):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(changes)
        try:
            then = _counted_memory(changed, plan.target)
        except ValueError:  # such as rows that no longer divide
            continue
        flags = " ".join(f"--config.{name}={value}" for name, value in changes.items())
        saved = max(now.values()) - max(then.values())
        line = f"{flags} (about {saved / GIB:.1f} GiB less a chip)"
        if saved > 0:
            (fitting if saved >= excess else rest).append((saved, line))
    chosen = sorted(fitting) or sorted(rest, reverse=True)
    return [line for _, line in chosen[:4]]


def _counted_memory(config: ConfigDict, target: Slice) -> dict[str, int]:
    layout = make_layout(config, target)
    steps = plan_steps.steps(config, layout)
    found = {step.name: plan_counting.count(step, layout) for step in steps}
    return {
        name: (c.arguments + c.temporaries + c.output + c.held) * target.chip.devices
        for name, c in found.items()
    }


def _candidates(config: ConfigDict, mesh: dict[str, int]) -> list[dict[str, object]]:
    """Changes worth trying, the harmless ones first."""
    section = "reward_model" if config.phase == "reward_model" else "model"
    model, found = config[section], []
    if model.remat != "full":
        found.append({f"{section}.remat": "full"})
    if mesh["data"] > 1:
        found.append({"mesh.data": 1, "mesh.fsdp": mesh["data"] * mesh["fsdp"]})
    if mesh["fsdp"] * mesh["data"] > 1:
        found.append(
            {
                "mesh.data": 1,
                "mesh.fsdp": mesh["data"] * mesh["fsdp"] // 2,
                "mesh.tensor": 2 * mesh["tensor"],
            }
        )
    for name, value in _row_fields(config).items():
        found += [{name: value // part} for part in (2, 4) if value >= part]
    if model.param_dtype == "float32":
        found.append({f"{section}.param_dtype": "bfloat16"})
    if not model.lora_rank:
        found.append({f"{section}.lora_rank": 32})
        found.append({f"{section}.lora_rank": 32, f"{section}.param_dtype": "bfloat16"})
    return found


def _row_fields(config: ConfigDict) -> dict[str, int]:
    """Fields that say how many rows of tokens are in memory together."""
    if config.phase == "sft":
        return {"batch_size": config.batch_size}
    if config.phase == "reward_model":
        rows = config.reward_model.rows_per_pass
        return {"reward_model.rows_per_pass": rows or 2 * config.batch_size}
    return {"rl.rows_per_pass": config.rl.rows_per_pass, "sampling.rows": config.sampling.rows}


# --- the table ---


def table(config: ConfigDict, plan: Plan) -> str:
    """The plan for a person's eyes; columns are of one chip."""
    target, chip = plan.target, plan.target.chip
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
    lines = [
        f"{config.phase} on {target.name}: {target.chips} chips of {chip.hbm_bytes / GIB:.1f} GiB, "
        f"mesh {mesh}",
        "",
        f"{'one chip':28}{'args':>8}{'temp':>8}{'out':>8}{'held':>8}{'GiB':>9}"
        f"{'TFLOP':>9}{'GB moved':>10}{'GB sent':>9}  bound",
    ]
    for estimate in plan.estimates:
        found = bounds(estimate, target)
        rules = max(found, key=found.get)
        sizes = (estimate.arguments, estimate.temporaries, estimate.output, estimate.held)
        parts = "".join(f"{size / GIB:8.2f}" for size in sizes)
        sent = sum(size for size, _ in estimate.collectives.values())
        mark = "" if estimate.compiled else " (counted)"
        lines.append(
            f"{estimate.name:28}{parts}{estimate.memory / GIB:9.2f}{estimate.flops / 1e12:9.2f}"
            f"{estimate.bytes / 1e9:10.1f}{sent / 1e9:9.2f}  {rules} {_time(found[rules])}"
            f" x {estimate.times}{mark}"
        )
    lines += ["", *_details(plan), "", _verdict(plan)]
    return "\n".join(lines)


def _details(plan: Plan) -> list[str]:
    lines = []
    for estimate in plan.estimates:
        found = bounds(estimate, plan.target)
        times = ", ".join(f"{name} {_time(seconds)}" for name, seconds in found.items())
        lines.append(f"{estimate.name}: {times}")
        for kind, (size, seconds) in sorted(estimate.collectives.items()):
            lines.append(f"    {kind:20}{size / 1e9:10.3f} GB {_time(seconds):>10}")
        if estimate.guessed:
            lines.append(
                f"    {estimate.guessed} loops do not tell their count; taken as the longest they may be"
            )
        if estimate.kernels:
            lines.append(
                "    its kernels' products are counted from the program, not from its text"
            )
    return lines


def _verdict(plan: Plan) -> str:
    hbm, worst = plan.target.chip.hbm_bytes, max(plan.estimates, key=lambda e: e.memory)
    needs = f"{worst.memory / GIB:.1f} of {hbm / GIB:.1f} GiB a chip, in {worst.name}"
    if not plan.fits:
        lines = [f"DOES NOT FIT: needs {needs}"]
        lines += [f"    turn {line}" for line in plan.advice]
        return "\n".join(lines)
    tight = ", tightly" if plan.memory > TIGHT * hbm else ""
    return f"FITS{tight}: needs {needs}; an update takes {_time(plan.seconds)} at least"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.2f} ms"
