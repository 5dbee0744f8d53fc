"""Repairs of single characters: broken encodings, invisible characters, white space, the script.

Nothing here changes full-width Chinese punctuation: texts stay in NFC, never NFKC.
"""

import functools
import re
import unicodedata

import ftfy
import opencc

# ftfy mends encodings only; its other repairs would turn ，“” into ASCII.
_FTFY = ftfy.TextFixerConfig(
    unescape_html=False,
    remove_terminal_escapes=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    fix_line_breaks=False,
    fix_surrogates=False,
    remove_control_chars=False,
    normalization=None,
)
# What UTF-8 read as a one-byte encoding is made of: no such text lacks one of these.
_LATIN_MOJIBAKE = re.compile("[\x80-\x9fÂÃÄÅÆÇÈÉâäåæçèéêëìíîïðЎ][\x80-\uffff]")
# 的, 是, ， and 。 in UTF-8, read as GBK; the second of the pair varies.
_GBK_MOJIBAKE = re.compile("[鐨锛銆鏄浣鎴涓]")
_GBK_LOST = re.compile("[鐨锛銆]")
_LOST = re.compile("锟斤拷|\ufffd|烫烫烫|屯屯屯")
_NEVER_SEEN = (
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffc\ufffe\uffff\ud800-\udfff\ue000-\uf8ff"
    "\U000e0000-\U000e0fff\U000f0000-\U0010ffff"
)
_EMOJI = "\u00a9\u00ae\u2100-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff\ufe0f\u20e3"
_SUSPECT = re.compile(f"[{_NEVER_SEEN}\u200c\u200d\ufe00-\ufe0f]")
# Joiners and variation selectors are seen only behind an emoji or a letter of a script that joins.
_INVISIBLE = re.compile(
    f"[{_NEVER_SEEN}]|[\ufe00-\ufe0f](?<![{_EMOJI}0-9#*].)|[\u200c\u200d](?<![{_EMOJI}\u0600-\u1fff].)",
    re.DOTALL,
)
_LINE_END = re.compile("\r\n?|[\u0085\u2028\u2029]")
_SPACES = re.compile(
    "[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]{2,}|"
    "[\t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]"
)
_SPACE_AT_LINE_END = re.compile(" ?\n ?")
_BLANK_LINES = re.compile("\n{3,}")


def mojibake(text: str) -> tuple[str, int]:
    """Text that was decoded with the wrong encoding, decoded rightly where this is certain.

    UTF-8 read as Latin-1 or Windows-1252 is ftfy's work. UTF-8 read as GBK is mended where every
    character goes back to GBK and the bytes are UTF-8.
    """
    mended = text
    if _LATIN_MOJIBAKE.search(text):
        mended = ftfy.fix_text(text, _FTFY)
    if _GBK_MOJIBAKE.search(mended):
        mended = "\n".join(_mend_gbk(line) for line in mended.split("\n"))
    return mended, int(mended != text)


def invisible(text: str) -> tuple[str, int]:
    """Without control, zero-width, private-use and unassigned characters and lone selectors."""
    return _INVISIBLE.subn("", text) if _SUSPECT.search(text) else (text, 0)


def whitespace(text: str) -> tuple[str, int]:
    """NFC, line feeds, one space or tab in a row, no space at line ends, one blank line at most."""
    tidy = unicodedata.normalize("NFC", text)
    tidy = _SPACES.sub(" ", _LINE_END.sub("\n", tidy))
    tidy = _BLANK_LINES.sub("\n\n", _SPACE_AT_LINE_END.sub("\n", tidy)).strip()
    return tidy, int(tidy != text)


def script(text: str, target: str) -> tuple[str, int]:
    """The text in simplified or traditional characters (OpenCC, word by word).

    Args:
      target: "simplified", "traditional", or "keep".
    """
    if target == "keep":
        return text, 0
    converted = _converter(target).convert(text)
    return converted, int(converted != text)


def broken(text: str) -> bool:
    """Whether the encoding is lost: one character in fifty is a mark of a failed conversion."""
    lost = sum(len(mark) for mark in _LOST.findall(text)) + len(_GBK_LOST.findall(text))
    return lost > 0 and 50 * lost >= len(text)


def _mend_gbk(line: str) -> str:
    """The line that was meant; very short lines can be both, as 联通 is, and stay."""
    if len(line) < 4 or not _GBK_MOJIBAKE.search(line):
        return line
    try:
        return line.encode("gb18030").decode("utf-8")
    except UnicodeError:
        return line


@functools.cache
def _converter(target: str) -> opencc.OpenCC:
    return opencc.OpenCC({"simplified": "t2s", "traditional": "s2t"}[target])
