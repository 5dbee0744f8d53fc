"""HTML and the like, taken out of a text: tags, entities, embedded images, what MS Word leaves.

Only names of real elements are tags, so that "<3", "a < b", "<<标题>>" and whatever a help-seeker
types between angle brackets stay. Every scan goes forward once: comments and elements whose end
is missing cost no second look.
"""

import html
import re

_BLOCK = (
    "p|div|br|hr|li|ul|ol|dl|dt|dd|tr|table|tbody|thead|"
    "blockquote|pre|section|article|header|footer|h[1-6]"
)
_INLINE = (
    "a|abbr|b|big|center|cite|code|del|em|embed|figure|figcaption|font|i|iframe|img|input|ins|kbd|"
    "label|link|"
    "mark|meta|nobr|object|picture|q|s|small|source|span|strike|strong|sub|sup|svg|td|th|tt|u|"
    "video|audio|wbr|"
    "html|head|body|title|form|button|style|script|xml|main|nav|st1"
)
_ATTRIBUTES = r"(?:\s[^<>]*|/\s*)?"
_BLOCK_TAG = re.compile(rf"<\s?/?(?:{_BLOCK}){_ATTRIBUTES}>", re.IGNORECASE)
_INLINE_TAG = re.compile(rf"<\s?/?(?:(?:{_INLINE})|[owvmx]:[a-z]+){_ATTRIBUTES}>", re.IGNORECASE)
_CONDITIONAL = re.compile(r"<!\[?[^<>]{0,200}>", re.IGNORECASE)
# Elements whose content nobody is meant to read.
_HIDDEN = ("style", "script", "xml", "head", "title")
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,30});")
_ESCAPED_TWICE = re.compile(r"&(?:amp;)+(?=[#a-zA-Z])")
_EMBEDDED = re.compile(
    r"data:[a-z0-9.+\-]{1,40}/[a-z0-9.+\-]{1,40};base64,[A-Za-z0-9+/=]*", re.IGNORECASE
)
_BBCODE = re.compile(
    r"\[/?(?:b|i|u|s|url|img|quote|color|size|font|align|center)(?:=[^\[\]\n]{0,100})?\]"
)


def markup(text: str) -> tuple[str, int]:
    """The text without HTML, BBCode and embedded images; block elements end a line.

    Returns:
      the text, and the number of tags, entities and images taken out.
    """
    if "<" not in text and "&" not in text and "[" not in text and ";base64," not in text:
        return text, 0
    text, comments = _without(text, "<!--", "-->")
    text, hidden = _without_hidden(text)
    text, images = _EMBEDDED.subn("", text)
    text, conditions = _CONDITIONAL.subn("", text)
    text, blocks = _BLOCK_TAG.subn("\n", text)
    text, inline = _INLINE_TAG.subn("", text)
    text, codes = _BBCODE.subn("", text)
    text, entities = _ENTITY.subn(lambda m: html.unescape(m[0]), _ESCAPED_TWICE.sub("&", text))
    return text, comments + hidden + images + conditions + blocks + inline + codes + entities


def _without(text: str, opening: str, closing: str) -> tuple[str, int]:
    """The text without what stands from each opening to the next closing, both included."""
    pieces, position, count = [], 0, 0
    while (start := text.find(opening, position)) >= 0:
        end = text.find(closing, start + len(opening))
        if end < 0:
            break
        pieces.append(text[position:start])
        position, count = end + len(closing), count + 1
    return "".join([*pieces, text[position:]]) if count else text, count


def _without_hidden(text: str) -> tuple[str, int]:
    count = 0
    for name in _HIDDEN:
        if f"<{name}>" in text or f"<{name} " in text:
            for opening in (f"<{name}>", f"<{name} "):
                text, found = _without(text, opening, f"</{name}>")
                count += found
    return text, count
