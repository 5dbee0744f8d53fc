"""Files that are whole or absent: JSON written by rename, JSONL written line by line.

A process may be killed, or a disk may fill up, between any two instructions. A reader of these files
then finds every line that was finished and no part of one that was not.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

PARTIAL = ".partial"  # end of the name of a file that is being written, or whose writer was killed
_is_writing = True  # false in all but one of the processes of a run


def leave_to_another_process() -> None:
    """From here on nothing is written here: the functions that write do nothing.

    Of the processes of a run one writes (`hosts.py`); all have the same to write.
    """
    global _is_writing
    _is_writing = False


def dumps(record: Any, **options: Any) -> str:
    """JSON text of a record: UTF-8 characters kept as they are, NaN and infinity refused."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False, **options)


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write: it takes `path`'s place at the end, or is gone after an error."""
    temporary = path.with_name(path.name + PARTIAL)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise explain(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole file or leave what was there (temporary sibling, flush, rename)."""
    if not _is_writing:
        return
    with whole(path) as file:
        file.write(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write one JSON value as a whole, indented file."""
    write_text(path, dumps(value, indent=2) + "\n")


def write_jsonl(path: Path, records: Iterable[dict]) -> None:
    """Write a whole JSONL file at once, holding one line at a time."""
    if not _is_writing:
        return
    with whole(path) as file:
        for record in records:
            file.write((dumps(record) + "\n").encode("utf-8"))


def append_jsonl(path: Path, records: list[dict]) -> None:
    """Append whole lines; when the disk refuses them, cut the file back to what it was.

    Raises:
      OSError: with the path, the reason and what to do, e.g. on a full disk.
    """
    if not _is_writing:
        return
    data = "".join(dumps(record) + "\n" for record in records).encode("utf-8")
    size = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "ab") as file:
            file.write(data)
    except OSError as error:
        if path.exists():
            os.truncate(path, size)
        raise explain(error, path) from error


def read_jsonl(path: Path) -> Iterator[dict]:
    """Records of a JSONL file that this program wrote; a cut last line is left out."""
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n") and line.strip():
                yield json.loads(line)


def keep_jsonl(path: Path, keep: Any) -> None:
    """Rewrite a JSONL file with the records for which `keep(record)` is true, if it exists."""
    if _is_writing and path.exists():
        write_jsonl(path, [record for record in read_jsonl(path) if keep(record)])


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_space(path: Path, size: int) -> None:
    """Refuse to begin a write of `size` bytes that the disk under `path` cannot hold.

    Raises:
      OSError: names the folder, the bytes needed and the bytes free.
    """
    if not _is_writing:
        return
    free = shutil.disk_usage(path).free
    if free < size:
        raise OSError(
            errno.ENOSPC,
            f"no space for {size / 2**20:.1f} MiB in {path}: {free / 2**20:.1f} MiB are free; "
            "free some space or choose another --workdir",
        )


def explain(error: OSError, path: Path) -> OSError:
    """The same error with the path and the way out in its message."""
    if error.errno == errno.ENOSPC:
        free = shutil.disk_usage(path.parent).free
        return OSError(
            errno.ENOSPC,
            f"no space left for {path}: {free / 2**20:.1f} MiB are free; "
            "free some space or choose another --workdir",
        )
    return OSError(error.errno, f"cannot write {path}: {error.strerror}")
