r"""Sweeps over any config field: grid, random search, successive halving.

    python -m launch.sweep --config=configs/sft.py:tiny --workdir=runs/sweep --metric=sft/validation_loss \
        --grid=optimizer.schedule=constant,cosine --random=optimizer.learning_rate=log:1e-3,1e-2 --points=8

Each point is a run of `empathy_jax.main` in a folder of its own, named by a hash of its values. A point
that has finished is never run again: the same command goes on where it was stopped, and one with more
points adds to what is there. `results.csv` and the table at the end have the best point first.
docs/launch.md has every flag; `--dry_run` prints the commands.
"""

import os
import shlex
import sys
from pathlib import Path
from typing import IO

from absl import flags
from ml_collections import config_flags

from launch import backends, command_line, results
from launch.points import Halving, Point, Space


def read_flags(argv: list[str]) -> flags.FlagValues:
    """The command line; a misspelled flag, file or field raises one of main's FLAG_ERRORS."""
    values = command_line.make_flags(argv, "As of empathy_jax.main, with its --config.field=value.")
    flags.DEFINE_multi_string("grid", [], "FIELD=V1,V2,...: every value.", flag_values=values)
    flags.DEFINE_multi_string(
        "random",
        [],
        "FIELD=log:LOW,HIGH, uniform:LOW,HIGH or int:LOW,HIGH (both included), or FIELD=V1,V2,...",
        flag_values=values,
    )
    flags.DEFINE_integer("points", 0, "Draws of the --random fields.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Of the draws.", flag_values=values)
    flags.DEFINE_string(
        "halving",
        "",
        "FIELD=B1,B2,...: budgets that grow, such as steps=100,300,900.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "keep", 1 / 3, "Share of points that reach the next budget.", flag_values=values
    )
    flags.DEFINE_string("metric", "", "PHASE/NAME, such as rl/held_out_reward.", flag_values=values)
    flags.DEFINE_boolean("maximise", False, "The highest metric is best.", flag_values=values)
    return command_line.parse(values, argv)


def main(argv: list[str]) -> None:
    command_line.run(sweep, argv)


def sweep(argv: list[str]) -> None:
    """Read the command line, run what is not finished, and write the results."""
    given = read_flags(argv)
    if given.help:
        print(__doc__ + given.get_help())
        return
    if given.config is None:
        raise ValueError("--config is missing; name a file of configs/, e.g. configs/rl.py:tiny")
    space = Space(
        config=config_flags.get_config_filename(given["config"]),
        fixed=config_flags.get_override_values(given["config"]),
        grid=given.grid,
        random=given.random,
        draws=given.points,
        seed=given.seed,
    )
    halving = Halving.parse(given.halving, given.keep)
    points = space.points(halving)
    metric = results.Metric.parse(given.metric, given.maximise, points[0].phases)
    if not given.workdir:
        raise ValueError("--workdir is empty; name the folder that the sweep writes to")
    workdir = Path(given.workdir)
    backend = backends.Backend.parse(given.backend, given.resources, workdir)
    if given.dry_run:
        _show(points, halving, backend, workdir)
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with command_line.lock(workdir) as file, command_line.sigterm_raises():
        try:
            rows = _run(space, points, halving, metric, backend, workdir, file)
        except KeyboardInterrupt:
            print(f"stopped; the same command goes on from here: {workdir}", flush=True)
            return
    print("\n" + results.table(rows, metric) + f"\n{workdir / results.FILE}", flush=True)
    if all(row.value is None for row in rows):
        raise ValueError(f"no point has a result; {results.FILE} in {workdir} has each reason")


def _run(
    space: Space,
    points: list[Point],
    halving: Halving | None,
    metric: results.Metric,
    backend: backends.Backend,
    workdir: Path,
    lock: IO,
) -> list[results.Row]:
    """Every rung in turn (one where nothing is halved); returns the rows of all, best first."""
    earlier: list[results.Row] = []  # of the rungs below, the last one first
    while True:
        reasons: dict[str, str] = {}
        for point in points:
            point.write(workdir)
        todo = [point for point in points if not point.is_finished(workdir)]
        print(f"{len(points)} points, {len(points) - len(todo)} of them finished", flush=True)
        for point, reason in backend.run(todo, workdir, lock):
            reasons[point.name] = reason
            so_far = results.collect(points, metric, workdir, reasons)
            results.write(workdir, so_far + earlier, metric)
        rows = results.collect(points, metric, workdir, reasons)
        earlier = rows + earlier
        results.write(workdir, earlier, metric)
        ranked = [row.point for row in rows if row.value is not None]
        survivors = ranked[: halving.count(len(points))] if halving else []
        halving = halving.next() if halving else None
        if not survivors or halving is None:
            return earlier
        print(f"the best {len(survivors)} of {len(points)} go on with {halving}", flush=True)
        points = space.with_budget(survivors, halving)


def _show(
    points: list[Point], halving: Halving | None, backend: backends.Backend, workdir: Path
) -> None:
    todo = [point for point in points if not point.is_finished(workdir)]
    for command in backend.commands(todo, workdir):
        print(shlex.join(command))
    count = len(points)
    while halving and (halving := halving.next()):
        count = halving.count(count)
        print(f"# then the best {count} of them with {halving}, begun anew")


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main(sys.argv)
