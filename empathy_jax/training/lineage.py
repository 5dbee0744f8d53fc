"""The runs that made a model, one after the other, read from the folders that they left.

A folder may hold another model by now than the one a later stage began with: its digest tells. Then
nothing more can be said of that stage.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from empathy_jax.training import common
from empathy_jax.training import workdir as workdirs


@dataclasses.dataclass(frozen=True)
class Stage:
    """A training phase on the way to a model.

    Attributes:
      folder: `WORKDIR/<phase>`.
      config: its values.
      step: of the checkpoint that was used; None where there is none.
      is_same: whether the folder still holds the model that the next stage, or the export, took.
    """

    folder: Path
    config: Mapping[str, Any]
    step: int | None
    is_same: bool = True

    @property
    def phase(self) -> str:
        return self.folder.name

    @property
    def section(self) -> Mapping[str, Any]:
        """The values of the model that is trained: `model` or `reward_model`."""
        return self.config[model_section(self.folder)]

    def read(self, name: str) -> Any:
        """The content of one of its JSON files; None where there is none, or not of this model."""
        path = self.folder / name
        return read_json(path) if self.is_same and path.exists() else None


def trace(init: str) -> tuple[list[Stage], str]:
    """The stages that made a model, oldest first, and what they started from.

    Args:
      init: `WORKDIR/<phase>`, a Hugging Face directory, or a hub id.

    Returns:
      The stages (none for an import), and a hub id, a directory, or "" for fresh weights.
    """
    folder = Path(init)
    if not common.is_run(folder):
        return [], init
    config = read_json(folder / "config.json")
    taken = _taken(folder)
    earlier = config[model_section(folder)]["init"]
    if not earlier and folder.name == "rl":
        earlier = str(folder.parent / "sft")
    before, base = trace(earlier) if earlier else ([], "")
    if before and workdirs.newest_checkpoint(before[-1].folder).get("digest") != taken.get(
        "digest"
    ):
        before[-1] = dataclasses.replace(before[-1], step=taken.get("step"), is_same=False)
    step = workdirs.newest_checkpoint(folder).get("step")
    return [*before, Stage(folder, config, step)], base


def evaluation(init: str, workdir: Path) -> Stage | None:
    """The finished evaluation of this very model, in its own WORKDIR or in that of the export."""
    run = Path(init)
    digest = workdirs.newest_checkpoint(run).get("digest") if common.is_run(run) else None
    for folder in (workdir / "evaluate", run.parent / "evaluate"):
        if not (folder / "summary.json").exists():
            continue
        taken = _taken(folder)
        same = taken.get("digest") == digest if digest else taken.get("place") == init
        if same:
            return Stage(folder, read_json(folder / "config.json"), taken.get("step"))
    return None


def model_section(folder: Path) -> str:
    """The section of the config with the model that a phase trains."""
    return "reward_model" if folder.name == "reward_model" else "model"


def base_name(base: str) -> str:
    """A hub id as it is, a directory by its name alone, without the machine's path."""
    if not base:
        return "freshly initialised weights"
    return base if is_hub_id(base) else Path(base).resolve().name


def is_hub_id(base: str) -> bool:
    """Whether `owner/name` is meant, and no directory of this machine."""
    pattern = r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?"
    return bool(re.fullmatch(pattern, base)) and not Path(base).exists()


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _taken(folder: Path) -> dict:
    """What a phase began with: place, and of a run step and digest."""
    path = folder / "inputs.json"
    return read_json(path).get(model_section(folder), {}) if path.exists() else {}
