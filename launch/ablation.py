r"""The paper's ablation in one command: what the chain, the SFT and the RL are each good for, over seeds.

    python -m launch.ablation --config=configs/ablation.py:tiny --workdir=runs/ablation --seeds=3

Four systems (https://arxiv.org/abs/2509.14851, Table 4): `full`; `without_chain`, which learns and writes
answers alone; `sft_only`; `rl_only`, from the weights that SFT would begin with. `--grid=rl.kl_weight=0,0.04`
adds variants of `full`. A system that differs from `full` in nothing that SFT (or RL) reads goes on from
its model. One reward model serves all, as reward and as measure, so that figures compare.

Runs lie in WORKDIR/seed_N/SYSTEM, the reward model in WORKDIR/shared, the comparison in
WORKDIR/comparison. What is finished is never run again: the same command goes on where it was
stopped. docs/evaluation.md has every flag; `--dry_run` prints the commands.
"""

import dataclasses
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from empathy_jax.evaluation import compare
from empathy_jax.main import phase_config
from empathy_jax.training import workdir as workdirs
from launch import backends, command_line
from launch.points import Point, Space, read_config, split_field

PHASES = ("sft", "rl", "evaluate")
# What each system changes in the config of `full`, and the phases it has.
SYSTEMS: Mapping[str, tuple[Mapping[str, str], tuple[str, ...]]] = {
    "full": ({}, PHASES),
    "without_chain": ({"data.format": "answer"}, PHASES),
    "sft_only": ({}, ("sft", "evaluate")),
    "rl_only": ({"per_phase.sft.steps": "0"}, PHASES),
}
SHARED = "shared"  # the folder of the reward model
# Fields that are the ablation's own.
_OWN = ("seed", "phase", "phases", "reward_model", "per_phase.reward_model", "data.format")


@dataclasses.dataclass(frozen=True)
class Run:
    """A system under one seed.

    Attributes:
      system: its name.
      point: the phases it has of its own.
      values: all that its config has beside that of the command line.
      after: the run whose model it goes on from; None: it begins with its own SFT.
    """

    system: str
    point: Point
    values: Mapping[str, str]
    after: "Run | None"


def read_flags(argv: list[str]) -> flags.FlagValues:
    """The command line; a misspelled flag, file or field raises one of main's FLAG_ERRORS."""
    values = command_line.make_flags(
        argv, "configs/ablation.py:SIZE, with its --config.field=value."
    )
    flags.DEFINE_integer(
        "seeds", 1, "Runs of each system, of the seeds config.seed, ...", 1, flag_values=values
    )
    flags.DEFINE_multi_string(
        "grid", [], "FIELD=V1,V2,...: variants of full; several: every combination.",
        flag_values=values,
    )  # fmt: skip
    return command_line.parse(values, argv)


def main(argv: list[str]) -> None:
    command_line.run(ablate, argv)


def ablate(argv: list[str]) -> None:
    """Read the command line, run what is not finished, and compare."""
    given = read_flags(argv)
    if given.help:
        print(__doc__ + given.get_help())
        return
    if given.config is None:
        raise ValueError("--config is missing; name configs/ablation.py:SIZE, such as :tiny")
    if not given.workdir:
        raise ValueError("--workdir is empty; name the folder that the ablation writes to")
    workdir = Path(given.workdir)
    space = Space(
        config=config_flags.get_config_filename(given["config"]),
        fixed=config_flags.get_override_values(given["config"]),
        grid=(),
        random=(),
        draws=0,
        seed=0,
    )
    reward_model, runs = plan(space, given.grid, given.config.seed, given.seeds, workdir)
    backend = backends.Backend.parse(given.backend, given.resources, workdir)
    _refuse_others([reward_model, *(run.point for run in runs)], workdir)
    language = given.config.data.language
    if given.dry_run:
        for wave in _waves(reward_model, runs):
            todo = [point for point in wave if not point.is_finished(workdir)]
            for command in backend.commands(todo, workdir):
                print(shlex.join(command))
        print(shlex.join([*_COMPARE, *comparison(runs, workdir, language)]))
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with command_line.lock(workdir) as lock, command_line.sigterm_raises():
        try:
            reasons = _run(reward_model, runs, backend, workdir, lock)
        except KeyboardInterrupt:
            print(f"stopped; the same command goes on from here: {workdir}", flush=True)
            return
    whole = [run for run in runs if not _missing(run.system, runs, workdir)]
    if len({run.system for run in whole}) > 1:
        compare.main(comparison(whole, workdir, language))
    if reasons:
        failed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise ValueError(f"not finished, and left out of the comparison: {failed}")


def plan(
    space: Space, grid: Sequence[str], first_seed: int, seeds: int, workdir: Path
) -> tuple[Point, list[Run]]:
    """The reward model, and all systems of all seeds, `full` first of each seed.

    Raises:
      ValueError, AttributeError, flags.Error: for a field that the config lacks, a value of another
        type, a field that is the ablation's own, or a grid that changes nothing.
    """
    values = {"phases": repr(("reward_model",))}
    reward_model = dataclasses.replace(space.make_point(values), name=SHARED, values={})
    changes = {name: change for name, (change, _) in SYSTEMS.items()}
    changes |= _variants(space, grid)
    folders = {name: re.sub(r"[^\w.+-]+", "_", name) for name in changes}
    if len(set(folders.values())) < len(folders):
        raise ValueError(f"--grid gives two systems one folder: {', '.join(folders.values())}")
    fixed = {
        "reward_model.init": str(workdir / SHARED / "reward_model"),
        "reward_model.tokenizer": "",
    }
    runs = []
    for seed in range(first_seed, first_seed + seeds):
        full = None
        for name, change in changes.items():
            folder = f"seed_{seed}/{folders[name]}"
            run = _make_run(space, name, folder, fixed | {"seed": str(seed)}, change, full, workdir)
            full = full or run
            runs.append(run)
    return reward_model, runs


def _variants(space: Space, grid: Sequence[str]) -> dict[str, dict[str, str]]:
    """Systems of the grid: name to the fields that are changed; each different from `full`."""
    fields = [split_field(text, "--grid") for text in grid]
    for field, _ in fields:
        if [name for name, _ in fields].count(field) > 1 or field in space.fixed:
            raise ValueError(
                f"config.{field} is given twice; name it in --grid or in --config.{field}"
            )
        if any(field == own or field.startswith(own + ".") for own in _OWN):
            raise ValueError(
                f"--grid names {field}, which the ablation sets itself; it may not name "
                f"{', '.join(_OWN)}"
            )
    known = {_identity(_config(space, {}))}
    found = {}
    for place in _places(fields):
        identity = _identity(_config(space, place))
        if identity not in known:
            known.add(identity)
            found[" ".join(f"{field} {value}" for field, value in place.items())] = place
    if grid and not found:
        raise ValueError(
            f"--grid={' --grid='.join(grid)} changes nothing of full: its values are those of the "
            "config, or each phase has its own there (name those: per_phase.PHASE.FIELD)"
        )
    return found


def _places(fields: Sequence[tuple[str, list[str]]]) -> list[dict[str, str]]:
    """Every combination of the values; nothing of no field."""
    if not fields:
        return []
    (field, values), *rest = fields
    return [{field: value, **place} for value in values for place in _places(rest) or [{}]]


def _make_run(
    space: Space,
    name: str,
    folder: str,
    fixed: Mapping[str, str],
    change: Mapping[str, str],
    full: Run | None,
    workdir: Path,
) -> Run:
    """A system's run, which goes on from `full` as far as both are the same."""
    phases = SYSTEMS[name][1] if name in SYSTEMS else PHASES
    after, values = None, {**fixed, **change}
    if full is not None:
        config, others = _config(space, values), _config(space, full.values)
        for phase in ("sft", "rl"):
            if phase not in phases or _differing(phase, others, config):
                break
            after, phases = full, phases[1:]
            values = {**values, "model.tokenizer": ""}
            values["model.init"] = str(full.point.folder(workdir) / phase)
    point = space.make_point({**values, "phases": repr(phases)})
    return Run(name, dataclasses.replace(point, name=folder, values=dict(change)), values, after)


def _config(space: Space, values: Mapping[str, str]) -> ConfigDict:
    return read_config(["ablation", *space.make_point({**values, "phases": repr(PHASES)}).flags])[0]


def _resolved(config: ConfigDict, phase: str) -> dict[str, Any]:
    return json.loads(phase_config(config, phase).to_json_best_effort())


def _differing(phase: str, one: ConfigDict, other: ConfigDict) -> list:
    return workdirs.differing(phase, _resolved(one, phase), _resolved(other, phase))


def _identity(config: ConfigDict) -> str:
    """What the phases of a config read."""
    read = [workdirs.differing(phase, {}, _resolved(config, phase)) for phase in PHASES]
    return json.dumps(read)


def _waves(reward_model: Point, runs: Sequence[Run]) -> list[list[Point]]:
    """Points in an order in which each finds what it goes on from."""
    return [
        [reward_model],
        [run.point for run in runs if run.after is None],
        [run.point for run in runs if run.after is not None],
    ]


def _refuse_others(points: Sequence[Point], workdir: Path) -> None:
    """A folder that was begun with other flags holds another run.

    Raises:
      ValueError: names the first such folder and the flags.
    """
    for point in points:
        path = point.folder(workdir) / "point.json"
        if not path.exists():
            continue
        before = json.loads(path.read_text(encoding="utf-8"))["flags"]
        if set(before) != set(point.flags):
            changed = sorted(set(before) ^ set(point.flags))
            raise ValueError(
                f"{point.folder(workdir)} was begun with other flags: {' '.join(changed)} is in one "
                "command only. Give the former command, choose another --workdir, or delete the folder"
            )


def _run(
    reward_model: Point,
    runs: Sequence[Run],
    backend: backends.Backend,
    workdir: Path,
    lock: IO,
) -> dict[str, str]:
    """Run all that is not finished; returns why a point is still not, by its name.

    Raises:
      ValueError: when there is no reward model, without which there is nothing else.
    """
    after = {run.point.name: run.after.point for run in runs if run.after is not None}
    reasons: dict[str, str] = {}
    for wave in _waves(reward_model, runs):
        todo = [point for point in wave if not point.is_finished(workdir)]
        print(f"{len(wave)} runs, {len(wave) - len(todo)} of them finished", flush=True)
        ready = []
        for point in todo:
            earlier = after.get(point.name)
            if earlier is None or earlier.is_finished(workdir):
                point.write(workdir)
                ready.append(point)
            else:
                reasons[point.name] = f"{earlier.name} is not finished"
        failed = {p.name: reason for p, reason in backend.run(ready, workdir, lock) if reason}
        if reward_model.name in failed:
            raise ValueError(f"the reward model is not finished, {failed[reward_model.name]}")
        reasons |= failed
    return reasons


def _missing(system: str, runs: Sequence[Run], workdir: Path) -> bool:
    """Whether a seed of a system is not finished."""
    return any(run.system == system and not run.point.is_finished(workdir) for run in runs)


_COMPARE = (sys.executable, "-m", "empathy_jax.evaluation.compare")


def comparison(runs: Sequence[Run], workdir: Path, language: str) -> list[str]:
    """The arguments of `evaluation.compare`: a system's seeds under one name."""
    systems = [f"--system={run.system}={run.point.folder(workdir)}" for run in runs]
    return [*systems, f"--output={workdir / 'comparison'}", f"--language={language}"]


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main(sys.argv)
