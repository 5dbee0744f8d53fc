"""The points of a sweep: which values of which fields, checked against the config before anything starts."""

import dataclasses
import hashlib
import itertools
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from empathy_jax import files
from empathy_jax.main import PHASES

NAME_LENGTH = 12  # hex digits of a point's folder
DIGITS = 4  # of a number drawn at random
SCALES = ("log", "uniform", "int")


@dataclasses.dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
      name: hash of the config and of every value that is not the config's own: its folder.
      values: swept field to its value as text of the command line.
      phases: what the run consists of.
      flags: the command line of `empathy_jax.main` without `--workdir`.
    """

    name: str
    values: dict[str, str]
    phases: tuple[str, ...]
    flags: tuple[str, ...]

    def folder(self, workdir: Path) -> Path:
        """The `--workdir` of the run."""
        return workdir / self.name

    def arguments(self, workdir: Path) -> list[str]:
        """What follows `python -m empathy_jax.main`."""
        return [*self.flags, f"--workdir={self.folder(workdir)}"]

    def is_finished(self, workdir: Path) -> bool:
        """Whether every phase has run to its end."""
        folder = self.folder(workdir)
        return all((folder / phase / "summary.json").exists() for phase in self.phases)

    def write(self, workdir: Path) -> None:
        """`point.json`: what the folder's name stands for."""
        path = self.folder(workdir) / "point.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(path, {"values": self.values, "flags": self.flags})


@dataclasses.dataclass(frozen=True)
class Halving:
    """Successive halving (https://arxiv.org/abs/1502.07943): the best share of each rung gets more.

    A rung begins anew with its budget, in folders of its own: a phase goes on only with the same
    `steps`, since its learning-rate schedule and its last measurements depend on them.
    """

    field: str
    budgets: tuple[str, ...]
    keep: float
    rung: int = 0

    @classmethod
    def parse(cls, text: str, keep: float) -> "Halving | None":
        """`steps=100,300,900`; None where the text is empty."""
        if not text:
            return None
        field, budgets = split_field(text, "--halving")
        if len(budgets) < 2 or not all(budget.isdecimal() for budget in budgets):
            raise ValueError(
                f"--halving is {text!r}; it must be FIELD=B1,B2,... with two whole numbers or more"
            )
        if sorted(set(map(int, budgets))) != [int(budget) for budget in budgets]:
            raise ValueError(f"--halving is {text!r}; its budgets must grow")
        if not 0 < keep < 1:
            raise ValueError(f"--keep is {keep}; it must be above 0 and below 1")
        return cls(field, tuple(budgets), keep)

    def __str__(self) -> str:
        return f"{self.field}={self.budgets[self.rung]}"

    def next(self) -> "Halving | None":
        """The rung above; None on the last one."""
        if self.rung + 1 == len(self.budgets):
            return None
        return dataclasses.replace(self, rung=self.rung + 1)

    def count(self, points: int) -> int:
        """How many of a rung's points reach the next."""
        return max(1, math.ceil(points * self.keep - 1e-9))


@dataclasses.dataclass(frozen=True)
class Space:
    """All points that a command line asks for.

    Attributes:
      config: file and size, as `--config` names them.
      fixed: field to value, shared by all points.
      grid: FIELD=V1,V2,... each.
      random: FIELD=SCALE:LOW,HIGH or FIELD=V1,V2,... each.
      draws: how many times the random fields are drawn.
      seed: of the draws; draw i is the same however many there are.
    """

    config: str
    fixed: dict[str, Any]
    grid: Sequence[str]
    random: Sequence[str]
    draws: int
    seed: int

    def points(self, halving: Halving | None) -> list[Point]:
        """Every place of the grid with every draw, each once.

        Raises:
          ValueError, AttributeError, flags.Error: for a field that the config lacks, a value of
            another type, a field given twice, or a sweep of nothing.
        """
        grid = [split_field(text, "--grid") for text in self.grid]
        scales = [split_field(text, "--random") for text in self.random]
        self._check([*grid, *scales], halving)
        budget = {halving.field: halving.budgets[0]} if halving else {}
        found = {}
        for draw in range(self.draws if scales else 1):
            drawn = {field: self._draw(field, allowed, draw) for field, allowed in scales}
            for values in itertools.product(*(allowed for _, allowed in grid)):
                place = dict(zip((field for field, _ in grid), values, strict=True))
                point = self.make_point({**place, **drawn, **budget})
                found.setdefault(point.name, point)
        return list(found.values())

    def with_budget(self, points: Sequence[Point], halving: Halving) -> list[Point]:
        """The same points on another rung."""
        budget = {halving.field: halving.budgets[halving.rung]}
        return [self.make_point({**point.values, **budget}) for point in points]

    def make_point(self, values: dict[str, str]) -> Point:
        """Read the values as `empathy_jax.main` will; equal values in other words are one point."""
        fixed = {field: _text(value) for field, value in self.fixed.items()}
        words = [f"--config.{field}={text}" for field, text in {**fixed, **values}.items()]
        argv = ["sweep", f"--config={self.config}", *words]
        config, overrides = read_config(argv)
        phases = tuple(config.phases) or (config.phase,)
        for phase in phases:
            if phase not in PHASES:
                raise ValueError(f"config.phase {phase!r} is not one of {', '.join(PHASES)}")
        identity = json.dumps([self.config, overrides], sort_keys=True)
        name = hashlib.sha256(identity.encode("utf-8")).hexdigest()[:NAME_LENGTH]
        return Point(name, values, phases, tuple(argv[1:]))

    def _check(self, swept: Sequence[tuple[str, list[str]]], halving: Halving | None) -> None:
        fields = [field for field, _ in swept] + ([halving.field] if halving else [])
        for field in fields:
            if fields.count(field) > 1 or field in self.fixed:
                raise ValueError(
                    f"config.{field} is given twice; name it in one of --grid, --random, --halving "
                    "and --config.FIELD"
                )
        if not swept:
            raise ValueError("nothing to sweep; give --grid=FIELD=V1,V2 or --random=FIELD=...")
        if bool(self.random) != (self.draws > 0):
            raise ValueError(
                f"--points is {self.draws} and --random is given {len(self.random)} times; --points "
                "is the number of draws of the --random fields, 1 or more, and belongs to them alone"
            )

    def _draw(self, field: str, allowed: list[str], draw: int) -> str:
        rng = random.Random(f"{self.seed}/{draw}/{field}")
        scale, separator, first = allowed[0].partition(":")
        if not separator:
            return rng.choice(allowed)
        if scale not in SCALES:
            raise ValueError(
                f"--random {field} has the scale {scale!r}, which is not one of {', '.join(SCALES)}"
            )
        low, high = _bounds(field, scale, [first, *allowed[1:]])
        if scale == "int":
            return str(rng.randint(int(low), int(high)))
        if scale == "log":
            drawn = math.exp(rng.uniform(math.log(low), math.log(high)))
        else:
            drawn = rng.uniform(low, high)
        return repr(float(f"{drawn:.{DIGITS}g}"))


def read_config(argv: list[str]) -> tuple[ConfigDict, dict[str, Any]]:
    """The config of a command line, and the values on it that are not the file's own.

    Raises:
      AttributeError, flags.Error: for a field that the config lacks, or a value of another type.
    """
    flag_values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", flag_values, sys_argv=argv)
    flag_values(argv)
    return flag_values.config, config_flags.get_override_values(flag_values["config"])


def _bounds(field: str, scale: str, words: list[str]) -> tuple[float, float]:
    kind = int if scale == "int" else float
    try:
        low, high = map(kind, words)
    except ValueError:
        low, high = 1, 0
    if not (low < high and math.isfinite(high) and (low > 0 or scale != "log")):
        raise ValueError(
            f"--random {field}={scale}:{','.join(words)} is no range; it must be {scale}:LOW,HIGH "
            f"with {'0 < ' if scale == 'log' else ''}LOW < HIGH"
        )
    return low, high


def split_field(text: str, flag: str) -> tuple[str, list[str]]:
    """ "field=a,(b,c)" is ("field", ["a", "(b,c)"]): a comma in brackets or quotes parts nothing."""
    field, separator, rest = text.partition("=")
    words, depth, quote = [""], 0, ""
    for character in rest:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        if character == "," and depth == 0 and not quote:
            words.append("")
        else:
            words[-1] += character
    field = field.removeprefix("config.")
    if not separator or not field or "" in words:
        raise ValueError(f"{flag} is {text!r}; it must be FIELD=V1,V2,... with no empty value")
    return field, words


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
