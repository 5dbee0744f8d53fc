"""Which encoding a text is in, and the text itself.

UTF-8 is tried first, because it hardly ever fits by chance; what is not UTF-8 is named by
charset-normalizer (https://github.com/jawah/charset_normalizer).
"""

import codecs
import re

import charset_normalizer

# The wider mark first: that of UTF-16 is the beginning of that of UTF-32.
_WIDE_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE_BYTES = 64 * 1024
_SURROGATE = re.compile("[\ud800-\udfff]")


def detect(data: bytes) -> str | None:
    """The name of the encoding, None where none fits.

    "utf-8" also stands for a text of which less than half the non-ASCII lines are broken: a few bad
    bytes spoil their lines, not the others.
    """
    if data.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if (name := wide(data)) is not None:
        return name
    if _mostly_utf8(data):
        return "utf-8"
    best = charset_normalizer.from_bytes(_telling(data)).best()
    return None if best is None else best.encoding


def wide(data: bytes) -> str | None:
    """The name of the encoding where it is UTF-16 or UTF-32, else None."""
    for mark, name in _WIDE_MARKS:
        if data.startswith(mark):
            return name
    sample = data[:_SAMPLE_BYTES]
    # English in UTF-16 without a mark is UTF-8 as well, with a zero in every second place.
    if sample.count(0) > len(sample) // 10:
        best = charset_normalizer.from_bytes(sample).best()
        if best is not None and is_wide(best.encoding):
            return best.encoding
    return None


def is_wide(encoding: str) -> bool:
    """Whether a line does not simply end with the byte 10 in this encoding."""
    return encoding.replace("_", "-").startswith(("utf-16", "utf-32"))


def decode(data: bytes, encoding: str) -> str:
    """The text; a byte that does not fit becomes half a surrogate pair (`is_broken`).

    Raises:
      UnicodeDecodeError: where a byte does not fit and cannot be marked so (UTF-16 and UTF-32).
    """
    return data.decode(encoding, "strict" if is_wide(encoding) else "surrogateescape")


def is_broken(text: str) -> bool:
    """Whether the text holds half a surrogate pair, which no valid text does."""
    return _SURROGATE.search(text) is not None


def _mostly_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        lines = [line for line in data.split(b"\n") if not line.isascii()]
        broken = sum(is_broken(line.decode("utf-8", "surrogateescape")) for line in lines)
        return broken < len(lines) / 2
    return True


def _telling(data: bytes) -> bytes:
    """The first lines that are not ASCII: only they tell encodings apart."""
    lines, size = [], 0
    for line in data.split(b"\n"):
        if not line.isascii():
            lines.append(line)
            size += len(line)
            if size > _SAMPLE_BYTES:
                break
    return b"\n".join(lines)
