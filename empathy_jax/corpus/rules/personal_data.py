"""Personal data in a text, replaced by typed placeholders such as [PHONE].

Each rule is one function: text in, text and number of replacements out. What looks like personal
data and is none stays: hotlines (12356, 110, 400 numbers, a landline called a hotline), order and
examination numbers, dates, prices, 18 digits whose checksum is wrong, addresses of web pages that
name nobody. Every pattern is bounded, so the time is linear in the text.

References: GB 11643-1999 (number and checksum of the Chinese ID card, ISO 7064 MOD 11-2);
ISO/IEC 7812-1 annex B (Luhn, for bank cards).
"""

import re
from datetime import date

from empathy_jax.corpus.rules import contacts, names

PLACEHOLDERS = {
    "email": "[EMAIL]",
    "user_url": "[URL]",
    "id_card": "[ID_CARD]",
    "bank_card": "[BANK_CARD]",
    "phone": "[PHONE]",
    "wechat": "[WECHAT]",
    "qq": "[QQ]",
    "full_name": "[NAME]",
}

_SEPARATOR = r"[ \-.·]"
_COMMA = r"[ \-.·,]"
_MOBILE = re.compile(
    r"(?<![0-9])(?<![0-9][ \-.·])(?:\(?\+?86\)?[ \-]?)?"
    rf"(?:1[3-9][0-9](?:[0-9]{{8}}|{_COMMA}[0-9]{{4}}{_COMMA}[0-9]{{4}})"
    rf"|1[3-9][0-9]{{2}}{_SEPARATOR}[0-9]{{4}}{_SEPARATOR}[0-9]{{3}}"
    rf"|1{_SEPARATOR}[3-9](?:{_SEPARATOR}[0-9]){{9}})(?![0-9元块])"
)
_LANDLINE = re.compile(
    r"(?<![0-9])(?:\(0[1-9][0-9]{1,2}\) ?|0[1-9][0-9]{1,2}[ \-])[2-8][0-9]{2,3}[ \-]?[0-9]{4}(?![0-9])"
    r"|(?<=[打拨话机系:])0[1-9][0-9]{1,2}[2-8][0-9]{6,7}(?![0-9])"
    r"|(?<![0-9])(?:\+?1[\-. ])?(?:\([2-9][0-9]{2}\) ?|"
    r"[2-9][0-9]{2}[\-.])[2-9][0-9]{2}[\-. ][0-9]{4}(?![0-9])"
)
_TOLL_FREE = re.compile(r"(?:\+?1[\-. ])?\(?(?:400|8(?:00|22|33|44|55|66|77|88))[)\-. ]")
_HOTLINE = re.compile(
    r"热线|援助|危机|干预|救助|维权|举报|求助电话|hotline|helpline|lifeline|crisis"
)
_SALES_LINE = re.compile(r"(?:报名|课程|订购|订票|招商|加盟|预约|销售)[^，。]{0,2}热线")
# Not where 电话 or the like comes between: that announces a phone number whatever stands before.
_RECORD_NUMBER = re.compile(
    r"(?:订单|单号|快递|学号|考号|编号|流水|合同|报名号|准考证)(?:(?!电话|手机|联系)[^，。]){0,8}$"
)
_ID_CARD = re.compile(
    r"(?<![0-9a-z])[1-9][0-9]{5}[ \-]?(?:18|19|20)[0-9]{6}[ \-]?[0-9]{3}[0-9x](?![0-9a-z])"
)
_BANK_CARD = re.compile(
    r"(?<![0-9])[3-6][0-9]{3}(?:[ \-]?[0-9]{4}){3}(?:[ \-]?[0-9]{1,3})?(?![0-9])"
)
_CARD_WORD = re.compile(r"卡|[账帐][号户]|户头|银行|银联|card|account|visa")
_EMAIL = re.compile(
    r"(?<![a-z0-9._%+\-])[a-z0-9][a-z0-9._\-]{2,40}#(?:qq|163|126|foxmail|gmail|sina|sohu|outlook|"
    r"hotmail)\.com"
    r"|"
    r"(?<![a-z0-9._%+\-])[a-z0-9][a-z0-9._%+\-]{0,63}@(?:[a-z0-9\-]{1,63}\.){1,4}[a-z]{2,24}(?![a-z0-9])"
)
_URL = re.compile(
    r"(?:https?://|(?<![a-z0-9.])www\.|(?<![a-z0-9./])(?:weibo\.com|t\.me)/)[!-~]{2,2000}"
)
_USER_URL = re.compile(
    r"//[^/@\s]{1,64}@"  # user:password@host
    r"|[/.](?:weibo\.(?:com|cn)/(?:[un]/)?|zhihu\.com/people/|space\.bilibili\.com/|douyin\.com/user/"
    r"|xiaohongshu\.com/user/|douban\.com/people/|jianshu\.com/u/|qzone\.qq\.com/|"
    r"tieba\.baidu\.com/home"
    r"|(?:instagram|facebook|twitter|x|pinterest|tiktok|snapchat|github)\.com/@?|t\.me/"
    r"|linkedin\.com/in/|youtube\.com/(?:@|user/|c/)|medium\.com/@|counselchat\.com/therapists/)[\w@]"
    r"|^(?:weibo\.com|t\.me)/\w|/(?:users?|u|profile|people|member|therapists?)/[\w\-]{2,}|/[~@]\w"
    r"|[?&](?:user|uid|userid|user_id|username|uin|qq)=\w"
)


def email(text: str) -> tuple[str, int]:
    """E-mail addresses, also with a full-width ＠ or ．, or with # for @"""
    if not any(mark in text for mark in "@＠#"):
        return text, 0
    spans = [match.span() for match in _EMAIL.finditer(contacts.folded(text))]
    return contacts.cut(text, spans, PLACEHOLDERS["email"])


def user_url(text: str) -> tuple[str, int]:
    """Addresses of web pages that belong to one person; other addresses stay."""
    if not any(mark in text for mark in ("://", "www.", "WWW.", "weibo.com/", "t.me/", "：／／")):
        return text, 0
    view = contacts.folded(text)
    found = (match for match in _URL.finditer(view) if _USER_URL.search(match[0]))
    spans = [
        (match.start(), match.start() + len(match[0].rstrip(".,;:!?)]'\""))) for match in found
    ]
    return contacts.cut(text, spans, PLACEHOLDERS["user_url"])


def id_card(text: str) -> tuple[str, int]:
    """Chinese ID card numbers of 18 places whose date exists and whose checksum is right."""
    if not contacts.has_number(text):
        return text, 0
    matches = _ID_CARD.finditer(contacts.folded_numbers(text))
    spans = [match.span() for match in matches if is_id_card(_compact(match[0]))]
    return contacts.cut(text, spans, PLACEHOLDERS["id_card"])


def bank_card(text: str) -> tuple[str, int]:
    """Bank card numbers of 16 to 19 digits that pass the Luhn test.

    One in ten random numbers passes, so the number must also begin with 62 (UnionPay) or stand near
    a word such as 卡, and not after 订单号 and the like.
    """
    if not contacts.has_number(text):
        return text, 0
    view = contacts.folded_numbers(text)
    spans = [m.span() for m in _BANK_CARD.finditer(view) if _is_bank_card(m)]
    return contacts.cut(text, spans, PLACEHOLDERS["bank_card"])


def phone(text: str) -> tuple[str, int]:
    """Mobile numbers and landlines, in China and North America; hotlines and toll-free stay."""
    if not contacts.has_number(text):
        return text, 0
    count = 0
    # Without Chinese numerals first: 一 behind a number in digits mostly begins a word, such as 一直.
    for folded in (contacts.folded, contacts.folded_numbers):
        for pattern, stays in ((_MOBILE, _after_record_word), (_LANDLINE, _is_hotline)):
            spans = [m.span() for m in pattern.finditer(folded(text)) if not stays(m)]
            text, found = contacts.cut(text, spans, PLACEHOLDERS["phone"])
            count += found
    return text, count


def wechat(text: str) -> tuple[str, int]:
    """WeChat accounts, under whatever disguise of the word 微信."""
    if not (contacts.has_latin_name(text) or contacts.has_number(text)):
        return text, 0
    return contacts.cut(text, contacts.wechat_spans(text), PLACEHOLDERS["wechat"])


def qq(text: str) -> tuple[str, int]:
    """QQ numbers and numbers of QQ groups."""
    if not contacts.has_number(text):
        return text, 0
    return contacts.cut(text, contacts.qq_spans(text), PLACEHOLDERS["qq"])


def full_name(text: str) -> tuple[str, int]:
    """Full names where the text says that they are names: 我叫, 姓名：, "my name is", a title."""
    return contacts.cut(text, names.spans(text), PLACEHOLDERS["full_name"])


def is_id_card(number: str) -> bool:
    """Whether 18 places are a Chinese ID card number: a real date, and the checksum of GB 11643.

    The checksum: ∑ 2^(17-i) · dᵢ ≡ 1 (mod 11) over places i = 0..17, where the last may be x = 10.
    """
    try:
        date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    digits = [10 if place == "x" else int(place) for place in number]
    return sum(digit << (17 - i) for i, digit in enumerate(digits)) % 11 == 1


def luhn(number: str) -> bool:
    """Whether the digits pass the Luhn test.

    From the right every second digit is doubled; all cross sums together are 0 mod 10.
    """
    digits = [int(digit) for digit in reversed(number)]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _compact(number: str) -> str:
    return number.replace(" ", "").replace("-", "")


def _is_bank_card(match: re.Match[str]) -> bool:
    number = _compact(match[0])
    if not luhn(number) or _after_record_word(match):
        return False
    near = match.string[max(0, match.start() - 20) : match.end() + 10]
    return number.startswith("62") or _CARD_WORD.search(near) is not None


def _after_record_word(match: re.Match[str]) -> bool:
    before = match.string[max(0, match.start() - 14) : match.start()]
    return _RECORD_NUMBER.search(before) is not None


def _is_hotline(match: re.Match[str]) -> bool:
    if _TOLL_FREE.match(match[0]):
        return True
    near = match.string[max(0, match.start() - 30) : match.end() + 12]
    return _HOTLINE.search(near) is not None and not _SALES_LINE.search(near)


RULES = (
    ("email", email, "e-mail addresses become [EMAIL]"),
    ("user_url", user_url, "addresses of one person's pages become [URL]"),
    ("id_card", id_card, "ID card numbers with the right checksum become [ID_CARD]"),
    ("bank_card", bank_card, "bank card numbers that pass the Luhn test become [BANK_CARD]"),
    ("phone", phone, "mobile numbers and landlines become [PHONE]; hotlines stay"),
    ("wechat", wechat, "WeChat accounts become [WECHAT]"),
    ("qq", qq, "QQ numbers and QQ groups become [QQ]"),
    ("full_name", full_name, "full names, where told to be names, become [NAME]"),
)
