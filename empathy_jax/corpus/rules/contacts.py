"""How people write numbers and accounts: folding of disguises, and where the accounts stand.

People who harvest contacts write 微信 as 薇信, 威❤, V信 or VX, QQ as 扣扣 or 企鹅, a number with
spaces, in full-width digits or in Chinese numerals. The views below undo this for looking only:
they have the length of the text, so that a span found in a view is a span of the text.
"""

import re
from collections.abc import Iterator

Span = tuple[int, int]

_WIDTH = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_WIDTH |= {0x3000: " ", 0xA0: " ", ord("➕"): "+", ord("："): ":"}
_LOWER = {code: chr(code + 32) for code in range(ord("A"), ord("Z") + 1)}
_LOWER |= {code: chr(code - 0xFEE0 + 32) for code in range(0xFF21, 0xFF3B)}
_NUMERALS = {ord(c): str(i) for i, c in enumerate("零一二三四五六七八九")}
_NUMERALS |= {ord(c): str(i) for i, c in enumerate("零壹贰叁肆伍陆柒捌玖")}
_NUMERALS |= {ord(c): str(i) for i, c in enumerate("⓪①②③④⑤⑥⑦⑧⑨")}
_NUMERALS |= {ord("〇"): "0", ord("幺"): "1"}
_FOLD = _WIDTH | _LOWER
_FOLD_NUMBERS = _FOLD | _NUMERALS

# Five digits with at most one separator or comma between them: what any number of interest contains.
_DIGITS = "0-9０-９〇零一幺二三四五六七八九壹贰叁肆伍陆柒捌玖⓪①②③④⑤⑥⑦⑧⑨"
_DIGIT_RUN = re.compile(rf"[{_DIGITS}](?:[ \-.·，,]?[{_DIGITS}]){{4}}")
_LATIN_RUN = re.compile("[A-Za-zＡ-Ｚａ-ｚ][A-Za-z0-9_\\-Ａ-Ｚａ-ｚ０-９＿]{5}")

_WORD = (
    r"(?:微信|(?:(?<![a-z])[vw]|[薇徽维威危唯巍葳∨微])[ .·*❤♥♡\ufe0f]{0,3}(?:信|心|芯|星|x(?:in)?|❤|♥)"
    r"|绿泡泡|绿色软件|(?<![a-z])we ?chat|(?<![a-z])weixin)"
)
_GLUE = r"(?:号码?|id|[账帐]号|同号|搜一?搜?|为|是|叫|的|我|[:=\s\-—~(（「“\"'\ufe0f]){0,8}"
_ID = r"([a-z][a-z0-9_\-]{5,19})(?![a-z0-9_\-@.])"
_NUMBER = r"([1-9][0-9]{5,10})(?![0-9年月日元块人次个多岁万千])"
_SHORT = (
    r"(?:(?:加|\+)(?:一?下)?我?的?个?\s?(?:[vw]|薇|威|微|卫星|❤|♥)"
    r"|(?<![a-z0-9])(?:[vw]|薇|威|微)(?=\s?:))[\ufe0f\s:]{0,4}"
)
_WECHAT = re.compile(rf"{_WORD}{_GLUE}(?:{_ID}|{_NUMBER})|{_SHORT}{_ID}")
_WECHAT_LATER = re.compile(rf"(?:我的号码?|[账帐]号)(?:是|为|:)\s?{_ID}")
_WECHAT_WORD = re.compile(_WORD)
_EXPLICIT = re.compile(r"(?:号|id|搜|:|是|叫)[^a-z]{0,4}$")
# Names of things, which stand after 微信 without being anybody's account.
_NO_ACCOUNT = re.compile(
    "wechat|weixin|iphone|ipad|android|facebook|instagram|twitter|telegram|whatsapp|hello|moments|"
    "emoji|message|official|windows|alipay|tiktok|youtube|google|redmi|huawei|app-store|mini-program"
)

_QQ = re.compile(
    r"(?:(?<![a-z])q ?q|扣扣|蔻蔻|抠抠|叩叩|企鹅|裙|群|(?:加我?|\+)(?:个|的)? ?[q扣]"
    r"|(?<![a-z])q(?=[ :]{0,3}[0-9群号])|扣(?=[ :]{0,3}[0-9]))"
    r"(?:群|裙|号码?|是|为|叫|[:=\s]){0,6}"
    r"([1-9][0-9]{5,10}|[1-9][0-9]{2,4}(?:[ \-][0-9]{2,4}){1,3})"
    r"(?![0-9年月日元块人次个多岁万千])"
)


def folded(text: str) -> str:
    """The text with half-width letters, in lower case; as long as the text."""
    return text.translate(_FOLD)


def folded_numbers(text: str) -> str:
    """`folded`, with Chinese and circled numerals as digits; as long as the text."""
    return text.translate(_FOLD_NUMBERS)


def has_number(text: str) -> bool:
    """Whether five digits follow each other, however written."""
    return _DIGIT_RUN.search(text) is not None


def has_latin_name(text: str) -> bool:
    """Whether an account of letters and digits could stand in the text."""
    return _LATIN_RUN.search(text) is not None


def wechat_spans(text: str) -> list[Span]:
    """Where WeChat accounts stand: the account alone, without the word 微信 before it."""
    view = folded(text)
    spans = [match.span(match.lastindex) for match in _WECHAT.finditer(view) if _is_account(match)]
    if _WECHAT_WORD.search(view):
        later = (
            match.span(match.lastindex)
            for match in _WECHAT_LATER.finditer(view)
            if _is_account(match)
        )
        spans.extend(span for span in later if span not in spans)
    return sorted(spans)


def qq_spans(text: str) -> list[Span]:
    """Where QQ numbers and numbers of QQ groups stand."""
    spans = (match.span(1) for match in _QQ.finditer(folded_numbers(text)))
    return [(start, end) for start, end in spans if 6 <= _digits(text[start:end]) <= 11]


def _is_account(match: re.Match[str]) -> bool:
    """A name of letters alone must be called an account; one with a digit or a bar speaks for itself."""
    account = match[match.lastindex]
    if _NO_ACCOUNT.fullmatch(account):
        return False
    if not account.isalpha():
        return True
    before = match.string[match.start() : match.start(match.lastindex)]
    return _EXPLICIT.search(before) is not None


def _digits(text: str) -> int:
    return sum(char.isdigit() for char in folded_numbers(text))


def cut(text: str, spans: list[Span], placeholder: str) -> tuple[str, int]:
    """The text with the placeholder in place of each span, and the number of spans."""
    return "".join(_pieces(text, spans, placeholder)), len(spans)


def _pieces(text: str, spans: list[Span], placeholder: str) -> Iterator[str]:
    last = 0
    for start, end in spans:
        yield text[last:start]
        yield placeholder
        last = end
    yield text[last:]
