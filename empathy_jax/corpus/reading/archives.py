"""Bytes out of files: plain, compressed or in a zip, however damaged and however large.

What was read before a damage is kept, the damage itself is returned as a BadRecord.
"""

import bz2
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from empathy_jax.corpus.records import BadRecord

OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}

# What is parsed as a whole has to fit in memory; a few kilobytes can unpack to petabytes.
MAX_BYTES = 2 * 2**30
_BLOCK_BYTES = 2**18

_DAMAGES = (
    OSError,
    EOFError,
    lzma.LZMAError,
    zlib.error,
    zipfile.BadZipFile,
    NotImplementedError,  # a compression that zipfile does not know
    RuntimeError,  # an encrypted member of a zip
)


def opener_suffix(name: str) -> str:
    """The ending that says how a file is compressed, "" where it is not."""
    return next((suffix for suffix in OPENERS if name.lower().endswith(suffix)), "")


def damage(error: Exception) -> BadRecord:
    """The reason of a reject for a file that cannot be read to its end."""
    return BadRecord(f"damaged: {type(error).__name__}: {error}"[:200])


@contextmanager
def opened(file: Path | BinaryIO, name: str) -> Iterator[BinaryIO]:
    """The unpacked bytes of a file whose ending is that of `name`.

    Raises:
      BadRecord: when it cannot be opened.
    """
    with ExitStack() as stack:
        try:
            raw = stack.enter_context(open(file, "rb")) if isinstance(file, Path) else file
            suffix = opener_suffix(name)
            stream = stack.enter_context(OPENERS[suffix](raw)) if suffix else raw
        except _DAMAGES as error:
            raise damage(error) from error
        yield stream


def blocks(stream: BinaryIO) -> Iterator[bytes | BadRecord]:
    """The bytes of a stream, block by block; a BadRecord comes last where it is damaged."""
    while True:
        try:
            # Not read(): where that meets the damage, it drops what came before.
            block = stream.read1(_BLOCK_BYTES)
        except _DAMAGES as error:
            yield damage(error)
            return
        if not block:
            return
        yield block


def read_whole(stream: BinaryIO) -> tuple[bytes, BadRecord | None]:
    """All bytes of a stream up to its end or its damage, and the damage."""
    kept: list[bytes] = []
    size = 0
    for block in blocks(stream):
        if isinstance(block, BadRecord):
            return b"".join(kept), block
        kept.append(block)
        size += len(block)
        if size > MAX_BYTES:
            reason = f"unpacks to more than {MAX_BYTES} bytes; make .jsonl of it, which is streamed"
            return b"", BadRecord(reason)
    return b"".join(kept), None


def names(path: Path) -> list[str]:
    """The names that `members` gives; [] where the file is no zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [info.filename for info in _visible(archive)]
    except (*_DAMAGES, ValueError):
        return []


def members(path: Path) -> Iterator[tuple[str, BinaryIO | BadRecord]]:
    """The names and streams of the files in a zip; without hidden ones, as a Mac adds.

    Raises:
      BadRecord: when it is no zip.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (*_DAMAGES, ValueError) as error:
        raise damage(error) from error
    with archive:
        for info in _visible(archive):
            try:
                stream = archive.open(info)
            except (*_DAMAGES, ValueError) as error:
                yield info.filename, damage(error)
                continue
            with stream:
                yield info.filename, stream


def _visible(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    return [
        info
        for info in archive.infolist()
        if not info.is_dir() and not any(part.startswith(".") for part in info.filename.split("/"))
    ]
