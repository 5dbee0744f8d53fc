"""Texts of others inside a prompt: data that can form no tag, no control token and no end mark.

In the copy that is sent, every angle and square bracket is replaced by a bracket that no vocabulary
uses (〈 〉 〔 〕, stable under NFKC); and the copy stands between two marks that hold a hash of the
text, so that no text can contain its own end.
"""

# Both the ASCII forms and those that NFKC, which some tokenizers apply, would turn into them.
_NEUTRAL = str.maketrans(
    dict.fromkeys("<＜﹤", "〈")
    | dict.fromkeys(">＞﹥", "〉")
    | dict.fromkeys("[［", "〔")
    | dict.fromkeys("]］", "〕")
)


def neutral(text: str) -> str:
    """The text with brackets that can form neither a tag nor a control token."""
    return text.translate(_NEUTRAL)
