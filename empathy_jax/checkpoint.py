"""Checkpoints: written in the background, verified when read, never half-believed.

A checkpoint is a folder `<step>/` written by orbax, and beside it `<step>.json` with the SHA-256 of
each of its files, written once orbax has committed the folder. Reading takes the newest checkpoint
whose files still have these digests, and says which newer ones it had to pass over.

Several processes write one checkpoint together, each its own arrays, and each digests its share of the
files; the lead alone decides and tidies up. So the folder must be one that all of them see.
"""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from logging import LogRecord
from pathlib import Path
from typing import Any

import jax
from absl import logging
from orbax.checkpoint import v1 as ocp

from empathy_jax import files, hosts, pytree

# What orbax writes beside the arrays themselves (metadata, commit markers), generously.
OVERHEAD_BYTES = 1 << 20


class CheckpointError(ValueError):
    """A checkpoint that cannot be used as asked; the message says why and what to change."""


class Checkpointer:
    """Saves the checkpoints of one run; at most one save is under way at a time.

    Args:
      folder: `WORKDIR/<phase>/checkpoints`.
      keep: how many of the newest checkpoints stay.
    """

    def __init__(self, folder: Path, keep: int = 2):
        self._folder, self._keep = folder.absolute(), keep
        hosts.from_lead(lambda: self._folder.mkdir(parents=True, exist_ok=True))
        self._pending: tuple[int, Any] | None = None
        logging.get_absl_logger().addFilter(_is_news)

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Begin to save `state` (a dict of pytrees) as `step`; returns before the disk has it.

        Raises:
          OSError: when the disk cannot hold it; nothing is written then.
        """
        self.wait()
        manifest = _manifest(self._folder, step)
        if hosts.from_lead(manifest.exists) and _damage(self._folder, step) is None:
            return
        hosts.from_lead(lambda: manifest.unlink(missing_ok=True))
        files.require_space(self._folder, pytree.tree_bytes(state) + OVERHEAD_BYTES)
        with self._nothing_half_written(step):
            response = ocp.save_checkpointables_async(
                self._folder / str(step), state, overwrite=True
            )
        self._pending = step, response

    def wait(self) -> None:
        """Wait for the save under way, note its digests, and drop checkpoints beyond `keep`.

        Raises:
          OSError: when the disk refused it; nothing of it is left then.
        """
        if self._pending is None:
            return
        step, response = self._pending
        self._pending = None
        with self._nothing_half_written(step):
            response.result()
            digests = _digests(self._folder / str(step))
            hosts.from_lead(lambda: files.write_json(_manifest(self._folder, step), digests))
        if hosts.is_lead():
            self._drop_old()

    def _drop_old(self) -> None:
        kept = steps(self._folder)[-self._keep :]
        for path in self._folder.iterdir():
            if path.stem.isdigit() and int(path.stem) not in kept:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()

    @contextmanager
    def _nothing_half_written(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Other threads of orbax may write on for a moment.
            for _ in range(10 if hosts.is_lead() else 0):
                unfinished = self._folder.glob(f"{step}.orbax-checkpoint-tmp*")
                for path in (self._folder / str(step), *unfinished):
                    shutil.rmtree(path, ignore_errors=True)
                time.sleep(0.1)
            reason = " ".join(str(error).split())
            raise OSError(
                f"checkpoint {step} in {self._folder} was not written: {reason}; free some space or "
                "choose another --workdir"
            ) from error

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        # After an error of this process alone the others would never come to wait with it.
        if kind is None or hosts.count() == 1:
            self.wait()


def _is_news(record: LogRecord) -> bool:
    """False for tracebacks that orbax logs in its threads: `wait` raises the same errors."""
    return not (record.exc_info and "orbax" in Path(record.pathname).parts)


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder that were written to their end, oldest first."""
    return sorted(int(path.stem) for path in folder.glob("*.json") if path.stem.isdigit())


def newest_sound_step(folder: Path) -> int | None:
    """The newest checkpoint whose files are what was written; None when there is no checkpoint.

    Raises:
      CheckpointError: when there are checkpoints and every one is damaged.
    """
    folder = folder.absolute()
    problems = []
    for step in reversed(hosts.from_lead(lambda: steps(folder))):
        problem = _damage(folder, step)
        if problem is None:
            for line in problems if hosts.is_lead() else ():
                logging.warning("passed over %s", line)
            return step
        problems.append(f"checkpoint {step} in {folder}: {problem}")
    if problems:
        raise CheckpointError(
            "every checkpoint is damaged; restore them from a copy or delete the folder to start "
            "anew:\n  " + "\n  ".join(problems)
        )
    return None


def restore(folder: Path, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
    """Read parts of checkpoint `step` in the shapes, dtypes and shardings of `abstract`.

    Args:
      folder: `WORKDIR/<phase>/checkpoints`.
      step: one of `steps(folder)`.
      abstract: the parts wanted, e.g. {"model": ...}, leaves `jax.ShapeDtypeStruct`.

    Raises:
      CheckpointError: lists every missing, unexpected and mis-shaped array at once.
    """
    path = folder.absolute() / str(step)
    stored = ocp.checkpointables_metadata(path).metadata
    problems = []
    for name, tree in abstract.items():
        if name not in stored:
            problems.append(f"missing: {name} (the checkpoint has {', '.join(sorted(stored))})")
            continue
        problems += _differences(name, tree, stored[name])
    if problems:
        raise CheckpointError(
            f"checkpoint {path} is of another architecture; config.model and the checkpoint "
            f"differ in {len(problems)} arrays:\n  " + "\n  ".join(problems)
        )
    return ocp.load_checkpointables(path, abstract)


def _differences(name: str, wanted: Any, stored: Any) -> list[str]:
    wanted, stored = _shapes(wanted), _shapes(stored)
    lines = [f"missing: {name}/{key}" for key in sorted(wanted.keys() - stored.keys())]
    lines += [f"unexpected: {name}/{key}" for key in sorted(stored.keys() - wanted.keys())]
    lines += [
        f"mis-shaped: {name}/{key} is {stored[key]}, wanted {wanted[key]}"
        for key in sorted(wanted.keys() & stored.keys())
        if stored[key] != wanted[key]
    ]
    return lines


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {
        "/".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path): (
            tuple(leaf.shape)
        )
        for path, leaf in leaves
    }


def _manifest(folder: Path, step: int) -> Path:
    return folder / f"{step}.json"


def _digests(path: Path) -> dict[str, str]:
    """Name to digest of every file of a checkpoint."""

    def names() -> list[str]:
        return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())

    own = _share(hosts.from_lead(names))
    found = hosts.from_all({name: files.sha256(path / name) for name in own})
    return {name: digest for part in found for name, digest in sorted(part.items())}


def _damage(folder: Path, step: int) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    wanted = hosts.from_lead(lambda: _read_manifest(folder, step))
    if wanted is None:
        return "its list of digests cannot be read"
    problems = hosts.from_all(_first_problem(folder / str(step), wanted, _share(sorted(wanted))))
    return next((problem for problem in problems if problem is not None), None)


def _read_manifest(folder: Path, step: int) -> dict[str, str] | None:
    try:
        return json.loads(_manifest(folder, step).read_text(encoding="utf-8"))
    except ValueError:
        return None


def _first_problem(path: Path, wanted: dict[str, str], names: list[str]) -> str | None:
    for name in names:
        if not (path / name).is_file():
            return f"{name} is missing"
        if files.sha256(path / name) != wanted[name]:
            return f"{name} was changed after it was written"
    return None


def _share(names: list[str]) -> list[str]:
    """The files that this process reads; large and small ones are dealt out alike."""
    return names[hosts.index() :: hosts.count()]
