"""The server's log: one JSON line for each thing that happened, on standard output.

What people write, and what they are answered, stands in it only where `config.serve.log_texts` asks
for it: notes hold routes, counts and codes.
"""

import time
import traceback
from typing import Any

from empathy_jax import files


def note(**what: Any) -> None:
    """Writes one line, with the time."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    print(files.dumps({"time": now, **what}), flush=True)


def note_error(error: BaseException) -> None:
    """Notes an error of this program by its type and place; its message might repeat a text."""
    places = [
        f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)[-4:]
    ]
    note(error=type(error).__name__, places=places)
