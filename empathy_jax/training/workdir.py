"""The folder of a run: which run it holds, whether a phase is finished, and how it was made."""

import importlib.metadata
import json
import math
import operator
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from empathy_jax import checkpoint, files, hosts, resources
from empathy_jax.training import common

# Fields that may change between a run and its resumption: they do not change what is computed (another
# mesh no more than rounding), or say how much of it.
FREE_FIELDS = (
    "log",
    "checkpoint",
    "mesh",
    "corpus.workers",
    "annotate.base_url",
    "annotate.api_key_env",
    "annotate.timeout",
    "annotate.prompt_price",
    "annotate.completion_price",
    "annotate.max_tokens",
    "annotate.max_money",
    "annotate.questions",
    "annotate.concurrency",
    "annotate.retries",
    "annotate.backoff",
    "annotate.max_failures",
    "export.verify",
    "export.upload",
    "export.upload_part",
    "export.dry_run",
    "serve",
)
# Sections that a phase does not read: another value of theirs makes no different run.
_MODEL_FIELDS = ("model", "reward_model", "mesh", "sampling")
_TRAINING_FIELDS = ("steps", "batch_size", "optimizer")
_RECORD_FIELDS = ("corpus", "annotate")
OTHERS_FIELDS = {
    "corpus": (
        *_MODEL_FIELDS, *_TRAINING_FIELDS, "annotate", "sft", "rl", "evaluate", "export", "seed",
        "generate",
    ),
    "annotate": (
        *_MODEL_FIELDS, *_TRAINING_FIELDS, "corpus", "sft", "rl", "evaluate", "export", "generate",
    ),
    "sft": (*_RECORD_FIELDS, "reward_model", "rl", "evaluate", "export", "generate"),
    "reward_model": (
        *_RECORD_FIELDS, "model", "sampling", "sft", "rl", "evaluate", "export", "generate",
    ),
    "rl": (*_RECORD_FIELDS, "sft", "evaluate", "export", "generate"),
    "evaluate": (*_RECORD_FIELDS, *_TRAINING_FIELDS, "sft", "rl", "export", "generate"),
    "export": (*_RECORD_FIELDS, "sampling", "sft", "rl", "evaluate", "generate"),
    "generate": (*_RECORD_FIELDS, *_TRAINING_FIELDS, "sft", "evaluate", "export"),
}  # fmt: skip
# Files that only a run which has read its inputs leaves behind.
BEGUN = ("metrics.jsonl", "generations.jsonl", "chains.jsonl", "summary.json")
# What phases leave that are done anew when their models have changed, the mark of the end first.
REMADE = {
    "evaluate": (
        "summary.json",
        "resources.json",
        "scores.json",
        "values.jsonl",
        "references.jsonl",
        "report.html",
        "rejected.jsonl",
        "generations.jsonl",
    ),
    "export": (
        "summary.json",
        "resources.json",
        "verify.json",
        "hf",
        "adapter",
        "base",
        "int8",
        "int4",
    ),
    "generate": ("summary.json", "resources.json", "rejected.jsonl", "generations.jsonl"),
}
# Fields that count something and must be 1 or more; a phase of MAY_TAKE_NO_STEPS keeps its model.
MAY_TAKE_NO_STEPS = ("sft", "reward_model")
COUNTS = (
    "steps",
    "batch_size",
    "log.every",
    "log.validate_every",
    "checkpoint.every",
    "checkpoint.keep",
    "sampling.rows",
    "sft.row_tokens",
    "sft.samples",
    "rl.group_size",
    "rl.minibatches",
    "rl.passes",
    "rl.stop_window",
    "rl.rows_per_pass",
    "rl.eval_questions",
    "rl.eval_samples",
    "evaluate.samples",
    "reward_model.company",
    "reward_model.graded_pairs",
    "reward_model.max_tokens",
    "reward_model.mine_every",
    "data.max_prompt_tokens",
    "data.max_completion_tokens",
    "corpus.topic_max_tokens",
)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "grain", "numpy")


def open_phase(workdir: Path, phase: str, config: ConfigDict) -> Path:
    """Make `WORKDIR/<phase>` ready, or refuse it when it holds a different run.

    What `evaluate`, `export` and `generate` made of other models than those now there is removed, to be made
    anew.

    Returns:
      The folder, holding `config.json` (resolved), `inputs.json` and `environment.json`.

    Raises:
      ValueError: when the folder was made with other values or, in training, from other models;
        names each difference.
    """
    hosts.from_lead(lambda: _make_ready(workdir / phase, phase, config))
    return workdir / phase


def _make_ready(folder: Path, phase: str, config: ConfigDict) -> None:
    _check_counts(phase, config)
    resolved = json.loads(config.to_json_best_effort())
    _check_finite(resolved)
    written = folder / "config.json"
    begun = any(_has_content(folder / name) for name in BEGUN)
    taken = models_taken(folder.parent, phase, config)
    if begun and written.exists():
        before = json.loads(written.read_text(encoding="utf-8"))
        if changes := differing(phase, before, resolved):
            raise ValueError(
                f"{folder} holds a different run: "
                + "; ".join(f"config.{n} was {old!r} and is now {new!r}" for n, old, new in changes)
                + f". Give the former values to resume it, choose another --workdir, or delete {folder}"
            )
    elif not written.exists() and _holds_files(folder):
        raise ValueError(
            f"{folder} is not empty and has no config.json, so it is not a run of this program; "
            "choose another --workdir"
        )
    if begun and (folder / "inputs.json").exists():
        taken = _check_models(folder, phase, taken)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise files.explain(error, folder) from error
    files.write_json(written, resolved)
    files.write_json(folder / "inputs.json", taken)
    files.write_json(folder / "environment.json", environment())
    resources.begin(folder)


def differing(
    phase: str, before: dict[str, Any], after: dict[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Fields with which a phase computes something else: each with both values.

    Args:
      phase: that would run with the one or the other.
      before, after: resolved configs as JSON values.
    """
    others = (*FREE_FIELDS, *OTHERS_FIELDS.get(phase, ()))
    found = _differences(before, after)
    return [(name, old, new) for name, old, new in found if not _is_within(name, others)]


def models_taken(workdir: Path, phase: str, config: ConfigDict) -> dict[str, dict]:
    """The models that a phase takes in, as they lie on the disk now.

    Returns:
      `model` and `reward_model`, where there is one, each with its `place` (`init`, or the phase of
      the same WORKDIR) and, of a run, the newest checkpoint's `step` and the `digest` of its files.
    """
    taken = {}
    for name, phases in common.MODELS.get(phase, {}).items():
        init = config[name].init
        run = Path(init) if init else common.first_run(workdir, phases)
        if run is not None:
            taken[name] = {"place": init or run.name, **newest_checkpoint(run)}
    return taken


def newest_checkpoint(run: Path) -> dict:
    """`step` and `digest` of the newest checkpoint of a run; nothing where there is none."""
    steps = checkpoint.steps(run / "checkpoints")
    if not steps:
        return {}
    return {
        "step": steps[-1],
        "digest": files.sha256(run / "checkpoints" / f"{steps[-1]}.json"),
    }


def _check_models(folder: Path, phase: str, taken: dict[str, dict]) -> dict[str, dict]:
    """The models of the phase in `folder`: those it holds, or `taken` when it is done anew.

    A model that is gone since makes no result stale.
    """
    before = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))
    changes = "; ".join(
        f"{name} was {_describe(before.get(name))} and is now {_describe(now)}"
        for name, now in taken.items()
        if not now.items() <= before.get(name, {}).items()
    )
    if not changes:
        return before
    if phase not in REMADE:
        raise ValueError(
            f"{folder} was begun from other models: {changes}. Choose another --workdir, or delete "
            f"{folder}"
        )
    print(f"[{phase}] done anew: {changes}", flush=True)
    for name in REMADE[phase]:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return taken


def _describe(model: dict | None) -> str:
    if model is None:
        return "absent"
    if "step" not in model:
        return model["place"]
    return f"{model['place']} at step {model['step']} (digest {model['digest'][:8]})"


def _check_counts(phase: str, config: ConfigDict) -> None:
    for name in COUNTS:
        value = operator.attrgetter(name)(config)
        lowest = 0 if name == "steps" and phase in MAY_TAKE_NO_STEPS else 1
        if value < lowest:
            raise ValueError(f"config.{name} is {value}; it must be {lowest} or more")


def _check_finite(value: Any, name: str = "config") -> None:
    if isinstance(value, dict):
        for key, part in value.items():
            _check_finite(part, f"{name}.{key}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}; it must be a finite number")


def finished(folder: Path) -> dict | None:
    """The summary of a phase that ran to its end, else None."""

    def read() -> dict | None:
        path = folder / "summary.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    return hosts.from_lead(read)


def figure(folder: Path, label: str, metric: str) -> dict:
    """A measured figure of a phase: the first and the last value of a metric in metrics.jsonl.

    With a metric `<name>_error` beside it, standard errors are given too.
    """

    def ends() -> tuple[dict, dict]:
        rows = [row for row in files.read_jsonl(folder / "metrics.jsonl") if metric in row]
        return rows[0], rows[-1]

    first, last = hosts.from_lead(ends)
    result = {"name": label, "before": first[metric], "after": last[metric]}
    if f"{metric}_error" in first:
        result["error_before"] = first[f"{metric}_error"]
        result["error_after"] = last[f"{metric}_error"]
    return result


def finish(folder: Path, phase: str, began: float, figures: list[dict], **more: Any) -> dict:
    """Write `summary.json`, the mark of a finished phase, and return it.

    Args:
      folder: `WORKDIR/<phase>`.
      phase: its name.
      began: `time.monotonic()` at the start of this part; earlier parts of a resumed run are added.
      figures: {"name", "before", "after", "error_before"?, "error_after"?} each.
      more: further facts, JSON values.
    """

    def write() -> dict:
        used = resources.note(folder)
        summary = {
            "phase": phase,
            "seconds": round(used["earlier_seconds"] + time.monotonic() - began, 1),
            "peak_memory_bytes": used["peak_memory_bytes"],
            "figures": figures,
            **more,
        }
        files.write_json(folder / "summary.json", summary)
        return summary

    return hosts.from_lead(write)


def environment() -> dict:
    """Versions, devices and the commit of the code, for `environment.json`."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "devices": [str(device) for device in jax.devices()],
        "processes": hosts.count(),
        "cpus": os.cpu_count(),
        "commit": _commit(),
        "command": sys.argv,
    }


class Preempted(SystemExit):
    """SIGTERM was received and the state is saved: says how to go on, exit status 0."""

    def __init__(self, phase: str, step: int):
        super().__init__(0)
        print(
            f"[{phase}] SIGTERM at step {step}: saved; the same command goes on from here",
            flush=True,
        )


@contextmanager
def watch_sigterm() -> Iterator[list[int]]:
    """While active, SIGTERM is noted in the yielded list instead of ending the process."""
    received: list[int] = []
    try:
        previous = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    except ValueError:  # not in the main thread: signals are the caller's affair
        yield received
        return
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, previous)


def _differences(before: Any, after: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from _differences(
                before.get(key), after.get(key), f"{name}.{key}" if name else key
            )
    elif before != after:
        yield name, before, after


def _is_within(name: str, fields: tuple[str, ...]) -> bool:
    """Whether a field is one of `fields` or lies in a section among them."""
    return any(name == field or name.startswith(field + ".") for field in fields)


def _holds_files(folder: Path) -> bool:
    """Whether there is anything but what a run killed at its first file leaves."""
    return folder.exists() and any(path.suffix != files.PARTIAL for path in folder.iterdir())


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _commit() -> str | None:
    """Commit of the checkout this package lies in; None when it was installed as a package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    result = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or None
