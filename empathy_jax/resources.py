"""What a phase has used: seconds over all its parts, and memory.

A run that was killed and goes on counts on: `resources.json` in the phase's folder is brought up to
date at every checkpoint and at the end of each part. Of a part that was killed, what followed its
last checkpoint is missing, like the work itself.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from empathy_jax import files

_NAME = "resources.json"


def begin(folder: Path) -> None:
    """Begin to count a new part of the phase of this folder; what earlier parts used is kept."""
    state, now = _read(folder), time.monotonic()
    seconds = state["earlier_seconds"] + state["seen"] - state["began"]
    files.write_json(
        folder / _NAME, {**state, "earlier_seconds": round(seconds, 3), "began": now, "seen": now}
    )


def note(folder: Path) -> dict[str, Any]:
    """Note that the part at hand has come this far.

    Returns:
      `earlier_seconds` of the parts before; `began` and `seen` of this part on the clock of its
      process (`time.monotonic`); `peak_memory_bytes` of the largest process so far.
    """
    state = _read(folder)
    state["seen"] = time.monotonic()
    state["peak_memory_bytes"] = max(state["peak_memory_bytes"], peak_memory_bytes())
    files.write_json(folder / _NAME, state)
    return state


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB, macOS bytes


def _read(folder: Path) -> dict[str, Any]:
    path = folder / _NAME
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    now = time.monotonic()
    return {"earlier_seconds": 0.0, "began": now, "seen": now, "peak_memory_bytes": 0}
